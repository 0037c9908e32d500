"""Whether each engine's process is there: its own /health once a second, at times its models, adapters among them."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable

import orjson

from gateway.background import working
from gateway.errors import ConnectError, UpstreamError
from gateway.replica import ModelCard, Pool, Replica
from gateway.upstream import Upstream

_log = logging.getLogger("berth.gateway")
_HINT = ": an engine is named without /v1"
_SILENT_PROBES = 3  # an engine busy with one huge prompt may miss a probe; a refused connection needs no second look
_PROBES_A_LISTING = 10  # adapters are loaded into engines that run
_DOUBT_S = 0.05  # an engine that breaks one connection after the other is not asked after each


@contextlib.asynccontextmanager
async def probing(
    pool: Pool, upstream: Upstream, interval_s: float, timeout_s: Callable[[], float]
) -> AsyncIterator[None]:
    """Probe every engine of `pool` each `interval_s` while the block runs, and compare them with each other. One whose
    connection broke is probed at once: of a process that is there, one request may have broken it.

    How long one may take is asked anew each time."""
    doubt = asyncio.Event()

    async def ask(replicas: Iterable[Replica]) -> None:
        probes = (probe(replica, upstream, timeout_s()) for replica in replicas)
        for outcome in await asyncio.gather(*probes, return_exceptions=True):
            if isinstance(outcome, Exception):  # probing goes on whatever one engine does to it
                _log.error("a health probe failed unexpectedly", exc_info=outcome)

    async def forever() -> None:
        while True:
            await ask(pool.replicas)
            pool.refresh()
            pool.sweep()
            await asyncio.sleep(interval_s)

    async def at_once() -> None:
        while True:
            await doubt.wait()
            doubt.clear()
            await ask([replica for replica in pool.replicas if replica.is_suspect])
            await asyncio.sleep(_DOUBT_S)

    pool.on_suspect = doubt.set
    async with working(forever(), "probe replicas"), working(at_once(), "probe suspects"):
        yield


async def probe(replica: Replica, upstream: Upstream, timeout_s: float) -> None:
    """Ask the engine's own /health, and at times its /v1/models; set the state accordingly."""
    replica.probed_s = time.monotonic()
    replica.probes += 1
    try:
        trouble = await _trouble_of(replica, upstream, timeout_s)
    except ConnectError as error:
        replica.missed_probes = _SILENT_PROBES
        trouble = str(error)
    except UpstreamError as error:
        trouble = str(error)
    if replica.state == "draining":
        return
    if trouble is None:
        replica.missed_probes = 0
        if replica.state != "ready":
            _log.info("%s is ready (was %s)", replica.name, replica.state)
        replica.state = "ready"
    else:
        replica.missed_probes += 1
        if replica.missed_probes >= _SILENT_PROBES:
            _give_up(replica, trouble, is_new=trouble != replica.trouble or replica.missed_probes == _SILENT_PROBES)
    replica.trouble = trouble


def _give_up(replica: Replica, trouble: str, *, is_new: bool) -> None:
    if replica.state == "ready":
        _log.warning("%s is unhealthy: %s", replica.name, trouble)
    elif replica.state == "starting" and replica.tells_models and is_new:
        _log.warning("%s is not ready: %s", replica.name, trouble)  # of ours, the log of its start says how far it is
    if replica.state != "starting":
        replica.state = "unhealthy"


async def _trouble_of(replica: Replica, upstream: Upstream, timeout_s: float) -> str | None:
    """Why it cannot be used, in words; None where it can."""
    status, _ = await upstream.get(replica.url, "/health", replica.api_key, timeout_s)
    if status != 200:
        return f"{replica.url}/health answers {status}{_HINT if replica.url.endswith('/v1') else ''}"
    if replica.state not in ("ready", "draining"):
        status = await _list_models(replica, upstream, timeout_s)
    elif replica.probes % _PROBES_A_LISTING == 0:
        with contextlib.suppress(UpstreamError):  # its health was found
            await _list_models(replica, upstream, timeout_s)
    if replica.models:
        return None
    if status in (401, 403):
        return f"{replica.url}/v1/models answers {status}: it wants another key (api_key_env, --upstream-api-key)"
    return f"{replica.url}/v1/models answers {status}{', and names no model' if status == 200 else ''}"


async def _list_models(replica: Replica, upstream: Upstream, timeout_s: float) -> int:
    """Take over what it says that it serves; of one whose models are known, only the adapters. Where it says nothing,
    what it said before holds. Returns the status."""
    status, body = await upstream.get(replica.url, "/v1/models", replica.api_key, timeout_s)
    found = _read_cards(body) if status == 200 else ()
    if not replica.tells_models:
        known = tuple(card for card in replica.models if not card.is_adapter)
        found = (*known, *(card for card in found if card.is_adapter)) if found else ()
    if found and found != replica.models:
        replica.models = found
    return status


def _read_cards(body: bytes) -> tuple[ModelCard, ...]:
    try:
        rows = orjson.loads(body)["data"]
        return tuple(ModelCard(row["id"], row.get("max_model_len"), bool(row.get("parent"))) for row in rows)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ()
