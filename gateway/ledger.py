"""Finished requests, kept for a moment and handed on in batches: what is made of them costs no request its time."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from gateway.settlement import Settlement

_log = logging.getLogger("berth.gateway")
_BATCH_S: Final = 0.1
_BATCH: Final = 256  # so many take about half a millisecond to write out, which no stream notices

Reader = Callable[[Sequence[Settlement], float], None]
"""Called with a batch, and what must be added to a moment of the gateway's clock to get seconds since 1970."""


def _wall_s() -> float:
    return datetime.now(UTC).timestamp()


class Ledger:
    """Readers get every settlement once, in order, a tenth of a second later at most."""

    def __init__(
        self,
        readers: Sequence[Reader],
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = _wall_s,
    ) -> None:
        self._readers = tuple(readers)
        self._clock = clock
        self._wall = wall
        self._kept: list[Settlement] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, done: Settlement) -> None:
        """Keep one settled request; for the event loop's thread."""
        kept = self._kept
        kept.append(done)
        if len(kept) == 1:
            self._running_loop().call_later(_BATCH_S, self.flush)
        elif len(kept) == _BATCH:
            self._running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Hand on what is kept. A reader that fails costs its own batch only."""
        batch, self._kept = self._kept, []
        if not batch:
            return
        offset_s = self._wall() - self._clock()
        for reader in self._readers:
            try:
                reader(batch, offset_s)
            except Exception:  # noqa: BLE001  (a log line or a span that cannot be made must not end anything else)
                _log.exception("%d finished requests could not be written down", len(batch))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        # asked for once: before Python 3.12 each get_running_loop is a system call (getpid)
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop
