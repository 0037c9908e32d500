"""What admission says, for Prometheus: lines, refusals, KV budgets and headroom, read when somebody scrapes."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.admission.gate import Gate
from gateway.admission.line import PRIORITIES
from gateway.admission.room import NO_BOUND
from gateway.replica import Pool

_BY_REPLICA = ("model", "replica")


class AdmissionMetrics(Collector):
    """Reads a gate, and a pool's replicas."""

    def __init__(self, gate: Gate, pool: Pool) -> None:
        self._gate = gate
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """Everything about models, then everything about replicas; what is not known or not bounded has no sample."""
        yield from self._of_models()
        yield from self._of_replicas()

    def _of_models(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "berth_requests_waiting", "Requests in the gateway's own line", labels=("model", "priority")
        )
        refused = CounterMetricFamily(
            "berth_requests_refused", "Requests that were given no place, by reason", labels=("model", "reason")
        )
        headroom = GaugeMetricFamily(
            "berth_headroom_requests",
            "Requests of the current mix that would still be served within the SLO",
            labels=("model",),
        )
        for model, desk in list(self._gate.desks.items()):
            for priority in PRIORITIES:
                waiting.add_metric((model, priority), desk.line.waiting(priority))
            for reason, count in list(desk.refused.items()):
                refused.add_metric((model, reason), count)
            more = self._gate.headroom(model)
            if more is not None:
                headroom.add_metric((model,), more)
        yield from (waiting, refused, headroom)

    def _of_replicas(self) -> Iterator[Metric]:
        predicted = GaugeMetricFamily(
            "berth_replica_kv_tokens_predicted",
            "KV tokens that the requests there are expected to need",
            labels=_BY_REPLICA,
        )
        used = GaugeMetricFamily(
            "berth_replica_kv_tokens_used", "KV tokens in use as the engine stated last", labels=_BY_REPLICA
        )
        budget = GaugeMetricFamily(
            "berth_replica_kv_tokens_budget", "KV tokens that may be promised to requests", labels=_BY_REPLICA
        )
        most = GaugeMetricFamily(
            "berth_replica_most_in_flight", "Requests it is given at once at most", labels=_BY_REPLICA
        )
        for replica in self._pool.replicas:
            labels = (replica.models[0].name if replica.models else "", replica.name)
            predicted.add_metric(labels, replica.kv_tokens)
            used_tokens = self._gate.room(replica).used_tokens
            if used_tokens is not None:
                used.add_metric(labels, used_tokens)
            if replica.kv_budget_tokens < NO_BOUND:
                budget.add_metric(labels, replica.kv_budget_tokens)
            if replica.most_in_flight < NO_BOUND:
                most.add_metric(labels, replica.most_in_flight)
        yield from (predicted, used, budget, most)
