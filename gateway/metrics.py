"""What the gateway measures of its own requests, for Prometheus.

Times are seconds from a monotonic clock. First token and TPOT are defined in README.md ("What the numbers mean").
"""

from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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


class Metrics:
    """The gateway's own instruments, on a registry of their own so that two gateways share nothing."""

    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        outcome_labels = (*_LABELS, "outcome")
        error_labels = (*_LABELS, "status")
        self._in_flight = Gauge(
            "berth_requests_in_flight", "Requests inside the gateway now", _LABELS, registry=registry
        )
        self._requests = Counter(
            "berth_requests", "Requests finished, by how they ended", outcome_labels, registry=registry
        )
        self._errors = Counter(
            "berth_request_errors", "Requests that ended in an error", error_labels, registry=registry
        )
        self._retries = Counter("berth_retries", "Requests moved to another replica", ("model",), registry=registry)
        self._ttft = Histogram(
            "berth_time_to_first_token_seconds",
            "Arrival to first token",
            _LABELS,
            buckets=_TTFT_BUCKETS,
            registry=registry,
        )
        self._tpot = Histogram(
            "berth_time_per_output_token_seconds",
            "First to last token, per further token",
            _LABELS,
            buckets=_TPOT_BUCKETS,
            registry=registry,
        )
        self._duration = Histogram(
            "berth_request_duration_seconds", "Arrival to last byte", _LABELS, buckets=_E2E_BUCKETS, registry=registry
        )
        self._prompt = Counter(
            "berth_prompt_tokens", "Prompt tokens, as engines state them", _LABELS, registry=registry
        )
        self._cached = Counter("berth_cached_prompt_tokens", "Of these, from prefix cache", _LABELS, registry=registry)
        self._output = Counter(
            "berth_output_tokens", "Output tokens, as engines state them", _LABELS, registry=registry
        )
        Gauge("berth_build_info", "Always 1", ("version",), registry=registry).labels(version).set(1)

    def expect(self, model: str, replica: str) -> None:
        """Make the series of a replica exist at zero, so that the first event is seen as an increase."""
        for dialect in DIALECTS:
            self._in_flight.labels(model, replica, dialect)
            self._requests.labels(model, replica, dialect, "ok")

    def entered(self, model: str, replica: str, dialect: Dialect) -> None:
        """A request was handed to a replica."""
        self._in_flight.labels(model, replica, dialect).inc()

    def left(self, model: str, replica: str, dialect: Dialect) -> None:
        """That request is no longer there."""
        self._in_flight.labels(model, replica, dialect).dec()

    def retried(self, model: str) -> None:
        """A request is about to be tried on another replica."""
        self._retries.labels(model).inc()

    def settle(self, done: Settlement) -> None:
        """Record one finished request."""
        labels = (done.model, done.replica, done.dialect)
        self._requests.labels(*labels, done.outcome).inc()
        if done.outcome in ("refused", "engine_error", "broken"):
            self._errors.labels(*labels, str(done.status)).inc()
        if done.outcome == "ok" and done.generates:
            self._duration.labels(*labels).observe(done.duration_s)
        if done.ttft_s is not None:
            self._ttft.labels(*labels).observe(done.ttft_s)
        if done.tpot_s is not None:
            self._tpot.labels(*labels).observe(done.tpot_s)
        self._prompt.labels(*labels).inc(done.usage.prompt_tokens or 0)
        self._cached.labels(*labels).inc(done.usage.cached_tokens or 0)
        self._output.labels(*labels).inc(done.usage.output_tokens or 0)
