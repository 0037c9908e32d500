"""Nemotron-H: Mamba-2, attention, feed-forward layers and mixtures, each a layer of its own."""

from sizing.config_values import ConfigValues
from sizing.errors import UnsupportedModelError
from sizing.held import Weight
from sizing.matrices import Parts, experts, linear, mlp, norm, router
from sizing.mixers import Mamba2
from sizing.stacks import Kind, Mixture, Stack, attention_of, attention_weights

_STATE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def nemotron_h(config: ConfigValues) -> Stack:
    """Mamba-2, attention, feed-forward layers and mixtures, each a layer of its own (models/nemotron_h.py)."""
    order = nemotron_order(config)
    hidden, attention = config.count("hidden_size"), attention_of(config, "attention_head_dim", "head_dim")
    named = config.values.get("mamba_ssm_cache_dtype") or "float32"
    if str(named) not in _STATE_BYTES:
        raise config.impossible("mamba_ssm_cache_dtype", f"is none of {', '.join(_STATE_BYTES)}")
    mixer = Mamba2(
        config.count("mamba_num_heads"),
        config.count("mamba_head_dim"),
        config.count("n_groups"),
        config.count("ssm_state_size"),
        config.count("conv_kernel"),
        conv_bias=config.flag("use_conv_bias", default=True),
        bias=config.flag("use_bias", default=False),
        state_bytes=_STATE_BYTES[str(named)],
        chunk_tokens=config.count("chunk_size", default=128),
    )
    kinds: dict[str, Kind] = {}
    width, mixture = mixer.inner if "M" in order else 0, None
    if "M" in order:
        kinds["M"] = Kind(
            (mixer.state(),),
            (norm("norm", hidden), *mixer.weights("mixer", hidden)),
        )
    if "*" in order:
        kinds["*"] = Kind(
            (attention,),
            (norm("norm", hidden), *attention_weights(config, attention, "mixer")),
        )
    if "-" in order:
        dense = config.count("intermediate_size")
        width = max(width, dense)
        weights = [*mlp("mixer", hidden, dense, gated=False)]
        if config.flag("mlp_bias", default=False):
            weights += [Weight("mixer.up_proj.bias", (dense,), "sharded"), norm("mixer.down_proj.bias", hidden)]
        kinds["-"] = Kind(
            (),
            (norm("norm", hidden), *weights),
        )
    if "E" in order:
        mixture = _nemotron_mixture(config, order.count("E"))
        kinds["E"] = Kind(
            (),
            (norm("norm", hidden), *_nemotron_experts(config, mixture)),
        )
    tied = config.flag("tie_word_embeddings", default=False)
    return Stack(tuple(order), kinds, attention if "*" in order else None, width, tied, mixture)


def nemotron_order(config: ConfigValues) -> str:
    """A letter for each layer: M for Mamba, * for attention, - for a feed-forward layer, E for experts.

    Raises:
        UnsupportedModelError: other letters or words, or none.
    """
    pattern = config.values.get("hybrid_override_pattern")
    if pattern is None:
        letters = {"mamba": "M", "linear_attention": "M", "attention": "*", "full_attention": "*"}
        letters |= {"moe": "E", "mlp": "-"}
        words = config.words("layers_block_type") or config.words("layer_types")
        pattern = "".join(letters.get(word, "?") for word in words) if words else None
    if not isinstance(pattern, str) or not pattern or set(pattern) - set("M*-E"):
        raise UnsupportedModelError(
            f"{config.name}: its hybrid_override_pattern is {pattern!r}; "
            "sized are Nemotron-H models of M, *, - and E layers"
        )
    return pattern


def _nemotron_mixture(config: ConfigValues, layers: int) -> Mixture:
    width = config.count("moe_intermediate_size")
    shared = config.count_or_none("n_shared_experts") or 0
    return Mixture(
        config.count("n_routed_experts"),
        config.count("num_experts_per_tok"),
        width,
        layers,
        shared=shared * config.count("moe_shared_expert_intermediate_size") // width if shared else 0,
        hidden=config.count_or_none("moe_latent_size") or 0,
        gated=False,
    )


def _nemotron_experts(config: ConfigValues, mixture: Mixture) -> Parts:
    hidden, latent = config.count("hidden_size"), mixture.hidden
    shared = config.count_or_none("n_shared_experts") or 0
    yield from experts("mixer.experts", latent or hidden, mixture.count, mixture.width, gated=False)
    yield from router("mixer.gate", hidden, mixture.count, bias=True)
    if shared:
        width = shared * config.count("moe_shared_expert_intermediate_size")
        yield from mlp("mixer.shared_experts", hidden, width, gated=False)
    if latent:
        yield linear("mixer.fc1_latent_proj", latent, hidden, "replicated")
        yield linear("mixer.fc2_latent_proj", hidden, latent, "replicated")
