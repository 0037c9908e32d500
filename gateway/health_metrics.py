"""What the breakers say, for Prometheus: state, share and ejections of each replica, read when somebody scrapes."""

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.breaker import BreakerState
from gateway.replica import Pool

_STATES: tuple[BreakerState, ...] = get_args(BreakerState)


class ReplicaHealth(Collector):
    """Reads a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """One sample per replica and state, of which one is 1, as Prometheus' own convention for states has it."""
        state = GaugeMetricFamily(
            "berth_replica_breaker_state", "1 for the state its breaker is in", labels=("replica", "state")
        )
        share = GaugeMetricFamily(
            "berth_replica_share", "How much of a peer's load it is given (slow start)", labels=("replica",)
        )
        ejections = CounterMetricFamily(
            "berth_replica_ejections", "Times its breaker opened, by reason", labels=("replica", "reason")
        )
        refused = CounterMetricFamily("berth_retries_refused", "Retries the budget did not allow")
        refused.add_metric((), self._pool.retry_budget.refused)
        for replica in (*self._pool.replicas, *self._pool.remotes):
            for name in _STATES:
                state.add_metric((replica.name, name), float(replica.breaker.state == name))
            share.add_metric((replica.name,), replica.share)
            for reason, count in list(replica.breaker.ejections.items()):
                ejections.add_metric((replica.name, reason), count)
        yield from (state, share, ejections, refused)
