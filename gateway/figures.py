"""Each engine's own figures (KV cache, queue, prefix cache) under stable names, fetched when Prometheus asks."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gateway.errors import UpstreamError
from gateway.replica import Replica
from gateway.upstream import Upstream


@dataclass(frozen=True, slots=True)
class _Figure:
    """One stable name and the engine metrics it comes from, newest first (vLLM renames; old engines stay readable)."""

    name: str
    help: str
    kind: Literal["gauge", "counter"]
    sources: tuple[str, ...]


KV_USAGE = "berth_engine_kv_cache_usage_ratio"
_FIGURES = (
    _Figure(
        KV_USAGE,
        "KV cache in use, 0..1",
        "gauge",
        ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ),
    _Figure("berth_engine_requests_running", "Requests being computed", "gauge", ("vllm:num_requests_running",)),
    _Figure("berth_engine_requests_waiting", "Requests queued in the engine", "gauge", ("vllm:num_requests_waiting",)),
    _Figure(
        "berth_engine_prefix_cache_queries_tokens",
        "Prompt tokens looked up in the prefix cache",
        "counter",
        ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    ),
    _Figure(
        "berth_engine_prefix_cache_hits_tokens",
        "Prompt tokens found in the prefix cache",
        "counter",
        ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    ),
    _Figure(
        "berth_engine_preemptions", "Requests pushed out of the KV cache", "counter", ("vllm:num_preemptions_total",)
    ),
    _Figure("berth_engine_prompt_tokens", "Prompt tokens computed or found", "counter", ("vllm:prompt_tokens_total",)),
    _Figure("berth_engine_output_tokens", "Tokens generated", "counter", ("vllm:generation_tokens_total",)),
)
_CONFIG_INFO = "vllm:cache_config_info"
_STARTED = "process_start_time_seconds"
_SLEEP = "vllm:engine_sleep_state"
_WANTED = (_CONFIG_INFO, _STARTED, _SLEEP, *(source for figure in _FIGURES for source in figure.sources))


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """An engine's own numbers at one moment; `values` by stable name, summed over its data-parallel ranks."""

    values: dict[str, float]
    kv_cache_tokens: int | None = None
    kv_cache_blocks: int | None = None
    block_size: int | None = None
    started_s: float | None = None
    """When its process was started, in seconds since 1970; None where it does not say."""
    is_asleep: bool = False
    """Its KV cache is given up, and nothing can be computed before it is woken."""


async def read_figures(replica: Replica, upstream: Upstream, timeout_s: float) -> EngineFigures | None:
    """Fetch and read an engine's /metrics; None when it does not answer."""
    try:
        status, body = await upstream.get(replica.url, "/metrics", replica.api_key, timeout_s)
    except UpstreamError:
        return None
    try:
        return parse_figures(body.decode("utf-8", "replace")) if status == 200 else None
    except ValueError:  # not an exposition: one odd engine must not take everybody's metrics away
        return None


def parse_figures(text: str) -> EngineFigures:
    """The figures in a vLLM exposition. Only the wanted lines are parsed: the whole is 60 kB and this shares a loop
    with every stream."""
    lines = [line for line in text.splitlines() if line.startswith(_WANTED)]
    sums: dict[str, float] = {}
    config: dict[str, str] = {}
    ranks, awake = 0, 1.0
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if sample.name == _CONFIG_INFO:
                config = sample.labels
                ranks += 1
            elif sample.name == _SLEEP:
                awake = sample.value if sample.labels.get("sleep_state") == "awake" else awake
            else:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    values = {f.name: sums[s] for f in _FIGURES for s in f.sources[::-1] if s in sums}
    if ranks > 1 and KV_USAGE in values:
        values[KV_USAGE] /= ranks
    blocks, block_size = _number(config.get("num_gpu_blocks")), _number(config.get("block_size"))
    tokens = _number(config.get("kv_cache_size_tokens"))
    if tokens is None and blocks is not None and block_size is not None:
        tokens = blocks * block_size  # engines before 0.2x do not state it
    return EngineFigures(values, tokens, blocks, block_size, sums.get(_STARTED), awake == 0)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


class _EngineCollector(Collector):
    """Exposes already fetched figures; lives for one scrape."""

    def __init__(self, rows: Iterable[tuple[Replica, EngineFigures | None]]) -> None:
        self._rows = list(rows)

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("berth_engine_up", "1 when the engine answered this scrape", labels=("model", "replica"))
        ready = GaugeMetricFamily(
            "berth_replica_ready", "1 when requests are routed there", labels=("model", "replica")
        )
        for replica, figures in self._rows:
            up.add_metric(_labels(replica), float(figures is not None))
            ready.add_metric(_labels(replica), float(replica.state == "ready"))
        yield from (up, ready)
        for figure in _FIGURES:
            kind = GaugeMetricFamily if figure.kind == "gauge" else CounterMetricFamily
            family = kind(figure.name, figure.help, labels=("model", "replica"))
            for replica, figures in self._rows:
                if figures and figure.name in figures.values:
                    family.add_metric(_labels(replica), figures.values[figure.name])
            yield family
        yield from self._capacity()

    def _capacity(self) -> Iterator[Metric]:
        tokens = GaugeMetricFamily(
            "berth_engine_kv_cache_tokens", "KV cache size as the engine states it", labels=("model", "replica")
        )
        blocks = GaugeMetricFamily("berth_engine_kv_cache_blocks", "KV cache blocks", labels=("model", "replica"))
        predicted = GaugeMetricFamily(
            "berth_engine_kv_cache_predicted_tokens",
            "KV cache size as sizing predicted it",
            labels=("model", "replica"),
        )
        for replica, figures in self._rows:
            if figures and figures.kv_cache_tokens is not None:
                tokens.add_metric(_labels(replica), figures.kv_cache_tokens)
            if figures and figures.kv_cache_blocks is not None:
                blocks.add_metric(_labels(replica), figures.kv_cache_blocks)
            if replica.predicted_kv_tokens is not None:
                predicted.add_metric(_labels(replica), replica.predicted_kv_tokens)
        yield from (tokens, blocks, predicted)


def _labels(replica: Replica) -> tuple[str, str]:
    return (replica.models[0].name if replica.models else "", replica.name)


async def read_all(replicas: Sequence[Replica], upstream: Upstream, timeout_s: float) -> list[EngineFigures | None]:
    """Every engine's figures, asked for at once; None for one that is silent."""
    return await asyncio.gather(*(read_figures(replica, upstream, timeout_s) for replica in replicas))


async def exposition(replicas: Sequence[Replica], upstream: Upstream, timeout_s: float) -> bytes:
    """The engines' figures, fetched now and at once. A silent engine is `berth_engine_up 0` and nothing else."""
    figures = await read_all(replicas, upstream, timeout_s)
    registry = CollectorRegistry()
    registry.register(_EngineCollector(zip(replicas, figures, strict=True)))
    return generate_latest(registry)
