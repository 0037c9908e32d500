"""Says where the event loop is when it stands still: every stream waits for it, and afterwards nobody knows why.

A thread of the interpreter's own prints the stacks while it lasts, whoever holds the lock of the interpreter. When the
loop goes on, the log says for how long it stood, and whether the process was at work: one that was not had no
processor, or waited for memory or a disk.
"""

import asyncio
import faulthandler
import logging
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger("berth.serving")
_AFTER_S = 5.0
_LOOKS = 5


@contextmanager
def told(after_s: float = _AFTER_S) -> Iterator[None]:
    """While the block runs, tell of each time that the running loop does nothing for `after_s`: the stacks of all
    threads on stderr, once, and a warning when it is over."""
    loop = asyncio.get_running_loop()
    seen = _now()
    timer: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal seen, timer
        before, seen = seen, _now()
        if seen[0] - before[0] > after_s:
            stood_s, worked_s, read = (late - early for late, early in zip(seen, before, strict=True))
            _log.warning(
                "the event loop stood still for %.1f s, of which the process worked %.1f s and read %d pages from disk",
                stood_s,
                worked_s,
                read,
            )
        _arm(after_s)
        timer = loop.call_later(after_s / _LOOKS, look)

    look()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def _arm(after_s: float) -> None:
    """Have the stacks printed unless this is called again before; nothing, where stderr is no file."""
    try:
        faulthandler.dump_traceback_later(after_s, exit=False)
    except (AttributeError, OSError, ValueError, RuntimeError):
        _log.debug("stacks cannot be printed to %r", sys.stderr)


def _now() -> tuple[float, float, int]:
    """Monotonic seconds, seconds of processor time, and pages that had to be read from a disk."""
    return time.monotonic(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt
