"""Decoders whose architecture is not known here: their layers, read off the keys that only such layers have."""

from sizing.anatomy import Anatomy, ends, experts, projections
from sizing.config_values import ConfigValues
from sizing.decoders import is_gated
from sizing.errors import UnsupportedModelError
from sizing.latent import deepseek, deepseek_sparse
from sizing.layers import Attention, Layers, Recurrent
from sizing.model import ParameterCount
from sizing.recurrent import qwen3_5

# vllm/transformers_utils/model_arch_config_convertor.py: is_deepseek_mla. Others with such keys keep heads as they are.
_LATENT_TYPES = {
    "axk1",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm_moe_dsa",
    "glm4_moe_lite",
    "kimi_k2",
    "pangu_ultra_moe",
}
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
# Parts of key names that announce a layer, or a size of one, that a plain decoder's arithmetic would get wrong.
_NOT_UNDERSTOOD: tuple[tuple[str, str], ...] = (
    ("mamba", "Mamba layers"),
    ("ssm_", "Mamba layers"),
    ("rwkv", "RWKV layers"),
    ("linear_attn", "linear attention layers"),
    ("linear_num_heads", "linear attention layers"),
    ("index_kpool", "sparse attention with an indexer cache"),
    ("lightning", "linear attention layers"),
    ("layer_group_size", "linear attention layers"),
    ("conv_l_cache", "convolution layers"),
    ("layer_period", "layers of several kinds"),
    ("hybrid", "layers of several kinds"),
    ("attn_type_list", "layers of several kinds"),
    ("block_configs", "layers of differing shape"),
    ("attention_other_setting", "layers of differing shape"),
    ("loop_num", "layers that every token passes more than once"),
    ("interleaved_sliding_window", "windows that its class deals out to layers"),
    ("param_sink_number", "tokens that are kept for all requests together"),
    ("swa_", "windows of a shape of their own"),
    ("global_head_dim", "full attention of a shape of its own"),
    ("compress_ratio", "compressed attention"),
    ("sparse_attention", "sparse attention with an indexer cache"),
    ("attention_chunk_size", "chunked local attention"),
    ("num_kv_shared_layers", "layers that share their KV cache"),
    ("encoder_layers", "an encoder with cross-attention"),
    ("cla_share", "layers that share their KV cache"),
    ("is_encoder_decoder", "an encoder with cross-attention"),
    ("cross_attention", "an encoder with cross-attention"),
)


def by_structure(config: ConfigValues) -> Anatomy:
    """A gated delta net's, latent attention's or a plain decoder's layers.

    Raises:
        UnsupportedModelError: keys that announce another kind of layer, or that are missing for any of these.
    """
    kind = _not_understood(config)
    if kind is not None:
        raise UnsupportedModelError(
            f"{config.name}: its architecture is not known here and config.json announces {kind}, "
            "so its layers cannot be read off the keys; name an architecture that is sized"
        )
    missing = [key for key in _NEEDED if config.values.get(key) is None]
    if missing:
        raise UnsupportedModelError(
            f"{config.name}: its architecture is not known here, and to read its layers off the keys config.json lacks "
            f"{', '.join(missing)}; use the file as its publisher ships it"
        )
    if config.values.get("linear_num_value_heads"):
        # the type of the state where the file does not name it: float32, as every published one of these does
        named = {"mamba_ssm_dtype": "float32"} | dict(config.values)
        return qwen3_5(ConfigValues(config.name, named))
    if config.values.get("kv_lora_rank"):
        if config.values.get("model_type", "deepseek_v3") not in _LATENT_TYPES:
            raise UnsupportedModelError(
                f"{config.name}: its architecture is not known here, nor whether vLLM keeps latent vectors for "
                f"model_type {config.values['model_type']!r}; name an architecture that is sized"
            )
        return deepseek_sparse(config) if config.values.get("index_topk") else deepseek(config)
    return _plain(config)


def assumed(architecture: str | None, anatomy: Anatomy) -> str:
    """What was read off the keys, in a sentence."""
    kept = [layer for caches in anatomy.layers for layer in caches]
    counts = {
        "with a recurrent state": sum(isinstance(layer, Recurrent) for layer in kept),
        "with a window": sum(isinstance(layer, Attention) and layer.window is not None for layer in kept),
    }
    said = [f"{count} {kind}" for kind, count in counts.items() if count]
    who = f"{architecture} is not known here" if architecture else "config.json names no architecture"
    which = f" ({' and '.join(said)})" if said else ""
    return f"{who}: its {len(anatomy.layers)} layers{which} are read off the keys"


def _not_understood(config: ConfigValues) -> str | None:
    for key, value in config.values.items():
        for part, kind in _NOT_UNDERSTOOD:
            if value and part in key.lower() and not (part == "mamba" and "linear_num_value_heads" in config.values):
                return f"{kind} ({key})"
    value_dim = config.values.get("v_head_dim")
    if value_dim not in (None, config.values.get("head_dim")) and not config.values.get("kv_lora_rank"):
        return "values of another width than keys (v_head_dim)"
    if len(set(config.numbers("num_attention_heads_per_layer"))) > 1:
        return "layers of differing shape (num_attention_heads_per_layer)"
    dealt_out = config.values.get("sliding_window") and config.words("layer_types") is None
    if dealt_out and config.values.get("no_rope_layers"):
        return "windows that its class deals out to layers (no_rope_layers)"
    understood = {"full_attention", "sliding_attention"}
    if config.values.get("linear_num_value_heads"):
        understood.add("linear_attention")
    words = set(config.words("layer_types") or ()) - understood
    return f"{' and '.join(sorted(words))} layers" if words else None


def _plain(config: ConfigValues) -> Anatomy:
    """Keys and values of every token, or of a window where the file has one."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads, num_layers = config.count("num_key_value_heads"), config.count("num_hidden_layers")
    head_dim = config.count("head_dim", default=hidden // heads)
    attention = projections(hidden, heads * head_dim, kv_heads * head_dim) + ParameterCount(replicated=2 * hidden)
    if config.values.get("attention_bias"):
        attention += ParameterCount(sharded=heads * head_dim, kv_projection=2 * kv_heads * head_dim)
    num_experts = _first(config, "num_experts", "num_local_experts", "n_routed_experts") or 0
    num_moe, moe_width, active = 0, 0, 0
    if num_experts:
        moe_width = _first(config, "moe_intermediate_size") or config.count("intermediate_size")
        active = config.count("num_experts_per_tok")
        dense = _first(config, "first_k_dense_replace") or (config.words("mlp_layer_types") or []).count("dense")
        num_moe = num_layers - min(num_layers, dense)
    shared = (_first(config, "n_shared_experts", "num_shared_experts") or 0) * moe_width
    shared = _first(config, "shared_expert_intermediate_size") or shared
    width = config.count("intermediate_size", default=moe_width or None)
    parameters = ends(hidden, config.count("vocab_size"), tied=config.flag("tie_word_embeddings", default=False))
    parts = (
        (attention, num_layers),
        (ParameterCount(sharded=(3 if is_gated(config) else 2) * hidden * width), num_layers - num_moe),
        (experts(hidden, num_experts, moe_width, shared_width=shared, router_bias=False), num_moe),
    )
    for part, times in parts:
        parameters += part.times(times)
    layers: Layers = tuple(
        (Attention(kv_heads, head_dim, head_dim, window),) for window in _windows(config, num_layers)
    )
    visited = active + (shared // moe_width if moe_width else 0)
    return Anatomy(layers, parameters, head_dim, kv_heads, width, num_experts, visited, moe_width, num_moe)


def _windows(config: ConfigValues, num_layers: int) -> list[int | None]:
    """Each layer's window: by `layer_types`, else all but each so-manieth, else every layer's, as vLLM takes it."""
    window = config.count_or_none("sliding_window") if config.flag("use_sliding_window", default=True) else None
    words = config.words("layer_types")
    if window is None:
        return [None] * num_layers
    if words is not None:
        if len(words) != num_layers:
            raise config.impossible("layer_types", f"must name a type for each of {num_layers} layers")
        return [window if word == "sliding_attention" else None for word in words]
    every = _first(config, "sliding_window_pattern", "full_attention_interval")
    return [None if every and (layer + 1) % every == 0 else window for layer in range(num_layers)]


def _first(config: ConfigValues, *keys: str) -> int | None:
    return next((count for count in map(config.count_or_none, keys) if count), None)
