"""Families in which attention by latent vectors is one part among others: their layers kind by kind."""

from dataclasses import replace

from sizing.config_values import ConfigValues
from sizing.held import Weight
from sizing.latent_matrices import latent_matrices
from sizing.layers import Attention, Latent, Layer, Recurrent
from sizing.matrices import Parts, experts, linear, mlp, norm, router
from sizing.stacks import Kind, Mixture, Stack


def minicpm3(config: ConfigValues) -> Stack:
    """MiniCPM3 has the matrices of latent attention, but keeps whole keys and values (models/minicpm3.py).

    vLLM pads the values to the keys' width in its cache.
    """
    hidden, width = config.count("hidden_size"), config.count("intermediate_size")
    heads, keys = config.count("num_attention_heads"), config.count("qk_nope_head_dim")
    keys += config.count("qk_rope_head_dim")
    attention = Attention(heads, keys, keys)
    weights = (*_never_absorbed(config), *mlp("mlp", hidden, width), norm("layernorm", hidden, times=2))
    tied = config.flag("tie_word_embeddings", default=True)
    order = ("dense",) * config.count("num_hidden_layers")
    return Stack(order, {"dense": Kind((attention,), weights)}, attention, width, tied)


def _never_absorbed(config: ConfigValues) -> Parts:
    """Without the copy of the up-projection that attention by latent vectors decodes with (see sizing.weights)."""
    for weight in latent_matrices(config):
        yield replace(weight, name=weight.name.replace("kv_b_proj", "kv_b_up_proj"))


def longcat_flash(config: ConfigValues) -> Stack:
    """Two attentions and two dense layers around each mixture, of whose experts some do nothing.

    vllm/model_executor/models/longcat_flash.py; the router knows the idle experts, which have no weights.
    """
    hidden, width = config.count("hidden_size"), config.count("intermediate_size")
    num_layers = config.count("num_hidden_layers")
    mixture = Mixture(
        config.count("n_routed_experts"), config.count("moe_topk"), config.count("moe_intermediate_size"), num_layers
    )
    latent = Latent(config.count("kv_lora_rank") + config.count("qk_rope_head_dim"))
    weights: list[Weight] = [norm("layernorm", hidden, times=4)]
    for part in range(2):
        weights += [*latent_matrices(config, f"self_attn.{part}"), *mlp(f"mlps.{part}", hidden, width)]
    weights += experts("mlp.experts", hidden, mixture.count, mixture.width)
    known = mixture.count + (config.count_or_none("zero_expert_num") or 0)
    weights += router("mlp.router", hidden, known, bias=True)
    tied = config.flag("tie_word_embeddings", default=False)
    kinds = {"layer": Kind((latent, latent), tuple(weights))}
    return Stack(("layer",) * num_layers, kinds, latent, width, tied, mixture)


def bailing_linear(config: ConfigValues) -> Stack:
    """Ling and Ring 2.5: linear attention, and by latent vectors at the end of each group of layers.

    vllm/model_executor/models/bailing_moe_linear.py
    """
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    num_layers, group = config.count("num_hidden_layers"), config.count("layer_group_size", default=1)
    dense_layers = config.count_or_none("first_k_dense_replace") or 0
    head_dim = config.count("head_dim", default=hidden // heads)
    latent = Latent(config.count("kv_lora_rank") + config.count("qk_rope_head_dim"))
    state = Recurrent(0, 0, heads, head_dim * head_dim, state_bytes=None)
    mixture = Mixture(
        config.count("num_experts"),
        config.count("num_experts_per_tok"),
        config.count("moe_intermediate_size"),
        num_layers - dense_layers,
        shared=config.count_or_none("num_shared_experts") or 0,
    )
    attentions: dict[str, tuple[Layer, tuple[Weight, ...]]] = {
        "linear": (state, tuple(_linear_attention(config, head_dim))),
        "latent": (latent, tuple(latent_matrices(config))),
    }
    width = config.count("intermediate_size")
    feed_forwards = {"dense": tuple(mlp("mlp", hidden, width)), "experts": tuple(_bailing_experts(config, mixture))}
    kinds = {
        f"{word} {other}": Kind((cache,), (norm("layernorm", hidden, times=2), *weights, *further))
        for word, (cache, weights) in attentions.items()
        for other, further in feed_forwards.items()
    }
    order = tuple(
        f"{'latent' if (layer + 1) % group == 0 else 'linear'} {'dense' if layer < dense_layers else 'experts'}"
        for layer in range(num_layers)
    )
    tied = config.flag("tie_word_embeddings", default=False)
    return Stack(order, kinds, latent, width, tied, mixture)


def _linear_attention(config: ConfigValues, head_dim: int) -> Parts:
    """As many keys and values as queries, head norms, a gate and the norm behind it."""
    hidden, inner = config.count("hidden_size"), config.count("num_attention_heads") * head_dim
    for name in ("q_proj", "k_proj", "v_proj", "g_proj"):
        yield linear(f"attention.{name}", inner, hidden)
    yield linear("attention.dense", hidden, inner)
    yield Weight("attention.g_norm", (inner,), "sharded")
    if config.flag("use_qk_norm", default=False):
        yield norm("attention.qk_layernorm", 2 * head_dim)
    outputs = config.flag("use_bias", default=False)
    if outputs or config.flag("use_qkv_bias", default=False):
        yield Weight("attention.query_key_value.bias", (3 * inner,), "sharded")
    if outputs:
        yield norm("attention.dense.bias", hidden)


def _bailing_experts(config: ConfigValues, mixture: Mixture) -> Parts:
    hidden = config.count("hidden_size")
    yield from experts("mlp.experts", hidden, mixture.count, mixture.width)
    biased = config.flag("moe_router_enable_expert_bias", default=False)
    yield from router("mlp.gate", hidden, mixture.count, bias=biased)
    each = config.count("moe_shared_expert_intermediate_size", default=mixture.width)
    if mixture.shared:
        yield from mlp("mlp.shared_experts", hidden, mixture.shared * each)
