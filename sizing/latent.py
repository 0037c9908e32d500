"""DeepSeek's families with multi-head latent attention: their layers and parameters, read from `config.json`."""

from sizing.anatomy import Anatomy, ends, experts, gated_mlp
from sizing.config_values import ConfigValues
from sizing.errors import UnsupportedModelError
from sizing.layers import Compressed, CompressorState, Indexer, Latent, Layer, Layers, Recurrent
from sizing.model import ParameterCount


def deepseek(config: ConfigValues) -> Anatomy:
    """DeepSeek V2, V3 and R1, and Kimi K2 (vllm/model_executor/models/deepseek_v2.py)."""
    return _deepseek(config, indexed=[False] * config.count("num_hidden_layers"))


def deepseek_sparse(config: ConfigValues) -> Anatomy:
    """DeepSeek V3.2 and GLM-5: an indexer picks the tokens to attend to (vllm/models/deepseek_v32/attention.py).

    Layers that reuse another's choice have no indexer of their own.
    """
    num_layers = config.count("num_hidden_layers")
    pattern = config.values.get("index_topk_pattern")
    if isinstance(pattern, str | list):
        indexed = [layer >= len(pattern) or pattern[layer] != "S" for layer in range(num_layers)]
    else:
        every, offset = config.count("index_topk_freq", default=1), config.count("index_skip_topk_offset", default=2)
        indexed = [max(layer - offset + 1, 0) % every == 0 for layer in range(num_layers)]
    return _deepseek(config, indexed=indexed)


def _deepseek(config: ConfigValues, *, indexed: list[bool]) -> Anatomy:
    hidden, num_layers = config.count("hidden_size"), len(indexed)
    width = config.count("kv_lora_rank") + config.count("qk_rope_head_dim")
    num_experts = config.count_or_none("n_routed_experts") or 0
    dense = min(num_layers, config.count_or_none("first_k_dense_replace") or 0) if num_experts else num_layers
    step = config.count("moe_layer_freq", default=1)
    mixtures = sum(1 for layer in range(dense, num_layers) if layer % step == 0)
    moe_width = config.count("moe_intermediate_size") if num_experts else 0
    shared = config.count_or_none("n_shared_experts") or 0

    mixture = experts(hidden, num_experts, moe_width, shared_width=shared * moe_width, router_bias=_biased(config))
    parts = (
        (_attention(config), num_layers),
        (_indexer(config) if any(indexed) else ParameterCount(), sum(indexed)),
        (gated_mlp(hidden, config.count("intermediate_size")), num_layers - mixtures),
        (mixture, mixtures),
    )
    tied = config.flag("tie_word_embeddings", default=False)
    parameters = ends(hidden, config.count("vocab_size"), tied=tied)
    for part, times in parts:
        parameters += ParameterCount(part.sharded * times, 0, part.replicated * times)
    index_dim = config.count("index_head_dim") if any(indexed) else 0
    layers: Layers = tuple(_caches(width, index_dim, has_indexer) for has_indexer in indexed)
    active = (config.count("num_experts_per_tok") + shared) if num_experts else 0
    heads = config.count("num_attention_heads")
    dense_width = config.count("intermediate_size")
    return Anatomy(layers, parameters, width, heads, dense_width, num_experts, active, moe_width, mixtures, shared)


def _caches(width: int, index_dim: int, has_indexer: bool) -> tuple[Layer, ...]:
    return (Latent(width, indexed=True), Indexer(index_dim)) if has_indexer else (Latent(width),)


def _biased(config: ConfigValues) -> bool:
    """DeepSeek V3's router corrects its scores by a bias; V2's does not."""
    return config.values.get("topk_method") != "greedy" and config.values.get("model_type") != "deepseek_v2"


def norms_per_layer(config: ConfigValues) -> int:
    """A.X K1 norms what comes out of the feed-forward layer too, Pangu both what goes into and what leaves it."""
    if config.values.get("model_type") == "axk1":
        return 3
    return 4 if config.flag("sandwich_norm", default=False) else 2


def _attention(config: ConfigValues) -> ParameterCount:
    """The down-projections are whole on every rank; what they feed is divided by heads."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    rank, rope = config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
    nope, value = config.count("qk_nope_head_dim"), config.count("v_head_dim")
    query_rank = config.count_or_none("q_lora_rank")
    queries = heads * (nope + rope)
    sharded = (query_rank or hidden) * queries + rank * heads * (nope + value) + heads * value * hidden
    replicated = hidden * (rank + rope) + rank + norms_per_layer(config) * hidden
    if query_rank is not None:
        replicated += hidden * query_rank + query_rank
    return ParameterCount(sharded=sharded, replicated=replicated)


def _indexer(config: ConfigValues) -> ParameterCount:
    hidden, query_rank = config.count("hidden_size"), config.count("q_lora_rank")
    heads, head_dim = config.count("index_n_heads"), config.count("index_head_dim")
    return ParameterCount(replicated=query_rank * heads * head_dim + hidden * (head_dim + heads) + 2 * head_dim)


def deepseek_v4(config: ConfigValues) -> Anatomy:
    """DeepSeek V4: a window in every layer, and rows of 4 or 128 tokens in most (vllm/models/deepseek_v4).

    Rows of four have an indexer. Both kinds keep what the compressor has not folded into a row yet.
    """
    num_layers, hidden = config.count("num_hidden_layers"), config.count("hidden_size")
    head_dim, rope = config.count("head_dim"), config.count("qk_rope_head_dim")
    index_dim, window = config.count("index_head_dim"), config.count("sliding_window")
    ratios = config.numbers("compress_ratios")[:num_layers]  # what follows is the prediction layers'
    if len(ratios) != num_layers or set(ratios) - {0, 1, 4, 128}:
        raise config.impossible("compress_ratios", "must say 0, 1, 4 or 128 for each layer")
    caches: dict[int, tuple[Layer, ...]] = {1: (Compressed(head_dim, rope, window=window),)}
    for ratio in (4, 128):
        indexed: tuple[Layer, ...] = (Indexer(index_dim, ratio), CompressorState(index_dim, ratio))
        own: tuple[Layer, ...] = (CompressorState(head_dim, ratio), Compressed(head_dim, rope, ratio))
        caches[ratio] = (*caches[1], *own, *(indexed if ratio == 4 else ()))

    num_experts, width = config.count("n_routed_experts"), config.count("moe_intermediate_size")
    shared, heads = config.count_or_none("n_shared_experts") or 0, config.count("num_attention_heads")
    query_rank = config.count("q_lora_rank")
    # 1 % of the weights; where the file is silent, what makes the published 284 billion of V4-Flash
    out_width = config.count("o_lora_rank", default=1024)
    out_rank = config.count("o_groups", default=8) * out_width
    attention = ParameterCount(
        sharded=query_rank * heads * head_dim + heads * head_dim * out_width + out_rank * hidden,
        replicated=hidden * (query_rank + head_dim) + query_rank + head_dim + heads + 2 * hidden,
    )
    indexer = _indexer(config) + _compressor(hidden, index_dim, 4)
    mixture = experts(hidden, num_experts, width, shared_width=shared * width, router_bias=True)
    parameters = ends(hidden, config.count("vocab_size"), tied=config.flag("tie_word_embeddings", default=False))
    parameters += (attention + mixture).times(num_layers)
    for ratio in ratios:
        parameters += _compressor(hidden, head_dim, ratio) if ratio > 1 else ParameterCount()
        parameters += indexer if ratio == 4 else ParameterCount()
    layers: Layers = tuple(caches[max(1, ratio)] for ratio in ratios)
    active = config.count("num_experts_per_tok") + shared
    return Anatomy(layers, parameters, head_dim, heads, width, num_experts, active, width, num_layers)


def _compressor(hidden: int, head_dim: int, ratio: int) -> ParameterCount:
    """Keys and scores in, positions and a norm; twice as wide where rows overlap."""
    width = head_dim * (2 if ratio == 4 else 1)
    return ParameterCount(replicated=2 * hidden * width + ratio * width + head_dim)


def kimi_linear(config: ConfigValues) -> Anatomy:
    """Kimi Linear and K3: delta attention beside latent attention (vllm/models/kimi_k3)."""
    section = config.section("linear_attn_config")
    if not section:
        raise UnsupportedModelError(
            f"{config.name}: config.json has no linear_attn_config, so which layers are linear attention is unknown; "
            "use the file as its publisher ships it"
        )
    linear = ConfigValues(config.name, section)
    hidden, num_layers = config.count("hidden_size"), config.count("num_hidden_layers")
    heads, head_dim = linear.count("num_heads"), linear.count("head_dim")
    kernel, delta = linear.count("short_conv_kernel_size"), set(linear.numbers("kda_layers"))
    width = config.count("kv_lora_rank") + config.count("qk_rope_head_dim")
    projected = heads * head_dim
    state = Recurrent(3 * projected, kernel - 1, heads, head_dim * head_dim, state_bytes=4)
    net = ParameterCount(
        sharded=hidden * (4 * projected + heads)
        + 2 * head_dim * projected
        + 3 * projected * kernel
        + projected
        + heads,
        replicated=2 * hidden * head_dim + head_dim + 2 * hidden,
    )
    num_experts = config.count_or_none("num_experts") or 0
    dense = min(num_layers, config.count_or_none("first_k_dense_replace") or 0) if num_experts else num_layers
    moe_width = config.count("moe_intermediate_size") if num_experts else 0
    shared = config.count_or_none("num_shared_experts") or 0
    expert_hidden = config.count("routed_expert_hidden_size", default=hidden)
    mixture = experts(expert_hidden, num_experts, moe_width, router_bias=True)
    mixture += gated_mlp(hidden, shared * moe_width) + ParameterCount(replicated=num_experts * (hidden - expert_hidden))
    if expert_hidden != hidden:  # into the experts' width and back
        mixture += ParameterCount(replicated=2 * hidden * expert_hidden)
    parameters = ends(hidden, config.count("vocab_size"), tied=config.flag("tie_word_embeddings", default=False))
    parameters += gated_mlp(hidden, config.count("intermediate_size")).times(dense)
    parameters += mixture.times(num_layers - dense)
    layers: Layers = tuple((state,) if layer + 1 in delta else (Latent(width),) for layer in range(num_layers))
    for layer in range(num_layers):
        parameters += net if layer + 1 in delta else _attention(config)
    active = (config.count("num_experts_per_token") + shared) if num_experts else 0
    return Anatomy(
        layers,
        parameters,
        width,
        config.count("num_attention_heads"),
        config.count("intermediate_size"),
        num_experts,
        active,
        moe_width,
        num_layers - dense,
    )
