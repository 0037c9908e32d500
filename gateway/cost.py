"""What the gateway itself costs: the time it adds, how late its event loop runs, processor, memory, connections."""

import asyncio
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.histogram import Histogram

_ADDED_BUCKETS = (
    *(0.00001, 0.00002, 0.00003, 0.00005, 0.000075, 0.0001, 0.00015, 0.0002, 0.0003, 0.0005),
    *(0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01),
)
_LAG_BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TICK_S = 0.1


class Cost(Collector):
    """`added` takes, once a request, the seconds it was in our hands: its body in to its bytes on the way to the
    engine, and the first bytes of the answer in to their being on the way to the caller."""

    def __init__(
        self,
        clients: Callable[[], int],
        upstreams: Callable[[], Mapping[str, int]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.added = Histogram(_ADDED_BUCKETS)
        self.lag = Histogram(_LAG_BUCKETS)
        self._clients = clients
        self._upstreams = upstreams
        self._clock = clock

    @contextmanager
    def watching(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """While the block runs, note ten times a second how late a timer comes: so long every stream had to wait."""
        due_s = self._clock() + _TICK_S
        timer: asyncio.TimerHandle | None = None

        def tick() -> None:
            nonlocal due_s, timer
            now_s = self._clock()
            self.lag.observe(max(0.0, now_s - due_s))
            due_s = now_s + _TICK_S
            timer = loop.call_later(_TICK_S, tick)

        timer = loop.call_later(_TICK_S, tick)
        try:
            yield
        finally:
            timer.cancel()

    def collect(self) -> Iterator[Metric]:
        """Every figure under its name; processor and memory are those of this process, engines not included."""
        added = HistogramMetricFamily("berth_gateway_added_seconds", "Time a request was held up by the gateway itself")
        added.add_metric((), self.added.cumulative(), self.added.total)
        lag = HistogramMetricFamily("berth_gateway_loop_lag_seconds", "How late a timer of the event loop came")
        lag.add_metric((), self.lag.cumulative(), self.lag.total)
        yield from (added, lag)
        yield CounterMetricFamily(
            "berth_gateway_cpu_seconds", "Processor time, user and system", value=time.process_time()
        )
        yield GaugeMetricFamily("berth_gateway_resident_memory_bytes", "Resident memory", value=_resident_bytes())
        yield GaugeMetricFamily(
            "berth_gateway_client_connections", "Connections of callers, idle ones too", value=self._clients()
        )
        upstreams = GaugeMetricFamily(
            "berth_gateway_upstream_connections", "Connections to engines, by what they do", labels=("state",)
        )
        for state, count in self._upstreams().items():
            upstreams.add_metric((state,), count)
        yield upstreams


def _resident_bytes() -> int:
    """The resident memory of this process, as Linux counts it (proc(5), statm); psutil would take 1 MB more of it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
