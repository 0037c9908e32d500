"""Puts a shape on the scales: by its checkpoint's headers, or by its config where there are none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sizing.blueprint import blueprint, is_spelt_out
from sizing.config_values import ConfigValues
from sizing.encoders import read_encoder
from sizing.errors import ModelFileError
from sizing.headers import Tensor, is_encoder, loaded_bytes, loaded_tensors
from sizing.layers import Latent, Recurrent
from sizing.model import ModelShape
from sizing.parameters import count_parameters
from sizing.quantization import Quantization
from sizing.quantization_config import read_quantization
from sizing.rotary import rotary_bytes
from sizing.tensor_names import NARROW_QUERIES, pieces_of
from sizing.towers import Encoder
from sizing.weights import Piece, expert_tiles, held, pieces

_COUNT_TOLERANCE = 0.01
_BUILT_TOLERANCE = 0.3
_UNKNOWN_ENCODER = "what its encoder weighs is not known here; the sum has a wide range for it, and not its work"
_ENCODER_WORK = "the work of its encoder is not in the sum"


def weighed(
    shape: ModelShape,
    config: ConfigValues,
    tensors: Sequence[Tensor] | None,
    *,
    wrapper: Mapping[str, object] | None,
) -> ModelShape:
    """The shape with its weights; `config` is the decoder's and `wrapper` what stands around it, if anything.

    Raises:
        ModelFileError: the headers do not fit the config.
        UnsupportedModelError: no headers, and a quantization that cannot be told from the config.
    """
    shape = replace(shape, blueprint=blueprint(config, shape))
    encoder = read_encoder(wrapper, name=shape.name, text_hidden=shape.hidden_size) if wrapper is not None else None
    if tensors is None:
        return _by_config(shape, config, encoder, multimodal=wrapper is not None)
    return _by_headers(shape, config, tensors, encoder, multimodal=wrapper is not None)


def _by_config(shape: ModelShape, config: ConfigValues, encoder: Encoder | None, *, multimodal: bool) -> ModelShape:
    counted = count_parameters(shape).total
    quantization = read_quantization(config) if shape.quantization else None
    found = pieces(shape.blueprint, shape.dtype_bytes, quantization, num_layers=shape.num_hidden_layers)
    encoder_parameters = encoder.num_parameters if encoder else 0
    found.append(Piece("encoder", None, encoder_parameters * shape.dtype_bytes))
    whole = held(
        found,
        shape,
        buffers=rotary_bytes(config, shape),
        tiles=expert_tiles(shape, quantization.method if quantization else None),
        encoder=encoder,
    )
    return replace(
        shape,
        num_parameters=counted + encoder_parameters,
        weights_bytes=whole.weights_bytes,
        encoder_bytes=whole.encoder,
        held=whole,
        caveat=_caveat(shape, quantization, encoder, multimodal=multimodal),
    )


def _caveat(
    shape: ModelShape, quantization: Quantization | None, encoder: Encoder | None, *, multimodal: bool
) -> str | None:
    said = []
    if multimodal:
        said.append(_UNKNOWN_ENCODER if encoder is None else _ENCODER_WORK)
    if encoder is not None and encoder.estimated:
        said.append(encoder.estimated)
    if quantization is not None and quantization.assumed:
        said.append(quantization.assumed)
    if quantization is not None and not is_spelt_out(shape):
        said.append("what its quantization takes is estimated, since its layers are only counted")
    return "; ".join(said) or None


def _by_headers(
    shape: ModelShape, config: ConfigValues, tensors: Sequence[Tensor], encoder: Encoder | None, *, multimodal: bool
) -> ModelShape:
    counted = count_parameters(shape).total
    loaded = kept_tensors(
        shape,
        config,
        loaded_tensors(
            tensors, tie_word_embeddings=shape.tie_word_embeddings, num_hidden_layers=shape.num_hidden_layers
        ),
    )
    before = [tensor for tensor in loaded if multimodal and is_encoder(tensor)]
    stored = sum(tensor.num_elements for tensor in loaded) - sum(tensor.num_elements for tensor in before)
    packed = shape.quantization not in (None, "gguf")  # of which a tensor's shape tells nothing
    if not packed and not _fits(stored, counted, before, encoder):
        raise ModelFileError(
            f"{shape.name}: its files hold {stored:,} parameters where config.json describes {counted:,}; "
            "download the model again, or merge the adapter into its base model"
        )
    built = _built_parameters(before, encoder)
    found = _stored_pieces(shape, loaded, packed=packed, multimodal=multimodal)
    if encoder is not None and built == encoder.num_parameters:
        found = [piece for piece in found if piece.split != "encoder"]
        found.append(Piece("encoder", None, built * shape.dtype_bytes))
    whole = held(
        found,
        shape,
        buffers=rotary_bytes(config, shape),
        tiles=expert_tiles(shape, shape.quantization),
        encoder=encoder,
    )
    return replace(
        shape,
        num_parameters=counted + built,
        weights_bytes=whole.weights_bytes,
        encoder_bytes=whole.encoder,
        held=whole,
        weights_source="GGUF header" if shape.quantization == "gguf" else shape.weights_source,
        caveat=_ENCODER_WORK if multimodal else None,
    )


def _fits(stored: int, counted: int, before: Sequence[Tensor], encoder: Encoder | None) -> bool:
    """Whether what is stored of the decoder, or of all, is what the config describes.

    Some encoders have experts among the decoder's layers, which no name tells apart.
    """
    if abs(stored - counted) <= _COUNT_TOLERANCE * counted:
        return True
    described = counted + encoder.num_parameters if encoder else counted
    return abs(stored + sum(tensor.num_elements for tensor in before) - described) <= _COUNT_TOLERANCE * described


def _built_parameters(stored: Sequence[Tensor], encoder: Encoder | None) -> int:
    """Of the encoder: what vLLM builds where that is known and about what is stored, which may be a layer more."""
    elements = sum(tensor.num_elements for tensor in stored)
    plain = all(tensor.dtype in ("F64", "F32", "F16", "BF16") for tensor in stored)
    if encoder is None or not plain or abs(encoder.num_parameters - elements) > _BUILT_TOLERANCE * elements:
        return elements
    return encoder.num_parameters


def _stored_pieces(shape: ModelShape, loaded: Sequence[Tensor], *, packed: bool, multimodal: bool) -> list[Piece]:
    """Each tensor's, or those of the config where no name tells of a layer (Molmo's blocks have names of their own)."""
    found: list[Piece] = []
    table = shape.blueprint[0].split  # the embedding's
    for tensor in loaded:
        num_bytes = loaded_bytes([tensor], dtype=shape.dtype, quantized=packed)
        num_bytes += unpacked_copy_bytes(tensor, shape)
        parts = pieces_of(
            tensor,
            num_bytes,
            multimodal=multimodal,
            kv_share=kv_share(shape),
            sole_group=sole_group(shape),
            whole=NARROW_QUERIES if shape.architecture == "Step3TextForCausalLM" else None,
        )
        found += [replace(part, split=table) if part.split == "embedding" else part for part in parts]
    if packed or not multimodal or any(piece.layer is not None for piece in found):
        return found
    decoder = pieces(shape.blueprint, shape.dtype_bytes, None, num_layers=shape.num_hidden_layers)
    return decoder + [piece for piece in found if piece.split == "encoder"]


def kv_share(shape: ModelShape) -> float:
    """What keys and values are of a matrix in which queries, keys and values are fused."""
    heads = shape.num_key_value_heads
    return 2 * heads / (shape.num_attention_heads + 2 * heads)


def sole_group(shape: ModelShape) -> int:
    """Channels of a mixer's states that all its heads share; 0 where groups of heads have their own."""
    states = [layer for layer in shape.distinct_layers if isinstance(layer, Recurrent)]
    return max((state.group_channels for state in states if state.groups == 1), default=0)


def kept_tensors(shape: ModelShape, config: ConfigValues, tensors: Sequence[Tensor]) -> list[Tensor]:
    """GPTQ's kernels drop the zero points, and the order of inputs where it is the natural one."""
    if shape.quantization != "gptq":
        return list(tensors)
    ordered = config.section("quantization_config", "compression_config").get("desc_act") is not True
    dropped = (".qzeros", ".g_idx") if ordered else (".qzeros",)
    return [tensor for tensor in tensors if not tensor.name.endswith(dropped)]


def unpacked_copy_bytes(tensor: Tensor, shape: ModelShape) -> int:
    """Latent attention decodes with a copy of its up-projection that is not packed."""
    if Latent not in shape.layer_types or not tensor.name.endswith(
        ("kv_b_proj.weight", "kv_b_proj.weight_packed", "kv_b_proj.qweight")
    ):
        return 0
    numbers = {"F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 2, "I32": 8}.get(tensor.dtype, 0)
    return tensor.num_elements * numbers * shape.dtype_bytes
