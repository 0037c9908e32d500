"""From a model's `config.json` to its ModelShape: pure, and what all families spell alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sizing.anatomy import Anatomy
from sizing.architecture import (
    ARCHITECTURES,
    FAMILIES,
    WRAPPERS,
    Architecture,
    architecture_name,
    check_supported,
)
from sizing.config_values import ConfigValues
from sizing.division import read_granule
from sizing.encoders import largest_picture_bytes, output_bytes, undivided_item_tokens
from sizing.errors import ModelFileError
from sizing.headers import Tensor, stored_dtype
from sizing.model import Dtype, ModelShape, ParameterCount
from sizing.parameters import count_parameters
from sizing.plain import windows
from sizing.prediction import prediction_layers, predictor
from sizing.quantization_config import quantization_method
from sizing.spelling import UNBOUNDED_MODEL_LEN, has_encoder_of_its_own, is_unbounded, spelt
from sizing.structure import assumed, by_structure
from sizing.weighing import weighed
from sizing.wrappers import TEXT_SECTIONS, decoder_name, text_values, unwrapped

_DTYPES: dict[str, Dtype] = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
    "float32": "float32",
    "float": "float32",
}
# vllm/transformers_utils/model_arch_config_convertor.py: derive_max_model_len_and_key
_LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# vllm/config/model.py: _get_and_verify_max_len; these leave max_position_embeddings already scaled
_UNSCALED_ROPE = {"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"}
_ASSUMED_MODEL_LEN = 32_768
_ANY_MODEL_LEN = 2**24
_MOST_ROPE_FACTOR = 10_000
_MOST_PARAMETERS = 10**15


def parse_config(values: Mapping[str, object], *, name: str, tensors: Sequence[Tensor] | None = None) -> ModelShape:
    """The shape that a `config.json` describes, weighed by its safetensors headers or, without any, by the shape.

    Raises:
        ModelFileError: a key is missing or impossible, or the headers do not fit the config.
        UnsupportedModelError: a family, a kind of layer or a number format that is not sized yet.
    """
    values = unwrapped(values)
    found = _unweighed(values, name=name, tensors=tensors)
    wrapper = spelt(found.architecture, ConfigValues(name, values)).values if found.wrapped else None
    shape = weighed(found.shape, found.config, tensors, wrapper=wrapper)
    if shape.num_parameters > _MOST_PARAMETERS:
        raise ModelFileError(
            f"{name}: config.json describes {shape.num_parameters:.1e} parameters, more than any model has; "
            "use the file as its publisher ships it"
        )
    counted = count_parameters(shape) if found.wrapped else shape.parameters  # by the decoder's own rules
    predicts = predictor(found.config, shape, tensors)
    return replace(shape, architecture=found.architecture, parameters=counted, predictor=predicts)


def kv_layers(values: Mapping[str, object], *, name: str) -> ModelShape:
    """What a `config.json` says of the KV cache alone, from one that may lack the sizes of weights.

    All that is about weights is 0 in the answer: it sizes the cache and nothing else.

    Raises:
        ModelFileError, UnsupportedModelError: as parse_config, for what the cache depends on.
    """
    values = unwrapped(values)
    values = spelt(architecture_name(values) or "", ConfigValues(name, values)).values
    if values.get("head_dim") is None and values.get("hidden_size") is None and not values.keys() & set(TEXT_SECTIONS):
        raise ModelFileError(f"{name}: config.json has neither head_dim nor hidden_size; its KV cache has no width")
    heads = values.get("num_attention_heads") or values.get("num_key_value_heads")
    filled = {key: value for key, value in values.items() if value is not None}
    unweighed = {"hidden_size": 1, "intermediate_size": 1, "vocab_size": 1, "num_attention_heads": heads}
    found = _unweighed({**unweighed, **filled}, name=name, tensors=None)
    shape = replace(found.shape, architecture=found.architecture)
    unweighed_shape = replace(shape, hidden_size=0, intermediate_size=0, vocab_size=0, parameters=ParameterCount())
    further = prediction_layers(found.config, shape)
    if not further:
        return unweighed_shape
    return replace(unweighed_shape, predictor=replace(unweighed_shape, num_hidden_layers=len(further), layers=further))


@dataclass(frozen=True)
class _Unweighed:
    """A decoder's shape under its own architecture, and its part of the file."""

    shape: ModelShape
    config: ConfigValues
    architecture: str
    """The file's own, which may be a multimodal wrapper's."""
    wrapped: bool


def _unweighed(values: Mapping[str, object], *, name: str, tensors: Sequence[Tensor] | None) -> _Unweighed:
    """The shape without its weights."""
    architecture = architecture_name(values)
    item_tokens, picture_bytes = undivided_item_tokens(values, name=name), largest_picture_bytes(values, name=name)
    handed_on = output_bytes(values, name=name)
    wrapped = architecture in WRAPPERS
    known = architecture
    if wrapped or (known not in ARCHITECTURES and known not in FAMILIES and values.keys() & set(TEXT_SECTIONS)):
        values, wrapped = text_values(values, name=name), True
        known = decoder_name(architecture, values)
    config = ConfigValues(name, values)
    if known in ARCHITECTURES:
        check_supported(values, known, name=name)
        shape = _plain_shape(config, known, tensors)
    elif known in FAMILIES:
        config = spelt(known, config)
        shape = _family_shape(config, known, FAMILIES[known](config), tensors)
    else:
        shape = _shape_by_structure(config, architecture, tensors, wrapped=wrapped)
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise config.impossible(
            "num_key_value_heads", f"does not divide the {shape.num_attention_heads} attention heads"
        )
    shape = replace(
        shape,
        undivided_item_tokens=item_tokens,
        largest_picture_bytes=picture_bytes,
        encoder_output_bytes=handed_on,
    )
    wrapped = wrapped or bool(values.get("vision_config")) or has_encoder_of_its_own(architecture)
    return _Unweighed(shape, config, architecture or "", wrapped)


def _base_shape(config: ConfigValues, architecture: str, tensors: Sequence[Tensor] | None) -> ModelShape:
    """What every family spells alike; its widths are still those of a shape without layers."""
    max_model_len, longest = _model_len(config, unbounded=is_unbounded(architecture))
    quantization, kv_cache_dtype = quantization_method(config)
    return ModelShape(
        name=config.name,
        architecture=architecture,
        model_type=str(config.values.get("model_type", "")),
        dtype=_served_dtype(config, tensors),
        num_hidden_layers=config.count("num_hidden_layers"),
        hidden_size=config.count("hidden_size"),
        intermediate_size=0,
        num_attention_heads=config.count("num_attention_heads"),
        num_key_value_heads=0,
        head_dim=0,
        vocab_size=config.count("vocab_size"),
        max_model_len=max_model_len,
        longest_model_len=longest,
        tie_word_embeddings=False,
        quantization=quantization,
        num_parameters=0,
        weights_bytes=0,
        weights_source="config" if tensors is None else "safetensors headers",
        kv_cache_dtype=kv_cache_dtype,
        granule=read_granule(config.section("quantization_config", "compression_config")),
    )


def _family_shape(
    config: ConfigValues, architecture: str, anatomy: Anatomy, tensors: Sequence[Tensor] | None
) -> ModelShape:
    """A model counted by its family's own rules."""
    return replace(
        _base_shape(config, architecture, tensors),
        intermediate_size=anatomy.intermediate_size,
        num_key_value_heads=anatomy.num_key_value_heads,
        head_dim=anatomy.head_dim,
        tie_word_embeddings=anatomy.parameters.vocab_rows == 1,
        num_experts=anatomy.num_experts,
        num_experts_per_tok=anatomy.num_experts_per_tok,
        moe_intermediate_size=anatomy.moe_intermediate_size,
        num_moe_layers=anatomy.num_moe_layers,
        num_shared_experts=anatomy.num_shared_experts,
        expert_hidden_size=anatomy.expert_hidden_size,
        gated_experts=anatomy.gated_experts,
        layers=anatomy.layers,
        parameters=anatomy.parameters,
    )


def _shape_by_structure(
    config: ConfigValues, architecture: str | None, tensors: Sequence[Tensor] | None, *, wrapped: bool
) -> ModelShape:
    """A model whose architecture is not known, with what had to be taken to be so."""
    asked = config
    if wrapped:
        kind = architecture_name(config.values) or config.values.get("model_type") or "of no name"
        asked = replace(config, name=f"{config.name}: the decoder ({kind}) behind {architecture}")
    anatomy = by_structure(asked)
    taken = assumed(architecture, anatomy)
    if any(config.values.get(key) is not None for key in _LENGTH_KEYS):
        return replace(_family_shape(config, "", anatomy, tensors), assumed=taken)
    filled = ConfigValues(config.name, {**config.values, "max_position_embeddings": _ASSUMED_MODEL_LEN})
    shape = _family_shape(filled, "", anatomy, tensors)
    taken += f"; it has no context length, and {_ASSUMED_MODEL_LEN:,} is taken where none is asked for"
    return replace(shape, assumed=taken, longest_model_len=_ANY_MODEL_LEN)


def _plain_shape(config: ConfigValues, architecture_name: str, tensors: Sequence[Tensor] | None) -> ModelShape:
    """A decoder of the table, whose layers are all alike but for their windows."""
    architecture = ARCHITECTURES[architecture_name]
    base = _base_shape(config, architecture_name, tensors)
    heads = base.num_attention_heads
    experts = config.count(architecture.experts_key) if architecture.experts_key else 0
    shape = replace(
        base,
        intermediate_size=config.count("intermediate_size"),
        num_key_value_heads=config.count(
            "num_key_value_heads", default=heads if architecture.kv_heads_default_to_heads else None
        ),
        head_dim=config.count("head_dim", default=base.hidden_size // heads if architecture.plain_head_dim else None),
        tie_word_embeddings=config.flag("tie_word_embeddings", default=architecture.tied_by_default),
        attention_bias=architecture.bias == "attention_bias" and config.flag("attention_bias", default=False),
        mlp_bias=config.flag("mlp_bias", default=False),
        num_experts=experts,
        num_experts_per_tok=config.count("num_experts_per_tok") if experts else 0,
        moe_intermediate_size=config.count(architecture.expert_width_key) if experts else 0,
        num_moe_layers=_num_moe_layers(config, architecture),
    )
    return replace(shape, layers=windows(config, architecture, shape))


def _served_dtype(config: ConfigValues, tensors: Sequence[Tensor] | None) -> Dtype:
    """vllm/config/model.py: _resolve_auto_dtype; a float32 checkpoint is served in bfloat16.

    A card without bfloat16 (T4) is served in float16, which is as wide.
    """
    for key in ("dtype", "torch_dtype"):
        value = config.values.get(key)
        if value is not None:
            dtype = _DTYPES.get(str(value).removeprefix("torch."))
            if dtype is None:
                raise config.impossible(key, f"is none of {', '.join(_DTYPES)}")
            break
    else:
        dtype = stored_dtype(tensors or ()) or "float32"
    return "bfloat16" if dtype == "float32" else dtype


def _num_moe_layers(config: ConfigValues, architecture: Architecture) -> int:
    """Layers whose feed-forward part is a mixture of experts (Qwen3-MoE may leave some dense)."""
    if architecture.experts_key is None:
        return 0
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise config.impossible("mlp_only_layers", "must be a list of layer numbers")
    step = config.count("decoder_sparse_step", default=1)
    layers = range(config.count("num_hidden_layers"))
    return sum(1 for layer in layers if layer not in dense and (layer + 1) % step == 0)


def _model_len(config: ConfigValues, *, unbounded: bool) -> tuple[int, int]:
    """The default and the largest `max_model_len`, as vLLM derives them (vllm/config/model.py)."""
    lengths = [config.count(key) for key in _LENGTH_KEYS if config.values.get(key) is not None]
    if not lengths and unbounded:
        return UNBOUNDED_MODEL_LEN, _ANY_MODEL_LEN
    if not lengths:
        raise ModelFileError(
            f"{config.name}: config.json has no max_position_embeddings; use the file as its publisher ships it"
        )
    own = config.count("model_max_length", default=min(lengths))
    rope = config.section("rope_parameters", "rope_scaling")
    rope_type = str(rope.get("rope_type") or rope.get("type") or "default")
    factor = 1.0 if rope_type in _UNSCALED_ROPE else rope.get("factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= _MOST_ROPE_FACTOR:
        raise ModelFileError(
            f"{config.name}: config.json says rope factor = {factor!r}; it must be a positive number, and no more than "
            f"{_MOST_ROPE_FACTOR:,}: use the file as its publisher ships it"
        )
    longest = int(own * factor)
    if rope_type in ("longrope", "su"):
        # vLLM serves LongRoPE at its original length unless asked for more, to spare short prompts the loss
        return config.count("original_max_position_embeddings", default=longest), longest
    return longest, longest
