"""From a model's layers and how it is served to the KV cache of one engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sizing.errors import QuestionError, UnsupportedModelError
from sizing.kv_cache import KvCache, kv_cache
from sizing.layers import Attention, Indexer, Latent, Layer, Recurrent
from sizing.model import DTYPE_BYTES, KvCacheDtype, ModelShape
from sizing.pages import ChunkedPage, FullPage, LatentPage, Page, SlidingPage, StatePage

_FP8_BYTES = 1
_LATENT_HYBRID_ALIGNMENT = 128  # vllm/platforms/interface.py: MLA decode kernels beside recurrent layers


@dataclass(frozen=True)
class Serving:
    """What decides the cache beside the model; names are vLLM's flags."""

    block_size: int
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    kv_cache_dtype: str = "auto"
    max_num_batched_tokens: int = 0
    enable_prefix_caching: bool = True
    async_scheduling: bool = True

    @property
    def max_in_flight_tokens(self) -> int:
        """One batch per pipeline stage, and one that is scheduled ahead of its turn (vllm/config/vllm.py)."""
        return (self.pipeline_parallel_size + int(self.async_scheduling)) * self.max_num_batched_tokens


class Caches:
    """The caches of one model by how it is served, each worked out once however many cards are asked about."""

    def __init__(self, model: ModelShape) -> None:
        self.model = model
        self._found: dict[Serving, KvCache] = {}

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
    dtype_bytes = _dtype_bytes(model, serving.kv_cache_dtype)
    serving = replace(serving, block_size=_hybrid_block_size(model, serving, dtype_bytes))
    page_of = {layer: _page(layer, model, serving, dtype_bytes) for layer in _distinct(model)}
    pages = [[page_of[layer] for layer in caches] for caches in model.cache_layers]
    stages, start = [], 0
    for stage in pipeline_stages(model.num_hidden_layers, serving.pipeline_parallel_size):
        end = start + sum(len(pages[layer]) for layer in stage)
        stages.append(range(start, end))
        start = end
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
    match layer:
        case Attention():
            return _attention_page(layer, serving, dtype_bytes)
        case Latent():
            return LatentPage(serving.block_size, layer.width * dtype_bytes, "indexed" if layer.indexed else "latent")
        case Indexer():
            return LatentPage(serving.block_size, layer.token_bytes, "indexer")
        case Recurrent():
            state_bytes = layer.page_bytes(serving.tensor_parallel_size, model.dtype_bytes)
            blocks = 2 + layer.checkpoints if serving.enable_prefix_caching else 1
            padded = serving.block_size * _token_bytes(model, serving, dtype_bytes)
            return StatePage(serving.block_size, state_bytes, blocks, padded if padded != state_bytes else None)


def _attention_page(layer: Attention, serving: Serving, dtype_bytes: int) -> Page:
    heads = max(1, layer.num_kv_heads // serving.tensor_parallel_size)
    full = FullPage(serving.block_size, heads, layer.head_dim, layer.value_dim, dtype_bytes)
    sizes = (full.block_size, full.num_kv_heads, full.head_dim, full.value_dim, full.dtype_bytes)
    if layer.window is not None:
        return SlidingPage(*sizes, window=layer.window)
    if layer.chunk is not None:
        return ChunkedPage(*sizes, chunk=layer.chunk)
    return full


def _hybrid_block_size(model: ModelShape, serving: Serving, dtype_bytes: int) -> int:
    """Tokens in a block beside recurrent layers: so many that an attention page is as large as a state.

    vllm/platforms/interface.py: _align_hybrid_block_size, which then pads the state to the page.
    """
    states = [
        layer.page_bytes(serving.tensor_parallel_size, model.dtype_bytes)
        for layer in _distinct(model)
        if isinstance(layer, Recurrent)
    ]
    if not states:
        return serving.block_size
    latent = any(isinstance(layer, Latent) for layer in _distinct(model))
    step = max(serving.block_size, _LATENT_HYBRID_ALIGNMENT) if latent else serving.block_size
    steps = -(-max(states) // (step * _token_bytes(model, serving, dtype_bytes)))
    return max(serving.block_size, step * steps)


def _token_bytes(model: ModelShape, serving: Serving, dtype_bytes: int) -> int:
    """One token in the model's main attention layers."""
    for layer in _distinct(model):
        if isinstance(layer, Latent):
            return layer.width * dtype_bytes
        if isinstance(layer, Attention):
            heads = max(1, layer.num_kv_heads // serving.tensor_parallel_size)
            return heads * (layer.head_dim + layer.value_dim) * dtype_bytes
    raise UnsupportedModelError(f"{model.name}: models without attention are not sized yet")


def _distinct(model: ModelShape) -> Sequence[Layer]:
    return model.distinct_layers


def _dtype_bytes(model: ModelShape, kv_cache_dtype: str) -> int:
    sizes: dict[KvCacheDtype, int] = {
        "auto": _FP8_BYTES if model.kv_cache_dtype.startswith("fp8") else model.dtype_bytes,
        "bfloat16": DTYPE_BYTES["bfloat16"],
        "float16": DTYPE_BYTES["float16"],
        "fp8": _FP8_BYTES,
        "fp8_e4m3": _FP8_BYTES,
        "fp8_e5m2": _FP8_BYTES,
    }
    for dtype, size in sizes.items():
        if dtype != kv_cache_dtype:
            continue
        if size == _FP8_BYTES and any(isinstance(layer, Indexer) for layer in _distinct(model)):
            raise QuestionError(
                f"{model.name}: an fp8 KV cache beside an indexer has a layout that depends on the attention kernel, "
                "which is not sized yet; ask for --kv-cache-dtype bfloat16"
            )
        return size
    raise QuestionError(f"KV cache type {kv_cache_dtype!r} is not sized; use one of {', '.join(sizes)}")
