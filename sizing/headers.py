"""What a safetensors header says of its tensors, and what they weigh once vLLM has loaded them."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sizing.errors import ModelFileError
from sizing.model import DTYPE_BYTES, Dtype

# https://github.com/huggingface/safetensors#format: an unsigned little-endian length, then that much JSON.
LENGTH_PREFIX_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_DECODER_LAYER = re.compile(r"^(?:language_model\.)?(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(\d+)\.")
_ENCODER = re.compile(
    r"^(?:model\.)?encoder\.|vision|visual|audio|multi_modal_projector|mm_projector|image_newline|patch_merger|sam_model"
    r"|\bmlp1\.|\bmlp_AR\.|connector\.|resampler|^(?:model\.)?projector\.|view_sep|embed_tokens_extend|qformer"
    r"|language_projection|abstractor|qwen2_model|vq_adaptor|layerwise_projectors|spatial_projectors"
    r"|^(?:model\.)?(?:vit_merger|merger)\.|^(?:apm|query_tokens|vpm|vte)\b"
)
# what speaks, which vLLM leaves out, and Phi-4's adapters beside their matrices, which requests ask for
_LEFT_OUT = re.compile(r"^(?:talker|token2wav|code2wav|tts)\.|\.lora_[AB]\.(?:speech|vision)\.")

_ROPE_TABLES = ("rope_freqs.", "rope_factors_")  # GGUF's; vLLM makes its own
# what old files keep beside the weights: masks of what comes later, and what rotates
_MADE_ANEW = re.compile(r"rotary_emb\.|rotary_pos_emb\.|\.attn\.(?:masked_)?bias$")

_FLOATS: dict[str, Dtype | None] = {"F64": None, "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Tensor:
    """One entry of a header: its name, the format's name for its number type, its shape and its bytes on disk."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


def parse_header(header: bytes, *, file: str) -> tuple[Tensor, ...]:
    """The tensors of a header's JSON, without its 8-byte length.

    Raises:
        ModelFileError: not JSON, or not of the format.
    """
    try:
        entries = json.loads(header)
        return tuple(_tensor(name, entry) for name, entry in entries.items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ModelFileError(
            f"{file}: its safetensors header is not readable ({type(error).__name__}); download the file again"
        ) from error


def _tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
    """Raises TypeError or ValueError where a value is not of its kind, among what any wrong entry raises."""
    dtype, shape, (first, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(dtype, str) or not all(type(number) is int for number in (*shape, first, end)):
        raise TypeError(name)
    if min((*shape, first)) < 0 or end < first:
        raise ValueError(name)
    return Tensor(name, dtype, shape, end - first)


def loaded_tensors(
    tensors: Iterable[Tensor], *, tie_word_embeddings: bool, num_hidden_layers: int | None = None
) -> tuple[Tensor, ...]:
    """The tensors that vLLM keeps: it skips a tied output layer's copy, rotary tables and multi-token prediction.

    What makes speech of a model's answer is left out too. Prediction (MTP) layers are stored beside the decoder's, or
    as layers past its last, and are only loaded for speculative decoding.
    """
    return tuple(
        tensor
        for tensor in tensors
        if not (tie_word_embeddings and tensor.name.endswith(("lm_head.weight", "proj_out.weight")))
        and not _MADE_ANEW.search(tensor.name)
        and not tensor.name.startswith(_ROPE_TABLES)
        and not _LEFT_OUT.search(tensor.name)
        and not _predicts(tensor.name, num_hidden_layers)
    )


def prediction_tensors(tensors: Iterable[Tensor], num_hidden_layers: int) -> tuple[Tensor, ...]:
    """The tensors of multi-token prediction alone."""
    return tuple(tensor for tensor in tensors if _predicts(tensor.name, num_hidden_layers))


def _predicts(name: str, num_hidden_layers: int | None) -> bool:
    if name.startswith(("mtp.", "model.mtp", "mtp_")):
        return True
    layer = _DECODER_LAYER.search(name)
    return layer is not None and num_hidden_layers is not None and int(layer[1]) >= num_hidden_layers


def is_encoder(tensor: Tensor) -> bool:
    """Whether it belongs to a multimodal model's encoder, or to what joins that to the decoder."""
    return _ENCODER.search(tensor.name) is not None


def loaded_bytes(tensors: Iterable[Tensor], *, dtype: Dtype, quantized: bool) -> int:
    """What those tensors weigh in memory: as stored where quantized, else in the served type."""
    return sum(
        tensor.num_bytes if quantized or tensor.dtype not in _FLOATS else tensor.num_elements * DTYPE_BYTES[dtype]
        for tensor in tensors
    )


def stored_dtype(tensors: Iterable[Tensor]) -> Dtype | None:
    """The widest float type among the tensors, or None: what vLLM takes when the config names none."""
    stored = {_FLOATS.get(tensor.dtype) for tensor in tensors} - {None}
    if len(stored) > 1:  # bfloat16 and float16 together widen to float32, as types promote
        return "float32"
    return stored.pop() if stored else None
