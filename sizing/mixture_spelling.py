"""Keys of odd `config.json` files of decoders with experts, under the names that all others have for them."""

from collections.abc import Callable, Mapping

from sizing.config_values import ConfigValues
from sizing.dense_spelling import Spelled, every_so_many, granite_swa, llama_biases, renamed


def _afmoe(config: ConfigValues) -> Spelled:
    return {
        "head_dim": config.count("head_dim", default=128),
        "sliding_window": config.count("sliding_window", default=1024),
        "sliding_window_pattern": config.count("global_attn_every_n_layers", default=4),
    }


def _bailing(config: ConfigValues) -> Spelled:
    """Biases of the inputs under either of two keys; a head's width of 0 is none given."""
    biased = config.flag("use_bias", default=False) or config.flag("use_qkv_bias", default=False)
    return {"qkv_bias": biased, "head_dim": config.count_or_none("head_dim")}


def _cohere2_moe(config: ConfigValues) -> Spelled:
    """The token itself is beside the window, and dense layers have a pattern of their own (models/cohere2_moe.py)."""
    dense = config.count_or_none("first_k_dense_replace") or 0
    types = config.words("layer_types")
    if types is None:
        before = config.count("prefix_dense_sliding_window_pattern", default=1)
        every = config.count("sliding_window_pattern", default=4)
        types = every_so_many(dense, before, before - 1)
        types += every_so_many(config.count("num_hidden_layers") - dense, every, every - 1)
    windows = [config.count("sliding_window", default=4096) + 1] * config.count("num_hidden_layers")
    return {"layer_types": types, "sliding_windows": windows, "head_dim": config.count("head_dim", default=128)}


def _dbrx(config: ConfigValues) -> Spelled:
    """Two sections of sizes (transformers/models/dbrx/configuration_dbrx.py)."""
    names = {"hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
    attention = ConfigValues(config.name, config.section("attn_config"))
    feed_forward = ConfigValues(config.name, config.section("ffn_config"))
    return {
        **renamed(config, {**names, "max_position_embeddings": "max_seq_len"}),
        "num_key_value_heads": attention.count("kv_n_heads", default=1),
        "intermediate_size": feed_forward.count("ffn_hidden_size", default=3584),
        "moe_num_experts": feed_forward.count("moe_num_experts", default=4),
        "moe_top_k": feed_forward.count("moe_top_k", default=1),
    }


def _exaone_moe(config: ConfigValues) -> Spelled:
    """A pattern of letters is as long as what it repeats."""
    pattern = config.values.get("sliding_window_pattern")
    spelled: Spelled = {"sliding_window_pattern": len(pattern)} if isinstance(pattern, str) and pattern else {}
    first = config.count_or_none("first_k_dense_replace") if "first_k_dense_replace" in config.values else 1
    return {**llama_biases(config), **spelled, "first_k_dense_replace": first}


def _hy_v3(config: ConfigValues) -> Spelled:
    """Head norms under `qk_norm`, and experts' width under a name of its own, or newer files' (models/hy_v3.py)."""
    width = config.count("expert_hidden_dim", default=config.count_or_none("moe_intermediate_size"))
    return {"expert_hidden_dim": width, "use_qk_norm": config.flag("qk_norm", default=False)}


def _glm4_moe_lite(config: ConfigValues) -> Spelled:
    return {"first_k_dense_replace": config.count_or_none("first_k_dense_replace"), "topk_method": "noaux_tc"}


def _longcat_flash(config: ConfigValues) -> Spelled:
    """Layers of two attentions each, counted as such (transformers/models/longcat_flash)."""
    names = {"intermediate_size": "ffn_hidden_size", "moe_intermediate_size": "expert_ffn_hidden_size"}
    layers = config.count_or_none("num_layers") or config.count("num_hidden_layers") // 2
    return {**renamed(config, names), "num_hidden_layers": layers, "num_layers": layers}


def _minicpm3(config: ConfigValues) -> Spelled:
    """What its config class fills in (transformers/models/minicpm3)."""
    heads = config.count("num_attention_heads")
    nope, rope = config.count("qk_nope_head_dim", default=64), config.count("qk_rope_head_dim", default=32)
    value = config.count("v_head_dim", default=config.count("hidden_size") // heads)
    rank, query_rank = config.count("kv_lora_rank", default=256), config.count("q_lora_rank", default=768)
    return {
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "kv_lora_rank": rank,
        "q_lora_rank": query_rank,
        "rotary_dim": rope,
    }


def _step3_text(config: ConfigValues) -> Spelled:
    length = config.count("max_position_embedding", default=config.count("max_seq_len", default=65_536))
    return {"max_position_embeddings": length}


def _pangu_ultra_moe(config: ConfigValues) -> Spelled:
    return _corrected(config.flag("router_enable_expert_bias", default=False))


def _param2_moe(config: ConfigValues) -> Spelled:
    """One width for all shared experts together, where the file gives one; else as many as routed ones are wide."""
    shared = _shared_experts(config)
    width = shared * config.count("moe_intermediate_size")
    first = config.values.get("first_k_dense_replace", 1)
    return {
        "shared_expert_intermediate_size": config.count("moe_shared_expert_intermediate_size", default=width or None)
        if shared
        else None,
        "first_k_dense_replace": first,
        "moe_router_enable_expert_bias": config.flag("moe_router_enable_expert_bias", default=True),
        "head_dim": config.count_or_none("head_dim"),
    }


def _sarvam_mla(config: ConfigValues) -> Spelled:
    """Shared experts are counted in those that a router picks from, as wide as the file says (models/sarvam.py)."""
    width = config.count("moe_intermediate_size")
    shared = _shared_experts(config)
    wide = shared * config.count("moe_shared_expert_intermediate_size", default=width)
    if wide % width:
        raise config.impossible("moe_shared_expert_intermediate_size", "is no multiple of moe_intermediate_size")
    corrected = _corrected(config.flag("moe_router_enable_expert_bias", default=True))
    return {"n_routed_experts": config.count("num_experts"), "n_shared_experts": wide // width, **corrected}


def _shared_experts(config: ConfigValues) -> int:
    """One where the file does not say; 0 is none."""
    return config.count("num_shared_experts", default=1) if config.values.get("num_shared_experts") != 0 else 0


def _corrected(biased: bool) -> Spelled:
    """Whether a router has a bias, as DeepSeek's files say it."""
    return {"topk_method": "noaux_tc" if biased else "greedy"}


MIXTURE_SPELLINGS: Mapping[str, Callable[[ConfigValues], Spelled]] = {
    "AfmoeForCausalLM": _afmoe,
    "BailingMoeForCausalLM": _bailing,
    "BailingMoeV2ForCausalLM": _bailing,
    "Cohere2MoeForCausalLM": _cohere2_moe,
    "DbrxForCausalLM": _dbrx,
    "ExaoneMoEForCausalLM": _exaone_moe,
    "ExaoneMoeForCausalLM": _exaone_moe,
    "Glm4MoeLiteForCausalLM": _glm4_moe_lite,
    "GraniteMoeSWAForCausalLM": granite_swa,
    "HYV3ForCausalLM": _hy_v3,
    "LongcatFlashForCausalLM": _longcat_flash,
    "MiniCPM3ForCausalLM": _minicpm3,
    "PanguUltraMoEForCausalLM": _pangu_ultra_moe,
    "Param2MoEForCausalLM": _param2_moe,
    "SarvamMLAForCausalLM": _sarvam_mla,
    "SarvamMoEForCausalLM": _bailing,
    "Step3TextForCausalLM": _step3_text,
}
