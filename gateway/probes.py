"""Whether each engine's process is there: its own /health once a second, and its models when it has come (back)."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

import orjson

from gateway.background import working
from gateway.errors import ConnectError, UpstreamError
from gateway.replica import ModelCard, Pool, Replica
from gateway.upstream import Upstream

_log = logging.getLogger("berth.gateway")
_SILENT_PROBES = 3  # an engine busy with one huge prompt may miss a probe; a refused connection needs no second look


@contextlib.asynccontextmanager
async def probing(
    pool: Pool, upstream: Upstream, interval_s: float, timeout_s: Callable[[], float]
) -> AsyncIterator[None]:
    """Probe every engine of `pool` each `interval_s` while the block runs, and compare them with each other.

    How long one may take is asked anew each time."""

    async def forever() -> None:
        while True:
            probes = (probe(replica, upstream, timeout_s()) for replica in pool.replicas)
            for outcome in await asyncio.gather(*probes, return_exceptions=True):
                if isinstance(outcome, Exception):  # probing goes on whatever one engine does to it
                    _log.error("a health probe failed unexpectedly", exc_info=outcome)
            pool.refresh()
            pool.sweep()
            await asyncio.sleep(interval_s)

    async with working(forever(), "probe replicas"):
        yield


async def probe(replica: Replica, upstream: Upstream, timeout_s: float) -> None:
    """Ask the engine's own /health, and its /v1/models when it has come (back); set the state accordingly."""
    replica.probed_s = time.monotonic()
    try:
        is_healthy = await _is_healthy(replica, upstream, timeout_s)
    except ConnectError:
        replica.missed_probes = _SILENT_PROBES
        is_healthy = False
    except UpstreamError:
        is_healthy = False
    if replica.state == "draining":
        return
    if is_healthy:
        replica.missed_probes = 0
        if replica.state != "ready":
            _log.info("%s is ready (was %s)", replica.name, replica.state)
        replica.state = "ready"
    else:
        replica.missed_probes += 1
        if replica.missed_probes >= _SILENT_PROBES:
            _give_up(replica)


def _give_up(replica: Replica) -> None:
    if replica.state == "ready":
        _log.warning("%s is unhealthy: its /health does not answer", replica.name)
    if replica.state != "starting":
        replica.state = "unhealthy"


async def _is_healthy(replica: Replica, upstream: Upstream, timeout_s: float) -> bool:
    status, _ = await upstream.get(replica.url, "/health", replica.api_key, timeout_s)
    if status != 200:
        return False
    if replica.tells_models and replica.state not in ("ready", "draining"):
        status, body = await upstream.get(replica.url, "/v1/models", replica.api_key, timeout_s)
        found = _read_cards(body) if status == 200 else ()
        if found:  # else what it said before holds
            replica.models = found
    return bool(replica.models)


def _read_cards(body: bytes) -> tuple[ModelCard, ...]:
    try:
        rows = orjson.loads(body)["data"]
        return tuple(ModelCard(row["id"], row.get("max_model_len"), bool(row.get("parent"))) for row in rows)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ()
