"""A model as speed sees it: which weights a token passes, which experts it picks, what it reads of those before it."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from sizing.errors import QuestionError
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
from sizing.model import DTYPE_BYTES, ModelShape
from sizing.parameters import count_parameters

WeightFormat = Literal["16bit", "fp8", "int8", "nvfp4", "mxfp4", "int4"]

# Scales counted: one FP8 scale per 16 values (NVFP4), one power of two per 32 (MXFP4), one 16-bit scale per 32 (INT4).
BYTES_PER_PARAMETER: dict[WeightFormat, float] = {
    "16bit": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "nvfp4": 0.5 + 1 / 16,
    "mxfp4": 0.5 + 1 / 32,
    "int4": 0.5 + 2 / 32,
}
FOUR_BIT: frozenset[WeightFormat] = frozenset({"nvfp4", "mxfp4", "int4"})

# What each of vLLM's methods may hold, likeliest first; which of them it is, the checkpoint's bytes tell.
_FORMATS: dict[str, tuple[WeightFormat, ...]] = {
    "fp8": ("fp8",),
    "fbgemm_fp8": ("fp8",),
    "modelopt": ("fp8",),
    "modelopt_fp4": ("nvfp4",),
    "mxfp4": ("mxfp4",),
    "awq": ("int4", "int8"),
    "gptq": ("int4", "int8"),
    "bitsandbytes": ("int4", "int8"),
    "experts_int8": ("int8",),
}
_ANY_FORMAT: tuple[WeightFormat, ...] = ("fp8", "int4", "nvfp4")
_ONE_BYTE = ("fp8", "fp8_e4m3", "fp8_e5m2")
_LATENT_POSITION = 64  # qk_rope_head_dim of every published model with latent attention


@dataclass(frozen=True)
class CacheRead:
    """What one new token reads of the tokens before it, in so many layers that are alike."""

    layers: int
    bytes_per_token: float
    """Keys and values, or the latent, of one earlier token in one layer, whole."""
    heads: int
    """What tensor parallelism divides it by at most; 1 for a latent, which every rank keeps whole."""
    width: int
    """Heads x (key width + value width): multiply-adds of one token with one earlier token in one layer."""
    window: int | None = None
    """Tokens that such a layer looks back on; None: all of them."""


@dataclass(frozen=True)
class SpeedShape:
    """Plain numbers, of the whole model before any parallelism. Parameters are counts, never bytes."""

    name: str
    layers: int
    hidden_size: int
    output_parameters: int
    """The output layer: hidden size x vocabulary; kept in 16 bits."""
    embedding_parameters: int
    """0 where input and output are tied. Looked up, never read whole."""
    dense_parameters: int
    """What every token passes besides: attention, recurrent and dense feed-forward layers, shared experts, norms."""
    expert_parameters: int
    """One expert of one layer."""
    moe_layers: int
    experts: int
    """Per layer; 0 where the model has none."""
    experts_per_token: int
    """Those that the router picks; shared ones are dense."""
    dense_format: WeightFormat
    expert_format: WeightFormat
    caches: tuple[CacheRead, ...]
    states: tuple[tuple[int, Recurrent], ...] = ()
    """Recurrent layers, as many as are alike: a sequence reads and writes its states in every step."""
    state_dtype_bytes: int = 2
    approximations: tuple[str, ...] = ()
    """What of this architecture the numbers above leave out, in words."""

    def __post_init__(self) -> None:
        if self.experts and not 0 < self.experts_per_token <= self.experts:
            raise QuestionError(f"{self.name}: {self.experts_per_token} experts per token, of {self.experts}")

    @property
    def total_parameters(self) -> int:
        experts = self.moe_layers * self.experts * self.expert_parameters
        return self.dense_parameters + experts + self.output_parameters + self.embedding_parameters

    @property
    def active_parameters(self) -> int:
        """Those that one token is multiplied with; the input embedding is only looked up."""
        experts = self.moe_layers * self.experts_per_token * self.expert_parameters
        return self.dense_parameters + experts + self.output_parameters

    def attention_macs(self, context: float) -> float:
        """Multiply-adds of one new token with the `context` tokens before it, over all layers."""
        return sum(read.layers * read.width * _visible(read, context) for read in self.caches)

    def kv_bytes(self, context: float, tensor_parallel_size: int) -> float:
        """What one rank reads for one new token of a sequence of that length, recurrent states included."""
        read_bytes = 0.0
        for read in self.caches:
            shards = min(tensor_parallel_size, read.heads)
            read_bytes += read.layers * read.bytes_per_token * _visible(read, context) / shards
        for layers, state in self.states:
            read_bytes += 2 * layers * state.page_bytes(tensor_parallel_size, self.state_dtype_bytes)
        return read_bytes


def _visible(read: CacheRead, context: float) -> float:
    return context if read.window is None else min(context, read.window)


def speed_shape_of(
    model: ModelShape, *, kv_cache_dtype: str = "auto", weights: WeightFormat | None = None
) -> SpeedShape:
    """The shape of a model that is sized; `kv_cache_dtype` is vLLM's flag, `weights` overrides the checkpoint's format.

    A mixture of experts in four bits keeps what every token passes in 16 bits where its bytes say so, or, without
    bytes to go by (`weights`), as the publishers of such models do.

    Raises:
        QuestionError: a decoder whose time depends on an encoder's input.
    """
    if CrossAttention in model.layer_types:
        raise QuestionError(f"{model.name}: how fast an encoder and a decoder are together is not forecast")
    hidden, experts = model.hidden_size, model.num_experts
    counted, output = count_parameters(model), model.hidden_size * model.vocab_size
    rows = counted.vocab_rows or (1 if model.tie_word_embeddings else 2)
    expert = model.expert_parameters
    dense = counted.total - rows * output - model.num_moe_layers * experts * expert
    dense_format, expert_format = _formats(model, weights, dense, counted.total - dense - rows * output, rows * output)
    element_bytes = _element_bytes(model, kv_cache_dtype)
    kinds = Counter(layer for caches in model.cache_layers for layer in caches)
    return SpeedShape(
        name=model.name,
        layers=model.num_hidden_layers,
        hidden_size=hidden,
        output_parameters=output,
        embedding_parameters=(rows - 1) * output,
        dense_parameters=dense,
        expert_parameters=expert if experts else 0,
        moe_layers=model.num_moe_layers,
        experts=experts,
        experts_per_token=model.num_experts_per_tok - model.num_shared_experts,
        dense_format=dense_format,
        expert_format=expert_format,
        caches=tuple(
            _cache_read(model, layer, count, element_bytes)
            for layer, count in kinds.items()
            if not isinstance(layer, Recurrent | CompressorState | CrossAttention)
        ),
        states=tuple((count, layer) for layer, count in kinds.items() if isinstance(layer, Recurrent)),
        state_dtype_bytes=model.dtype_bytes,
        approximations=_approximations(model, kinds),
    )


_Cached = Attention | Latent | Indexer | IndexKeys | Compressed


def _cache_read(model: ModelShape, layer: _Cached, count: int, element_bytes: float) -> CacheRead:
    heads = model.num_attention_heads
    if isinstance(layer, Attention):
        elements = layer.num_kv_heads * (layer.head_dim + layer.value_dim)
        width = heads * (layer.head_dim + layer.value_dim)
        return CacheRead(count, elements * element_bytes, layer.num_kv_heads, width, layer.window or layer.chunk)
    if isinstance(layer, Latent):
        # Uncompressed in prefill: keys and values a quarter of the rank wide each, and the position's part of the key.
        width = heads * ((layer.width - _LATENT_POSITION) // 2 + _LATENT_POSITION)
        return CacheRead(count, layer.width * element_bytes, 1, width)
    if isinstance(layer, IndexKeys):
        return CacheRead(count, layer.head_dim * element_bytes, 1, layer.head_dim)
    if isinstance(layer, Compressed):
        rows = 1 / layer.tokens_per_state
        return CacheRead(count, layer.row_bytes * rows, 1, round(heads * layer.head_dim * 2 * rows), layer.window)
    return CacheRead(count, layer.token_bytes / layer.tokens_per_state, 1, layer.head_dim)


def _element_bytes(model: ModelShape, kv_cache_dtype: str) -> float:
    named = model.kv_cache_dtype if kv_cache_dtype == "auto" else kv_cache_dtype
    if named in _ONE_BYTE:
        return 1.0
    return next((float(size) for dtype, size in DTYPE_BYTES.items() if dtype == named), float(model.dtype_bytes))


def _formats(
    model: ModelShape, weights: WeightFormat | None, dense: int, experts: int, ends: int
) -> tuple[WeightFormat, WeightFormat]:
    """Of what every token passes, and of the experts: those whose bytes are nearest the checkpoint's."""
    if weights is not None:
        return ("16bit" if experts and weights in FOUR_BIT else weights), weights
    if model.quantization is None:
        return "16bit", "16bit"
    held = model.weights_bytes - model.encoder_bytes - ends * BYTES_PER_PARAMETER["16bit"]
    candidates: list[tuple[WeightFormat, WeightFormat]] = []
    for fmt in _FORMATS.get(model.quantization, _ANY_FORMAT):
        candidates += [(fmt, fmt), ("16bit", fmt)] if experts else [(fmt, fmt)]

    def miss(pair: tuple[WeightFormat, WeightFormat]) -> float:
        return abs(dense * BYTES_PER_PARAMETER[pair[0]] + experts * BYTES_PER_PARAMETER[pair[1]] - held)

    return min(candidates, key=miss)


def _approximations(model: ModelShape, kinds: Counter[Layer]) -> tuple[str, ...]:
    found = []
    if any(isinstance(layer, Recurrent) for layer in kinds):
        found.append("the scan of recurrent layers over a prompt is counted as free")
    if any(isinstance(layer, Latent) and layer.indexed for layer in kinds):
        found.append("sparse attention is counted as if it read every token")
    if any(isinstance(layer, Compressed) for layer in kinds):
        found.append("the compressor of its attention is counted as free")
    if model.encoder_bytes:
        found.append("the encoder of images or sound is left out: text only")
    if model.quantization is not None and model.quantization not in _FORMATS:
        found.append(f"the weights' format is told from their bytes alone ({model.quantization})")
    return tuple(found)
