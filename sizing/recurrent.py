"""Families that mix gated delta nets with attention: their layers and parameters, read from `config.json`."""

from sizing.anatomy import Anatomy, ends, experts, gated_mlp, projections
from sizing.config_values import ConfigValues
from sizing.layers import Attention, Layers, Recurrent
from sizing.matrices import mlp, norm
from sizing.model import ParameterCount
from sizing.recurrent_matrices import delta_net
from sizing.stacks import Kind, Stack, attention_of, attention_weights

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


def olmo_hybrid(config: ConfigValues) -> Stack:
    """OLMo Hybrid: delta nets with every fourth layer full, normed across its heads (models/olmo_hybrid.py)."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    key_heads = config.count("linear_num_key_heads", default=heads)
    key_dim = config.count("linear_key_head_dim", default=3 * hidden // (4 * key_heads))
    sizes = {  # as its config class fills them in
        "linear_num_key_heads": key_heads,
        "linear_num_value_heads": config.count("linear_num_value_heads", default=heads),
        "linear_key_head_dim": key_dim,
        "linear_value_head_dim": config.count("linear_value_head_dim", default=2 * key_dim),
    }
    config = ConfigValues(config.name, {**config.values, **sizes})
    attention, width = attention_of(config), config.count("intermediate_size")
    behind = (*mlp("mlp", hidden, width), norm("layernorm", hidden, times=2))
    normed = norm("self_attn.qk_norm", hidden + attention.num_kv_heads * attention.head_dim)
    kinds = {
        "linear": Kind((_delta_state(config, None),), (*delta_net(config, hidden), *behind)),
        "full": Kind((attention,), (*attention_weights(config, attention), normed, *behind)),
    }
    linear = _linear_layers(config, config.count("num_hidden_layers"))
    order = tuple("linear" if is_linear else "full" for is_linear in linear)
    return Stack(order, kinds, attention, width, config.flag("tie_word_embeddings", default=False))


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
