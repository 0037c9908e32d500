"""What is asked of sizing and what it answers, and the questions that cannot be answered."""

from dataclasses import dataclass, field

from sizing.adapter_settings import Adapters
from sizing.adapters import check_adapters
from sizing.drafters import Drafter
from sizing.engine_cache import Caches
from sizing.errors import QuestionError
from sizing.gpu import AMPERE, Device, compute_major
from sizing.layers import Compressed, Indexer, Latent
from sizing.memory import CUDA_BLOCK_SIZE, Budget, Corrections, Term
from sizing.model import ModelShape
from sizing.release import NEWEST, Release

_ONE_ENGINE = Release(11)


@dataclass(frozen=True)
class Question:
    """A model on one device, or on `count` of them; None leaves a setting to vLLM's default or to the answer.

    `stage_devices` names the card of each pipeline stage where they differ; `device` is then the smallest of them.
    """

    model: ModelShape
    device: Device
    count: int = 1
    tensor_parallel_size: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    kv_cache_memory_bytes: int | None = None
    kv_cache_dtype: str = "auto"
    enforce_eager: bool = False
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    data_parallel_size: int = 1
    """So many engines of these sizes, which divide the experts among them and repeat the rest."""
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    """None: vLLM's default for the model and the release."""
    stage_devices: tuple[Device, ...] = ()
    release: Release = NEWEST
    speculative: Drafter | None = None
    adapters: Adapters | None = None
    """LoRA adapters that there is to be room for."""
    corrections: Corrections | None = None
    caches: Caches | None = field(default=None, compare=False, repr=False)
    """Worked out before for this model; a plan that asks hundreds of questions hands them on."""


@dataclass(frozen=True)
class EngineSettings:
    """What the engine has to be started with for the answer to hold; names are vLLM's flags."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int | None
    gpu_memory_utilization: float | None
    kv_cache_memory_bytes: int | None
    tensor_parallel_size: int
    kv_cache_dtype: str
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    data_parallel_size: int = 1

    @property
    def num_cards(self) -> int:
        """Of all data-parallel ranks together."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size


@dataclass(frozen=True)
class Range:
    """What a figure is nine times out of ten, as far as the terms' bands are right."""

    low: int
    high: int


@dataclass(frozen=True)
class Answer:
    """Every figure is per rank unless it says otherwise; tokens and requests are the whole engine's.

    With pipeline stages, bytes are those of the stage that has least room for the KV cache.
    """

    fits: bool
    reason: str | None
    """Why not, with the numbers; None when it fits."""
    way_out: str | None
    """Settings that were put through the same arithmetic and fit; None when it fits or nothing does."""
    note: str | None
    """What was decided for the asker, such as a context shorter than the model's own."""
    terms: tuple[Term, ...]
    limit_bytes: int
    """What the terms and the KV cache share: the utilization's part of a card, or the free memory of a processor."""
    weights_bytes: int
    kv_bytes_per_token: int
    kv_cache_bytes: int
    """Available for blocks; what the engine allocates is the whole blocks in it."""
    kv_cache_tokens: int
    num_blocks: int
    block_size: int
    max_concurrency: float
    """As vLLM logs it, the null block counted."""
    requests_fit: int
    """Requests of `max_model_len` that run at once."""
    claimed_bytes: int
    """What this engine takes from each device in all."""
    needed_kv_bytes: int
    """What one request of `max_model_len` takes, the null block included."""
    longest_model_len: int
    """The longest context these KV bytes hold one request of; 0 where none."""
    settings: EngineSettings
    kv_cache_bytes_range: Range
    kv_cache_tokens_range: Range
    certain: bool
    """Whether both ends of the range give the same yes or no."""
    stage: int = 0
    """The pipeline stage whose bytes these are."""
    budgets: tuple[Budget, ...] = ()
    """Of every pipeline stage."""

    @property
    def holds(self) -> str:
        """What runs at once, in words; releases before 0.29 may start a block short of one request."""
        length = f"{self.settings.max_model_len:,} tokens"
        if self.requests_fit == 0:
            return f"it starts, but its blocks hold not one whole request of {length}"
        return f"{self.requests_fit:,} request{'s' if self.requests_fit > 1 else ''} of {length} at once"


def check(question: Question) -> None:
    """Raises QuestionError for settings that contradict each other or the model; `answer` asks this first."""
    positive = {
        "count": question.count,
        "tensor_parallel_size": question.tensor_parallel_size,
        "max_model_len": question.max_model_len,
        "max_num_seqs": question.max_num_seqs,
        "max_num_batched_tokens": question.max_num_batched_tokens,
        "kv_cache_memory_bytes": question.kv_cache_memory_bytes,
        "pipeline_parallel_size": question.pipeline_parallel_size,
        "data_parallel_size": question.data_parallel_size,
        "block_size": question.block_size,
    }
    for name, value in positive.items():
        if value is not None and value < 1:
            raise QuestionError(f"{name} is {value}; it must be at least 1")
    utilization = question.gpu_memory_utilization
    if utilization is not None and not 0 < utilization <= 1:
        raise QuestionError(f"gpu_memory_utilization is {utilization}; it must be above 0 and at most 1")
    longest = question.model.longest_model_len
    if question.max_model_len is not None and question.max_model_len > longest:
        raise QuestionError(
            f"max_model_len is {question.max_model_len:,}, but {question.model.name} goes up to {longest:,}; "
            f"ask for {longest} or less"
        )
    if question.pipeline_parallel_size > question.model.num_hidden_layers:
        raise QuestionError(
            f"pipeline_parallel_size is {question.pipeline_parallel_size}, but {question.model.name} has "
            f"{question.model.num_hidden_layers} layers; use that many stages or fewer"
        )
    if question.stage_devices and len(question.stage_devices) != question.pipeline_parallel_size:
        raise QuestionError(
            f"{len(question.stage_devices)} stage devices for {question.pipeline_parallel_size} pipeline stages; "
            "name one for each stage"
        )
    _check_kernels(question)
    check_adapters(question.adapters, question.model, enable_expert_parallel=question.enable_expert_parallel)
    several = (
        max(
            question.count,
            question.tensor_parallel_size or 1,
            question.pipeline_parallel_size,
            question.data_parallel_size,
        )
        > 1
    )
    if question.device.kind == "cpu" and several:
        raise QuestionError("a processor is one device here; tensor parallel over its NUMA nodes is not sized yet")


def _check_kernels(question: Question) -> None:
    """What no attention kernel of an NVIDIA card takes; vLLM then finds no backend and ends at start.

    v1/attention/backends: flash_attn.py, flashinfer.py, triton_attn.py.
    """
    major = compute_major(question.device.name)
    if major is None or question.release < _ONE_ENGINE:
        return
    if question.block_size is not None and question.block_size % CUDA_BLOCK_SIZE:
        raise QuestionError(
            f"block_size is {question.block_size}; on a GPU it has to be a multiple of {CUDA_BLOCK_SIZE}"
        )
    if question.kv_cache_dtype.startswith("nvfp4") and major < AMPERE:
        raise QuestionError(
            f"a KV cache of type {question.kv_cache_dtype} needs Ampere or newer, not {question.device.name}; use auto"
        )


def check_layers(question: Question) -> None:
    """Kinds of layers that vLLM lays out on this device in a way that is not known here."""
    kept = question.model.layer_types
    if question.device.kind == "cpu" and kept & {Latent, Compressed}:
        raise QuestionError(
            f"{question.model.name} has latent attention, whose blocks on a processor depend on its instruction set "
            "and are not sized yet; name a card by --gpu"
        )
    if kept & {Indexer, Compressed} and question.device.kind == "cuda" and compute_major(question.device.name) is None:
        raise QuestionError(
            f"{question.model.name} on {question.device.name}: how its sparse attention lays out the KV cache there is "
            "not known; name an NVIDIA card of the catalogue"
        )
