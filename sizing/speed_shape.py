"""A model as speed sees it: which weights a token passes, which experts it picks, what it leaves in the KV cache."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sizing.errors import ModelFileError, QuestionError

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
    """What every token passes besides: attention, dense feed-forward layers, shared experts."""
    expert_parameters: int
    """One expert of one layer."""
    moe_layers: int
    experts: int
    """Per layer; 0 where the model has none."""
    experts_per_token: int
    dense_format: WeightFormat
    expert_format: WeightFormat
    kv_heads: int
    """What tensor parallelism divides the cache by at most; 1 for a latent one (MLA), which every rank keeps whole."""
    kv_bytes_per_token_layer: float
    """Keys and values, or the latent, of one token in one layer."""
    attention_width: int
    """Heads x (key width + value width): multiply-adds of one token with one earlier token in one layer."""
    windowed_layers: int = 0
    window: int = 0
    """Tokens that a windowed layer looks back on."""
    cacheless_layers: int = 0
    """Layers with a fixed state instead of a cache (linear attention)."""
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

    def visible_tokens(self, context: float) -> float:
        """Earlier tokens that one new token attends to, summed over the layers."""
        full = self.layers - self.windowed_layers - self.cacheless_layers
        return full * context + self.windowed_layers * min(context, self.window)

    def kv_bytes(self, context: float, tensor_parallel_size: int) -> float:
        """What one rank reads for one new token of a sequence of that length."""
        shards = min(tensor_parallel_size, self.kv_heads)
        return self.visible_tokens(context) * self.kv_bytes_per_token_layer / shards


def speed_shape(
    config: Mapping[str, object],
    *,
    name: str,
    weights: WeightFormat | None = None,
    kv_element_bytes: float | None = None,
) -> SpeedShape:
    """The shape a `config.json` describes; `weights` and `kv_element_bytes` override what it says of its own format.

    A four-bit mixture of experts keeps what every token passes in 16 bits, as its publishers do.

    Raises:
        ModelFileError: a key that is missing or not a number.
    """
    text = config.get("text_config")
    values: Mapping[str, object] = text if isinstance(text, dict) else config
    read = _Reader(name, values)
    layers, hidden, heads = (
        read.number("num_hidden_layers"),
        read.number("hidden_size"),
        read.number("num_attention_heads"),
    )
    expert_format = weights or _own_format(config, values)
    experts = read.first("num_experts", "num_local_experts", "n_routed_experts")
    dense_format: WeightFormat = "16bit" if experts and expert_format in FOUR_BIT else expert_format
    attention = _attention(read, hidden, heads)
    moe_layers = _moe_layers(values, read, layers) if experts else 0
    width = read.first("intermediate_size")
    expert_width = read.first("moe_intermediate_size") or width
    shared = read.first("n_shared_experts") * expert_width + read.first("shared_expert_intermediate_size")
    dense = layers * attention.parameters + 3 * hidden * (width * (layers - moe_layers) + shared * moe_layers)
    windowed, cacheless, window = _layer_kinds(values, read, layers)
    output = hidden * read.number("vocab_size")
    tied = (values.get("tie_word_embeddings") or config.get("tie_word_embeddings")) is True
    element_bytes = kv_element_bytes or (1.0 if expert_format == "nvfp4" else 2.0)
    return SpeedShape(
        name=name,
        layers=layers,
        hidden_size=hidden,
        output_parameters=output,
        embedding_parameters=0 if tied else output,
        dense_parameters=dense,
        expert_parameters=3 * hidden * expert_width,  # gate, up and down projection
        moe_layers=moe_layers,
        experts=experts,
        experts_per_token=read.number("num_experts_per_tok", "num_experts_per_token", "top_k_experts")
        if experts
        else 0,
        dense_format=dense_format,
        expert_format=expert_format,
        kv_heads=attention.kv_heads,
        kv_bytes_per_token_layer=attention.kv_elements * element_bytes,
        attention_width=attention.width,
        windowed_layers=windowed,
        window=window,
        cacheless_layers=cacheless,
        approximations=_approximations(config, read, cacheless),
    )


@dataclass(frozen=True)
class _Attention:
    """Of one layer: parameters, cached elements per token, heads the cache divides by, multiply-add width."""

    parameters: int
    kv_elements: int
    kv_heads: int
    width: int


@dataclass(frozen=True)
class _Reader:
    name: str
    values: Mapping[str, object]

    def number(self, *keys: str) -> int:
        """The first of these as a whole number above 0; the file has to have one."""
        value = self.first(*keys)
        if value <= 0:
            raise ModelFileError(f"{self.name}: config.json has no {keys[0]}; use the file as its publisher ships it")
        return value

    def first(self, *keys: str) -> int:
        """The first of these that is there; 0 where none is."""
        for key in keys:
            value = self.values.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ModelFileError(f"{self.name}: config.json says {key} = {value!r}, which is not a count")
            return value
        return 0


def _attention(read: _Reader, hidden: int, heads: int) -> _Attention:
    latent = read.first("kv_lora_rank")
    if latent:
        rope, plain, value = read.number("qk_rope_head_dim"), read.first("qk_nope_head_dim"), read.number("v_head_dim")
        key = plain + rope
        compressed = read.first("q_lora_rank")
        queries = compressed * (hidden + heads * key) if compressed else hidden * heads * key
        down, up = hidden * (latent + rope), latent * heads * (plain + value)
        return _Attention(queries + down + up + heads * value * hidden, latent + rope, 1, heads * (key + value))
    width = read.first("head_dim") or hidden // heads
    kv_heads = read.first("num_key_value_heads") or heads
    parameters = 2 * hidden * (heads + kv_heads) * width
    return _Attention(parameters, 2 * kv_heads * width, kv_heads, 2 * heads * width)


def _moe_layers(values: Mapping[str, object], read: _Reader, layers: int) -> int:
    listed = values.get("mlp_only_layers")
    dense: list[object] = listed if isinstance(listed, list) else []
    first, step = read.first("first_k_dense_replace"), read.first("decoder_sparse_step", "interleave_moe_layer_step")
    return sum(1 for layer in range(first, layers) if layer not in dense and (layer + 1) % (step or 1) == 0)


def _layer_kinds(values: Mapping[str, object], read: _Reader, layers: int) -> tuple[int, int, int]:
    """How many layers are windowed, how many keep no cache, and the window."""
    kinds = values.get("layer_types")
    window = (
        read.first("sliding_window", "attention_chunk_size") if values.get("use_sliding_window") is not False else 0
    )
    if isinstance(kinds, list):
        windowed = sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds)
        cacheless = sum(kind in ("linear_attention", "mamba") for kind in kinds)
        return (windowed if window else 0), cacheless, window
    pattern = read.first("sliding_window_pattern")  # every so many layers one that sees all
    windowed = layers - layers // pattern if pattern else layers
    return (windowed if window else 0), 0, window


def _approximations(config: Mapping[str, object], read: _Reader, cacheless: int) -> tuple[str, ...]:
    found = []
    if cacheless:
        found.append("linear-attention layers are counted like attention layers, and their state as free")
    if read.first("index_topk"):
        found.append("sparse attention is counted as if it read every token")
    if "vision_config" in config or "audio_config" in config:
        found.append("the encoder of images or sound is left out: text only")
    return tuple(found)


def _own_format(config: Mapping[str, object], values: Mapping[str, object]) -> WeightFormat:
    """What the file's quantization section says; 16 bits without one."""
    section = config.get("quantization_config") or values.get("quantization_config")
    if not isinstance(section, dict):
        return "16bit"
    text = str(section).lower()
    if "mxfp4" in text:
        return "mxfp4"
    if "nvfp4" in text or "fp4" in str(section.get("quant_algo", "")).lower():
        return "nvfp4"
    bits = 4 if "'num_bits': 4" in text or section.get("bits") == 4 or section.get("load_in_4bit") else 8
    if bits == 4 or str(section.get("quant_method", "")).lower() == "awq":
        return "int4"
    return "fp8" if "fp8" in text or "e4m3" in text or "'float'" in text else "int8"
