"""DeepSeek's families with multi-head latent attention: their layers and parameters, read from `config.json`."""

from sizing.anatomy import Anatomy, ends, experts, gated_mlp
from sizing.config_values import ConfigValues
from sizing.layers import Indexer, Latent, Layer, Layers
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


def _attention(config: ConfigValues) -> ParameterCount:
    """The down-projections are whole on every rank; what they feed is divided by heads."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    rank, rope = config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
    nope, value = config.count("qk_nope_head_dim"), config.count("v_head_dim")
    query_rank = config.count_or_none("q_lora_rank")
    queries = heads * (nope + rope)
    sharded = (query_rank or hidden) * queries + rank * heads * (nope + value) + heads * value * hidden
    replicated = hidden * (rank + rope) + rank + 2 * hidden
    if query_rank is not None:
        replicated += hidden * query_rank + query_rank
    return ParameterCount(sharded=sharded, replicated=replicated)


def _indexer(config: ConfigValues) -> ParameterCount:
    hidden, query_rank = config.count("hidden_size"), config.count("q_lora_rank")
    heads, head_dim = config.count("index_n_heads"), config.count("index_head_dim")
    return ParameterCount(replicated=query_rank * heads * head_dim + hidden * (head_dim + heads) + 2 * head_dim)
