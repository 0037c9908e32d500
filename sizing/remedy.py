"""Settings near a question that does not fit, kept only where the same arithmetic says that they do."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from sizing.errors import QuestionError
from sizing.gpu import GIB, catalogue
from sizing.memory import default_utilization
from sizing.overheads import OVERHEADS
from sizing.question import Answer, Question

_MOST_REMEDIES = 3
_HIGHEST_UTILIZATION = 0.95  # above it, fragmentation and other tenants of a card leave no room
_FEWER_SEQS = (256, 64, 16)
_MORE_CARDS = (2, 4, 8)


@dataclass(frozen=True)
class Remedy:
    """A change in a few words, and the question with it made."""

    text: str
    question: Question


def here_only(way_out: str | None) -> str:
    """`; try ...` with those remedies that a machine allows as it stands: more or other cards are for whoever buys."""
    remedies = (way_out or "").removeprefix("try ").split(", or ")
    here = [remedy for remedy in remedies if remedy and not remedy.startswith(("--count ", "--gpu "))]
    return f"; try {', or '.join(here)}" if here else ""


def side_by_side(way_out: str, card: str) -> str:
    """The same as `berth size compare` is told it: cards and how many of them by `--gpus`."""
    words = re.sub(r"--count (\d+)( --tensor-parallel-size \d+)?", rf"--gpus \1x{card}", way_out)
    return re.sub(r"--gpu (?=\S)", "--gpus ", words)


def fitting_remedies(question: Question, settled: Answer, settle: Callable[[Question], Answer]) -> tuple[Remedy, ...]:
    """The nearest few changes that fit: same machine before more of it, more of it before another.

    Of several steps of the same kind (4 cards, 8 cards) only the first that fits is named.
    """
    fitting: list[Remedy] = []
    for steps in _candidates(question, settled):
        fitting += next(([remedy] for remedy in steps if _fits(remedy, settle)), [])
        if len(fitting) == _MOST_REMEDIES:
            break
    return tuple(fitting)


def _fits(remedy: Remedy, settle: Callable[[Question], Answer]) -> bool:
    try:
        return settle(remedy.question).fits
    except QuestionError:  # another card or cache type that is not sized for this model
        return False


def _candidates(question: Question, settled: Answer) -> Iterator[Iterable[Remedy]]:
    yield _shorter(question, settled)
    if question.kv_cache_memory_bytes is not None:
        yield [Remedy("no --kv-cache-memory-bytes", replace(question, kv_cache_memory_bytes=None))]
    if question.device.kind == "cuda":
        yield _utilization(question, settled)
    yield _fewer_adapters(question)
    if question.kv_cache_dtype == "auto" and question.model.kv_cache_dtype == "auto":
        yield [Remedy("--kv-cache-dtype fp8", replace(question, kv_cache_dtype="fp8"))]
    if question.device.kind == "cpu":
        yield _free_memory(question, settled)
        return
    yield _fewer_sequences(question, settled)
    yield _more_cards(question)
    yield _larger_card(question)


def _shorter(question: Question, settled: Answer) -> Iterator[Remedy]:
    longest = settled.longest_model_len
    if longest >= 1:
        yield Remedy(f"--max-model-len {longest}", replace(question, max_model_len=longest))


def _utilization(question: Question, settled: Answer) -> Iterator[Remedy]:
    current = settled.settings.gpu_memory_utilization
    if current is None:
        return
    free = default_utilization(question.device, question.release)
    if free >= question.release.gpu_memory_utilization:
        free = _HIGHEST_UTILIZATION
    if free > 0 and free != current:
        yield Remedy(f"--gpu-memory-utilization {free:g}", replace(question, gpu_memory_utilization=free))


def _free_memory(question: Question, settled: Answer) -> Iterator[Remedy]:
    engine = settled.weights_bytes + OVERHEADS.cpu_processes_bytes + settled.needed_kv_bytes
    wanted = math.ceil(engine / (1 - OVERHEADS.cpu_safety_share) / GIB * 10) * GIB // 10
    device = question.device
    if device.free_bytes < wanted <= device.memory_bytes:
        freed = replace(question, device=replace(device, free_bytes=wanted))
        yield Remedy(f"freeing {(wanted - device.free_bytes) / GIB:.1f} GiB of memory", freed)


def _fewer_adapters(question: Question) -> Iterator[Remedy]:
    """Half as many slots, and half of those: adapters beyond them are swapped in as they are asked for."""
    adapters = question.adapters
    slots = adapters.max_loras // 2 if adapters is not None else 0
    while adapters is not None and slots:
        yield Remedy(f"--max-loras {slots}", replace(question, adapters=replace(adapters, max_loras=slots)))
        slots //= 2


def _fewer_sequences(question: Question, settled: Answer) -> Iterator[Remedy]:
    for seqs in _FEWER_SEQS:
        if seqs < settled.settings.max_num_seqs:
            yield Remedy(f"--max-num-seqs {seqs}", replace(question, max_num_seqs=seqs))


def _more_cards(question: Question) -> Iterator[Remedy]:
    """With a tensor parallel size over all of them where one was given, which would leave them idle as it is."""
    engines = question.pipeline_parallel_size * question.data_parallel_size
    for count in _MORE_CARDS:
        if count <= question.count:
            continue
        text, size = f"--count {count}", None
        if question.tensor_parallel_size is not None:
            size = max(1, count // engines)
            text += f" --tensor-parallel-size {size}"
        yield Remedy(text, replace(question, count=count, tensor_parallel_size=size, stage_devices=()))


def _larger_card(question: Question) -> Iterator[Remedy]:
    """With the share that was asked for, or else without it."""
    free = " with all its memory free" if question.device.free_bytes < question.device.memory_bytes else ""
    asked = replace(question, stage_devices=())
    larger = [card for card in catalogue() if card.memory_bytes > question.device.memory_bytes]
    larger.sort(key=lambda card: card.memory_bytes)
    for card in larger:
        yield Remedy(f"--gpu {card.name}{free}", replace(asked, device=card))
    if question.gpu_memory_utilization is not None:
        for card in larger:
            text = f"--gpu {card.name}{free} without --gpu-memory-utilization"
            yield Remedy(text, replace(asked, device=card, gpu_memory_utilization=None))
