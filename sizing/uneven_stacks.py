"""Families whose attention has heads of a shape of their own: their layers kind by kind."""

from sizing.config_values import ConfigValues
from sizing.held import Weight
from sizing.layers import Attention
from sizing.matrices import Parts, experts, linear, mlp, norm, router
from sizing.stacks import Kind, Mixture, Stack


def mimo_v2(config: ConfigValues) -> Stack:
    """MiMo V2: layers with a window have more key-value heads, and sinks (vllm/model_executor/models/mimo_v2.py)."""
    hidden, num_layers = config.count("hidden_size"), config.count("num_hidden_layers")
    windowed, mixed = (config.numbers(key)[:num_layers] for key in ("hybrid_layer_pattern", "moe_layer_freq"))
    if len(windowed) < num_layers:
        raise config.impossible("hybrid_layer_pattern", f"must say 0 or 1 for each of {num_layers} layers")
    if len(mixed) < num_layers:
        raise config.impossible("moe_layer_freq", f"must say 0 or 1 for each of {num_layers} layers")
    window = config.count("sliding_window_size", default=config.count_or_none("sliding_window"))
    full = _heads(config, "", window=None)
    sliding = _heads(config, "swa_", window=window)
    sinks = config.flag("add_swa_attention_sink_bias", default=False)
    width = config.count("intermediate_size")
    mixture = Mixture(
        config.count("n_routed_experts"),
        config.count("num_experts_per_tok"),
        config.count("moe_intermediate_size"),
        sum(1 for is_mixed in mixed if is_mixed),
    )
    feed_forwards = {
        0: tuple(mlp("mlp", hidden, width)),
        1: (
            *experts("mlp.experts", hidden, mixture.count, mixture.width),
            *router("mlp.gate", hidden, mixture.count, bias=True),
        ),
    }
    kinds = {}
    for is_mixed, further in feed_forwards.items():
        for is_windowed, attention in enumerate((full, sliding)):
            weights = _projections(config, "swa_" if is_windowed else "", attention, sinks=bool(is_windowed) and sinks)
            kinds[f"{is_windowed}{is_mixed}"] = Kind(
                (attention,), (norm("layernorm", hidden, times=2), *weights, *further)
            )
    order = tuple(f"{int(slides == 1)}{int(bool(mixes))}" for slides, mixes in zip(windowed, mixed, strict=True))
    tied = config.flag("tie_word_embeddings", default=False)
    fewest = min(full, sliding, key=lambda attention: attention.num_kv_heads)
    return Stack(order, kinds, fewest, width, tied, mixture if mixture.layers else None)


def _heads(config: ConfigValues, prefix: str, *, window: int | None) -> Attention:
    head_dim = config.count(f"{prefix}head_dim")
    kv_heads, values = (
        config.count(f"{prefix}num_key_value_heads"),
        config.count(f"{prefix}v_head_dim", default=head_dim),
    )
    return Attention(kv_heads, head_dim, values, window)


def _projections(config: ConfigValues, prefix: str, attention: Attention, *, sinks: bool) -> Parts:
    hidden, heads = config.count("hidden_size"), config.count(f"{prefix}num_attention_heads")
    keys, values = attention.num_kv_heads * attention.head_dim, attention.num_kv_heads * attention.value_dim
    queries = heads * attention.head_dim
    yield linear("self_attn.q_proj", queries, hidden)
    yield linear("self_attn.k_proj", keys, hidden, "kv")
    yield linear("self_attn.v_proj", values, hidden, "kv")
    yield linear("self_attn.o_proj", hidden, heads * attention.value_dim)
    if config.flag("attention_bias", default=False):
        yield Weight("self_attn.q_proj.bias", (queries,), "sharded")
        yield Weight("self_attn.kv_proj.bias", (keys + values,), "kv")
    if sinks:
        yield Weight("self_attn.attention_sink_bias", (heads,), "sharded")


def step3_text(config: ConfigValues) -> Stack:
    """Step 3: queries by way of a narrow matrix that every rank has whole, and one key-value head.

    vllm/model_executor/models/step3_text.py; where the file does not list its mixtures, all layers but the first.
    """
    hidden, num_layers = config.count("hidden_size"), config.count("num_hidden_layers")
    heads, head_dim = config.count("num_attention_heads"), config.count("head_dim", default=256)
    narrow, width = config.count("share_q_dim", default=2048), config.count("intermediate_size")
    listed = config.values.get("moe_layers_enum")
    mixed = {int(part) for part in listed.split(",")} if isinstance(listed, str) else set(range(1, num_layers))
    mixture = Mixture(
        config.count("moe_num_experts", default=48),
        config.count("moe_top_k", default=3),
        config.count("moe_intermediate_size"),
        sum(1 for layer in range(num_layers) if layer in mixed),
    )
    attention = Attention(1, head_dim, head_dim)
    common = (
        linear("self_attn.qkv_proj", narrow + 2 * head_dim, hidden, "replicated"),
        linear("self_attn.wq", heads * head_dim, narrow),
        linear("self_attn.o_proj", hidden, heads * head_dim),
        norm("self_attn.inter_norm", narrow),
        norm("layernorm", hidden, times=2),
    )
    shared = config.count("share_expert_dim", default=mixture.width)
    experienced = (
        *experts("moe.experts", hidden, mixture.count, mixture.width),
        *router("moe.gate", hidden, mixture.count, bias=False),
        *mlp("share_expert", hidden, shared),
    )
    kinds = {
        "dense": Kind((attention,), (*common, *mlp("mlp", hidden, width))),
        "experts": Kind((attention,), (*common, *experienced)),
    }
    order = tuple("experts" if layer in mixed else "dense" for layer in range(num_layers))
    tied = config.flag("tie_word_embeddings", default=False)
    return Stack(order, kinds, attention, width, tied, mixture)
