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
    parts = listed.split(",") if isinstance(listed, str) else [str(layer) for layer in range(1, num_layers)]
    if not all(part.strip().isdigit() for part in parts):
        raise config.impossible("moe_layers_enum", "must be numbers of layers with commas between them")
    mixed = {int(part) for part in parts}
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


def laguna(config: ConfigValues) -> Stack:
    """Laguna: layers with a window may have more heads, and a gate for each (vllm/model_executor/models/laguna.py).

    What the file leaves out is as its config class has it (transformers/models/laguna).
    """
    hidden, num_layers = config.count("hidden_size"), config.count("num_hidden_layers")
    head_dim, kv_heads = config.count("head_dim", default=128), config.count("num_key_value_heads", default=8)
    heads = config.numbers("num_attention_heads_per_layer") or [config.count("num_attention_heads")] * num_layers
    slides = _words(config, "layer_types", ["full_attention"] * num_layers)
    sorts = _words(config, "mlp_layer_types", ["dense", *["sparse"] * (num_layers - 1)])
    if len(heads) != num_layers:
        raise config.impossible("num_attention_heads_per_layer", f"must give a number for each of {num_layers} layers")
    window = config.count("sliding_window", default=512)
    mixture = Mixture(
        config.count("num_experts", default=256),
        config.count("num_experts_per_tok", default=8),
        config.count("moe_intermediate_size", default=512),
        sorts.count("sparse"),
    )
    width, shared = config.count("intermediate_size"), config.count_or_none("shared_expert_intermediate_size") or 0
    further = {
        "dense": tuple(mlp("mlp", hidden, width)),
        "sparse": (
            *experts("mlp.experts", hidden, mixture.count, mixture.width),
            *router("mlp.gate", hidden, mixture.count, bias=True),
            *(mlp("mlp.shared_expert", hidden, shared) if shared else ()),
        ),
    }
    full = Attention(kv_heads, head_dim, head_dim)
    kinds, order = dict[str, Kind](), list[str]()
    for own, slide, sort in zip(heads, slides, sorts, strict=True):
        word = f"{own} heads, {slide}, {sort}"
        if word not in kinds:
            attention = Attention(kv_heads, head_dim, head_dim, window) if slide == "sliding_attention" else full
            weights = _gated(config, own, attention, sinks=attention is not full)
            kinds[word] = Kind((attention,), (*weights, norm("layernorm", hidden, times=2), *further[sort]))
        order.append(word)
    tied = config.flag("tie_word_embeddings", default=False)
    return Stack(tuple(order), kinds, full, width, tied, mixture if mixture.layers else None)


def _gated(config: ConfigValues, heads: int, attention: Attention, *, sinks: bool) -> Parts:
    """Head norms, and a gate for each head or, under an older name, for each of its channels."""
    hidden, queries = config.count("hidden_size"), heads * attention.head_dim
    keys, gating = attention.num_kv_heads * attention.head_dim, config.values.get("gating", True)
    yield linear("self_attn.q_proj", queries, hidden)
    yield linear("self_attn.k_proj", keys, hidden, "kv")
    yield linear("self_attn.v_proj", keys, hidden, "kv")
    yield linear("self_attn.o_proj", hidden, queries)
    yield norm("self_attn.qk_norm", 2 * attention.head_dim)
    if gating:
        yield linear("self_attn.g_proj", heads if gating in (True, "per-head") else queries, hidden)
    if config.flag("attention_bias", default=False):
        yield Weight("self_attn.q_proj.bias", (queries,), "sharded")
        yield Weight("self_attn.kv_proj.bias", (2 * keys,), "kv")
        yield norm("self_attn.o_proj.bias", hidden)
    if sinks and config.flag("swa_attention_sink_enabled", default=False):
        yield Weight("self_attn.sink", (heads,), "sharded")


def _words(config: ConfigValues, key: str, default: list[str]) -> list[str]:
    words = config.words(key)
    if words is not None and len(words) != len(default):
        raise config.impossible(key, f"must name a type for each of {len(default)} layers")
    return default if words is None else words
