"""Tells every request in flight, four times a second, what time it is: one timer for all of them."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

_TICK_S = 0.25


class Watched(Protocol):
    """A request in flight."""

    def tick(self, now_s: float) -> None:
        """It is `now_s` by the gateway's clock; may end the request."""


class Watch:
    """The requests in flight. Whoever adds itself discards itself."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, interval_s: float = _TICK_S) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._watched: set[Watched] = set()
        self.add = self._watched.add
        self.discard = self._watched.discard

    def tick(self) -> None:
        """One interval has passed."""
        now_s = self._clock()
        for watched in tuple(self._watched):
            watched.tick(now_s)

    @contextmanager
    def ticking(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Tick while the block runs."""
        timer: asyncio.TimerHandle | None = None

        def tick() -> None:
            nonlocal timer
            timer = loop.call_later(self._interval_s, tick)
            self.tick()

        timer = loop.call_later(self._interval_s, tick)
        try:
            yield
        finally:
            timer.cancel()
