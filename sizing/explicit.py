"""KV bytes in place of a share of the card, where others hold memory of it too."""

from collections.abc import Callable
from dataclasses import replace
from math import floor

from sizing.gpu import GIB, Device
from sizing.memory import usable_bytes
from sizing.overheads import OVERHEADS
from sizing.question import Answer, Question

_IDLE_CARD_BYTES = GIB
"""What the driver and a display hold of a card that nothing computes on."""
_STEP_BYTES = 2**20


def is_shared(device: Device) -> bool:
    """Whether others hold memory of it: vLLM would take what they allocate meanwhile for its own."""
    return device.unified or device.memory_bytes - device.free_bytes > _IDLE_CARD_BYTES


def with_explicit_kv(
    question: Question, found: Answer, settle: Callable[[Question], Answer]
) -> tuple[Question, Answer]:
    """The same with `--kv-cache-memory-bytes` where a card is shared or its memory is the processor's.

    As many bytes as there surely are, and no more than `max_num_seqs` requests can use. On unified memory a part is
    left for everyone else, as on a processor. Where the asker gave a share or bytes, they stand.
    """
    if question.device.kind == "cpu":
        return question, found
    if question.kv_cache_memory_bytes is not None:
        return question, startable(question, as_sure_as_given(question, found))
    devices = question.stage_devices or (question.device,)
    if question.gpu_memory_utilization is not None or not any(is_shared(device) for device in devices):
        return question, found
    wanted = min(max(surely_free_bytes(question, found), found.needed_kv_bytes), useful_bytes(found))
    return with_kv_bytes(question, found, wanted, settle)


def as_sure_as_given(question: Question, found: Answer) -> Answer:
    """The answer on a card; a close call where the KV bytes that were asked for are free only if all turns out well."""
    given = question.kv_cache_memory_bytes
    if given is None or not found.fits or question.device.kind == "cpu":
        return found
    return replace(found, certain=found.certain and surely_free_bytes(question, found, given) >= 0)


def on_uneven_stages(question: Question, settle: Callable[[Question], Answer]) -> tuple[Question, Answer] | None:
    """KV bytes for stages whose cards differ in what is free; None where that does not fit either.

    `--gpu-memory-utilization` is one share for all of them: the fullest card's would leave most of the others unused.
    """
    if not question.stage_devices or question.gpu_memory_utilization or question.kv_cache_memory_bytes:
        return None
    left = surely_free_bytes(question, settle(replace(question, kv_cache_memory_bytes=1)), given=1)
    if left < _STEP_BYTES:
        return None
    exact = replace(question, kv_cache_memory_bytes=left // _STEP_BYTES * _STEP_BYTES)
    found = settle(exact)
    return (exact, startable(exact, found)) if found.fits else None


def with_kv_bytes(
    question: Question, found: Answer, kv_bytes: int, settle: Callable[[Question], Answer]
) -> tuple[Question, Answer]:
    """The same context on so many KV bytes; unchanged where it would not start with them."""
    kv_bytes = max(kv_bytes // _STEP_BYTES * _STEP_BYTES, found.needed_kv_bytes)
    exact = replace(question, kv_cache_memory_bytes=kv_bytes, max_model_len=found.settings.max_model_len)
    given = settle(exact)
    if not given.fits:
        return question, found
    certain = surely_free_bytes(question, given, kv_bytes) >= 0
    return exact, replace(startable(exact, given), note=found.note, certain=certain)


def surely_free_bytes(question: Question, found: Answer, given: int = 0) -> int:
    """KV bytes that are left on every stage, beside those given, when each term is at the bad end of its band."""
    devices = question.stage_devices or (question.device,) * len(found.budgets)
    left = []
    for budget, device in zip(found.budgets, devices, strict=True):
        left_free = int(device.memory_bytes * OVERHEADS.cpu_safety_share) if device.unified else 0
        left.append(usable_bytes(device) - left_free - budget.fixed_bytes - budget.more_bytes - given)
    return min(left)


def useful_bytes(found: Answer) -> int:
    """What `max_num_seqs` requests of the whole context take: more KV cache would never be used at once."""
    return found.needed_kv_bytes * found.settings.max_num_seqs


def startable(question: Question, found: Answer) -> Answer:
    """The answer with a share that vLLM's check at start passes by.

    It asks for `gpu_memory_utilization` of the card to be free even where KV bytes are given and the share counts for
    nothing else (v1/worker/utils.py: request_memory).
    """
    devices = question.stage_devices or (question.device,)
    free = min(max(0, usable_bytes(device)) / device.memory_bytes for device in devices)
    share = min(question.gpu_memory_utilization or question.release.gpu_memory_utilization, floor(free * 1000) / 1000)
    return replace(found, settings=replace(found.settings, gpu_memory_utilization=max(share, 0.001)))
