"""Keys of older and of odd `config.json` files of dense decoders, under the names that all others have for them."""

from collections.abc import Callable, Mapping

from sizing.config_values import ConfigValues

Spelled = dict[str, object]
_GPT = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
_EMBEDDED = {"hidden_size": "n_embed", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}
_OF_EACH_HEAD = {"num_key_value_heads": None}  # these know no others
_UNROTATED = {"position_embedding_type": "nope"}  # learned positions, or slopes by distance


def renamed(config: ConfigValues, names: Mapping[str, str]) -> Spelled:
    """What the file has under the older of two names, which its config class takes where both are there."""
    return {new: config.values[old] for new, old in names.items() if config.values.get(old) is not None}


def _under(config: ConfigValues, found: Spelled) -> ConfigValues:
    """The file with `found` in it."""
    return ConfigValues(config.name, {**config.values, **found})


def llama_biases(config: ConfigValues) -> Spelled:
    """Two keys for biases of attention, and one that is about its inputs alone (models/llama.py)."""
    biased = config.flag("attention_bias", default=False) or config.flag("bias", default=False)
    return {"attention_bias": biased, "qkv_bias": config.flag("qkv_bias", default=biased)}


def every_so_many(num_layers: int, every: int, full: int) -> list[str]:
    """`layer_types` with full attention in each `every`-th layer, the first of them the `full`-th."""
    return ["full_attention" if layer % every == full else "sliding_attention" for layer in range(num_layers)]


def _gpt(config: ConfigValues) -> Spelled:
    found = renamed(config, _GPT)
    hidden = _under(config, found).count("hidden_size")
    return {**found, "intermediate_size": config.count("n_inner", default=4 * hidden), **_OF_EACH_HEAD}


def _gpt2(config: ConfigValues) -> Spelled:
    return {**_gpt(config), **_UNROTATED}


def _opt(config: ConfigValues) -> Spelled:
    return {**renamed(config, {"intermediate_size": "ffn_dim"}), **_OF_EACH_HEAD, **_UNROTATED}


def _bloom(config: ConfigValues) -> Spelled:
    found = renamed(config, _EMBEDDED)
    hidden = _under(config, found).count("hidden_size")
    return {**found, "intermediate_size": 4 * hidden, **_OF_EACH_HEAD, **_UNROTATED}


def _falcon(config: ConfigValues) -> Spelled:
    """One key-value head for all, one for each, or groups in the newer architecture (models/falcon.py)."""
    found = renamed(config, {**_EMBEDDED, "num_kv_heads": "n_head_kv"})
    named = _under(config, found)
    hidden, heads = named.count("hidden_size"), named.count("num_attention_heads")
    grouped = config.flag("new_decoder_architecture", default=False)
    if grouped:
        kv_heads = named.count("num_kv_heads", default=heads)
    else:
        kv_heads = 1 if config.flag("multi_query", default=True) else heads
    norms = config.count("num_ln_in_parallel_attn", default=2 if grouped else 1)
    return {
        **found,
        "num_key_value_heads": kv_heads,
        "intermediate_size": 4 * hidden,
        "num_ln_in_parallel_attn": norms if config.flag("parallel_attn", default=True) else 2,
        "max_position_embeddings": config.count("max_position_embeddings", default=2048),
        "position_embedding_type": "nope" if config.flag("alibi", default=False) else "rope",
    }


def _chatglm(config: ConfigValues) -> Spelled:
    names = {"num_hidden_layers": "num_layers", "vocab_size": "padded_vocab_size"}
    biased = config.flag("add_bias_linear", default=False)
    grouped = config.flag("multi_query_attention", default=False)
    heads = config.count("multi_query_group_num", default=1) if grouped else config.count("num_attention_heads")
    return {
        **renamed(config, {**names, "intermediate_size": "ffn_hidden_size"}),
        "num_key_value_heads": heads,
        "add_qkv_bias": biased or config.flag("add_qkv_bias", default=False),
        "partial_rotary_factor": 0.5,
    }


def _exaone(config: ConfigValues) -> Spelled:
    return {**renamed(config, {"num_hidden_layers": "num_layers"}), **llama_biases(config)}


def granite_swa(config: ConfigValues) -> Spelled:
    """Windows but for each fourth layer, the first of them full, as its config class deals them out."""
    types = config.words("layer_types") or every_so_many(config.count("num_hidden_layers"), 4, 0)
    window = config.count("sliding_window", default=128)
    return {**llama_biases(config), "layer_types": types, "sliding_window": window}


def _hyperclovax(config: ConfigValues) -> Spelled:
    return {**llama_biases(config), "num_norms": 4 if config.flag("use_post_norm", default=True) else 2}


def _ministral3(config: ConfigValues) -> Spelled:
    return {"head_dim": config.count("head_dim", default=128)}


def _dealt_windows(config: ConfigValues) -> Spelled:
    """Windows under the name of vLLM's older interface: one for all layers, or a list that repeats itself."""
    windows = config.values.get("interleaved_sliding_window")
    if isinstance(windows, list) and windows:
        count = config.count("num_hidden_layers")
        return {"sliding_windows": [windows[layer % len(windows)] for layer in range(count)]}
    return {"sliding_window": windows}


def _plamo3(config: ConfigValues) -> Spelled:
    if config.values.get("interleaved_sliding_window"):
        return _dealt_windows(config)
    return {"sliding_window": config.count("sliding_window", default=config.count("window_size", default=2048))}


def _pangu(config: ConfigValues) -> Spelled:
    return {**llama_biases(config), **_dealt_windows(config)}


def _rnj1(config: ConfigValues) -> Spelled:
    """Chunks that look back on the one before, which vLLM keeps as windows; it gives no others (models/rnj1.py)."""
    if "sliding_windows" in config.values:
        return {}
    words, window = config.words("layer_types"), config.count_or_none("sliding_window")
    if words is None:
        raise config.impossible("layer_types", "must name a type for each layer")
    windows = [window if word == "chunked_attention" else None for word in words]
    return {"layer_types": None, "sliding_windows": windows}


def _stablelm(config: ConfigValues) -> Spelled:
    rope = config.section("rope_parameters", "rope_scaling")
    share = rope.get("partial_rotary_factor") or config.values.get("partial_rotary_factor") or 0.25
    return {"partial_rotary_factor": share}


def _step1(config: ConfigValues) -> Spelled:
    heads = config.count_or_none("num_attention_groups") or config.count_or_none("num_key_value_heads") or 1
    return {"num_key_value_heads": heads, "position_embedding_type": "nope"}


def _telechat2(config: ConfigValues) -> Spelled:
    names = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "intermediate_size": "ffn_hidden_size"}
    return renamed(config, names)


DENSE_SPELLINGS: Mapping[str, Callable[[ConfigValues], Spelled]] = {
    "ApertusForCausalLM": llama_biases,
    "BloomForCausalLM": _bloom,
    "ChatGLMForConditionalGeneration": _chatglm,
    "ChatGLMModel": _chatglm,
    "ExaoneForCausalLM": _exaone,
    "FalconForCausalLM": _falcon,
    "GPT2LMHeadModel": _gpt2,
    "GPTJForCausalLM": _gpt,
    "GraniteSWAForCausalLM": granite_swa,
    "HyperCLOVAXForCausalLM": _hyperclovax,
    "IQuestCoderForCausalLM": llama_biases,
    "InternLM3ForCausalLM": llama_biases,
    "Ministral3ForCausalLM": _ministral3,
    "OPTForCausalLM": _opt,
    "PanguEmbeddedForCausalLM": _pangu,
    "Plamo3ForCausalLM": _plamo3,
    "Rnj1ForCausalLM": _rnj1,
    "SolarForCausalLM": llama_biases,
    "StableLmForCausalLM": _stablelm,
    "Step1ForCausalLM": _step1,
    "TeleChat2ForCausalLM": _telechat2,
    "TeleChat3ForCausalLM": llama_biases,
    "TeleFLMForCausalLM": llama_biases,
}
