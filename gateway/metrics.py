"""What the gateway measures of its own requests, for Prometheus.

Times are seconds from a monotonic clock. First token and TPOT are defined in README.md ("What the numbers mean").
Plain numbers, added to on the event loop and given their names when somebody scrapes: a dozen labelled, locked
instruments would cost a request as much as all the rest of its way through the gateway.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.wire import DIALECTS, Dialect, Usage

Outcome = Literal["ok", "refused", "engine_error", "broken", "client_gone"]
"""ok: answered in full; refused: turned away by the gateway; engine_error: the engine said no; broken: the engine
failed before or during the answer; client_gone: the caller left first."""

_LABELS = ("model", "replica", "dialect")
_TTFT_BUCKETS = (
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.15,
    0.25,
    0.5,
    0.75,
    1,
    1.5,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
_TPOT_BUCKETS = (
    0.0025,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.025,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1,
    2.5,
)
_E2E_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 1.5, 2.5, 5, 10, 15, 20, 30, 45, 60, 120, 240, 480, 960)


@dataclass(slots=True)
class Settlement:
    """One finished request, whatever its end. Times in seconds; None where there was no such moment."""

    model: str
    replica: str
    dialect: Dialect
    outcome: Outcome
    status: int
    duration_s: float
    generates: bool = True
    ttft_s: float | None = None
    tpot_s: float | None = None
    usage: Usage = field(default_factory=Usage)


class _Buckets:
    """One histogram: how many values fell into each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """A bucket holds the values up to and including its bound."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: each bucket with all below it."""
        rows, running = [], 0
        for name, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((name, float(running)))
        return rows


class _Tally:
    """Everything counted for one model, replica and dialect."""

    __slots__ = (
        "cached_tokens",
        "duration",
        "errors",
        "in_flight",
        "outcomes",
        "output_tokens",
        "prompt_tokens",
        "tpot",
        "ttft",
    )

    def __init__(self) -> None:
        self.in_flight = self.prompt_tokens = self.cached_tokens = self.output_tokens = 0
        self.outcomes: dict[Outcome, int] = {"ok": 0}
        self.errors: dict[int, int] = {}
        self.ttft = _Buckets(_TTFT_BUCKETS)
        self.tpot = _Buckets(_TPOT_BUCKETS)
        self.duration = _Buckets(_E2E_BUCKETS)


_Key = tuple[str, str, Dialect]


class Metrics(Collector):
    """The gateway's own figures, on a registry of their own so that two gateways share nothing."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._tallies: dict[_Key, _Tally] = {}
        self._retries: dict[str, int] = {}
        Gauge("berth_build_info", "Always 1", ("version",), registry=self.registry).labels(version).set(1)
        self.registry.register(self)

    def expect(self, model: str, replica: str) -> None:
        """Make the series of a replica exist at zero, so that the first event is seen as an increase."""
        for dialect in DIALECTS:
            self._tally((model, replica, dialect))

    def entered(self, model: str, replica: str, dialect: Dialect) -> None:
        """A request was handed to a replica."""
        self._tally((model, replica, dialect)).in_flight += 1

    def left(self, model: str, replica: str, dialect: Dialect) -> None:
        """That request is no longer there."""
        self._tally((model, replica, dialect)).in_flight -= 1

    def retried(self, model: str) -> None:
        """A request is about to be tried on another replica."""
        self._retries[model] = self._retries.get(model, 0) + 1

    def settle(self, done: Settlement) -> None:
        """Record one finished request."""
        tally = self._tally((done.model, done.replica, done.dialect))
        tally.outcomes[done.outcome] = tally.outcomes.get(done.outcome, 0) + 1
        if done.outcome in ("refused", "engine_error", "broken"):
            tally.errors[done.status] = tally.errors.get(done.status, 0) + 1
        if done.outcome == "ok" and done.generates:
            tally.duration.observe(done.duration_s)
        if done.ttft_s is not None:
            tally.ttft.observe(done.ttft_s)
        if done.tpot_s is not None:
            tally.tpot.observe(done.tpot_s)
        tally.prompt_tokens += done.usage.prompt_tokens or 0
        tally.cached_tokens += done.usage.cached_tokens or 0
        tally.output_tokens += done.usage.output_tokens or 0

    def _tally(self, key: _Key) -> _Tally:
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = _Tally()
        return tally

    # A scrape; it may come from another thread than the one that counts
    def collect(self) -> Iterator[Metric]:
        """Every figure under its name."""
        rows = list(self._tallies.items())
        in_flight = GaugeMetricFamily("berth_requests_in_flight", "Requests inside the gateway now", labels=_LABELS)
        requests = CounterMetricFamily(
            "berth_requests", "Requests finished, by how they ended", labels=(*_LABELS, "outcome")
        )
        errors = CounterMetricFamily(
            "berth_request_errors", "Requests that ended in an error", labels=(*_LABELS, "status")
        )
        retries = CounterMetricFamily("berth_retries", "Requests moved to another replica", labels=("model",))
        for key, tally in rows:
            in_flight.add_metric(key, tally.in_flight)
            for outcome, count in list(tally.outcomes.items()):
                requests.add_metric((*key, outcome), count)
            for status, count in list(tally.errors.items()):
                errors.add_metric((*key, str(status)), count)
        for model, count in list(self._retries.items()):
            retries.add_metric((model,), count)
        yield from (in_flight, requests, errors, retries)
        yield from _times(rows)
        yield from _tokens(rows)


def _times(rows: list[tuple[_Key, _Tally]]) -> Iterator[Metric]:
    ttft = HistogramMetricFamily("berth_time_to_first_token_seconds", "Arrival to first token", labels=_LABELS)
    tpot = HistogramMetricFamily(
        "berth_time_per_output_token_seconds", "First to last token, per further token", labels=_LABELS
    )
    duration = HistogramMetricFamily("berth_request_duration_seconds", "Arrival to last byte", labels=_LABELS)
    for key, tally in rows:
        for family, buckets in ((ttft, tally.ttft), (tpot, tally.tpot), (duration, tally.duration)):
            if any(buckets.counts):
                family.add_metric(key, buckets.cumulative(), buckets.total)
    yield from (ttft, tpot, duration)


def _tokens(rows: list[tuple[_Key, _Tally]]) -> Iterator[Metric]:
    prompt = CounterMetricFamily("berth_prompt_tokens", "Prompt tokens, as engines state them", labels=_LABELS)
    cached = CounterMetricFamily("berth_cached_prompt_tokens", "Of these, from prefix cache", labels=_LABELS)
    output = CounterMetricFamily("berth_output_tokens", "Output tokens, as engines state them", labels=_LABELS)
    for key, tally in rows:
        prompt.add_metric(key, tally.prompt_tokens)
        cached.add_metric(key, tally.cached_tokens)
        output.add_metric(key, tally.output_tokens)
    yield from (prompt, cached, output)
