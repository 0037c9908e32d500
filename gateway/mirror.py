"""A copy of a request for another model, whose answer nobody gets: how it would do, at no risk to the caller.

A shadow is placed after the request itself, holds a place on its replica like any other, and gives it back on every way
out. It is bound by the same body (and so by the same `max_tokens`) and the same limits on silence, and ends when its
caller leaves: what it measures is what real traffic would be. Nothing that happens to it is told to the caller, the
replica's breaker, the caller's usage or the metrics of requests; it has its own.
"""

import logging
import random
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.admission.room import with_room
from gateway.config import Step, Timeouts
from gateway.connection import Connection
from gateway.errors import SilentError, UpstreamError
from gateway.headers import Header, RequestIds, is_event_stream
from gateway.histogram import Histogram
from gateway.meter import Meter
from gateway.replica import Pool
from gateway.routing import Estimates, Route
from gateway.rules import Mirror
from gateway.upstream import Upstream
from gateway.watch import Watch
from gateway.wire import Call

_log = logging.getLogger("berth.gateway")
Ending = Literal["ok", "engine_error", "broken", "client_gone"]
Omission = Literal["full", "not_ready"]
"""Why a request that was to be mirrored was not: too many shadows already, or nobody there to take it."""
_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)
_MOST_HELD_BYTES = 2**20
_Key = tuple[str, str]


class Count:
    """What is known of the shadows of one model by another."""

    __slots__ = ("endings", "in_flight", "omissions", "ttft")

    def __init__(self) -> None:
        self.in_flight = 0
        self.endings: dict[Ending, int] = {"ok": 0}
        self.omissions: dict[Omission, int] = {}
        self.ttft = Histogram(_BUCKETS)

    def omit(self, why: Omission) -> None:
        """One request was not mirrored."""
        self.omissions[why] = self.omissions.get(why, 0) + 1


class Place(Protocol):
    """What a shadow holds on its replica; its prompt fills the cache there like any other."""

    def first_token(self, elapsed_s: float) -> None:
        """The prompt is computed; harmless when repeated."""

    def settle(self, prompt_tokens: int, cached_tokens: int | None) -> object:
        """What the engine says of the prompt."""

    def release(self) -> None:
        """Give it back; harmless when repeated."""


class Shadow:
    """The `Sink` of one copy; whoever makes it sends it."""

    def __init__(
        self, call: Call, place: Place, count: Count, watch: Watch, timeouts: Timeouts, clock: Callable[[], float]
    ) -> None:
        self._call = call
        self._place = place
        self._connection: Connection | None = None
        self._count = count
        self._watch = watch
        self._timeouts = timeouts
        self._clock = clock
        self._asked_s = self._heard_s = clock()
        self._meter: Meter | None = None
        self._status = 0
        self._has_token = self._is_over = False
        count.in_flight += 1
        watch.add(self)

    def send(self, connection: Connection, lines: bytes) -> None:
        """Go, with these header lines."""
        self._connection = connection
        endpoint = self._call.endpoint
        connection.send(endpoint.method, endpoint.raw_path, lines, self._call.body, self)

    def began(self, status: int, headers: list[Header]) -> None:
        """The head of its answer."""
        self._status = status
        if self._call.stream and status < 300 and is_event_stream(headers):
            self._meter = Meter(self._call.endpoint.dialect, strip_usage=False, clock=self._clock)

    def received(self, data: bytes) -> None:
        """Read for its first token and its end, and dropped."""
        meter = self._meter
        if meter is None:
            return
        meter.feed(data)
        if meter.first_token_s is not None and not self._has_token:
            self._has_token = True
            self._place.first_token(meter.first_token_s - self._asked_s)
        if meter.fault is not None:
            self.end("engine_error" if meter.fault.status < 500 else "broken")
        elif meter.held_bytes > _MOST_HELD_BYTES:
            self.end("broken")

    def passed(self, chunk: bytes, start: int) -> bool:
        """There is nobody to pass anything on to."""
        return False

    def ended(self) -> None:
        """Its answer is complete, if it has the end that its dialect has."""
        self._connection = None
        meter = self._meter
        if meter is not None:
            meter.rest()
        if self._status >= 400:
            self.end("engine_error")
        else:
            is_whole = meter is None or meter.is_complete or not self._call.endpoint.generates
            self.end("ok" if is_whole and self._status < 300 else "broken")

    def failed(self, error: UpstreamError) -> None:
        """It did not deliver."""
        self._connection = None
        self.end("broken")

    def tick(self, now_s: float) -> None:
        """It waits no longer than a request would."""
        connection, timeouts = self._connection, self._timeouts
        if connection is None:
            return
        if connection.is_heard:
            connection.is_heard = False
            self._heard_s = now_s
        limit_s = timeouts.gap_s if self._has_token else timeouts.first_token_s
        if now_s - self._heard_s > limit_s or (
            timeouts.total_s is not None and now_s - self._asked_s > timeouts.total_s
        ):
            connection.fail(SilentError("the shadow took too long"))

    def leave(self) -> None:
        """Its caller is gone; harmless when it is over."""
        self.end("client_gone")

    def end(self, ending: Ending) -> None:
        """It is over, and this is how; harmless when it was before."""
        if self._is_over:
            return
        self._is_over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut()
        self._watch.discard(self)
        count, meter = self._count, self._meter
        if ending == "ok" and meter is not None and meter.usage.prompt_tokens is not None:
            self._place.settle(meter.usage.prompt_tokens, meter.usage.cached_tokens)
        self._place.release()
        count.in_flight -= 1
        count.endings[ending] = count.endings.get(ending, 0) + 1
        if meter is not None and meter.first_token_s is not None:
            count.ttft.observe(meter.first_token_s - self._asked_s)


class Mirrors(Collector):
    """Makes shadows, and counts them by the model that answered and the one that shadowed it."""

    def __init__(
        self,
        pool: Pool,
        upstream: Upstream,
        watch: Watch,
        estimates: Estimates,
        timeouts: Timeouts,
        clock: Callable[[], float],
        luck: random.Random,
    ) -> None:
        self.timeouts = timeouts
        self._pool = pool
        self._upstream = upstream
        self._watch = watch
        self._estimates = estimates
        self._clock = clock
        self._luck = luck
        self._request_ids = RequestIds()  # its own: an engine refuses one that it has already
        self._counts: dict[_Key, Count] = {}

    def is_chosen(self, mirror: Mirror) -> bool:
        """Whether this request is one of the share."""
        return mirror.share >= 1 or self._luck.random() < mirror.share

    def start(self, mirror: Mirror, model: str, call: Call, forwarded: bytes) -> Shadow | None:
        """Send `call`, which names the shadow's model already, beside the same request for `model`; `forwarded` are
        the caller's header lines. None: it is left out, and counted as that."""
        count = self.count(model, mirror.to)
        if count.in_flight >= mirror.max_in_flight:
            count.omit("full")
            return None
        found = [r for r in self._pool.stand_ins(Step(mirror.to)) if r.breaker.state == "closed"]
        if not found:  # one on trial has better to do
            count.omit("not_ready")
            return None
        route = self._route(call)
        router = self._pool.router
        router.look(route)
        found = with_room(found, route)
        if not found:  # nobody may have to wait for a shadow
            count.omit("full")
            return None
        place = router.place(route, router.policy(route, found))
        replica = place.load
        shadow = Shadow(call, place, count, self._watch, self.timeouts, self._clock)
        lines = b"%bx-request-id: %b\r\n" % (forwarded, self._request_ids.new().encode())
        if replica.api_key:
            lines += b"authorization: Bearer %b\r\n" % replica.api_key.encode()
        try:
            shadow.send(self._upstream.open(replica.url), lines)
        except Exception:  # noqa: BLE001  (the request itself must go on)
            _log.exception("a request for '%s' could not be mirrored to '%s'", model, mirror.to)
            shadow.end("broken")
        return shadow

    def _route(self, call: Call) -> Route:
        estimate, chain = self._estimates.of(call.model), call.chain
        ratio, likely = estimate.tokens_per_unit, estimate.likely_output(call.most_output_tokens) * call.answers
        return Route(chain, int(chain.size * ratio) + 1, likely, None, ratio)

    def count(self, model: str, shadow: str) -> Count:
        """Where the shadows of `model` by `shadow` are counted."""
        return self._counts.setdefault((model, shadow), Count())

    def in_flight(self, shadow: str) -> int:
        """Shadows that `shadow` answers now."""
        return sum(count.in_flight for (_, name), count in self._counts.items() if name == shadow)

    def collect(self) -> Iterator[Metric]:
        """Their own metrics; none of theirs is in those of requests."""
        labels = ("model", "shadow")
        in_flight = GaugeMetricFamily("berth_shadow_requests_in_flight", "Mirrored requests now", labels=labels)
        requests = CounterMetricFamily(
            "berth_shadow_requests", "Mirrored requests, by how they ended", labels=(*labels, "outcome")
        )
        omitted = CounterMetricFamily(
            "berth_shadow_requests_omitted", "Requests that were not mirrored though chosen", labels=(*labels, "reason")
        )
        ttft = HistogramMetricFamily(
            "berth_shadow_time_to_first_token_seconds", "A mirrored stream's start to its first token", labels=labels
        )
        for key, count in list(self._counts.items()):
            in_flight.add_metric(key, count.in_flight)
            for ending, number in list(count.endings.items()):
                requests.add_metric((*key, ending), number)
            for omission, number in list(count.omissions.items()):
                omitted.add_metric((*key, omission), number)
            if not count.ttft.is_empty:
                ttft.add_metric(key, count.ttft.cumulative(), count.ttft.total)
        yield from (in_flight, requests, omitted, ttft)
