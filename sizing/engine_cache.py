"""From a model's layers and how it is served to the KV cache of one engine."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sizing.drafters import Drafter
from sizing.errors import QuestionError, UnsupportedModelError
from sizing.gpu import HOPPER
from sizing.kv_cache import KvCache, kv_cache
from sizing.layers import (
    Attention,
    Compressed,
    CompressorState,
    CrossAttention,
    Indexer,
    IndexKeys,
    Latent,
    Layer,
    Recurrent,
)
from sizing.model import DTYPE_BYTES, KvCacheDtype, ModelShape
from sizing.pages import ChunkedPage, CrossPage, FullPage, LatentPage, Page, SlidingLatentPage, SlidingPage, StatePage
from sizing.release import NEWEST, MambaCacheMode, Release

if TYPE_CHECKING:
    from sizing.memory import Budget  # which asks this module for stages

_FP8_BYTES = 1
# fp8_ds_mla and nvfp4_ds_mla: v1/attention/backends/mla/flashmla_sparse.py
_PACKED_SPARSE_BYTES = 656
_PACKED_SPARSE_FP4_BYTES = 352
_PROCESSOR_STATE_BYTES = 4  # vllm/platforms/cpu.py keeps recurrent states in float32
# DeepSeek V4 (vllm/models/deepseek_v4): blocks of the rows, of windows and of unfinished rows, and what pages align to.
_COMPRESSED_BLOCK = 256
_COMPRESSED_WINDOW_BLOCK = 64
_COMPRESSOR_BLOCKS = {4: 4, 128: 8}
_COMPRESSED_ALIGNMENT = 576


@dataclass(frozen=True)
class Serving:
    """What decides the cache beside the model; names are vLLM's flags, and None is the release's default."""

    block_size: int
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    kv_cache_dtype: str = "auto"
    max_num_batched_tokens: int = 0
    enable_prefix_caching: bool | None = None
    async_scheduling: bool | None = None
    release: Release = NEWEST
    hybrid_kv_cache_manager: bool = True
    """False: `--disable-hybrid-kv-cache-manager`."""
    decode_context_parallel_size: int = 1
    speculative: Drafter | None = None
    compute_major: int | None = None
    """The card's generation, on which the layout beside an indexer depends; None: as Hopper."""
    on_processor: bool = False

    @property
    def max_in_flight_tokens(self) -> int:
        """Batches that may be under way at once, in tokens."""
        overlapped = self.release.async_scheduling if self.async_scheduling is None else self.async_scheduling
        return self.release.in_flight_tokens(
            self.max_num_batched_tokens, self.pipeline_parallel_size, overlapped=overlapped
        )

    @property
    def speculative_tokens(self) -> int:
        return self.speculative.num_speculative_tokens if self.speculative else 0


class Caches:
    """The caches of one model by how it is served, each worked out once however many cards are asked about; and what a
    plan finds of its budgets, of which most contexts have the same."""

    def __init__(self, model: ModelShape) -> None:
        self.model = model
        self._found: dict[Serving, KvCache] = {}
        self.budgets: dict[tuple[object, ...], tuple[Budget, ...]] = {}

    def of(self, serving: Serving) -> KvCache:
        """engine_cache, remembered. Raises what it raises."""
        found = self._found.get(serving)
        if found is None:
            found = self._found[serving] = engine_cache(self.model, serving)
        return found


def engine_cache(model: ModelShape, serving: Serving) -> KvCache:
    """The cache of one rank; key-value heads are replicated where there are more ranks than heads.

    Raises:
        QuestionError: a KV cache type that is not sized.
        UnsupportedModelError: layers that vLLM cannot serve together.
    """
    dtype_bytes = _dtype_bytes(model, serving)
    if any(isinstance(layer, Compressed) for layer in model.distinct_layers):
        serving = replace(serving, block_size=_COMPRESSED_BLOCK)
    serving = replace(serving, block_size=_hybrid_block_size(model, serving, dtype_bytes))
    drafted = serving.speculative.layers if serving.speculative else ()
    layers = (*model.cache_layers, *drafted)
    further = dict.fromkeys(layer for caches in drafted for layer in caches)
    page_of = {
        layer: _page(layer, model, serving, dtype_bytes) for layer in dict.fromkeys((*model.distinct_layers, *further))
    }
    of_caches = {caches: [page_of[layer] for layer in caches] for caches in dict.fromkeys(layers)}
    pages = [of_caches[caches] for caches in layers]
    stages, start = [], 0
    for stage in pipeline_stages(model.num_hidden_layers, serving.pipeline_parallel_size):
        end = start + sum(len(pages[layer]) for layer in stage)
        stages.append(range(start, end))
        start = end
    stages[-1] = range(stages[-1].start, start + sum(len(caches) for caches in pages[model.num_hidden_layers :]))
    if not all(stages):
        raise UnsupportedModelError(
            f"{model.name}: with pipeline_parallel_size {serving.pipeline_parallel_size} a stage has no layer that "
            "keeps a cache, which vLLM cannot serve; use fewer stages"
        )
    return kv_cache(
        [page for caches in pages for page in caches],
        block_size=serving.block_size,
        stages=stages,
        in_flight_tokens=serving.max_in_flight_tokens,
        # config/scheduler.py: room for as much of an encoder's output as a batch may have tokens
        encoder_tokens=serving.max_num_batched_tokens if CrossAttention in model.layer_types else 0,
        context_shards=serving.decode_context_parallel_size,
        release=serving.release,
        hybrid=serving.hybrid_kv_cache_manager,
        packed=any(isinstance(layer, Compressed) for layer in model.distinct_layers),
    )


def pipeline_stages(num_layers: int, size: int) -> list[range]:
    """The decoder layers of each stage (vllm/distributed/utils.py: get_pp_indices).

    What does not divide goes one each to the stages before the last, from the back: the last has the output layer.
    """
    counts = [num_layers // size] * size
    for stage in range(2, num_layers % size + 2):
        counts[-stage] += 1
    starts = [sum(counts[:stage]) for stage in range(size)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]


def _page(layer: Layer, model: ModelShape, serving: Serving, dtype_bytes: int) -> Page:
    block_size = serving.block_size
    match layer:
        case Attention():
            return _attention_page(layer, model, serving, dtype_bytes)
        case CrossAttention():
            heads = max(1, layer.num_kv_heads // serving.tensor_parallel_size)
            return CrossPage(block_size, heads, layer.head_dim, layer.head_dim, dtype_bytes)
        case Latent():
            return LatentPage(
                block_size, _latent_bytes(layer, model, serving, dtype_bytes), "indexed" if layer.indexed else "latent"
            )
        case Indexer():
            alignment = _COMPRESSED_ALIGNMENT if layer.tokens_per_state > 1 else 1
            return LatentPage(block_size, layer.token_bytes, "indexer", layer.tokens_per_state, alignment)
        case IndexKeys():
            return LatentPage(block_size, layer.head_dim * model.dtype_bytes, "indexer")
        case Compressed() | CompressorState():
            return _compressed_page(layer, serving)
        case Recurrent():
            return _state_page(layer, model, serving, dtype_bytes)


def _state_page(layer: Recurrent, model: ModelShape, serving: Serving, dtype_bytes: int) -> StatePage:
    """A state, padded to the page of attention where there is any, and as many as the cache mode and drafts ask for."""
    state_bytes = _state_bytes(layer, model, serving)
    mode = _mamba_cache_mode(layer, model, serving)
    checkpoints = layer.checkpoints if serving.release.state_checkpoints else 0
    blocks = {"none": 1, "align": 2 + checkpoints, "all": 0}[mode] + serving.speculative_tokens
    token_bytes = _token_bytes(model, serving, dtype_bytes)
    padded = serving.block_size * token_bytes
    padded_bytes = padded if token_bytes and padded != state_bytes else None
    return StatePage(serving.block_size, state_bytes, blocks, padded_bytes, every_block=mode == "all")


def _mamba_cache_mode(layer: Recurrent, model: ModelShape, serving: Serving) -> MambaCacheMode:
    caching = serving.enable_prefix_caching
    if caching is None:
        caching = serving.release.prefix_caching_beside_states and model.has_attention
    every = layer.chunk_tokens is not None and not serving.speculative_tokens
    return serving.release.mamba_cache_mode(prefix_caching=caching, all_supported=every)


def _state_bytes(layer: Recurrent, model: ModelShape, serving: Serving) -> int:
    if serving.on_processor:
        layer = replace(layer, state_bytes=_PROCESSOR_STATE_BYTES)
    return layer.page_bytes(serving.tensor_parallel_size, model.dtype_bytes, serving.speculative_tokens)


def _latent_bytes(layer: Latent, model: ModelShape, serving: Serving, dtype_bytes: int) -> int:
    """One token's compressed vector, packed where the kernel beside an indexer wants it so."""
    asked = _asked_dtype(model, serving)
    if asked == "nvfp4_ds_mla":
        return _PACKED_SPARSE_FP4_BYTES
    if layer.indexed and serving.release.packs_sparse_latents(asked, serving.compute_major or HOPPER):
        return _PACKED_SPARSE_BYTES
    return layer.width * dtype_bytes


def _compressed_page(layer: Compressed | CompressorState, serving: Serving) -> Page:
    if isinstance(layer, CompressorState):
        # keys and scores in float32, of as many tokens as make a row, twice that where rows overlap
        row_bytes = 2 * layer.overlap * layer.head_dim * 4
        return SlidingLatentPage(
            _COMPRESSOR_BLOCKS[layer.tokens_per_state],
            row_bytes,
            alignment=_COMPRESSED_ALIGNMENT,
            window=layer.overlap * layer.tokens_per_state,
            retained_tokens=_retained(serving),
        )
    if layer.window is not None:
        return SlidingLatentPage(
            _COMPRESSED_WINDOW_BLOCK,
            layer.row_bytes,
            alignment=_COMPRESSED_ALIGNMENT,
            window=layer.window,
            retained_tokens=_retained(serving),
        )
    return LatentPage(serving.block_size, layer.row_bytes, "indexed", layer.tokens_per_state, _COMPRESSED_ALIGNMENT)


def _retained(serving: Serving) -> int:
    return serving.speculative.retained_tokens if serving.speculative else 0


def _attention_page(layer: Attention, model: ModelShape, serving: Serving, dtype_bytes: int) -> Page:
    heads = max(1, layer.num_kv_heads // serving.tensor_parallel_size)
    head_dim, value_dim = layer.head_dim, layer.value_dim
    if _asked_dtype(model, serving) == "nvfp4":
        head_dim, value_dim = _fp4_bytes(head_dim), _fp4_bytes(value_dim)
    full = FullPage(serving.block_size, heads, head_dim, value_dim, dtype_bytes)
    sizes = (full.block_size, full.num_kv_heads, full.head_dim, full.value_dim, full.dtype_bytes)
    if layer.window is not None:
        return SlidingPage(*sizes, window=layer.window, retained_tokens=_retained(serving))
    if layer.chunk is not None:
        return ChunkedPage(*sizes, chunk=layer.chunk)
    return full


def _fp4_bytes(elements: int) -> int:
    """Half a byte each, and a scale for each sixteen (utils/torch_utils.py: nvfp4_kv_cache_full_dim)."""
    return elements // 2 + elements // 16


def _hybrid_block_size(model: ModelShape, serving: Serving, dtype_bytes: int) -> int:
    """Tokens in a block beside recurrent layers: so many that an attention page is as large as a state.

    vllm/platforms/interface.py: _align_hybrid_block_size, which then pads the state to the page; before 0.20
    models/config.py: HybridAttentionMambaModelConfig.
    """
    layers = [layer for layer in model.distinct_layers if isinstance(layer, Recurrent)]
    if not layers or not model.has_attention:
        return serving.block_size
    latent = any(isinstance(layer, Latent) for layer in model.distinct_layers)
    step = serving.release.hybrid_latent_alignment(serving.block_size) if latent else serving.block_size
    chunk = layers[0].chunk_tokens
    if chunk is not None and _mamba_cache_mode(layers[0], model, serving) == "all":
        step = math.lcm(chunk, step)
    state_bytes = max(_state_bytes(layer, model, serving) for layer in layers)
    steps = -(-state_bytes // (step * _token_bytes(model, serving, dtype_bytes)))
    return max(serving.block_size, step * steps)


def _token_bytes(model: ModelShape, serving: Serving, dtype_bytes: int) -> int:
    """One token in the model's main attention layers; 0 where it has none."""
    for layer in model.distinct_layers:
        if isinstance(layer, Latent):
            return layer.width * dtype_bytes
        if isinstance(layer, Attention):
            page = _attention_page(layer, model, replace(serving, block_size=1), dtype_bytes)
            return page.page_bytes
    return 0


def _asked_dtype(model: ModelShape, serving: Serving) -> str:
    """`--kv-cache-dtype` after what the checkpoint and the card make of `auto`."""
    if serving.kv_cache_dtype != "auto":
        return serving.kv_cache_dtype
    if model.kv_cache_dtype != "auto":
        return model.kv_cache_dtype
    if not any(isinstance(layer, Indexer) for layer in model.distinct_layers):
        return "auto"
    return serving.release.sparse_auto_dtype(model.architecture, serving.compute_major or HOPPER)


def _dtype_bytes(model: ModelShape, serving: Serving) -> int:
    sizes: dict[KvCacheDtype, int] = {
        "auto": model.dtype_bytes,
        "bfloat16": DTYPE_BYTES["bfloat16"],
        "float16": DTYPE_BYTES["float16"],
        "fp8": _FP8_BYTES,
        "fp8_e4m3": _FP8_BYTES,
        "fp8_e5m2": _FP8_BYTES,
        "fp8_ds_mla": _FP8_BYTES,
        "nvfp4": _FP8_BYTES,
        "nvfp4_ds_mla": _FP8_BYTES,
    }
    asked = _asked_dtype(model, serving)
    kept = {type(layer) for layer in model.distinct_layers}
    if (asked == "nvfp4" and kept & {Latent, Compressed}) or (asked.endswith("_ds_mla") and Indexer not in kept):
        raise QuestionError(f"{model.name}: vLLM has no KV cache of type {asked} for its layers; use auto or fp8")
    for dtype, size in sizes.items():
        if dtype == asked:
            return size
    raise QuestionError(f"KV cache type {asked!r} is not sized; use one of {', '.join(sizes)}")
