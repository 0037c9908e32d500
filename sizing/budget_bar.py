"""The stacked bar of one answer as numbers: who holds which bytes of a card, in the order they are drawn."""

from dataclasses import dataclass
from typing import Literal

from sizing.gpu import Device
from sizing.question import Answer, Question

Part = Literal[
    "held by others", "weights", "activations", "non-torch", "CUDA graphs", "KV cache", "missing", "not used"
]
PARTS: tuple[Part, ...] = (
    "weights",
    "activations",
    "non-torch",
    "CUDA graphs",
    "KV cache",
    "missing",
    "held by others",
    "not used",
)
_PART_OF_TERM: dict[str, Part] = {
    "weights": "weights",
    "drafter": "weights",
    "LoRA adapters": "weights",
    "non-torch": "non-torch",
    "processes": "non-torch",
    "CUDA graphs": "CUDA graphs",
    "left free": "not used",
}
"""Every other term is work of the forward pass: activations, the sampler's and a drafter's state, an encoder's run."""


@dataclass(frozen=True)
class Segment:
    part: Part
    bytes: int


@dataclass(frozen=True)
class BudgetBar:
    """One rank's card. The segments may come to more than its memory: then it does not fit."""

    device: Device
    memory_bytes: int
    limit_bytes: int
    segments: tuple[Segment, ...]

    @property
    def total_bytes(self) -> int:
        """As far as the bar reaches: the card's memory, or more where more is needed."""
        return max(self.memory_bytes, sum(segment.bytes for segment in self.segments))


def budget_bar(question: Question, answer: Answer) -> BudgetBar:
    """The card of the stage that the answer is about, whole: others' memory, ours, and what is not used.

    `missing` is what the KV cache lacks for one request; the bar runs past the card where there is no room for it.
    """
    device = question.stage_devices[answer.stage] if question.stage_devices else question.device
    held: dict[Part, int] = dict.fromkeys(PARTS, 0)
    held["held by others"] = device.memory_bytes - device.free_bytes
    for term in answer.terms:
        held[_PART_OF_TERM.get(term.name, "activations")] += term.bytes
    held["KV cache"] = answer.kv_cache_bytes
    if not answer.fits:
        held["missing"] = max(0, answer.needed_kv_bytes - answer.kv_cache_bytes)
    held["not used"] += max(0, device.memory_bytes - sum(held.values()))
    segments = tuple(Segment(part, held[part]) for part in PARTS if held[part])
    return BudgetBar(device, device.memory_bytes, answer.limit_bytes, segments)


def cells(bar: BudgetBar, width: int) -> tuple[tuple[Part, int], ...]:
    """Whole cells of a bar that is `width` of them long: by largest remainder, at least one for each segment."""
    exact = [segment.bytes / bar.total_bytes * width for segment in bar.segments]
    whole = [max(1, int(share)) for share in exact]
    while sum(whole) < width:
        at = max(range(len(whole)), key=lambda index: exact[index] - whole[index])
        whole[at] += 1
    while sum(whole) > width and max(whole) > 1:
        at = max(range(len(whole)), key=lambda index: (whole[index] > 1, whole[index] - exact[index]))
        whole[at] -= 1
    return tuple((segment.part, share) for segment, share in zip(bar.segments, whole, strict=True))
