"""Says where the event loop is when it stands still: every stream waits for it, and afterwards nobody knows why.

A thread of its own looks at it and logs its stack while it lasts. When the loop goes on, the log says for how long it
stood, and whether the process was at work: one that was not had no processor, or waited for memory or a disk.
"""

import asyncio
import logging
import resource
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_log = logging.getLogger("berth.serving")
_AFTER_S = 5.0
_LOOKS = 5


class _Moment(NamedTuple):
    at_s: float
    worked_s: float
    """Processor time of the process until then."""
    pages: int
    """That it had to read from a disk until then."""


def _now() -> _Moment:
    return _Moment(time.monotonic(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt)


class _Watch:
    """The loop says that it goes on, and the thread looks whether it has."""

    def __init__(self, loop: asyncio.AbstractEventLoop, after_s: float) -> None:
        self._loop = loop
        self._after_s = after_s
        self._interval_s = after_s / _LOOKS
        self._thread = threading.get_ident()
        self._seen = _now()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = threading.Event()

    def goes_on(self) -> None:
        """Called by the loop."""
        before, self._seen = self._seen, _now()
        stood_s = self._seen.at_s - before.at_s - self._interval_s
        if stood_s > self._after_s:
            _log.warning(
                "the event loop stood still for %.1f s, of which the process worked %.1f s; it read %d pages from disk",
                stood_s,
                self._seen.worked_s - before.worked_s,
                self._seen.pages - before.pages,
            )
        self._timer = self._loop.call_later(self._interval_s, self.goes_on)

    def look(self) -> None:
        """The thread: tell once of each time that it does not."""
        last_told = None
        while not self._ended.wait(self._interval_s):
            seen = self._seen
            late_s = time.monotonic() - seen.at_s - self._interval_s
            if late_s > self._after_s and seen is not last_told:
                last_told = seen
                stack = "".join(traceback.format_stack(sys._current_frames()[self._thread]))
                _log.warning("the event loop has stood still for %.1f s, here:\n%s", late_s, stack)

    def end(self) -> None:
        """Nobody looks any more."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()


@contextmanager
def told(after_s: float = _AFTER_S) -> Iterator[None]:
    """While the block runs, log each time that the running loop does nothing for `after_s`: its stack, once, and when
    it is over for how long it stood. Code that keeps the interpreter's lock for itself is seen only afterwards."""
    watch = _Watch(asyncio.get_running_loop(), after_s)
    watch.goes_on()
    threading.Thread(target=watch.look, name="standstill", daemon=True).start()
    try:
        yield
    finally:
        watch.end()
