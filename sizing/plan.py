"""From a Question to its Answer: does it fit, with which settings, and if not, which settings would."""

from dataclasses import dataclass, field, replace
from functools import partial

from sizing.activations import Batch
from sizing.division import indivisible
from sizing.engine_cache import Caches, Drafter, Serving
from sizing.errors import QuestionError
from sizing.gpu import GIB, Device, compute_major
from sizing.kv_cache import Capacity, KvCache
from sizing.layers import Compressed, Indexer, Latent, Recurrent
from sizing.memory import (
    CUDA_BLOCK_SIZE,
    Budget,
    Corrections,
    Engine,
    Parallel,
    Term,
    batch_limits,
    block_size,
    cpu_budget,
    default_utilization,
    gpu_budget,
    usable_bytes,
)
from sizing.model import ModelShape
from sizing.release import NEWEST, Release
from sizing.remedy import fitting_remedies

_MOST_RANKS = 64
_STATES_ARE_COUNTED = Release(20)
_ONE_ENGINE = Release(11)
_AMPERE = 8
SHORTEST_USEFUL_LEN = 1024
"""A context nobody asked for is never cut below this; a model that holds less does not fit."""


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
    block_size: int | None = None
    enable_prefix_caching: bool | None = None
    """None: vLLM's default for the model and the release."""
    stage_devices: tuple[Device, ...] = ()
    release: Release = NEWEST
    speculative: Drafter | None = None
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

    @property
    def num_cards(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size


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


def answer(question: Question) -> Answer:
    """Answer a question by arithmetic alone.

    Raises:
        QuestionError: settings that contradict each other, the model or the device.
    """
    check(question)
    settled = settle(question)
    if settled.fits:
        return settled
    remedies = fitting_remedies(question, settled, settle)
    way_out = "try " + ", or ".join(remedy.text for remedy in remedies) if remedies else None
    return replace(settled, way_out=way_out)


def cache_capacity(question: Question, kv_cache_bytes: int) -> Capacity:
    """What vLLM makes of that much memory for the KV cache on each rank, whatever the weights take.

    Raises:
        QuestionError: as `answer`, for what the cache depends on.
    """
    check(question)
    _check_layers(question)
    max_model_len = question.max_model_len or question.model.max_model_len
    batch = _batch(question, max_model_len)
    settings = _settings(question, batch, question.tensor_parallel_size or 1, max_model_len)
    return _cache(question, settings, batch).capacity(kv_cache_bytes, max_model_len)


def settle(question: Question) -> Answer:
    """The answer without a way out: the smallest tensor parallel size, then the longest context, that fits."""
    _check_layers(question)
    sizes = _tensor_parallel_sizes(question)
    wanted = question.max_model_len or question.model.max_model_len
    tried = [_evaluate(question, size, wanted) for size in sizes]
    for attempt in tried:
        if attempt.fits:
            return attempt
    if question.max_model_len is None:
        shortened = [_shortened(question, attempt) for attempt in tried]
        fitting = [attempt for attempt in shortened if attempt is not None]
        if fitting:
            return max(fitting, key=lambda attempt: attempt.settings.max_model_len)
    return tried[-1]


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
    several = max(question.count, question.tensor_parallel_size or 1, question.pipeline_parallel_size) > 1
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
    if question.kv_cache_dtype.startswith("nvfp4") and major < _AMPERE:
        raise QuestionError(
            f"a KV cache of type {question.kv_cache_dtype} needs Ampere or newer, not {question.device.name}; use auto"
        )


def _check_layers(question: Question) -> None:
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


def _tensor_parallel_sizes(question: Question) -> tuple[int, ...]:
    """The sizes to try, smallest first: the one asked for, or the powers of two the cards and the heads allow."""
    asked, stages = question.tensor_parallel_size, question.pipeline_parallel_size
    model = question.model
    rules = partial(indivisible, enable_expert_parallel=question.enable_expert_parallel, release=question.release)
    cards = question.count // stages
    if asked is None and cards:
        powers = [2**n for n in range(cards.bit_length()) if 2**n <= cards]
        return tuple(size for size in powers if rules(model, size) is None)
    needed = (asked or 1) * stages
    if asked is None or asked > cards:
        split = f"tensor_parallel_size is {asked or 1}" + (f" in {stages} pipeline stages" if stages > 1 else "")
        raise QuestionError(f"{split}, but there are {question.count} devices; --count {needed}")
    why = rules(model, asked)
    if why is not None:
        allowed = ", ".join(str(size) for size in range(1, _MOST_RANKS + 1) if rules(model, size) is None)
        raise QuestionError(f"tensor_parallel_size {asked} {why} of {model.name}; use one of {allowed}")
    return (asked,)


def _shortened(question: Question, attempt: Answer) -> Answer | None:
    """The attempt again with the longest context its memory holds; None where that is of no use."""
    size = attempt.settings.tensor_parallel_size
    own = question.model.max_model_len
    longest = attempt.longest_model_len
    if longest < min(own, SHORTEST_USEFUL_LEN):
        return None
    shorter = _evaluate(question, size, longest)
    note = f"the model's own context of {own:,} tokens does not fit; {longest:,} is the longest that does"
    return replace(shorter, note=_joined(note, shorter.note)) if shorter.fits else None


def _evaluate(question: Question, tensor_parallel_size: int, max_model_len: int) -> Answer:
    """One tensor parallel size and one context length: the sum, and whether vLLM would start with it."""
    device, batch = question.device, _batch(question, max_model_len)
    if batch.max_num_batched_tokens < batch.max_num_seqs:
        raise QuestionError(
            f"max_num_batched_tokens is {batch.max_num_batched_tokens}, less than max_num_seqs {batch.max_num_seqs}; "
            "raise the first or lower the second"
        )
    settings = _settings(question, batch, tensor_parallel_size, max_model_len)
    cache = _cache(question, settings, batch)
    budgets = _budgets(question, batch, cache, settings)
    if device.kind == "cpu":
        kv_cache_memory_bytes = question.kv_cache_memory_bytes or max(0, budgets[0].kv_cache_bytes)
        settings = replace(settings, kv_cache_memory_bytes=kv_cache_memory_bytes)
    found = _judged(question, settings, cache, budgets)
    states_short = found.reason is not None and found.num_blocks < batch.max_num_seqs and question.max_num_seqs is None
    if states_short and _too_few_states(question, found.num_blocks, batch.max_num_seqs) and found.num_blocks:
        fewer = _evaluate(replace(question, max_num_seqs=found.num_blocks), tensor_parallel_size, max_model_len)
        note = f"max_num_seqs is lowered from {batch.max_num_seqs:,}: each sequence needs a block of recurrent state"
        return replace(fewer, note=_joined(note, fewer.note)) if fewer.fits else found
    return found


def _batch(question: Question, max_model_len: int) -> Batch:
    return batch_limits(
        question.device,
        max_model_len=max_model_len,
        max_num_seqs=question.max_num_seqs,
        max_num_batched_tokens=question.max_num_batched_tokens,
        release=question.release,
    )


def _judged(question: Question, settings: EngineSettings, cache: KvCache, budgets: tuple[Budget, ...]) -> Answer:
    """What vLLM makes of these budgets, one for each pipeline stage."""
    max_model_len = settings.max_model_len
    available = [budget.kv_cache_bytes for budget in budgets]
    # the stage that holds fewest blocks decides
    stage = min(range(len(budgets)), key=lambda at: available[at] / cache.stage_block_bytes[at])
    budget = budgets[stage]
    reason = _refusal(question, budgets, stage, cache, settings)
    capacity = cache.capacity(available, max_model_len)
    low, high = ([budget.kv_cache_band[end] for budget in budgets] for end in (0, 1))
    return Answer(
        fits=reason is None,
        reason=reason,
        way_out=None,
        note=_joined(question.model.assumed, question.model.caveat) or None,
        terms=budget.terms,
        limit_bytes=budget.limit_bytes,
        weights_bytes=budget.terms[0].bytes,
        kv_bytes_per_token=cache.bytes_per_token,
        kv_cache_bytes=max(0, budget.kv_cache_bytes),
        kv_cache_tokens=capacity.tokens,
        num_blocks=capacity.num_blocks,
        block_size=cache.block_size,
        max_concurrency=capacity.max_concurrency,
        requests_fit=cache.requests_fit(available, max_model_len),
        claimed_bytes=budget.claimed_bytes,
        needed_kv_bytes=cache.needed_bytes(max_model_len) + cache.block_bytes,
        longest_model_len=cache.longest_model_len(available, max_model_len),
        settings=settings,
        kv_cache_bytes_range=Range(max(0, low[stage]), max(0, high[stage])),
        kv_cache_tokens_range=Range(
            cache.capacity(low, max_model_len).tokens, cache.capacity(high, max_model_len).tokens
        ),
        certain=cache.holds(low, max_model_len) == cache.holds(high, max_model_len) or _too_much(question, budgets),
        stage=stage,
        budgets=budgets,
    )


def _cache(question: Question, settings: EngineSettings, batch: Batch) -> KvCache:
    model, device = question.model, question.device
    caches = question.caches if question.caches and question.caches.model is model else Caches(model)
    return caches.of(
        Serving(
            block_size=question.block_size or block_size(device, model, question.kv_cache_dtype),
            tensor_parallel_size=settings.tensor_parallel_size,
            pipeline_parallel_size=settings.pipeline_parallel_size,
            kv_cache_dtype=question.kv_cache_dtype,
            max_num_batched_tokens=batch.max_num_batched_tokens,
            enable_prefix_caching=question.enable_prefix_caching,
            async_scheduling=None if device.kind == "cuda" else False,
            release=question.release,
            compute_major=compute_major(device.name),
            on_processor=device.kind == "cpu",
            speculative=question.speculative,
        ),
    )


def _settings(question: Question, batch: Batch, tensor_parallel_size: int, max_model_len: int) -> EngineSettings:
    utilization = None
    if question.device.kind == "cuda" and question.kv_cache_memory_bytes is None:
        utilization = question.gpu_memory_utilization or min(
            default_utilization(device, question.release) for device in _stage_devices(question)
        )
    return EngineSettings(
        max_model_len=max_model_len,
        max_num_seqs=batch.max_num_seqs,
        max_num_batched_tokens=batch.max_num_batched_tokens,
        gpu_memory_utilization=utilization,
        kv_cache_memory_bytes=question.kv_cache_memory_bytes,
        tensor_parallel_size=tensor_parallel_size,
        kv_cache_dtype=question.kv_cache_dtype,
        pipeline_parallel_size=question.pipeline_parallel_size,
        enable_expert_parallel=question.enable_expert_parallel,
    )


def _stage_devices(question: Question) -> tuple[Device, ...]:
    return question.stage_devices or (question.device,) * question.pipeline_parallel_size


def _budgets(question: Question, batch: Batch, cache: KvCache, settings: EngineSettings) -> tuple[Budget, ...]:
    if question.device.kind == "cpu":
        return (
            cpu_budget(
                question.model,
                question.device,
                batch,
                cache,
                max_model_len=settings.max_model_len,
                kv_cache_memory_bytes=question.kv_cache_memory_bytes,
            ),
        )
    parallel = Parallel(settings.tensor_parallel_size, settings.pipeline_parallel_size, settings.enable_expert_parallel)
    engine = Engine(
        parallel,
        batch,
        settings.max_model_len,
        enforce_eager=question.enforce_eager,
        release=question.release,
        corrections=question.corrections,
    )
    return tuple(
        gpu_budget(
            question.model,
            device,
            engine,
            stage=stage,
            gpu_memory_utilization=settings.gpu_memory_utilization or 0.0,
            kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
        )
        for stage, device in enumerate(_stage_devices(question))
    )


def _free(device: Device) -> int:
    return device.free_bytes if device.kind == "cpu" else usable_bytes(device)


def _too_much(question: Question, budgets: tuple[Budget, ...]) -> bool:
    """Whether a stage claims memory that is not free on its card."""
    return any(
        budget.claimed_bytes > _free(device) for budget, device in zip(budgets, _stage_devices(question), strict=True)
    )


def _refusal(
    question: Question, budgets: tuple[Budget, ...], stage: int, cache: KvCache, settings: EngineSettings
) -> str | None:
    """Why vLLM would not start, in its own order: memory that is not free, then too little left for one request."""
    max_model_len, max_num_seqs = settings.max_model_len, settings.max_num_seqs
    for budget, device in zip(budgets, _stage_devices(question), strict=True):
        free = _free(device)
        if budget.claimed_bytes > free:
            return (
                f"the engine would take {_gib(budget.claimed_bytes)} of {device.name}, "
                f"where {_gib(max(0, free))} is free"
            )
    available = [budget.kv_cache_bytes for budget in budgets]
    if cache.holds(available, max_model_len):
        return _too_few_states(question, cache.num_blocks(available), max_num_seqs)
    budget = budgets[stage]
    where = f" on pipeline stage {stage}" if len(budgets) > 1 else ""
    block = cache.stage_block_bytes[stage]
    needed = _gib((cache.blocks_per_request(max_model_len) + 1) * block)
    limit = _gib(budget.limit_bytes)
    if budget.kv_cache_bytes <= 0:
        return f"weights and work take {_gib(budget.fixed_bytes)} of {limit}{where}, which leaves no KV cache"
    left = _gib(budget.kv_cache_bytes)
    return (
        f"one request of {max_model_len:,} tokens needs {needed} of KV cache{where}, "
        f"and {left} of {limit} is left for it"
    )


def _too_few_states(question: Question, num_blocks: int, max_num_seqs: int) -> str | None:
    """vLLM captures graphs of `max_num_seqs` sequences, each with a block of recurrent state of its own.

    vllm/config/compilation.py: resolve_cudagraph_mode_and_sizes, since 0.20.
    """
    states = any(isinstance(layer, Recurrent) for caches in question.model.cache_layers for layer in caches)
    if not states or question.enforce_eager or question.release < _STATES_ARE_COUNTED or max_num_seqs <= num_blocks:
        return None
    return (
        f"max_num_seqs is {max_num_seqs:,}, and each sequence needs a block for its recurrent state, "
        f"of which {num_blocks:,} fit"
    )


def _joined(*notes: str | None) -> str:
    return "; ".join(note for note in notes if note)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
