"""How large each engine's KV cache is and how full, whether it sleeps, and whether it is still the same process: asked
every few seconds, since no request says so."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from gateway.admission.gate import Gate
from gateway.background import working
from gateway.figures import KV_USAGE, EngineFigures, read_figures
from gateway.replica import Pool, Replica
from gateway.upstream import Upstream

_log = logging.getLogger("berth.gateway")
_REFRESH_S = 0.25
_READ_EVERY = 20  # refreshes: an exposition is half a millisecond of this loop, and the engine's own


@dataclass(slots=True)
class _Known:
    """What an engine said of itself last."""

    started_s: float | None = None
    kv_tokens: int | None = None


class Capacity:
    """What is known of every replica, told to the gate and the router."""

    def __init__(self, pool: Pool, gate: Gate) -> None:
        self._pool = pool
        self._gate = gate
        self._known: dict[Replica, _Known] = {}

    def unread(self) -> list[Replica]:
        """Those that are ready and have said nothing yet."""
        return [replica for replica in self._pool.replicas if replica.state == "ready" and replica not in self._known]

    def note(self, replica: Replica, figures: EngineFigures) -> None:
        """An engine has answered. Another start or another size is another process: its cache is empty."""
        room, known = self._gate.room(replica), self._known.get(replica)
        if known is None:
            known = self._known[replica] = _Known()
        elif _differs(known.started_s, figures.started_s) or _differs(known.kv_tokens, figures.kv_cache_tokens):
            _log.info("%s is another process than before: what was known of its KV cache is forgotten", replica.name)
            room.restarted()
            self._pool.router.restarted(replica)
        known.started_s = figures.started_s or known.started_s
        if figures.kv_cache_tokens is not None:
            known.kv_tokens = replica.kv_capacity_tokens = figures.kv_cache_tokens
        if figures.block_size is not None:
            replica.block_tokens = figures.block_size
        if figures.is_asleep and not room.is_asleep:
            self._pool.router.restarted(replica)
        room.is_asleep = figures.is_asleep
        room.saw_usage(figures.values.get(KV_USAGE))

    def forget(self) -> None:
        """Those that are gone, and those that are down: who comes back is asked at once."""
        there = {replica for replica in self._pool.replicas if replica.state != "starting"}
        for gone in self._known.keys() - there:
            del self._known[gone]


@contextlib.asynccontextmanager
async def measuring(pool: Pool, gate: Gate, upstream: Upstream, timeout_s: Callable[[], float]) -> AsyncIterator[None]:
    """Keep the gate's bounds up to date while the block runs."""
    capacity = Capacity(pool, gate)

    async def read(replica: Replica) -> None:
        figures = await read_figures(replica, upstream, timeout_s())
        if figures is not None:
            capacity.note(replica, figures)

    async def forever() -> None:
        turn = 0
        while True:
            turn += 1
            capacity.forget()
            ready = [replica for replica in pool.replicas if replica.state == "ready"]
            asked = ready if turn % _READ_EVERY == 0 else capacity.unread()
            for outcome in await asyncio.gather(*map(read, asked), return_exceptions=True):
                if isinstance(outcome, Exception):  # the others' bounds do not depend on one odd engine
                    _log.error("an engine's figures could not be used", exc_info=outcome)
            gate.refresh()
            await asyncio.sleep(_REFRESH_S)

    try:
        async with working(forever(), "measure replicas"):
            yield
    finally:
        gate.close()  # before the connections are: whoever waits would be given one of them


def _differs(before: float | None, now: float | None) -> bool:
    return before is not None and now is not None and before != now
