"""How late the load generator's own event loop runs: the error bar on every stamp it takes."""

import asyncio
import time
from array import array
from dataclasses import dataclass

from benchmarks.distribution import percentile

_TICK_S = 0.02


@dataclass(frozen=True, slots=True)
class LoopLag:
    """Seconds by which a timer fired late; a stamp can be late by as much."""

    p50_s: float | None
    p99_s: float | None
    max_s: float | None


class LoopLagMeter:
    """Fires a timer fifty times a second and keeps by how much it came late."""

    def __init__(self) -> None:
        self._late_s = array("d")

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due_at = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._late_s.append(max(0.0, time.perf_counter() - due_at))

    def lag(self) -> LoopLag:
        """What was seen so far; all None before the first tick."""
        late = sorted(self._late_s)
        return LoopLag(percentile(late, 50), percentile(late, 99), late[-1] if late else None)
