"""Families with Mamba layers, most of them beside attention: their layers, kind by kind."""

from sizing.config_values import ConfigValues
from sizing.held import Weight
from sizing.layers import Layer
from sizing.matrices import Parts, experts, mlp, norm, router
from sizing.mixers import Mamba1, Mamba2
from sizing.stacks import Kind, Mixture, Stack, attention_of, attention_weights

# one kind of layer under the names that files, Transformers 4 and Transformers 5 have for it
_WORDS = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention"}


def granite_hybrid(config: ConfigValues) -> Stack:
    """Mamba-2 with a few attention layers, each followed by experts or one MLP (models/granitemoehybrid.py)."""
    hidden, attention = config.count("hidden_size"), attention_of(config)
    order = _words(config, "layer_types")
    num_experts, shared = (
        config.count_or_none("num_local_experts") or 0,
        config.count_or_none("shared_intermediate_size"),
    )
    mixture = None
    behind: list[Weight] = [norm("layernorm", hidden, times=2)]
    if shared:
        behind += mlp("shared_mlp", hidden, shared)
    if num_experts:
        mixture = Mixture(
            num_experts, config.count("num_experts_per_tok"), config.count("intermediate_size"), len(order)
        )
        behind += experts("block_sparse_moe.experts", hidden, num_experts, mixture.width)
        behind += router("block_sparse_moe.router", hidden, num_experts, bias=False)
    bias = config.flag("attention_bias", default=False)
    kinds = {
        "attention": Kind(
            (attention,),
            (*attention_weights(config, attention, bias=bias), *behind),
        )
    }
    width = shared or 0
    if "mamba" in order:
        mixer = _mamba_of(config, config.count("mamba_expand", default=2) * hidden)
        width = max(width, mixer.inner)
        kinds["mamba"] = Kind(
            (mixer.state(),),
            (*mixer.weights("mamba", hidden), *behind),
        )
    tied = config.flag("tie_word_embeddings", default=False)
    return Stack(order, kinds, attention, width, tied, mixture)


def falcon_h1(config: ConfigValues) -> Stack:
    """Mamba-2 and attention side by side in every layer (models/falcon_h1.py)."""
    hidden, attention = config.count("hidden_size"), attention_of(config, "head_dim")
    inner = config.count("mamba_d_ssm", default=config.count("mamba_expand", default=2) * hidden)
    mixer = _mamba_of(config, inner, normed=config.flag("mamba_rms_norm", default=False))
    width = config.count("intermediate_size")
    weights = (
        *attention_weights(config, attention),
        *mixer.weights("mamba", hidden),
        *mlp("feed_forward", hidden, width),
        norm("layernorm", hidden, times=2),
    )
    order = ("both",) * config.count("num_hidden_layers")
    tied = config.flag("tie_word_embeddings", default=False)
    kinds = {"both": Kind((attention, mixer.state()), weights)}
    return Stack(order, kinds, attention, max(width, mixer.inner), tied)


def jamba(config: ConfigValues) -> Stack:
    """Mamba with attention at every eighth layer and experts at every second (models/jamba.py)."""
    hidden, attention = config.count("hidden_size"), attention_of(config)
    inner = config.count("mamba_expand", default=2) * hidden
    mixer = Mamba1(
        inner,
        config.count("mamba_d_state", default=16),
        config.count("mamba_d_conv", default=4),
        _time_step_rank(config, "mamba_dt_rank"),
        conv_bias=config.flag("mamba_conv_bias", default=True),
        bias=config.flag("mamba_proj_bias", default=False),
        normed=True,
    )
    num_experts, width = config.count("num_experts", default=16), config.count("intermediate_size")
    order = []
    for layer in range(config.count("num_hidden_layers")):
        word = "attention" if _at(config, "attn_layer", layer, period=8, offset=4) else "mamba"
        mixed = num_experts > 1 and _at(config, "expert_layer", layer, period=2, offset=1)
        order.append(f"{word} with experts" if mixed else word)
    norms = norm("layernorm", hidden, times=2)
    mixers: dict[str, tuple[Layer, Parts]] = {
        "attention": (attention, attention_weights(config, attention)),
        "mamba": (mixer.state(), mixer.weights("mamba", hidden)),
    }
    kinds = {}
    for word, (cache, weights) in mixers.items():
        own = (norms, *weights)
        kinds[word] = Kind(
            (cache,),
            (*own, *mlp("feed_forward", hidden, width)),
        )
        kinds[f"{word} with experts"] = Kind(
            (cache,),
            (
                *own,
                *experts("feed_forward.experts", hidden, num_experts, width),
                *router("feed_forward.router", hidden, num_experts, bias=False),
            ),
        )
    mixed_layers = sum(1 for word in order if word.endswith("experts"))
    mixture = Mixture(num_experts, config.count("num_experts_per_tok", default=2), width, mixed_layers)
    # its class has an output layer of its own whatever the file says of tying
    return Stack(
        tuple(order), kinds, attention, max(width, inner), tied=False, mixture=mixture if mixed_layers else None
    )


def _at(config: ConfigValues, what: str, layer: int, *, period: int, offset: int) -> bool:
    every = config.count(f"{what}_period", default=period)
    first = config.values.get(f"{what}_offset", offset)
    if not isinstance(first, int) or not 0 <= first < every:
        raise config.impossible(f"{what}_offset", f"must be less than {what}_period")
    return layer % every == first


def mamba1(config: ConfigValues) -> Stack:
    """Mamba and Falcon Mamba: nothing but mixers (models/mamba.py)."""
    hidden = config.count("hidden_size")
    inner = config.count("expand", default=2) * hidden
    mixer = Mamba1(
        inner,
        config.count("state_size", default=16),
        config.count("conv_kernel", default=4),
        _time_step_rank(config, "time_step_rank"),
        conv_bias=config.flag("use_conv_bias", default=True),
        bias=config.flag("use_bias", default=False),
    )
    weights = (norm("norm", hidden), *mixer.weights("mixer", hidden))
    return _mixers_alone(config, Kind((mixer.state(),), weights), inner, tied_by_default=True)


def mamba2(config: ConfigValues) -> Stack:
    """Mamba-2 without attention (models/mamba2.py)."""
    hidden = config.count("hidden_size")
    mixer = Mamba2(
        config.count("num_heads", default=128),
        config.count("head_dim", default=64),
        config.count("n_groups", default=8),
        config.count("state_size", default=128),
        config.count("conv_kernel", default=4),
        conv_bias=config.flag("use_conv_bias", default=True),
        bias=config.flag("use_bias", default=False),
        chunk_tokens=config.count("chunk_size", default=256),
    )
    weights = (norm("norm", hidden), *mixer.weights("mixer", hidden))
    return _mixers_alone(config, Kind((mixer.state(),), weights), mixer.inner, tied_by_default=False)


def _mixers_alone(config: ConfigValues, kind: Kind, width: int, *, tied_by_default: bool) -> Stack:
    order = ("mamba",) * config.count("num_hidden_layers")
    return Stack(order, {"mamba": kind}, None, width, config.flag("tie_word_embeddings", default=tied_by_default))


def _words(config: ConfigValues, key: str) -> tuple[str, ...]:
    num_layers, words = config.count("num_hidden_layers"), config.words(key)
    if words is None or len(words) != num_layers or set(words) - _WORDS.keys():
        raise config.impossible(key, f"must name mamba or attention for each of {num_layers} layers")
    return tuple(_WORDS[word] for word in words)


def _mamba_of(config: ConfigValues, inner: int, *, normed: bool = True) -> Mamba2:
    heads = config.count("mamba_n_heads", default=128)
    return Mamba2(
        heads,
        inner // heads,
        config.count("mamba_n_groups", default=1),
        config.count("mamba_d_state", default=256),
        config.count("mamba_d_conv", default=4),
        conv_bias=config.flag("mamba_conv_bias", default=True),
        bias=config.flag("mamba_proj_bias", default=False),
        normed=normed,
        chunk_tokens=config.count("mamba_chunk_size", default=256),
    )


def _time_step_rank(config: ConfigValues, key: str) -> int:
    """`auto` is a sixteenth of the hidden states."""
    if config.values.get(key, "auto") == "auto":
        return -(-config.count("hidden_size") // 16)
    return config.count(key)
