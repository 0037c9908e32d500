"""What the gateway measures of its own requests, for Prometheus.

Times are seconds from a monotonic clock. First token and TPOT are defined in README.md ("What the numbers mean").
Plain numbers (`tally`), given their names when somebody scrapes.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.histogram import Histogram
from gateway.routing import Fate
from gateway.settlement import NOBODY, Outcome
from gateway.tally import Stage, Tally
from gateway.wire import DIALECTS, Dialect

_LABELS = ("model", "replica", "dialect")
_QUEUE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_Key = tuple[str, str, Dialect]
_Moves = dict[tuple[str, str], int]


class Metrics(Collector):
    """The gateway's own figures, on a registry of their own so that two gateways share nothing."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._tallies: dict[_Key, Tally] = {}
        self._retries: _Moves = {}
        self._continuations: _Moves = {}
        self._hedges: _Moves = {}
        self._queue_waits: dict[str, Histogram] = {}
        Gauge("berth_build_info", "Always 1", ("version",), registry=self.registry).labels(version).set(1)
        self.registry.register(self)

    def expect(self, model: str, replica: str) -> None:
        """Make the series of a replica exist at zero, so that the first event is seen as an increase."""
        for dialect in DIALECTS:
            self.tally(model, replica, dialect)
        self._retries.setdefault((model, replica), 0)
        self._continuations.setdefault((model, replica), 0)

    def tally(self, model: str, replica: str, dialect: Dialect) -> Tally:
        """Where requests for `model` on `replica` are counted, the same one each time: to be kept by who counts."""
        key = (model, replica, dialect)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(is_placed=replica != NOBODY)
        return tally

    def retried(self, model: str, replica: str) -> None:
        """A request that `replica` failed is about to be tried on another one; its caller has seen nothing."""
        self._retries[model, replica] = self._retries.get((model, replica), 0) + 1

    def continued(self, model: str, replica: str) -> None:
        """A stream that `replica` broke off goes on from another one."""
        self._continuations[model, replica] = self._continuations.get((model, replica), 0) + 1

    def hedged(self, model: str, replica: str) -> None:
        """`replica` is asked too, because another one is slow."""
        self._hedges[model, replica] = self._hedges.get((model, replica), 0) + 1

    def waited(self, model: str, wait_s: float) -> None:
        """A request stood in a queue of ours for so long before it was given to a replica."""
        waits = self._queue_waits.get(model)
        if waits is None:
            waits = self._queue_waits[model] = Histogram(_QUEUE_BUCKETS)
        waits.observe(wait_s)

    def errors_of(self, replica: str) -> int:
        """How often `replica` failed a request: what it answered with an error, broke, or lost to another replica."""
        answered = sum(
            tally.outcomes.get("engine_error", 0) + tally.outcomes.get("broken", 0)
            for (_, name, _), tally in self._tallies.items()
            if name == replica
        )
        moves = (*self._retries.items(), *self._continuations.items())
        return answered + sum(count for (_, name), count in moves if name == replica)

    # A scrape; it may come from another thread than the one that counts
    def collect(self) -> Iterator[Metric]:
        """Every figure under its name."""
        rows = list(self._tallies.items())
        yield from _counts(rows)
        yield from _moves(self._retries, self._continuations, self._hedges)
        yield from _times(rows)
        yield _waits(list(self._queue_waits.items()))
        yield from _tokens(rows)


_Rows = list[tuple[_Key, Tally]]


def _counts(rows: _Rows) -> Iterator[Metric]:
    in_flight = GaugeMetricFamily("berth_requests_in_flight", "Requests inside the gateway now", labels=_LABELS)
    by_outcome = (*_LABELS, "outcome")
    requests = CounterMetricFamily("berth_requests", "Requests finished, by how they ended", labels=by_outcome)
    tokenless = CounterMetricFamily(
        "berth_requests_without_token", "Of these, such as never produced a token", labels=by_outcome
    )
    aborts = CounterMetricFamily(
        "berth_requests_aborted", "Requests whose caller left, by how far they were", labels=(*_LABELS, "stage")
    )
    errors = CounterMetricFamily("berth_request_errors", "Requests that ended in an error", labels=(*_LABELS, "status"))
    for key, tally in rows:
        in_flight.add_metric(key, tally.in_flight)
        _add(requests, key, tally.outcomes)
        _add(tokenless, key, tally.tokenless)
        _add(aborts, key, tally.aborts)
        _add(errors, key, {str(status): count for status, count in list(tally.errors.items())})
    yield from (in_flight, requests, tokenless, aborts, errors)


def _add(
    family: CounterMetricFamily,
    key: _Key,
    counts: "dict[Outcome, int] | dict[Stage, int] | dict[Fate, int] | dict[str, int]",
) -> None:
    for label, count in list(counts.items()):
        family.add_metric((*key, label), count)


def _moves(retries: _Moves, continuations: _Moves, hedges: _Moves) -> Iterator[Metric]:
    labels = ("model", "replica")
    families = {
        "berth_retries": ("Requests moved off a replica before their first byte", retries),
        "berth_continuations": ("Streams that went on from another replica", continuations),
        "berth_hedges": ("Requests that a replica was asked as well, because another one was slow", hedges),
    }
    for name, (help_text, moves) in families.items():
        family = CounterMetricFamily(name, help_text, labels=labels)
        for key, count in list(moves.items()):
            family.add_metric(key, count)
        yield family


def _times(rows: _Rows) -> Iterator[Metric]:
    ttft = HistogramMetricFamily("berth_time_to_first_token_seconds", "Arrival to first token", labels=_LABELS)
    tpot = HistogramMetricFamily(
        "berth_time_per_output_token_seconds", "First to last token, per further token", labels=_LABELS
    )
    duration = HistogramMetricFamily("berth_request_duration_seconds", "Arrival to last byte", labels=_LABELS)
    for key, tally in rows:
        for family, buckets in ((ttft, tally.ttft), (tpot, tally.tpot), (duration, tally.duration)):
            if not buckets.is_empty:
                family.add_metric(key, buckets.cumulative(), buckets.total)
    yield from (ttft, tpot, duration)


def _waits(rows: Iterable[tuple[str, Histogram]]) -> Metric:
    waits = HistogramMetricFamily("berth_queue_wait_seconds", "Time in the gateway's own queue", labels=("model",))
    for model, buckets in rows:
        waits.add_metric((model,), buckets.cumulative(), buckets.total)
    return waits


def _tokens(rows: _Rows) -> Iterator[Metric]:
    prompt = CounterMetricFamily("berth_prompt_tokens", "Prompt tokens, as engines state them", labels=_LABELS)
    cached = CounterMetricFamily("berth_cached_prompt_tokens", "Of these, from prefix cache", labels=_LABELS)
    predicted = CounterMetricFamily(
        "berth_predicted_cached_prompt_tokens", "What the router expected from prefix cache", labels=_LABELS
    )
    fates = CounterMetricFamily(
        "berth_prompt_token_fates", "Prompt tokens found in the KV cache, or why not", labels=(*_LABELS, "fate")
    )
    output = CounterMetricFamily("berth_output_tokens", "Output tokens, as engines state them", labels=_LABELS)
    for key, tally in rows:
        prompt.add_metric(key, tally.prompt_tokens)
        cached.add_metric(key, tally.cached_tokens)
        predicted.add_metric(key, tally.predicted_tokens)
        _add(fates, key, tally.fates)
        output.add_metric(key, tally.output_tokens)
    yield from (prompt, cached, predicted, fates, output)
