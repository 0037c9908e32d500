"""Tells every request in flight, four times a second, what time it is: one timer for all of them."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_TICK_S: Final = 0.25
_PARTS: Final = 8
_ALIGNED: Final = 64  # lower bits of an address are the same for all


class Watched(Protocol):
    """A request in flight."""

    def tick(self, now_s: float) -> None:
        """It is `now_s` by the gateway's clock; may end the request."""


class Watch:
    """The requests in flight. Whoever adds itself discards itself.

    An eighth of them is told at a time: ten thousand streams would otherwise wait 10 ms for each other.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, interval_s: float = _TICK_S) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._parts: tuple[set[Watched], ...] = tuple(set() for _ in range(_PARTS))

    @property
    def watched(self) -> list[Watched]:
        """All of them."""
        return [watched for part in self._parts for watched in part]

    def add(self, watched: Watched) -> None:
        """Tell it the time from now on."""
        self._parts[id(watched) // _ALIGNED % _PARTS].add(watched)

    def discard(self, watched: Watched) -> None:
        """No longer; harmless when repeated."""
        self._parts[id(watched) // _ALIGNED % _PARTS].discard(watched)

    def tick(self) -> None:
        """Tell all of them."""
        self._tell(self.watched)

    def _tell(self, part: Iterable[Watched]) -> None:
        now_s = self._clock()
        for watched in tuple(part):
            watched.tick(now_s)

    @contextmanager
    def ticking(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Tick while the block runs."""
        timer: asyncio.TimerHandle | None = None
        turns = itertools.cycle(self._parts)
        step_s = self._interval_s / _PARTS

        def step() -> None:
            nonlocal timer
            timer = loop.call_later(step_s, step)
            self._tell(next(turns))

        timer = loop.call_later(step_s, step)
        try:
            yield
        finally:
            timer.cancel()
