"""How a question that does not fit as it stands may be changed, cheapest first; the last ones cost answers' quality."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sizing.cards import card
from sizing.drafters import following
from sizing.errors import SizingError, UnknownGpuError
from sizing.gpu import Device
from sizing.islands import CardGroup
from sizing.layers import Indexer
from sizing.model import ModelShape
from sizing.question import Question
from sizing.release import Release

USUAL_LEN = 32_768
"""A context that few requests are longer than: good enough where nobody asked for one."""
_FEWER_SEQS = (64, 16)
_FP8_CAPABILITY = (8, 9)
"""Ada: the first with FP8 in its matrix units; vLLM's Triton attention refuses an fp8 KV cache below
(v1/attention/backends/triton_attn.py)."""

_FP8_WEIGHTS_CAPABILITY = (8, 0)
"""Ampere: Marlin computes with fp8 weights in 16 bits."""
_FP8_WEIGHTS_SINCE_TURING = (7, 5), Release(32)
"""Turing too, in the release that was read for it (quantization/utils/marlin_utils_fp8.py)."""

Quantized = Callable[[ModelShape, str], ModelShape]
"""The model as vLLM holds it under `--quantization SCHEME`. Raises SizingError where it cannot."""


@dataclass(frozen=True)
class Variant:
    """A question about one engine, and how it differs from the one that was asked."""

    question: Question
    flags: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()
    """What changes the model's answers, in words."""
    quantization: str | None = None
    """vLLM's `--quantization`."""
    asked_len: int | None = None
    """The context that was asked for."""


def usual_len(question: Question) -> int:
    """The context that is good enough where none was asked for: the model's own, but for very long ones."""
    return min(question.model.max_model_len, USUAL_LEN)


def variants(
    asked: Question, group: CardGroup, concurrency: int, quantized: Quantized | None, shapes: dict[str, ModelShape]
) -> Iterator[Variant]:
    """As asked; then with a usual context, other batches, an fp8 KV cache, weights in fp8: each where it was left open.

    `shapes` remembers quantized models between calls.
    """
    plain = Variant(asked, asked_len=asked.max_model_len)
    yield plain
    yield from _batches(plain, concurrency)
    cached = _fp8_cache(plain, group)
    yield from cached
    if quantized is not None:
        for weights in _fp8_weights(plain, group, quantized, shapes):
            yield weights
            yield from _batches(weights, concurrency)
            yield from _fp8_cache(weights, group)


def _batches(variant: Variant, concurrency: int) -> Iterator[Variant]:
    """A usual context, and fewer or more sequences at once: what the model answers stays the same."""
    question, flags = variant.question, variant.flags
    length = usual_len(question)
    if question.max_model_len is None and length < question.model.max_model_len:
        question, flags = replace(question, max_model_len=length), (*flags, f"--max-model-len {length}")
        yield replace(variant, question=question, flags=flags)
    if question.max_num_seqs is None:
        for seqs in (concurrency, *_FEWER_SEQS) if concurrency > max(_FEWER_SEQS) else _FEWER_SEQS:
            yield replace(
                variant, question=replace(question, max_num_seqs=seqs), flags=(*flags, f"--max-num-seqs {seqs}")
            )


def _fp8_cache(variant: Variant, group: CardGroup) -> list[Variant]:
    question, model = variant.question, variant.question.model
    open_type = question.kv_cache_dtype == "auto" and model.kv_cache_dtype == "auto"
    if not open_type or Indexer in model.layer_types or not takes_fp8(group.cards):
        return []
    changed = replace(
        variant,
        question=replace(question, kv_cache_dtype="fp8"),
        flags=(*variant.flags, "--kv-cache-dtype fp8"),
        costs=(*variant.costs, "an fp8 KV cache changes answers a little"),
    )
    length = usual_len(question)
    if question.max_model_len is None and length < model.max_model_len:
        shorter = replace(changed.question, max_model_len=length)
        return [changed, replace(changed, question=shorter, flags=(*changed.flags, f"--max-model-len {length}"))]
    return [changed]


def _fp8_weights(
    variant: Variant, group: CardGroup, quantized: Quantized, shapes: dict[str, ModelShape]
) -> Iterator[Variant]:
    """The checkpoint's 16-bit weights made fp8 while they are loaded (vLLM's `--quantization fp8`)."""
    model = variant.question.model
    if model.quantization is not None or not _takes_fp8_weights(variant.question.release, group.cards):
        return
    if "fp8" not in shapes:
        try:
            shapes["fp8"] = quantized(model, "fp8")
        except SizingError:  # not for this model
            return
    yield replace(
        variant,
        question=replace(
            variant.question, model=shapes["fp8"], speculative=following(variant.question.speculative, shapes["fp8"])
        ),
        flags=(*variant.flags, "--quantization fp8"),
        costs=(*variant.costs, "fp8 weights change answers a little" + _said_of_marlin(group.cards)),
        quantization="fp8",
    )


def _takes_fp8_weights(release: Release, devices: tuple[Device, ...]) -> bool:
    turing, since = _FP8_WEIGHTS_SINCE_TURING
    return _reach(devices, turing if release >= since else _FP8_WEIGHTS_CAPABILITY)


def _said_of_marlin(devices: tuple[Device, ...]) -> str:
    return "" if takes_fp8(devices) else ", and are computed with in 16 bits here: smaller, not faster at long prompts"


def takes_fp8(devices: tuple[Device, ...]) -> bool:
    """Whether all of them compute in FP8; a card that is not known does not."""
    return _reach(devices, _FP8_CAPABILITY)


def _reach(devices: tuple[Device, ...], least: tuple[int, int]) -> bool:
    return all((capability(device) or (0, 0)) >= least for device in devices)


def capability(device: Device) -> tuple[int, int] | None:
    """CUDA compute capability: the driver's, else the catalogue's; None for others."""
    if device.compute_capability is not None or device.kind == "cpu":
        return device.compute_capability
    try:
        return card(device.name).compute_capability
    except UnknownGpuError:
        return None
