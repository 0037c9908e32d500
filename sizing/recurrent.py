"""Families that mix recurrent layers with attention: their layers and parameters, read from `config.json`."""

from dataclasses import dataclass

from sizing.anatomy import Anatomy, ends, experts, gated_mlp, projections
from sizing.config_values import ConfigValues
from sizing.errors import UnsupportedModelError
from sizing.layers import Attention, Layer, Layers, Recurrent
from sizing.model import ParameterCount

_STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def qwen3_next(config: ConfigValues) -> Anatomy:
    """Qwen3-Next: gated delta nets with every fourth layer full (vllm/model_executor/models/qwen3_next.py)."""
    return _gated_delta(config, state_bytes=None)


def qwen3_5(config: ConfigValues) -> Anatomy:
    """Qwen3.5 and 3.6: as Qwen3-Next, the state in the type that the config names (models/qwen3_5.py)."""
    named = config.values.get("mamba_ssm_dtype")
    if named is not None and str(named) not in _STATE_BYTES:
        raise config.impossible("mamba_ssm_dtype", f"is none of {', '.join(_STATE_BYTES)}")
    return _gated_delta(config, state_bytes=_STATE_BYTES[str(named)] if named is not None else None)


def _gated_delta(config: ConfigValues, *, state_bytes: int | None) -> Anatomy:
    hidden, heads, kv_heads = (
        config.count("hidden_size"),
        config.count("num_attention_heads"),
        config.count("num_key_value_heads"),
    )
    head_dim, num_layers = config.count("head_dim", default=256), config.count("num_hidden_layers")
    linear = _linear_layers(config, num_layers)
    state = _delta_state(config, state_bytes)
    full = Attention(kv_heads, head_dim, head_dim)
    layers: Layers = tuple((state,) if is_linear else (full,) for is_linear in linear)

    attention = projections(hidden, heads * head_dim, kv_heads * head_dim, gate=True)
    attention += ParameterCount(replicated=2 * head_dim)
    num_experts = config.count_or_none("num_experts") or 0
    moe_width = config.count("moe_intermediate_size") if num_experts else 0
    if num_experts:
        shared = config.count("shared_expert_intermediate_size")
        mlp = experts(hidden, num_experts, moe_width, shared_width=shared, router_bias=False)
        mlp += ParameterCount(replicated=hidden)  # the shared expert's gate
        width, shared_experts = moe_width, shared // moe_width
        active = config.count("num_experts_per_tok") + shared_experts
    else:
        width, active, shared_experts = config.count("intermediate_size"), 0, 0
        mlp = gated_mlp(hidden, width)
    tied = config.flag("tie_word_embeddings", default=False)
    parameters = ends(hidden, config.count("vocab_size"), tied=tied)
    for is_linear in linear:
        parameters += (_delta_net(config) if is_linear else attention) + mlp + ParameterCount(replicated=2 * hidden)
    num_moe = num_layers if num_experts else 0
    return Anatomy(
        layers,
        parameters,
        head_dim,
        kv_heads,
        width,
        num_experts,
        active,
        moe_width,
        num_moe,
        shared_experts,
    )


def _linear_layers(config: ConfigValues, num_layers: int) -> list[bool]:
    words = config.words("layer_types")
    if words is None:
        every = config.count("full_attention_interval", default=4)
        return [(layer + 1) % every != 0 for layer in range(num_layers)]
    if len(words) != num_layers or set(words) - {"linear_attention", "full_attention"}:
        raise config.impossible("layer_types", "must name linear_attention or full_attention for each layer")
    return [word == "linear_attention" for word in words]


def _delta_widths(config: ConfigValues) -> tuple[int, int, int]:
    """All keys' and all values' channels, and the value heads."""
    keys = config.count("linear_num_key_heads", default=16) * config.count("linear_key_head_dim", default=128)
    value_heads = config.count("linear_num_value_heads", default=32)
    return keys, value_heads * config.count("linear_value_head_dim", default=128), value_heads


def _delta_state(config: ConfigValues, state_bytes: int | None) -> Recurrent:
    keys, values, heads = _delta_widths(config)
    elements = config.count("linear_key_head_dim", default=128) * config.count("linear_value_head_dim", default=128)
    return Recurrent(
        conv_channels=2 * keys + values,
        conv_tokens=config.count("linear_conv_kernel_dim", default=4) - 1,
        heads=heads,
        head_elements=elements,
        state_bytes=state_bytes,
    )


def _delta_net(config: ConfigValues) -> ParameterCount:
    """Queries, keys, values and gate in; two numbers per head; the convolution; the output."""
    hidden, (keys, values, heads) = config.count("hidden_size"), _delta_widths(config)
    sharded = hidden * (2 * keys + 2 * values + 2 * heads) + values * hidden
    sharded += (2 * keys + values) * config.count("linear_conv_kernel_dim", default=4) + 2 * heads
    return ParameterCount(sharded=sharded, replicated=config.count("linear_value_head_dim", default=128))


def nemotron_h(config: ConfigValues) -> Anatomy:
    """Nemotron-H: Mamba-2 layers, a few of attention, and feed-forward layers of their own (models/nemotron_h.py)."""
    pattern = config.values.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or set(pattern) - set("M*-"):
        raise UnsupportedModelError(
            f"{config.name}: its hybrid_override_pattern is {pattern!r}; "
            "sized are Nemotron-H models of M, * and - layers"
        )
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads, width = config.count("num_key_value_heads"), config.count("intermediate_size")
    head_dim = config.count("attention_head_dim", default=config.count("head_dim", default=hidden // heads))
    named = config.values.get("mamba_ssm_cache_dtype") or "float32"
    if str(named) not in _STATE_BYTES:
        raise config.impossible("mamba_ssm_cache_dtype", f"is none of {', '.join(_STATE_BYTES)}")
    mamba = _Mamba2(
        heads=config.count("mamba_num_heads"),
        head_dim=config.count("mamba_head_dim"),
        groups=config.count("n_groups"),
        state_size=config.count("ssm_state_size"),
        conv_kernel=config.count("conv_kernel"),
        conv_bias=config.flag("use_conv_bias", default=True),
    )
    norm = ParameterCount(replicated=hidden)
    kinds: dict[str, tuple[tuple[Layer, ...], ParameterCount]] = {
        "M": ((mamba.state(_STATE_BYTES[str(named)]),), mamba.parameters(hidden) + norm),
        "*": (
            (Attention(kv_heads, head_dim, head_dim),),
            projections(hidden, heads * head_dim, kv_heads * head_dim) + norm,
        ),
        "-": ((), ParameterCount(sharded=2 * hidden * width) + norm),
    }
    parameters = ends(hidden, config.count("vocab_size"), tied=config.flag("tie_word_embeddings", default=False))
    for kind in pattern:
        parameters += kinds[kind][1]
    return Anatomy(tuple(kinds[kind][0] for kind in pattern), parameters, head_dim, kv_heads, width)


def granite_hybrid(config: ConfigValues) -> Anatomy:
    """Granite 4: Mamba-2 with a few attention layers, all followed by a mixture (models/granitemoehybrid.py)."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads, shared = config.count("num_key_value_heads"), config.count("shared_intermediate_size")
    head_dim, words = hidden // heads, config.words("layer_types")
    if words is None or set(words) - {"mamba", "attention"}:
        raise config.impossible("layer_types", "must name mamba or attention for each layer")
    mamba = _Mamba2(
        heads=config.count("mamba_n_heads"),
        head_dim=config.count("mamba_expand") * hidden // config.count("mamba_n_heads"),
        groups=config.count("mamba_n_groups"),
        state_size=config.count("mamba_d_state"),
        conv_kernel=config.count("mamba_d_conv"),
        conv_bias=config.flag("mamba_conv_bias", default=True),
    )
    num_experts = config.count_or_none("num_local_experts") or 0
    width = config.count("intermediate_size") if num_experts else 0
    feed_forward = gated_mlp(hidden, shared) + experts(hidden, num_experts, width, router_bias=False)
    feed_forward += ParameterCount(replicated=2 * hidden)
    attention = projections(hidden, heads * head_dim, kv_heads * head_dim)
    parameters = ends(hidden, config.count("vocab_size"), tied=config.flag("tie_word_embeddings", default=False))
    for word in words:
        parameters += feed_forward + (mamba.parameters(hidden) if word == "mamba" else attention)
    state, full = mamba.state(None), Attention(kv_heads, head_dim, head_dim)
    layers: Layers = tuple((state,) if word == "mamba" else (full,) for word in words)
    active = config.count("num_experts_per_tok") if num_experts else 0
    num_moe = len(words) if num_experts else 0
    return Anatomy(layers, parameters, head_dim, kv_heads, shared, num_experts, active, width, num_moe)


@dataclass(frozen=True)
class _Mamba2:
    """The sizes of one Mamba-2 mixer (vllm/model_executor/layers/mamba/mamba_mixer2.py)."""

    heads: int
    head_dim: int
    groups: int
    state_size: int
    conv_kernel: int
    conv_bias: bool

    def state(self, state_bytes: int | None) -> Recurrent:
        return Recurrent(
            conv_channels=self.heads * self.head_dim,
            conv_tokens=self.conv_kernel - 1,
            heads=self.heads,
            head_elements=self.head_dim * self.state_size,
            state_bytes=state_bytes,
            groups=self.groups,
            group_channels=2 * self.state_size,
            checkpoints=1,
        )

    def parameters(self, hidden: int) -> ParameterCount:
        """Gate, input, groups and time steps in; the convolution; three numbers per head; the norm; the output."""
        inner, grouped = self.heads * self.head_dim, 2 * self.groups * self.state_size
        convolution = (inner + grouped) * (self.conv_kernel + int(self.conv_bias))
        sharded = hidden * (2 * inner + grouped + self.heads) + convolution + 3 * self.heads + inner + inner * hidden
        return ParameterCount(sharded=sharded)
