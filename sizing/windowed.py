"""Families that mix windows or chunks with full attention: their layers and parameters, read from `config.json`."""

from sizing.anatomy import Anatomy, ends, experts, gated_mlp, projections
from sizing.config_values import ConfigValues
from sizing.layers import Attention, Layers
from sizing.model import ParameterCount


def gpt_oss(config: ConfigValues) -> Anatomy:
    """GPT-OSS: a window on every even layer, sinks, and biases everywhere (vllm/model_executor/models/gpt_oss.py)."""
    hidden, heads, kv_heads = _widths(config)
    head_dim, width = config.count("head_dim"), config.count("intermediate_size")
    num_layers, num_experts = config.count("num_hidden_layers"), config.count("num_local_experts")
    window = config.count("sliding_window")
    queries, keys = heads * head_dim, kv_heads * head_dim
    layer = (
        projections(hidden, queries, keys)
        + ParameterCount(sharded=queries + heads, kv_projection=2 * keys, replicated=3 * hidden)
        + experts(hidden, num_experts, width, router_bias=True)
        + ParameterCount(sharded=num_experts * 2 * width, replicated=num_experts * hidden)
    )
    return Anatomy(
        tuple(
            (Attention(kv_heads, head_dim, head_dim, window=window if layer % 2 == 0 else None),)
            for layer in range(num_layers)
        ),
        layer.times(num_layers) + _ends(config, tied=False),
        head_dim,
        kv_heads,
        width,
        num_experts,
        config.count("num_experts_per_tok"),
        width,
        num_layers,
    )


def gemma2(config: ConfigValues) -> Anatomy:
    """Gemma 2: windows on even layers, four norms a layer (vllm/model_executor/models/gemma2.py)."""
    return _gemma(config, pattern=2, qk_norm=False, default_window=4096)


def gemma3(config: ConfigValues) -> Anatomy:
    """Gemma 3: five windows to one full layer, head norms (vllm/model_executor/models/gemma3.py)."""
    pattern = config.count_or_none("sliding_window_pattern") or 6
    return _gemma(config, pattern=pattern, qk_norm=True, default_window=4096)


def _gemma(config: ConfigValues, *, pattern: int, qk_norm: bool, default_window: int) -> Anatomy:
    hidden, heads, kv_heads = _widths(config)
    head_dim, width = config.count("head_dim", default=256), config.count("intermediate_size")
    num_layers = config.count("num_hidden_layers")
    window = config.count("sliding_window", default=default_window)
    types = _layer_types(config, num_layers, pattern)
    layer = (
        projections(hidden, heads * head_dim, kv_heads * head_dim)
        + gated_mlp(hidden, width)
        + ParameterCount(replicated=4 * hidden + int(qk_norm) * 2 * head_dim)
    )
    return Anatomy(
        tuple((Attention(kv_heads, head_dim, head_dim, window=window if sliding else None),) for sliding in types),
        layer.times(num_layers) + _ends(config, tied=True),
        head_dim,
        kv_heads,
        width,
    )


def gemma4(config: ConfigValues) -> Anatomy:
    """Gemma 4: full layers with fewer, wider heads; a mixture beside the dense layer; shared tails; layer embeddings.

    vllm/model_executor/models/gemma4.py. Where `attention_k_eq_v` is absent, a file that gives
    `num_global_key_value_heads` is taken to mean it, as every published one does.
    """
    hidden, heads, kv_heads = _widths(config)
    head_dim, width = config.count("head_dim", default=256), config.count("intermediate_size")
    num_layers = config.count("num_hidden_layers")
    types = _layer_types(config, num_layers, 6)
    types[-1] = False
    global_heads = config.count_or_none("num_global_key_value_heads")
    if not config.flag("attention_k_eq_v", default=global_heads is not None) or global_heads is None:
        global_heads = kv_heads
    global_dim = config.count("global_head_dim", default=512)
    own = num_layers - (config.count_or_none("num_kv_shared_layers") or 0)
    window = config.count("sliding_window", default=512)
    num_experts = config.count_or_none("num_experts") or 0
    moe_width = config.count("moe_intermediate_size") if num_experts else 0

    parameters, layers = _ends(config, tied=True) + _layer_embeddings(config), []
    widened = 2 if config.flag("use_double_wide_mlp", default=False) else 1
    for index, sliding in enumerate(types):
        shape = (
            Attention(kv_heads, head_dim, head_dim, window)
            if sliding
            else Attention(global_heads, global_dim, global_dim)
        )
        layers.append((shape,) if index < own else ())
        keys = shape.num_kv_heads * shape.head_dim if index < own else 0
        # the layer's norms, its scalar, and the norms of queries and of keys
        norms = 4 * hidden + 1 + (2 if index < own else 1) * shape.head_dim
        parameters += (
            projections(hidden, heads * shape.head_dim, keys)
            + gated_mlp(hidden, width if index < own else widened * width)
            + ParameterCount(replicated=norms)
        )
        if num_experts:  # three norms more, the router's scale, and one scale for each expert
            parameters += experts(hidden, num_experts, moe_width, router_bias=True)
            parameters += ParameterCount(replicated=4 * hidden)
    active = config.count_or_none("top_k_experts") or config.count_or_none("num_experts_per_tok") or 8
    return Anatomy(
        tuple(layers),
        parameters,
        head_dim,
        kv_heads,
        width,
        num_experts,
        active if num_experts else 0,
        moe_width,
        num_layers if num_experts else 0,
    )


def gemma3n(config: ConfigValues) -> Anatomy:
    """Gemma 3n: windows but for every fifth layer, a tail that shares, and four streams (models/gemma3n.py)."""
    hidden, heads, kv_heads = _widths(config)
    head_dim, num_layers = config.count("head_dim", default=256), config.count("num_hidden_layers")
    widths = config.values.get("intermediate_size")
    widths = config.numbers("intermediate_size") if isinstance(widths, list) else [config.count("intermediate_size")]
    window, types = config.count("sliding_window", default=512), _layer_types(config, num_layers, 5)
    own = num_layers - config.count("num_kv_shared_layers", default=15)
    streams, rank = config.count("altup_num_inputs", default=4), config.count("laurel_rank", default=64)
    # norms of the layer, of the low-rank shortcut and of the router; the router and what mixes the streams
    mixing = 7 * hidden + hidden * streams + streams**2 + streams**3
    parameters = _ends(config, tied=True) + _layer_embeddings(config)
    parameters += ParameterCount(sharded=2 * (streams - 1) * hidden * hidden)
    for index in range(num_layers):
        keys = kv_heads * head_dim if index < own else 0
        parameters += projections(hidden, heads * head_dim, keys) + gated_mlp(hidden, widths[index % len(widths)])
        norms = (2 if index < own else 1) * head_dim
        parameters += ParameterCount(sharded=2 * hidden * rank, replicated=mixing + norms)
    layers: Layers = tuple(
        (Attention(kv_heads, head_dim, head_dim, window if sliding else None),) if index < own else ()
        for index, sliding in enumerate(types)
    )
    return Anatomy(layers, parameters, head_dim, kv_heads, max(widths))


def _layer_embeddings(config: ConfigValues) -> ParameterCount:
    """An embedding of each token for every layer, and how it comes in there; nothing where the file has none."""
    width, hidden = config.count_or_none("hidden_size_per_layer_input"), config.count("hidden_size")
    if width is None:
        return ParameterCount()
    num_layers = config.count("num_hidden_layers")
    vocab = config.count("vocab_size_per_layer_input", default=config.count("vocab_size"))
    return ParameterCount(
        sharded=(vocab + hidden) * num_layers * width,
        replicated=width + num_layers * (2 * hidden * width + hidden),
    )


def exaone4(config: ConfigValues) -> Anatomy:
    """EXAONE 4: windows with every fourth layer full (vllm/model_executor/models/exaone4.py)."""
    hidden, heads, kv_heads = _widths(config)
    head_dim = config.count("head_dim", default=hidden // heads)
    num_layers, width = config.count("num_hidden_layers"), config.count("intermediate_size")
    window = config.count_or_none("sliding_window")
    pattern = config.values.get("sliding_window_pattern")
    every = len(pattern) if isinstance(pattern, str) else config.count("sliding_window_pattern", default=4)
    types = _layer_types(config, num_layers, every)
    layer = (
        projections(hidden, heads * head_dim, kv_heads * head_dim)
        + gated_mlp(hidden, width)
        + ParameterCount(replicated=2 * hidden + 2 * head_dim)
    )
    return Anatomy(
        tuple((Attention(kv_heads, head_dim, head_dim, window if sliding else None),) for sliding in types),
        layer.times(num_layers) + _ends(config, tied=False),
        head_dim,
        kv_heads,
        width,
    )


def llama4(config: ConfigValues) -> Anatomy:
    """Llama 4: chunks with every fourth layer full and without positions (vllm/model_executor/models/llama4.py)."""
    hidden, heads, kv_heads = _widths(config)
    head_dim = config.count("head_dim", default=hidden // heads)
    num_layers, width = config.count("num_hidden_layers"), config.count("intermediate_size")
    dense_width = config.count("intermediate_size_mlp", default=16384)
    num_experts, step = config.count("num_local_experts"), config.count("interleave_moe_layer_step", default=1)
    chunk = config.count_or_none("attention_chunk_size")
    every = config.count("no_rope_layer_interval", default=4)
    positioned = config.numbers("no_rope_layers") or [int((layer + 1) % every != 0) for layer in range(num_layers)]
    if len(positioned) < num_layers:
        raise config.impossible("no_rope_layers", "names fewer layers than there are")
    num_moe = num_layers // step
    attention = projections(hidden, heads * head_dim, kv_heads * head_dim) + ParameterCount(replicated=2 * hidden)
    parameters = (
        attention.times(num_layers)
        + experts(hidden, num_experts, width, shared_width=width, router_bias=False).times(num_moe)
        + gated_mlp(hidden, dense_width).times(num_layers - num_moe)
        + _ends(config, tied=False)
    )
    layers: Layers = tuple(
        (Attention(kv_heads, head_dim, head_dim, chunk=chunk if has_positions else None),)
        for has_positions in positioned[:num_layers]
    )
    active = config.count("num_experts_per_tok", default=1)
    return Anatomy(layers, parameters, head_dim, kv_heads, dense_width, num_experts, active + 1, width, num_moe, 1)


def minimax_m2(config: ConfigValues) -> Anatomy:
    """MiniMax-M2: full attention with norms over all heads, every layer a mixture (models/minimax_m2.py)."""
    hidden, heads, kv_heads = _widths(config)
    head_dim, width = config.count("head_dim"), config.count("intermediate_size")
    num_layers, num_experts = config.count("num_hidden_layers"), config.count("num_local_experts")
    queries, keys = heads * head_dim, kv_heads * head_dim
    layer = (
        projections(hidden, queries, keys)
        + ParameterCount(sharded=queries, kv_projection=keys, replicated=2 * hidden)
        + experts(hidden, num_experts, width, router_bias=True)
    )
    return Anatomy(
        ((Attention(kv_heads, head_dim, head_dim),),) * num_layers,
        layer.times(num_layers) + _ends(config, tied=False),
        head_dim,
        kv_heads,
        width,
        num_experts,
        config.count("num_experts_per_tok"),
        width,
        num_layers,
    )


def _widths(config: ConfigValues) -> tuple[int, int, int]:
    heads = config.count("num_attention_heads")
    return config.count("hidden_size"), heads, config.count("num_key_value_heads", default=heads)


def _ends(config: ConfigValues, *, tied: bool) -> ParameterCount:
    return ends(
        config.count("hidden_size"), config.count("vocab_size"), tied=config.flag("tie_word_embeddings", default=tied)
    )


def _layer_types(config: ConfigValues, num_layers: int, every: int) -> list[bool]:
    """Whether each layer has a window: as listed, else all but each `every`-th."""
    words = config.words("layer_types")
    if words is None:
        return [(layer + 1) % every != 0 for layer in range(num_layers)]
    if len(words) != num_layers or set(words) - {"sliding_attention", "full_attention"}:
        raise config.impossible("layer_types", "must name sliding_attention or full_attention for each layer")
    return [word == "sliding_attention" for word in words]
