"""LFM2: short convolutions with attention between them, their layers kind by kind."""

from sizing.config_values import ConfigValues
from sizing.held import Weight
from sizing.layers import Layer
from sizing.matrices import experts, mlp, norm, router
from sizing.mixers import ShortConvolution
from sizing.stacks import Kind, Mixture, Stack, attention_of, attention_weights


def lfm2(config: ConfigValues) -> Stack:
    """Short convolutions with attention between them, and dense feed-forward layers (models/lfm2.py)."""
    # the older of the two keys is taken where both are there
    width = config.count("block_ff_dim", default=config.count_or_none("intermediate_size") or 12288)
    if config.flag("block_auto_adjust_ff_dim", default=True):
        multiple, factor = config.count("block_multiple_of", default=256), config.values.get("block_ffn_dim_multiplier")
        width = int((factor if isinstance(factor, int | float) else 1.0) * int(2 * width / 3))
        width = -(-width // multiple) * multiple
    return _convolutions(config, width, dense_layers=config.count("num_hidden_layers"))


def lfm2_moe(config: ConfigValues) -> Stack:
    """The same with experts in all layers but the first few (models/lfm2_moe.py)."""
    dense_layers = config.count_or_none("num_dense_layers") or 0
    return _convolutions(config, config.count("intermediate_size"), dense_layers=dense_layers)


def _convolutions(config: ConfigValues, width: int, *, dense_layers: int) -> Stack:
    hidden, attention = config.count("hidden_size"), attention_of(config)
    mixer = ShortConvolution(
        config.count("conv_dim", default=hidden),
        config.count("conv_L_cache", default=3),
        config.flag("conv_bias", default=False),
    )
    words = _lfm2_words(config)
    order = [word if layer < dense_layers else f"{word} with experts" for layer, word in enumerate(words)]
    own: dict[str, tuple[Layer, tuple[Weight, ...]]] = {
        "full_attention": (
            attention,
            (*attention_weights(config, attention), norm("self_attn.qk_layernorm", 2 * attention.head_dim)),
        ),
        "conv": (mixer.state(), tuple(mixer.weights("conv", hidden))),
    }
    mixture = None
    if dense_layers < len(words):
        mixture = Mixture(
            config.count("num_experts"),
            config.count("num_experts_per_tok"),
            config.count("moe_intermediate_size"),
            len(words) - dense_layers,
        )
    mixed: list[Weight] = []
    if mixture is not None:
        mixed += experts("feed_forward.experts", hidden, mixture.count, mixture.width)
        biased = config.flag("use_expert_bias", default=True)
        mixed += router("feed_forward.gate", hidden, mixture.count, bias=biased)
    kinds = {}
    for word, (cache, weights) in own.items():
        normed = (*weights, norm("operator_norm", hidden, times=2))
        kinds[word] = Kind(
            (cache,),
            (*normed, *mlp("feed_forward", hidden, width)),
        )
        if mixed:
            kinds[f"{word} with experts"] = Kind((cache,), (*normed, *mixed))
    # its class ties the output layer whatever the file says
    return Stack(tuple(order), kinds, attention, width, tied=True, mixture=mixture)


def _lfm2_words(config: ConfigValues) -> tuple[str, ...]:
    num_layers = config.count("num_hidden_layers")
    words = config.words("layer_types")
    if words is None and config.values.get("full_attn_idxs") is not None:
        full = config.numbers("full_attn_idxs")
        words = ["full_attention" if layer in full else "conv" for layer in range(num_layers)]
    if words is None or len(words) != num_layers or set(words) - {"full_attention", "conv"}:
        raise config.impossible("layer_types", f"must name full_attention or conv for each of {num_layers} layers")
    return tuple(words)
