"""The memory budget of one engine: what its weights and its work take, and what is left for the KV cache.

The sums are vLLM's own (v1/worker/gpu_worker.py and cpu_worker.py: determine_available_memory); the terms that it
measures by running the model are estimated from the shape, each with a band (sizing.overheads).
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

from sizing.activations import Batch, activation_peak, penalty_state_bytes, second_runner
from sizing.adapter_settings import Adapters
from sizing.adapters import adapter_bytes, punica_bytes
from sizing.drafters import Drafter
from sizing.encoders import kept_tokens
from sizing.gpu import GIB, HOPPER, Device, compute_major, link_of
from sizing.kv_cache import KvCache
from sizing.layers import Indexer, Latent
from sizing.model import ModelShape
from sizing.overheads import OVERHEADS, Band, Overheads, exactly
from sizing.release import NEWEST, Release, batch_defaults
from sizing.weights import weights_per_rank

_WEIGHTS_SPREAD = 0.01
_WEIGHTS_SPREAD_MXFP4 = 0.16  # one log of a Blackwell workstation card is that much above Marlin's padding
_MXFP4_MAJORS = (8, 9)  # compute capabilities whose MXFP4 weights logs confirm
_ADAPTERS_READ = Release(32)
_ADAPTERS_BEFORE = (0.4, 1.2)  # mixtures and tables had none, or a few rows more, in older releases
_PADDED_ADAPTERS = 0.9
_WEIGHTS_SPREAD_ASSUMED = 0.30  # a feed-forward layer without a gate is a third smaller than was assumed
CUDA_BLOCK_SIZE = 16  # vllm/config/cache.py
CPU_BLOCK_SIZE = 128  # vllm/platforms/cpu.py


@dataclass(frozen=True)
class Parallel:
    """How one engine is spread over cards; names are vLLM's flags."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    enable_expert_parallel: bool = False
    data_parallel_size: int = 1

    @property
    def num_cards(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    def ranks_of(self, model: ModelShape) -> int:
        """How many ranks work on one layer together: those of data parallelism too where they share out experts."""
        return self.tensor_parallel_size * (self.data_parallel_size if model.num_moe_layers else 1)


@dataclass(frozen=True)
class Term:
    """One addend of the sum on one rank, the range it lies in nine times out of ten, and why."""

    name: str
    bytes: int
    why: str
    low_bytes: int
    high_bytes: int

    @classmethod
    def exact(cls, name: str, num_bytes: int, why: str) -> "Term":
        return cls(name, num_bytes, why, num_bytes, num_bytes)


@dataclass(frozen=True)
class Budget:
    """What one rank may take, what it takes beside the KV cache, and what that leaves."""

    limit_bytes: int
    terms: tuple[Term, ...]
    kv_cache_bytes: int
    """Negative where the terms alone are more than the limit."""
    claimed_bytes: int
    """What the device gives up in all; what is only left free is not claimed."""
    kv_cache_given: bool = False
    """The KV bytes were asked for, so the terms' bands do not move them."""

    @property
    def fixed_bytes(self) -> int:
        return sum(term.bytes for term in self.terms)

    @property
    def more_bytes(self) -> int:
        """What the terms may take beyond their sum; errors of the terms are independent, so they add in squares."""
        return round(math.hypot(*(term.high_bytes - term.bytes for term in self.terms)))

    @property
    def kv_cache_band(self) -> tuple[int, int]:
        """The KV bytes at the bad and at the good end."""
        if self.kv_cache_given:
            return self.kv_cache_bytes, self.kv_cache_bytes
        less = math.hypot(*(term.bytes - term.low_bytes for term in self.terms))
        return self.kv_cache_bytes - self.more_bytes, self.kv_cache_bytes + round(less)


class Corrections(Protocol):
    """A user's own start-up logs, as far as they say how far off a term is (sizing.calibration)."""

    def corrected(
        self,
        term: str,
        *,
        predicted_bytes: int,
        low_bytes: int,
        high_bytes: int,
        gpu: str,
        link: str,
        tensor_parallel_size: int,
        release: object,
        model: str = "",
    ) -> tuple[int, int, int]:
        """Value, low and high end of a term on that card, in bytes."""


@dataclass(frozen=True)
class Engine:
    """What decides an engine's terms beside its model and card."""

    parallel: Parallel
    batch: Batch
    max_model_len: int
    enforce_eager: bool = False
    release: Release = NEWEST
    corrections: Corrections | None = None
    overheads: Overheads = OVERHEADS
    drafter: Drafter | None = None
    adapters: Adapters | None = None

    def drafts_on(self, stage: int) -> Drafter | None:
        """What drafts on that pipeline stage: only the last has the drafter's weights."""
        return self.drafter if stage == self.parallel.pipeline_parallel_size - 1 else None


def block_size(device: Device, model: ModelShape, kv_cache_dtype: str = "auto") -> int:
    """The smallest block that the attention kernels vLLM picks on that device take (vllm/platforms/cuda.py)."""
    if device.kind == "cpu":
        return CPU_BLOCK_SIZE
    kept = model.layer_types
    if Indexer in kept:
        return 64
    if Latent not in kept:
        return CUDA_BLOCK_SIZE
    major = compute_major(device.name)
    if major == 10:
        return 32  # FlashInfer's
    quantized = "fp8" in (kv_cache_dtype if kv_cache_dtype != "auto" else model.kv_cache_dtype)
    return 64 if major == 9 and quantized else CUDA_BLOCK_SIZE  # FlashMLA's, where FlashAttention takes no fp8


def batch_limits(
    device: Device,
    *,
    max_model_len: int,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    release: Release = NEWEST,
    undivided_item_tokens: int = 0,
) -> Batch:
    """What was asked, else vLLM's defaults for a server on that device (engine/arg_utils.py: get_batch_defaults).

    Pictures and videos that are not cut into batches raise the default since 0.22.
    """
    if device.kind == "cpu":
        default_seqs, default_tokens = 128, 2048
    else:
        default_seqs, default_tokens = batch_defaults(
            release,
            memory_bytes=device.memory_bytes,
            name=device.name,
            unified=device.unified,
            max_model_len=max_model_len,
        )
    if release >= Release(22):
        default_tokens = max(default_tokens, undivided_item_tokens)
    seqs = max_num_seqs or default_seqs
    tokens = max_num_batched_tokens or min(default_tokens, seqs * max_model_len)
    if max_num_seqs is None:
        seqs = min(seqs, tokens)
    return Batch(seqs, tokens)


def gpu_budget(
    model: ModelShape,
    device: Device,
    engine: Engine,
    *,
    stage: int,
    gpu_memory_utilization: float,
    kv_cache_memory_bytes: int | None,
) -> Budget:
    """`--gpu-memory-utilization` of the card's total, less what is measured at start; or the KV bytes as given.

    For one rank of one pipeline stage, counted from 0.
    """
    terms = _gpu_terms(model, device, engine, stage)
    fixed_bytes = sum(term.bytes for term in terms)
    if kv_cache_memory_bytes is not None:  # vLLM then ignores the utilization, and takes this on trust
        claimed_bytes = fixed_bytes + kv_cache_memory_bytes
        limit_bytes = max(0, usable_bytes(device, engine.overheads))
        return Budget(limit_bytes, terms, kv_cache_memory_bytes, claimed_bytes, kv_cache_given=True)
    limit_bytes = math.ceil(device.memory_bytes * gpu_memory_utilization)
    return Budget(limit_bytes, terms, limit_bytes - fixed_bytes, limit_bytes)


def usable_bytes(device: Device, overheads: Overheads = OVERHEADS) -> int:
    """What a new engine finds free on a card once its CUDA context is there; it refuses to ask for more."""
    return device.free_bytes - int(overheads.cuda_context_gib * GIB)


def default_utilization(device: Device, release: Release = NEWEST, overheads: Overheads = OVERHEADS) -> float:
    """vLLM's default where the card is free enough for it, else the share that is free, rounded down."""
    free_share = max(0.0, usable_bytes(device, overheads) / device.memory_bytes)
    return min(release.gpu_memory_utilization, math.floor(free_share * 1000) / 1000)


def cpu_budget(
    model: ModelShape,
    device: Device,
    batch: Batch,
    cache: KvCache,
    *,
    max_model_len: int,
    kv_cache_memory_bytes: int | None,
    drafter: Drafter | None = None,
    adapters: Adapters | None = None,
    overheads: Overheads = OVERHEADS,
) -> Budget:
    """The KV bytes to ask for: all that `max_num_seqs` requests can use, as far as free memory goes.

    vLLM does not profile a processor. It takes `--kv-cache-memory-bytes` as given and refuses only what is not free
    at that moment, so what the rest of the engine needs has to be left free here.
    """
    weights = _weights(model, device, Parallel(), stage=0)
    processes = Term.exact(
        "processes", overheads.cpu_processes_bytes, "API server, engine core and worker, as measured"
    )
    share = overheads.cpu_safety_share
    left_free = Term.exact("left free", int(device.free_bytes * share), f"{share:.0%} of the memory that is free now")
    engine = Engine(Parallel(), batch, max_model_len, adapters=adapters)
    beside = _adapters(model, device, engine, stage=0)
    if drafter is not None:
        beside += _drafter(drafter, model, device, engine)
    terms = (weights, *beside, processes, left_free)
    kv_cache_bytes = kv_cache_memory_bytes
    if kv_cache_bytes is None:
        left = device.free_bytes - sum(term.bytes for term in terms)
        useful_blocks = batch.max_num_seqs * cache.blocks_per_request(max_model_len) + 1  # and the null block
        kv_cache_bytes = min(useful_blocks, left // cache.block_bytes) * cache.block_bytes
    claimed_bytes = sum(term.bytes for term in terms) - left_free.bytes + max(0, kv_cache_bytes)
    return Budget(device.free_bytes, terms, kv_cache_bytes, claimed_bytes, kv_cache_given=True)


def _gpu_terms(model: ModelShape, device: Device, engine: Engine, stage: int) -> tuple[Term, ...]:
    parallel, batch = engine.parallel, engine.batch
    found = [_weights(model, device, parallel, stage, engine.release), *_adapters(model, device, engine, stage)]
    drafter = engine.drafts_on(stage)
    if drafter is not None:
        found += _drafter(drafter, model, device, engine)
    state = penalty_state_bytes(model, batch, engine.release)
    if state:
        found.append(Term.exact("sampler state", state, f"token counts of {batch.max_num_seqs:,} sequences"))
    activation = _activation(model, engine, stage)
    found.append(activation)
    if model.has_encoder:
        found.append(_encoder_run(model, activation, engine))
    found.append(_non_torch(model, device, engine))
    if _estimates_graphs(model, device, engine.release):
        found.append(_cudagraphs(model, device, engine, stage))
    return tuple(_corrected(term, model, device, engine) for term in found)


def _corrected(term: Term, model: ModelShape, device: Device, engine: Engine) -> Term:
    """The term as the user's own logs correct it; the work's, if none tells it, by what starts left for the KV cache.

    That is how far the sum was off beside all that other lines explain. Both together would narrow one band twice.
    """
    if engine.corrections is None:
        return term
    ask = partial(
        engine.corrections.corrected,
        gpu=device.name,
        link=link_of(device),
        tensor_parallel_size=engine.parallel.tensor_parallel_size,
        release=engine.release,
        model=model.name,
    )
    value, low, high = ask(term.name, predicted_bytes=term.bytes, low_bytes=term.low_bytes, high_bytes=term.high_bytes)
    if term.name == "activations" and (value, low, high) == (term.bytes, term.low_bytes, term.high_bytes):
        left = ask("KV cache", predicted_bytes=0, low_bytes=value - high, high_bytes=value - low)
        value, high, low = (max(0, value - more) for more in left)
    moved = (value, low, high) != (term.bytes, term.low_bytes, term.high_bytes)
    return Term(term.name, value, f"{term.why}; moved by your own starts" if moved else term.why, low, high)


def _term(name: str, band: Band, why: str) -> Term:
    return Term(name, round(band.value), why, max(0, round(band.low)), round(band.high))


def _weights(model: ModelShape, device: Device, parallel: Parallel, stage: int, release: Release = NEWEST) -> Term:
    major = compute_major(device.name)
    per_stage = weights_per_rank(
        model,
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        enable_expert_parallel=parallel.enable_expert_parallel,
        data_parallel_size=parallel.data_parallel_size,
        compute_major=major,
        as_allocated=device.kind == "cuda",
        release=release,
    )
    held = per_stage[stage]
    rank = f", one rank of {parallel.num_cards}" if parallel.num_cards > 1 else ""
    number_type = model.quantization or model.dtype
    why = f"{model.num_parameters / 1e9:.2f}B parameters in {number_type}, by {model.weights_source}{rank}"
    spread = _WEIGHTS_SPREAD_ASSUMED if model.assumed else _WEIGHTS_SPREAD
    above = spread
    if model.held and model.held.tiles and major not in _MXFP4_MAJORS:
        above, why = _WEIGHTS_SPREAD_MXFP4, f"{why}; how much this card's MXFP4 kernel pads is not known"
    return Term("weights", held, why, round(held * (1 - spread)), round(held * (1 + above)))


def _adapters(model: ModelShape, device: Device, engine: Engine, stage: int) -> list[Term]:
    """What adapters are loaded into, allocated with the model whether any is loaded or not."""
    adapters, parallel, batch = engine.adapters, engine.parallel, engine.batch
    if adapters is None:
        return []
    held = adapter_bytes(
        model,
        adapters,
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        stage=stage,
        enable_expert_parallel=parallel.enable_expert_parallel,
        data_parallel_size=parallel.data_parallel_size,
        as_allocated=device.kind == "cuda",
    )
    held += punica_bytes(adapters, max_num_seqs=batch.max_num_seqs, max_num_batched_tokens=batch.max_num_batched_tokens)
    why = f"room for {adapters}"
    if engine.release < _ADAPTERS_READ:
        low, high = _ADAPTERS_BEFORE
        return [Term("LoRA adapters", held, f"{why}, as 0.32 keeps them", round(held * low), round(held * high))]
    padded = _PADDED_ADAPTERS if model.held and model.held.tiles else 1.0  # if this card's kernel pads experts at all
    return [Term("LoRA adapters", held, why, round(held * padded), held)]


def _drafter(drafter: Drafter, model: ModelShape, device: Device, engine: Engine) -> list[Term]:
    """Its weights, divided as the model's are, and the buffers it keeps beside them."""
    if drafter.model is None:
        return []
    parallel, batch, drafts = engine.parallel, engine.batch, drafter.model
    held = weights_per_rank(
        drafts,
        tensor_parallel_size=parallel.tensor_parallel_size,
        enable_expert_parallel=parallel.enable_expert_parallel and drafts.num_moe_layers > 0,
        data_parallel_size=parallel.data_parallel_size if drafts.num_moe_layers else 1,
        compute_major=compute_major(device.name),
        as_allocated=device.kind == "cuda",
        release=engine.release,
    )[0]
    held += drafter.stretched_bytes(engine.max_model_len)
    tables, said = _tables(drafter, model, parallel)
    spread = _WEIGHTS_SPREAD_ASSUMED if drafts.assumed else _WEIGHTS_SPREAD
    what = "prediction layers" if drafter.method == "mtp" else drafter.name
    why = f"{what}, for {drafter.num_speculative_tokens} tokens ahead ({drafter.method}){said}"
    high = round(held * (1 + spread)) + (0 if drafter.method == "mtp" else tables)
    value = held + (tables if drafter.method == "mtp" else 0)
    found = [Term("drafter", value, why, round(held * (1 - spread)), max(high, value))]
    state = drafter.state_bytes(
        max_num_seqs=batch.max_num_seqs,
        max_num_batched_tokens=batch.max_num_batched_tokens,
        dtype_bytes=model.dtype_bytes,
    )
    if state:
        found.append(Term.exact("drafter state", state, "what it reads of a batch and keeps for the next step"))
    return found


def _tables(drafter: Drafter, model: ModelShape, parallel: Parallel) -> tuple[int, str]:
    """One rank's bytes of an embedding that is, or may be, the drafter's own, and the words for it.

    vLLM drops a copy that equals the model's. With pipeline stages the last has none to share, so prediction layers
    keep theirs (v1/worker/gpu/spec_decode/eagle/utils.py: maybe_share_target_embed).
    """
    tp = parallel.tensor_parallel_size
    if drafter.method == "mtp" and parallel.pipeline_parallel_size > 1 and model.held is not None:
        return model.held.embedding // tp, ", with an embedding of its own on the last pipeline stage"
    table = drafter.model.table_bytes if drafter.model is not None else 0
    if not table:
        return 0, ""
    return table // tp, "; its files have an embedding, which is dropped where it equals the model's"


def _activation(model: ModelShape, engine: Engine, stage: int) -> Term:
    parallel = engine.parallel
    peak = activation_peak(
        model,
        engine.batch,
        tensor_parallel_size=parallel.tensor_parallel_size,
        enable_expert_parallel=parallel.enable_expert_parallel,
        release=engine.release,
        first_stage=stage == 0,
        last_stage=stage == parallel.pipeline_parallel_size - 1,
        max_model_len=engine.max_model_len,
        overheads=engine.overheads,
        enforce_eager=engine.enforce_eager,
        expert_ranks=parallel.ranks_of(model),
        drafter=engine.drafts_on(stage),
        adapters=engine.adapters,
    )
    return _term("activations", peak.bytes, peak.why)


def _encoder_run(model: ModelShape, activation: Term, engine: Engine) -> Term:
    """What profiling the encoder takes beyond the decoder's peak, which comes after it and beside its outputs.

    It grows with the tower beyond those that it was measured on. The weights of a tower that is not known here are in
    it too, with a band for all sizes that are usual.
    """
    overheads = engine.overheads
    if not model.encoder_bytes:
        return _term("encoder run", overheads.unknown_encoder_gib.scaled(GIB), "its weights, unknown here, and its run")
    size = max(1.0, model.encoder_bytes / (overheads.measured_encoder_gib * GIB))
    band = overheads.encoder_gib.scaled(size * GIB)
    if not model.largest_picture_bytes:
        return _term("encoder run", band, "its profile run, which varies")
    tokens = kept_tokens(model.architecture, engine.release)
    kept = tokens * model.encoder_output_bytes
    if kept > max(model.largest_picture_bytes - activation.bytes, band.value):
        return _term("encoder run", Band(kept, band.low, kept + band.high), f"what it hands on for {tokens:,} tokens")
    beyond = max(model.largest_picture_bytes - activation.bytes, band.value)
    return _term(
        "encoder run", Band(beyond, band.low, max(beyond, band.high)), "its profile run on the largest picture"
    )


def _non_torch(model: ModelShape, device: Device, engine: Engine) -> Term:
    parallel = engine.parallel
    ranks, stages = parallel.ranks_of(model), parallel.pipeline_parallel_size
    release, overheads = engine.release, engine.overheads
    hopper = compute_major(device.name) == HOPPER
    band = overheads.non_torch_gib(release, device.link, ranks, stages, unified=device.unified, hopper=hopper)
    if release.counts_cuda_context and not device.unified:
        band += exactly(overheads.cuda_context_gib)
    band = band.scaled(GIB)
    if device.unified:
        return _term("non-torch", band, "CUDA context, and what else takes the memory that the card shares")
    if ranks * stages == 1:
        return _term("non-torch", band, "CUDA context and libraries, one rank")
    link = {"nvlink": "NVLink", "xgmi": "xGMI"}.get(device.link, "PCIe")
    return _term("non-torch", band, f"CUDA context and NCCL buffers over {link}")


def _estimates_graphs(model: ModelShape, device: Device, release: Release) -> bool:
    """Whether the budget gives up anything for CUDA graphs at all."""
    if not release.cudagraphs_in_budget or (device.link == "xgmi" and not release.estimates_graphs_on_rocm):
        return False
    return release.second_runner_estimates_graphs or not second_runner(model, release)


def _cudagraphs(model: ModelShape, device: Device, engine: Engine, stage: int) -> Term:
    if engine.enforce_eager:
        return Term.exact("CUDA graphs", 0, "none with enforce_eager")
    tokens = engine.drafter.num_speculative_tokens if engine.drafter else 0
    sizes = _num_capture_sizes(engine.batch, device, tokens)
    layers = model.num_hidden_layers / engine.parallel.pipeline_parallel_size
    drafter = engine.drafts_on(stage)
    if drafter is not None and drafter.method != "draft_model":  # whose runs are not captured (standalone_ar)
        layers += len(drafter.layers)
    band = engine.overheads.graphs_gib(round(layers), sizes, mixture=model.num_moe_layers > 0).scaled(GIB)
    if engine.adapters is None:
        return _term("CUDA graphs", band, f"vLLM's estimate for {sizes} batch sizes")
    cases = engine.adapters.graph_cases  # no log says what the further ones take, so they may be as good as free
    band = Band(cases * band.value, band.low, cases * band.high)
    return _term("CUDA graphs", band, f"vLLM's estimate for {sizes} batch sizes, each with adapters and without")


def _num_capture_sizes(batch: Batch, device: Device, speculative_tokens: int = 0) -> int:
    """Batch sizes vLLM captures (config/vllm.py: _set_cudagraph_sizes): 1, 2, 4, by 8 to 256, then by 16.

    Where tokens are drafted, so many more for each request, and the multiples of that of each number of requests.
    """
    most = 1024 if compute_major(device.name) == 10 else 512
    each = 1 + speculative_tokens
    largest = min(2 * batch.max_num_seqs * each, most, batch.max_num_batched_tokens)
    if not speculative_tokens:
        return _num_strides(largest)
    sizes = {*_strides(largest), *(count * each for count in _strides(min(batch.max_num_seqs, most)))}
    sizes.add(batch.max_num_seqs * each)
    return sum(1 for size in sizes if size <= largest)


@lru_cache(maxsize=64)  # most engines of a plan have one of a few batches
def _num_strides(largest: int) -> int:
    return len(_strides(largest))


def _strides(largest: int) -> list[int]:
    return [size for size in (1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)) if size <= largest]
