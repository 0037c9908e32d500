"""Quantizations by name: vLLM's `--quantization` values, and what publishers put into a model's name."""

import re
from collections.abc import Mapping
from dataclasses import replace

from sizing.errors import QuestionError
from sizing.ggml import MIXTURES
from sizing.number_format import (
    FP8_BLOCK,
    FP8_CHANNEL,
    FP8_TENSOR,
    INT8_CHANNEL,
    MXFP4,
    MXFP8,
    NF4,
    NVFP4,
    NumberFormat,
    integers,
)
from sizing.quantization import Quantization


def _all(method: str, number_format: NumberFormat, *, experts_only: bool = False) -> Quantization:
    return Quantization(method, (((), number_format),), experts_only=experts_only)


_INT4 = integers(4, 128, zero_points=False)
SCHEMES: Mapping[str, Quantization] = {
    "fp8": _all("fp8", FP8_TENSOR),
    "fp8-block": _all("fp8", FP8_BLOCK),
    "fp8-channel": _all("compressed-tensors", FP8_CHANNEL),
    "w8a8-fp8": _all("compressed-tensors", FP8_CHANNEL),
    "w8a8-int8": _all("compressed-tensors", INT8_CHANNEL),
    "awq": _all("awq", integers(4, 128, zero_points=True)),
    "gptq": _all("gptq", _INT4),
    "gptq-int8": _all("gptq", integers(8, 128, zero_points=False)),
    "w4a16": _all("compressed-tensors", _INT4),
    "nvfp4": _all("modelopt_fp4", NVFP4),
    "modelopt-fp8": _all("modelopt", FP8_TENSOR),
    "mxfp4": _all("mxfp4", MXFP4, experts_only=True),
    "mxfp8": _all("modelopt", MXFP8),
    "bitsandbytes": _all("bitsandbytes", NF4),
    "bnb-int8": _all("bitsandbytes", replace(INT8_CHANNEL, name="INT8")),
    **{f"gguf-{name}": Quantization("gguf", (), mixture=mixture) for name, mixture in MIXTURES.items()},
}
"""What can be asked for by name, for a config that says nothing: each packs all linear layers unless it says less.
Groups are of 128, as nearly all published checkpoints have them."""

_ALIASES = {
    "awq-marlin": "awq",
    "awq-int4": "awq",
    "gptq-marlin": "gptq",
    "gptq-int4": "gptq",
    "int4": "w4a16",
    "w4a16-int4": "w4a16",
    "w8a8": "w8a8-int8",
    "int8": "w8a8-int8",
    "compressed-tensors-int8": "w8a8-int8",
    "compressed-tensors-fp8": "fp8-channel",
    "compressed-tensors-int4": "w4a16",
    "fp8-dynamic": "fp8-channel",
    "fp8-static": "fp8",
    "fp8-per-tensor": "fp8",
    "fp8-per-channel": "fp8-channel",
    "fp8-per-block": "fp8-block",
    "int8-per-channel": "w8a8-int8",
    "fbgemm-fp8": "fp8-channel",
    "modelopt": "modelopt-fp8",
    "modelopt-fp4": "nvfp4",
    "modelopt-nvfp4": "nvfp4",
    "gpt-oss-mxfp4": "mxfp4",
    "bnb": "bitsandbytes",
    "bnb-nf4": "bitsandbytes",
    "bnb-4bit": "bitsandbytes",
    "nf4": "bitsandbytes",
    "bnb-8bit": "bnb-int8",
}


def named_quantization(scheme: str, *, model: str) -> Quantization:
    """The quantization of that name, upper case, blanks and underscores aside.

    Raises:
        QuestionError: no such scheme is known; the message lists those that are.
    """
    name = re.sub(r"[\s_]+", "-", scheme.strip().lower())
    if name.startswith("gguf-"):
        name = "gguf-" + name.removeprefix("gguf-").replace("-", "_")
    found = SCHEMES.get(_ALIASES.get(name, name))
    if found is None:
        raise QuestionError(f"{model}: quantization {scheme!r} is not known; known are {', '.join(sorted(SCHEMES))}")
    return found
