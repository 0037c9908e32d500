"""Decoders that differ from the plain ones in biases, norms, gates or shared experts: their weights, one by one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sizing.anatomy import Anatomy
from sizing.config_values import ConfigValues
from sizing.held import Weight
from sizing.layers import Attention, Layers
from sizing.matrices import experts, linear, mlp, norm, router
from sizing.model import ParameterCount

# transformers' names of activations that come without a gate (config keys hidden_act, activation, ...)
_UNGATED = {"gelu", "gelu_new", "gelu_fast", "quick_gelu", "relu", "relu2", "xielu"}
_ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "activation")


@dataclass(frozen=True)
class Experts:
    """What a family's config calls the sizes of its mixtures of experts."""

    count: str
    active: str
    shared: str = ""
    """How many shared ones there are, each as wide as the others."""
    shared_width: str = ""
    """How wide the shared one is, if the config says that instead."""
    first: str = ""
    """The first layer that has a mixture."""
    shared_gate: bool = False
    router_bias: bool = False


@dataclass(frozen=True)
class Decoder:
    """One family as vLLM's class of its name builds it (vllm/model_executor/models)."""

    norms: int = 2
    """In each layer."""
    norm_bias: bool = False
    gated: bool = True
    qkv_bias: str | bool = False
    """Always or never, or the config's key that says so; so are the next two."""
    out_bias: str | bool = False
    mlp_bias: str | bool = False
    bias_by_default: bool = False
    """Where the key is absent."""
    qk_norm: Literal["none", "head", "heads", "use_qk_norm", "use_qk_norm heads"] = "none"
    """As wide as a head, or as all of them together, always or where the config says so."""
    experts: Experts | None = None
    windowed: bool = True
    """Whether a sliding window in the config is used."""
    full_every: int = 0
    """Without `layer_types` every so-manieth layer has no window; 0: all have one."""
    tied_by_default: bool = False


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
    rows = config.count("vocab_size") * hidden * (1 if tied else 2)
    sums = {"sharded": rows, "kv": 0, "replicated": hidden, "experts": 0}
    for index in range(num_layers):
        for weight in decoder_layer(architecture, config, index):
            sums[weight.split] += weight.num_elements
    counted = ParameterCount(sums["sharded"] + sums["experts"], sums["kv"], sums["replicated"], 1 if tied else 2)
    mixtures = sum(1 for index in range(num_layers) if _is_mixture(family, config, index))
    width = config.count("intermediate_size")
    if family.experts is None or not mixtures:
        return Anatomy(layers, counted, head_dim, kv_heads, width)
    moe_width, shared = config.count("moe_intermediate_size"), _shared_width(family.experts, config)
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
    """One layer's weights; the bias of the norm behind the layers stands with the last."""
    family = DECODERS[architecture]
    hidden, *_ = _sizes(config)
    yield from _attention(family, config)
    yield norm("layernorm", hidden, times=family.norms * (2 if family.norm_bias else 1))
    biased = _says(family.mlp_bias, family, config)
    if family.experts is not None and _is_mixture(family, config, index):
        yield from _mixture(family.experts, config, biased=biased)
    else:
        yield from _feed_forward("mlp", hidden, config.count("intermediate_size"), gated=family.gated, biased=biased)
    if family.norm_bias and index == config.count("num_hidden_layers") - 1:
        yield norm("model.norm.bias", hidden)


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
    yield from experts("mlp.experts", hidden, count, config.count("moe_intermediate_size"))
    yield from router("mlp.gate", hidden, count, bias=named.router_bias)
    shared = _shared_width(named, config)
    if shared:
        yield from _feed_forward("mlp.shared_experts", hidden, shared, gated=True, biased=biased)
        if named.shared_gate:
            yield Weight("mlp.shared_expert_gate", (1, hidden))


def _shared_width(named: Experts, config: ConfigValues) -> int:
    if named.shared_width:
        return config.count_or_none(named.shared_width) or 0
    return (config.count_or_none(named.shared) or 0) * config.count("moe_intermediate_size") if named.shared else 0


def _is_mixture(family: Decoder, config: ConfigValues, index: int) -> bool:
    named = family.experts
    if named is None or not config.count_or_none(named.count):
        return False
    if named.first:
        return index >= (config.count_or_none(named.first) or 0)
    step = config.count("decoder_sparse_step", default=1)
    return index not in config.numbers("mlp_only_layers") and (index + 1) % step == 0


def _says(switch: str | bool, family: Decoder, config: ConfigValues) -> bool:
    return switch if isinstance(switch, bool) else config.flag(switch, default=family.bias_by_default)


def _windows(family: Decoder, config: ConfigValues, num_layers: int) -> list[int | None]:
    window = config.count_or_none("sliding_window") if family.windowed else None
    words = config.words("layer_types")
    if window is None or not config.flag("use_sliding_window", default=True):
        return [None] * num_layers
    if words is not None:
        if len(words) != num_layers:
            raise config.impossible("layer_types", f"must name a type for each of {num_layers} layers")
        return [window if word == "sliding_attention" else None for word in words]
    every = config.count("sliding_window_pattern", default=family.full_every or None) if family.full_every else 0
    return [None if every and (index + 1) % every == 0 else window for index in range(num_layers)]
