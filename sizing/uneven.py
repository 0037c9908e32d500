"""Families whose layers differ in shape: their layers and parameters, read from `config.json`."""

from sizing.anatomy import Anatomy, ends, experts, gated_mlp, projections
from sizing.config_values import ConfigValues
from sizing.errors import UnsupportedModelError
from sizing.layers import Attention, IndexKeys, Layer
from sizing.model import ParameterCount

_MINIMAX_M3_DENSE_LAYERS = 3  # vllm/transformers_utils/configs/minimax_m3.py
_MINIMAX_M3_INDEX_HEADS = 4
_MINIMAX_M3_DENSE_WIDTH = 12288


def decilm(config: ConfigValues) -> Anatomy:
    """Nemotron-NAS: each layer's heads and widths of its own, or none (vllm/model_executor/models/nemotron_nas.py)."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    head_dim, num_layers = config.count("head_dim", default=hidden // heads), config.count("num_hidden_layers")
    blocks = config.values.get("block_configs")
    if not isinstance(blocks, list) or len(blocks) != num_layers:
        raise UnsupportedModelError(
            f"{config.name}: config.json has no block_configs for its {num_layers} layers, so which of them keep a "
            "cache is unknown; use the file as its publisher ships it"
        )
    parameters = ends(hidden, config.count("vocab_size"), tied=config.flag("tie_word_embeddings", default=False))
    layers: list[tuple[Layer, ...]] = []
    kv_heads, width = 1, 1
    for values in blocks:
        block = ConfigValues(config.name, values if isinstance(values, dict) else {})
        attention, feed_forward = (ConfigValues(config.name, block.section(key)) for key in ("attention", "ffn"))
        per_group = attention.count_or_none("n_heads_in_group")
        if per_group is not None and not attention.flag("no_op", default=False):
            kv_heads = max(kv_heads, heads // per_group)
            layers.append((Attention(heads // per_group, head_dim, head_dim),))
            parameters += projections(hidden, heads * head_dim, heads // per_group * head_dim)
            parameters += ParameterCount(replicated=hidden)
        else:
            layers.append(())
        own_width = _decilm_width(feed_forward, hidden)
        if own_width:
            width = max(width, own_width)
            parameters += gated_mlp(hidden, own_width) + ParameterCount(replicated=hidden)
    return Anatomy(tuple(layers), parameters, head_dim, kv_heads, width)


def _decilm_width(feed_forward: ConfigValues, hidden: int) -> int:
    """Given as it is, or as a multiple of the hidden size, rounded up to 256; 0 where the layer has none."""
    if feed_forward.flag("no_op", default=False):
        return 0
    multiple = feed_forward.values.get("ffn_mult")
    if isinstance(multiple, int | float) and not isinstance(multiple, bool):
        return -(-int(2 * multiple * hidden / 3) // 256) * 256
    return feed_forward.count_or_none("intermediate_size") or 0


def minimax_m3(config: ConfigValues) -> Anatomy:
    """MiniMax M3: an indexer beside the attention of all layers but the first (vllm/models/minimax_m3).

    Where the file says nothing of sparse attention, its config class does, and so do we.
    """
    hidden, heads, kv_heads = (
        config.count("hidden_size"),
        config.count("num_attention_heads"),
        config.count("num_key_value_heads"),
    )
    head_dim, num_layers = config.count("head_dim", default=128), config.count("num_hidden_layers")
    sparse = ConfigValues(config.name, config.section("sparse_attention_config"))
    default = [int(layer >= _MINIMAX_M3_DENSE_LAYERS) for layer in range(num_layers)]
    indexed = sparse.numbers("sparse_attention_freq") or default
    mixed = config.numbers("moe_layer_freq") or default
    if len(indexed) < num_layers or len(mixed) < num_layers:
        raise config.impossible("sparse_attention_config", "names fewer layers than there are")
    index_dim = sparse.count("sparse_index_dim", default=128)
    index_heads = sparse.count("sparse_num_index_heads", default=_MINIMAX_M3_INDEX_HEADS)
    width, num_experts = config.count("intermediate_size"), config.count("num_local_experts")
    shared = (config.count_or_none("n_shared_experts") or 0) * config.count("shared_intermediate_size", default=width)
    dense_width = config.count("dense_intermediate_size", default=_MINIMAX_M3_DENSE_WIDTH)
    num_moe = sum(1 for is_mixed in mixed[:num_layers] if is_mixed)
    attention = projections(hidden, heads * head_dim, kv_heads * head_dim)
    attention += ParameterCount(replicated=2 * hidden + 2 * head_dim)
    indexer = ParameterCount(sharded=hidden * index_heads * index_dim, replicated=hidden * index_dim + 2 * index_dim)
    parameters = ends(hidden, config.count("vocab_size"), tied=config.flag("tie_word_embeddings", default=False))
    for part, times in (
        (attention, num_layers),
        (indexer, sum(1 for is_indexed in indexed[:num_layers] if is_indexed)),
        (experts(hidden, num_experts, width, shared_width=shared, router_bias=True), num_moe),
        (gated_mlp(hidden, dense_width), num_layers - num_moe),
    ):
        parameters += part.times(times)
    full = Attention(kv_heads, head_dim, head_dim)
    layers = tuple((full, IndexKeys(index_dim)) if is_indexed else (full,) for is_indexed in indexed[:num_layers])
    active = config.count("num_experts_per_tok") + shared // width
    return Anatomy(layers, parameters, head_dim, kv_heads, dense_width, num_experts, active, width, num_moe)


def step3p5(config: ConfigValues) -> Anatomy:
    """Step 3.5: windows with more heads than full attention has (vllm/model_executor/models/step3p5.py)."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads, num_layers = config.count("num_attention_groups"), config.count("num_hidden_layers")
    head_dim = config.count("head_dim", default=hidden // heads)
    window, words = config.count_or_none("sliding_window"), config.words("layer_types")
    if words is None or len(words) < num_layers:
        raise config.impossible("layer_types", f"must name a type for each of {num_layers} layers")
    other = ConfigValues(config.name, config.section("attention_other_setting"))
    shapes: dict[str, tuple[int, int, int]] = {}
    if other.values:
        shapes[str(other.values.get("attention_type"))] = (
            other.count("num_attention_heads"),
            other.count("num_attention_groups"),
            other.count("head_dim"),
        )
    listed = config.values.get("moe_layers_enum")
    mixed = {int(part) for part in listed.split(",")} if isinstance(listed, str) else set(range(1, num_layers))
    num_experts, moe_width = config.count("moe_num_experts"), config.count("moe_intermediate_size")
    top = config.count("moe_top_k")
    shared = config.count("share_expert_dim", default=moe_width * top)
    gated = config.flag("use_head_wise_attn_gate", default=False)
    parameters = ends(hidden, config.count("vocab_size"), tied=config.flag("tie_word_embeddings", default=False))
    layers: list[tuple[Layer, ...]] = []
    for layer, word in enumerate(words[:num_layers]):
        own_heads, own_kv_heads, own_dim = shapes.get(word, (heads, kv_heads, head_dim))
        layers.append((Attention(own_kv_heads, own_dim, own_dim, window if word == "sliding_attention" else None),))
        parameters += projections(hidden, own_heads * own_dim, own_kv_heads * own_dim)
        parameters += ParameterCount(sharded=hidden * own_heads if gated else 0, replicated=2 * hidden + 2 * own_dim)
        if layer in mixed:
            bias = config.flag("use_moe_router_bias", default=True)
            parameters += experts(hidden, num_experts, moe_width, shared_width=shared, router_bias=bias)
        else:
            parameters += gated_mlp(hidden, config.count("intermediate_size"))
    active = top + shared // moe_width
    width = config.count("intermediate_size")
    return Anatomy(tuple(layers), parameters, head_dim, kv_heads, width, num_experts, active, moe_width, len(mixed))
