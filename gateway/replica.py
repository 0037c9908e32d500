"""The engines as the gateway sees them: their models, their health, and the work it has given them."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import orjson

from gateway.errors import ConfigError, ConnectError, RefusedError, UpstreamError
from gateway.upstream import Upstream
from gateway.wire import Fault

_log = logging.getLogger("berth.gateway")
State = Literal["starting", "ready", "unhealthy", "draining"]
_SILENT_PROBES = 3  # an engine busy with one huge prompt may miss a probe; a refused connection needs no second look
_RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A public model name and the longest request it takes (prompt + output, in tokens), when known."""

    name: str
    max_model_len: int | None = None


@dataclass(slots=True)
class Replica:
    """One upstream engine. `url` is `http://host:port` or `unix:/path/to.sock`."""

    name: str
    url: str
    models: tuple[ModelCard, ...] = ()
    api_key: str | None = field(default=None, repr=False)
    predicted_kv_tokens: int | None = None
    state: State = "starting"
    in_flight: int = 0
    work_tokens: int = 0
    picks: int = 0
    missed_probes: int = 0
    probed_s: float | None = None
    """When its health was last asked, by time.monotonic."""

    def serves(self, model: str) -> bool:
        """Whether this engine serves the public name `model`."""
        for card in self.models:  # noqa: SIM110  (asked for every request: a generator would cost more than the rest)
            if card.name == model:
                return True
        return False

    def reserve(self, work_tokens: int) -> "Reservation":
        """Count one request as in flight here, from now until its reservation is released."""
        self.in_flight += 1
        self.picks += 1
        self.work_tokens += work_tokens
        return Reservation(self, work_tokens)

    def suspect(self) -> None:
        """Stop routing here until a probe says otherwise."""
        if self.state == "ready":
            _log.warning("%s is unhealthy: no requests go there until its /health answers", self.name)
            self.state = "unhealthy"


@dataclass(slots=True)
class Reservation:
    """One request's place on a replica. `release` is synchronous, and harmless when repeated."""

    replica: Replica
    work_tokens: int
    _is_open: bool = True

    def release(self) -> None:
        """The request is no longer there."""
        if self._is_open:
            self._is_open = False
            self.replica.in_flight -= 1
            self.replica.work_tokens -= self.work_tokens


class Pool:
    """All replicas, by model. Membership changes only through `add` and `remove`."""

    def __init__(self, upstream: Upstream, replicas: Sequence[Replica] = ()) -> None:
        self._upstream = upstream
        self._replicas: list[Replica] = list(replicas)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Everything known, whatever its state."""
        return tuple(self._replicas)

    def add(self, replica: Replica) -> None:
        """Take a replica in; it gets no request before a probe has found it healthy. Raises ConfigError."""
        if any(known.name == replica.name for known in self._replicas):
            raise ConfigError(f"two replicas are named '{replica.name}': logs and metrics could not tell them apart")
        self._replicas.append(replica)

    async def remove(self, replica: Replica) -> None:
        """Forget a replica and close its idle connections."""
        self._replicas.remove(replica)
        await self._upstream.forget(replica.url)

    def cards(self) -> list[ModelCard]:
        """Every model served, once, in the order of the replicas."""
        return list({card.name: card for replica in self._replicas for card in replica.models}.values())

    def candidates(self, model: str) -> list[Replica]:
        """The replicas that can take a request for `model` now; RefusedError 404 or 503 when there is none."""
        ready = [replica for replica in self._replicas if replica.state == "ready" and replica.serves(model)]
        if ready:
            return ready
        serving = [replica for replica in self._replicas if replica.serves(model)]
        if serving or any(replica.state == "starting" and not replica.models for replica in self._replicas):
            states = ", ".join(f"{replica.name} {replica.state}" for replica in serving) or "engines still starting"
            fault = Fault(
                503, f"no replica of '{model}' is ready ({states})", code="not_ready", retry_after_s=_RETRY_AFTER_S
            )
            raise RefusedError(fault)
        names = ", ".join(card.name for card in self.cards()) or "none"
        message = f"model '{model}' is not served here; available: {names}"
        raise RefusedError(Fault(404, message, code="model_not_found", param="model", should_retry=False))

    def unready_models(self) -> list[str]:
        """The models that no replica can answer for now; ["(unknown)"] while nothing has been discovered."""
        cards = self.cards()
        if not cards:
            return ["(unknown)"]
        return [
            card.name
            for card in cards
            if not any(replica.state == "ready" and replica.serves(card.name) for replica in self._replicas)
        ]

    async def probe(self, replica: Replica, timeout_s: float) -> None:
        """Ask the engine's own /health, and its /v1/models until they are known; set the state accordingly."""
        replica.probed_s = time.monotonic()
        try:
            status, _ = await self._upstream.get(replica.url, "/health", replica.api_key, timeout_s)
            healthy = status == 200
            if healthy and not replica.models:
                replica.models = await self._discover(replica, timeout_s)
        except ConnectError:
            replica.missed_probes = _SILENT_PROBES
            healthy = False
        except UpstreamError:
            healthy = False
        if replica.state == "draining":
            return
        if healthy and replica.models:
            replica.missed_probes = 0
            if replica.state != "ready":
                _log.info("%s is ready (was %s)", replica.name, replica.state)
            replica.state = "ready"
            return
        replica.missed_probes += 1
        if replica.missed_probes >= _SILENT_PROBES:
            replica.suspect()

    async def _discover(self, replica: Replica, timeout_s: float) -> tuple[ModelCard, ...]:
        status, body = await self._upstream.get(replica.url, "/v1/models", replica.api_key, timeout_s)
        return _read_cards(body) if status == 200 else ()

    @contextlib.asynccontextmanager
    async def probing(self, interval_s: float, timeout_s: float) -> AsyncIterator[None]:
        """Probe every replica each `interval_s` while the block runs."""

        async def forever() -> None:
            while True:
                probes = (self.probe(replica, timeout_s) for replica in self._replicas)
                for outcome in await asyncio.gather(*probes, return_exceptions=True):
                    if isinstance(outcome, Exception):  # probing goes on whatever one engine does to it
                        _log.error("a health probe failed unexpectedly", exc_info=outcome)
                await asyncio.sleep(interval_s)

        task = asyncio.create_task(forever(), name="probe replicas")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _read_cards(body: bytes) -> tuple[ModelCard, ...]:
    try:
        rows = orjson.loads(body)["data"]
        return tuple(ModelCard(row["id"], row.get("max_model_len")) for row in rows)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return ()
