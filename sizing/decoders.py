"""Decoders that differ from the plain ones in biases, norms, gates or shared experts: their weights, one by one."""

from collections.abc import Iterator, Mapping

from sizing.anatomy import Anatomy
from sizing.config_values import ConfigValues
from sizing.decoder_kinds import Decoder, Experts
from sizing.dense_decoders import DENSE_DECODERS
from sizing.held import Weight
from sizing.layers import Attention, Layers
from sizing.matrices import experts, linear, mlp, norm, router
from sizing.mixture_decoders import MIXTURE_DECODERS
from sizing.model import ParameterCount

# transformers' names of activations that come without a gate (config keys hidden_act, activation, ...)
_UNGATED = {"gelu", "gelu_new", "gelu_fast", "quick_gelu", "relu", "relu2", "xielu"}
_ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "activation")


DECODERS: Mapping[str, Decoder] = {
    "ArceeForCausalLM": Decoder(gated=False, qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
    "CohereForCausalLM": Decoder(norms=1, qk_norm="use_qk_norm heads", tied_by_default=True, windowed=False),
    "Cohere2ForCausalLM": Decoder(norms=1, full_every=4, tied_by_default=True),
    "Ernie4_5ForCausalLM": Decoder(
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", tied_by_default=True, windowed=False
    ),
    "Ernie4_5_MoeForCausalLM": Decoder(
        qkv_bias="use_bias",
        mlp_bias="use_bias",
        experts=Experts(
            "moe_num_experts", "moe_k", shared="moe_num_shared_experts", first="moe_layer_start_index", router_bias=True
        ),
        tied_by_default=True,
        windowed=False,
    ),
    "GlmForCausalLM": Decoder(qkv_bias="attention_bias", bias_by_default=True, windowed=False),
    "Glm4ForCausalLM": Decoder(norms=4, qkv_bias="attention_bias", bias_by_default=True, windowed=False),
    "Glm4MoeForCausalLM": Decoder(
        qkv_bias="attention_bias",
        qk_norm="use_qk_norm",
        experts=Experts(
            "n_routed_experts",
            "num_experts_per_tok",
            shared="n_shared_experts",
            first="first_k_dense_replace",
            router_bias=True,
        ),
        windowed=False,
    ),
    "HunYuanDenseV1ForCausalLM": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", windowed=False
    ),
    "NemotronForCausalLM": Decoder(
        norm_bias=True,
        gated=False,
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        windowed=False,
    ),
    "PhiForCausalLM": Decoder(
        norms=1,
        norm_bias=True,
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        windowed=False,
    ),
    "Qwen2MoeForCausalLM": Decoder(
        qkv_bias="qkv_bias",
        bias_by_default=True,
        experts=Experts(
            "num_experts", "num_experts_per_tok", shared_width="shared_expert_intermediate_size", shared_gate=True
        ),
        windowed=False,
    ),
    "SeedOssForCausalLM": Decoder(qkv_bias="attention_bias", bias_by_default=True),
    "SmolLM3ForCausalLM": Decoder(
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        tied_by_default=True,
        windowed=False,
    ),
    "Starcoder2ForCausalLM": Decoder(
        norm_bias=True,
        gated=False,
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        bias_by_default=True,
        tied_by_default=True,
    ),
    **DENSE_DECODERS,
    **MIXTURE_DECODERS,
}


def is_gated(config: ConfigValues) -> bool:
    """Whether a feed-forward layer has a gate beside its two matrices, told by the activation; true without one."""
    named = next((config.values[key] for key in _ACTIVATION_KEYS if config.values.get(key)), "silu")
    return str(named) not in _UNGATED


def decoder(architecture: str, config: ConfigValues) -> Anatomy:
    """The layers and the parameters of a family of DECODERS.

    Raises:
        ModelFileError: a size is missing or impossible.
    """
    family = DECODERS[architecture]
    hidden, _, kv_heads, head_dim = _sizes(config)
    num_layers = config.count("num_hidden_layers")
    layers: Layers = tuple(
        (Attention(kv_heads, head_dim, head_dim, window),) for window in _windows(family, config, num_layers)
    )
    tied = config.flag("tie_word_embeddings", default=family.tied_by_default)
    rows = config.count("vocab_size") * embedding_width(config, hidden) * (1 if tied else 2)
    sums = {"sharded": rows, "output": 0, "kv": 0, "replicated": hidden, "experts": 0}
    for weight in decoder_ends(architecture, config):
        sums[weight.split] += weight.num_elements
    for index in range(num_layers):
        for weight in decoder_layer(architecture, config, index):
            sums[weight.split] += weight.num_elements
    divided = sums["sharded"] + sums["output"] + sums["experts"]
    counted = ParameterCount(divided, sums["kv"], sums["replicated"], 1 if tied else 2)
    mixtures = sum(1 for index in range(num_layers) if _is_mixture(family, config, index))
    if family.experts is None or not mixtures:
        return Anatomy(layers, counted, head_dim, kv_heads, config.count("intermediate_size"))
    width = config.count(family.experts.dense_width, default=config.count_or_none("intermediate_size"))
    moe_width, shared = config.count(family.experts.width), _shared_width(family.experts, config)
    return Anatomy(
        layers,
        counted,
        head_dim,
        kv_heads,
        width,
        num_experts=config.count(family.experts.count),
        num_experts_per_tok=config.count(family.experts.active) + shared // moe_width,
        moe_intermediate_size=moe_width,
        num_moe_layers=mixtures,
        num_shared_experts=shared // moe_width,
    )


def decoder_layer(architecture: str, config: ConfigValues, index: int) -> Iterator[Weight]:
    """One layer's weights."""
    family = DECODERS[architecture]
    hidden, *_ = _sizes(config)
    yield from _attention(family, config)
    norms = config.count(family.norms) if isinstance(family.norms, str) else family.norms
    yield norm("layernorm", hidden, times=norms * (2 if family.norm_bias else 1))
    biased = _says(family.mlp_bias, family, config)
    if family.experts is not None and _is_mixture(family, config, index):
        yield from _mixture(family.experts, config, biased=biased)
    else:
        named = family.experts.dense_width if family.experts else "intermediate_size"
        width = config.count(named, default=config.count_or_none("intermediate_size"))
        yield from _feed_forward("mlp", hidden, width, gated=family.gated, biased=biased)
    if family.down_bias:
        yield norm("mlp.down_proj.bias", hidden)
    if family.activation_parameters:
        yield norm("mlp.act_fn", family.activation_parameters)


def embedding_width(config: ConfigValues, hidden: int) -> int:
    """Of the vocabulary's tables, which OPT may project from and to the hidden states."""
    return config.count("word_embed_proj_dim", default=hidden)


def decoder_ends(architecture: str, config: ConfigValues) -> Iterator[Weight]:
    """What stands before the layers and behind them, but for the vocabulary's tables and the last norm's weights."""
    family = DECODERS[architecture]
    hidden = config.count("hidden_size")
    width = embedding_width(config, hidden)
    if family.positions is not None:
        yield Weight("embed_positions", (config.count("max_position_embeddings") + family.positions, hidden))
    if family.embedding_norm:
        yield norm("embedding_layernorm", hidden, times=2 if family.norm_bias else 1)
    if width != hidden:
        yield linear("project_in", hidden, width, "replicated")
        yield linear("project_out", width, hidden, "replicated")
    if family.norm_bias:
        yield norm("model.norm.bias", hidden)
    if _says(family.head_bias, family, config):
        yield Weight("lm_head.bias", (config.count("vocab_size"),), "output")


def _sizes(config: ConfigValues) -> tuple[int, int, int, int]:
    """Hidden size, heads, key-value heads and a head's width."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    return (
        hidden,
        heads,
        config.count("num_key_value_heads", default=heads),
        config.count("head_dim", default=hidden // heads),
    )


def _attention(family: Decoder, config: ConfigValues) -> Iterator[Weight]:
    hidden, heads, kv_heads, head_dim = _sizes(config)
    queries, width = heads * head_dim, kv_heads * head_dim
    yield linear("self_attn.q_proj", queries, hidden)
    yield linear("self_attn.k_proj", width, hidden, "kv")
    yield linear("self_attn.v_proj", width, hidden, "kv")
    yield linear("self_attn.o_proj", hidden, queries)
    if family.attention_gate:
        yield linear("self_attn.gate", queries, hidden)
    if family.sinks:
        yield Weight("self_attn.sinks", (heads,), "sharded")
    if _says(family.qkv_bias, family, config):
        yield Weight("self_attn.q_proj.bias", (queries,), "sharded")
        yield Weight("self_attn.kv_proj.bias", (2 * width,), "kv")
    if _says(family.out_bias, family, config):
        yield norm("self_attn.o_proj.bias", hidden)
    if family.qk_norm == "none" or ("use" in family.qk_norm and not config.flag("use_qk_norm", default=False)):
        return
    if "heads" in family.qk_norm:
        yield Weight("self_attn.q_norm", (queries,), "sharded")
        yield Weight("self_attn.k_norm", (width,), "kv")
    else:
        yield norm("self_attn.qk_norm", 2 * head_dim)


def _feed_forward(name: str, hidden: int, width: int, *, gated: bool, biased: bool) -> Iterator[Weight]:
    yield from mlp(name, hidden, width, gated=gated)
    if biased:
        yield Weight(f"{name}.up_proj.bias", ((2 if gated else 1) * width,), "sharded")
        yield norm(f"{name}.down_proj.bias", hidden)


def _mixture(named: Experts, config: ConfigValues, *, biased: bool) -> Iterator[Weight]:
    hidden, count = config.count("hidden_size"), config.count(named.count)
    yield from experts("mlp.experts", hidden, count, config.count(named.width))
    corrected = named.router_bias
    corrected = config.flag(corrected, default=False) if isinstance(corrected, str) else corrected
    yield from router("mlp.gate", hidden, count, bias=corrected)
    shared = _shared_width(named, config)
    if shared:
        yield from _feed_forward("mlp.shared_experts", hidden, shared, gated=True, biased=biased)
        if named.shared_gate:
            yield Weight("mlp.shared_expert_gate", (1, hidden))


def _shared_width(named: Experts, config: ConfigValues) -> int:
    """Of all shared experts together."""
    each = config.count_or_none(named.shared_width) if named.shared_width else None
    if not named.shared:
        return each or 0
    return (config.count_or_none(named.shared) or 0) * (each or config.count(named.width))


def _is_mixture(family: Decoder, config: ConfigValues, index: int) -> bool:
    named = family.experts
    if named is None or not config.count_or_none(named.count):
        return False
    words = config.words("mlp_layer_types") if named.listed else None
    if words is not None:
        return index < len(words) and words[index] == "sparse"
    if named.first:
        step = config.count("moe_layer_freq", default=1) if named.every else 1
        return index >= (config.count_or_none(named.first) or 0) and index % step == 0
    step = config.count("decoder_sparse_step", default=1)
    return index not in config.numbers("mlp_only_layers") and (index + 1) % step == 0


def _says(switch: str | bool, family: Decoder, config: ConfigValues) -> bool:
    return switch if isinstance(switch, bool) else config.flag(switch, default=family.bias_by_default)


def _windows(family: Decoder, config: ConfigValues, num_layers: int) -> list[int | None]:
    words = config.words("layer_types")
    if words is not None and len(words) != num_layers and family.windowed:
        raise config.impossible("layer_types", f"must name a type for each of {num_layers} layers")
    own = _own_windows(family, config, num_layers)
    if words is not None:
        return [window if word == "sliding_attention" else None for word, window in zip(words, own, strict=False)]
    every = config.count("sliding_window_pattern", default=family.full_every or None) if family.full_every else 0
    return [None if every and (index + 1) % every == 0 else window for index, window in enumerate(own)]


def _own_windows(family: Decoder, config: ConfigValues, num_layers: int) -> list[int | None]:
    """What each layer's window is where it has one: listed, or the same for all."""
    if not family.windowed or not config.flag("use_sliding_window", default=True):
        return [None] * num_layers
    listed = config.values.get("sliding_windows")
    if listed is None:
        return [config.count_or_none("sliding_window")] * num_layers
    if not isinstance(listed, list) or len(listed) != num_layers:
        raise config.impossible("sliding_windows", f"must give a window for each of {num_layers} layers")
    return [
        ConfigValues(config.name, {"sliding_windows": window}).count_or_none("sliding_windows") for window in listed
    ]
