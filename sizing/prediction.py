"""The prediction layers (MTP) that a model brings: what they keep and weigh, read beside its decoder.

vLLM loads them only to draft (models/*_mtp.py), as a model of its own that shares both tables of the vocabulary.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sizing.blueprint import is_spelt_out, layer_weights
from sizing.config_values import ConfigValues
from sizing.headers import Tensor, loaded_bytes, prediction_tensors
from sizing.held import Weight
from sizing.layers import Compressed, Layers, keeps_whole_context
from sizing.matrices import linear, norm
from sizing.model import ModelShape, ParameterCount
from sizing.quantization_config import read_quantization
from sizing.tensor_names import pieces_of
from sizing.weighing import kept_tensors, kv_share, unpacked_copy_bytes
from sizing.weights import Piece, expert_tiles, held, pieces

_COUNT_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")
_SHARED = re.compile(r"(?:^|\.)(?:embed_tokens|lm_head|shared_head\.head)\.")
_TAKEN = "its prediction layers are taken to weigh as much as its last layer and what joins it to the tokens"


@dataclass(frozen=True)
class _Joined:
    """How a prediction layer takes the next token's embedding in beside the hidden states."""

    prefix: str
    """Of its layers' names, numbered from the model's own last or from 0."""
    numbered_on: bool = True
    projection: Literal["whole", "divided"] = "whole"
    """A plain matrix on every rank, or one that is divided by outputs (and quantized with the rest)."""
    norms: int = 3
    once: bool = False
    """One joint for all layers together."""
    count: int = 0
    """Layers where the config does not say how many; 0: none."""


_QWEN = _Joined("mtp.layers.", numbered_on=False, projection="divided", once=True, count=1)
_PREDICTORS: Mapping[str, _Joined] = {
    **dict.fromkeys(
        ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "Glm4MoeForCausalLM"),
        _Joined("model.layers."),
    ),
    "MiMoForCausalLM": _Joined("model.mtp_layers.", numbered_on=False),
    "Ernie4_5_MoeForCausalLM": _Joined("model.mtp_block.", numbered_on=False, norms=2),
    **dict.fromkeys(("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"), _QWEN),
}


def predictor(config: ConfigValues, shape: ModelShape, tensors: Sequence[Tensor] | None) -> ModelShape | None:
    """The prediction layers of that model as a model of their own; None where config or files have none.

    By the headers, where there are any. From a config alone they weigh as their family's class builds them; a family
    that is not known here is taken to have layers like its last, and says so.
    """
    layers = prediction_layers(config, shape)
    if not layers or shape.quantization == "gguf":
        return None
    bare = replace(
        shape,
        num_hidden_layers=len(layers),
        layers=layers,
        num_moe_layers=len(layers) if shape.num_moe_layers else 0,
        parameters=ParameterCount(),
        encoder_bytes=0,
        caveat=None,
        held=None,
        blueprint=(),
        predictor=None,
    )
    family = _PREDICTORS.get(shape.architecture) if is_spelt_out(shape) and shape.assumed is None else None
    weights = tuple(_weights(config, shape, layers, family or _Joined("model.layers.")))
    if tensors is not None:
        return _by_headers(replace(bare, blueprint=weights), config, shape, tensors)
    quantization = read_quantization(config) if shape.quantization else None
    found = pieces(weights, shape.dtype_bytes, quantization, num_layers=len(layers))
    bare = replace(bare, blueprint=weights, assumed=None if family is not None else _TAKEN)
    return _weighed(bare, found, quantization.method if quantization else None)


def prediction_layers(config: ConfigValues, shape: ModelShape) -> Layers:
    """What each prediction layer keeps; empty where the config names none.

    Each keeps what a decoder layer of its place does: Step's by `layer_types`, DeepSeek V4's a window alone, and
    elsewhere what the last layer with attention of the whole context keeps.
    """
    counts = (config.count_or_none(key) for key in _COUNT_KEYS)
    unsaid = _PREDICTORS[shape.architecture].count if shape.architecture in _PREDICTORS else 0
    silent = all(config.values.get(key) is None for key in _COUNT_KEYS)
    count = next((count for count in counts if count), unsaid if silent else 0)
    kept = [caches for caches in shape.cache_layers if caches]
    if not count or not kept:
        return ()
    words = config.words("layer_types") or []
    of_its_kind = dict(zip(words, shape.cache_layers, strict=False))
    whole = [caches for caches in kept if any(keeps_whole_context(layer) for layer in caches)]
    last = whole[-1] if whole else kept[-1]
    if isinstance(last[0], Compressed):
        last = last[:1]
    further = words[shape.num_hidden_layers :][:count]
    return tuple(of_its_kind[word] for word in further) if len(further) == count else (last,) * count


def _weights(config: ConfigValues, shape: ModelShape, layers: Layers, joined: _Joined) -> list[Weight]:
    hidden, found = shape.hidden_size, list[Weight]()
    for number, caches in enumerate(layers):
        index = shape.num_hidden_layers + number if joined.numbered_on else number
        parts = list(layer_weights(config, shape, _decoder_index(shape, joined, index), caches))
        if number == 0 or not joined.once:
            parts += [
                Weight("eh_proj", (hidden, 2 * hidden))
                if joined.projection == "whole"
                else linear("fc", hidden, 2 * hidden),
                norm("joint_norm", hidden, times=joined.norms),
            ]
        found += [replace(part, name=f"{joined.prefix}{index}.{part.name}", layer=number) for part in parts]
    return found


def _decoder_index(shape: ModelShape, joined: _Joined, index: int) -> int:
    """Which of the decoder's layers vLLM's class takes it for, by the number in its name; where unknown its last."""
    return index if shape.architecture in _PREDICTORS and shape.assumed is None else shape.num_hidden_layers - 1


def _by_headers(
    bare: ModelShape, config: ConfigValues, shape: ModelShape, tensors: Sequence[Tensor]
) -> ModelShape | None:
    found: list[Piece] = []
    for tensor in kept_tensors(shape, config, prediction_tensors(tensors, shape.num_hidden_layers)):
        if _SHARED.search(tensor.name):
            continue
        num_bytes = loaded_bytes([tensor], dtype=shape.dtype, quantized=shape.quantization is not None)
        num_bytes += unpacked_copy_bytes(tensor, shape)
        for piece in pieces_of(tensor, num_bytes, multimodal=False, kv_share=kv_share(shape)):
            found.append(replace(piece, layer=_own_number(piece.layer, shape.num_hidden_layers, bare)))
    return _weighed(bare, found, shape.quantization) if found else None


def _own_number(layer: int | None, decoder_layers: int, bare: ModelShape) -> int:
    """The prediction layer that a tensor belongs to; what stands beside them is put with the first."""
    if layer is None:
        return 0
    return min(layer - decoder_layers if layer >= decoder_layers else layer, bare.num_hidden_layers - 1)


def _weighed(bare: ModelShape, found: Sequence[Piece], method: str | None) -> ModelShape:
    """Its rotary table is the model's; so is the workspace of latent attention."""
    whole = replace(held(found, bare, tiles=expert_tiles(bare, method)), latent=False)
    return replace(bare, num_parameters=0, weights_bytes=whole.weights_bytes, held=whole)
