"""The engine's own figures over a run, from its /metrics: KV-cache use, prefix-cache hits, preemptions, queue.

Read alike from a vLLM engine (0.32 names: https://docs.vllm.ai/en/latest/usage/metrics.html) and from Berth's gateway,
which exports the same figures for each replica under names of its own.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

Source = Literal["vllm", "berth"]
_Figure = Literal["kv_use", "running", "waiting", "queries", "hits", "preemptions", "prompt_tokens", "output_tokens"]
_NAMES: dict[Source, dict[str, _Figure]] = {
    "berth": {
        "berth_engine_kv_cache_usage_ratio": "kv_use",
        "berth_engine_requests_running": "running",
        "berth_engine_requests_waiting": "waiting",
        "berth_engine_prefix_cache_queries_tokens_total": "queries",
        "berth_engine_prefix_cache_hits_tokens_total": "hits",
        "berth_engine_preemptions_total": "preemptions",
        "berth_engine_prompt_tokens_total": "prompt_tokens",
        "berth_engine_output_tokens_total": "output_tokens",
    },
    "vllm": {
        "vllm:kv_cache_usage_perc": "kv_use",  # 0..1 despite its name
        "vllm:num_requests_running": "running",
        "vllm:num_requests_waiting": "waiting",
        "vllm:prefix_cache_queries_total": "queries",
        "vllm:prefix_cache_hits_total": "hits",
        "vllm:num_preemptions_total": "preemptions",
        "vllm:prompt_tokens_total": "prompt_tokens",
        "vllm:generation_tokens_total": "output_tokens",
    },
}
_LABELS = ("model", "model_name")
_SCRAPE_TIMEOUT_S = 5.0
_SETTLE_S = 6.0


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at /metrics: for each figure the values of all replicas of the model."""

    source: Source
    values: dict[_Figure, tuple[float, ...]]

    def total(self, figure: _Figure) -> float | None:
        """The sum over replicas; None when not exported."""
        values = self.values.get(figure)
        return sum(values) if values else None


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """The run as the engine saw it; None where it does not export a figure or restarted in between.

    `kv_use_peak` (the fullest replica) and `kv_use_mean` (over replicas and looks) are ratios 0..1, seen once a second;
    `prefix_hit_ratio` is tokens found over tokens looked up; running and waiting are summed over replicas.
    """

    source: Source
    readings: int
    kv_use_peak: float | None
    kv_use_mean: float | None
    prefix_hit_ratio: float | None
    prefix_queries_tokens: float | None
    prefix_hits_tokens: float | None
    preemptions: float | None
    running_peak: float | None
    waiting_peak: float | None
    prompt_tokens: float | None
    output_tokens: float | None


def read_metrics(text: str, model: str) -> Reading | None:
    """The wanted figures in a Prometheus exposition, of `model` where rows say whose they are; None without any."""
    for source, names in _NAMES.items():
        # an engine exports some 50 KB: parse the handful of lines that matter, the load generator needs its time
        lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in names]
        with suppress(ValueError):
            if rows := _rows(lines):
                named = [row for row in rows if row[1] == model]  # none when the server knows it under another name
                values: dict[_Figure, tuple[float, ...]] = {}
                for name, _, value in named or rows:
                    values[names[name]] = (*values.get(names[name], ()), value)
                return Reading(source, values)
    return None


def _rows(lines: list[str]) -> list[tuple[str, str | None, float]]:
    families = text_string_to_metric_families("\n".join(lines) + "\n")
    return [
        (row.name, next((row.labels[label] for label in _LABELS if label in row.labels), None), row.value)
        for family in families
        for row in family.samples
    ]


def figures(readings: Sequence[Reading]) -> ServerFigures | None:
    """What changed between the first and the last reading, and the extremes between; None without any."""
    if not readings:
        return None
    kv_use = [value for reading in readings for value in reading.values.get("kv_use", ())]
    queries, hits = _increase(readings, "queries"), _increase(readings, "hits")
    return ServerFigures(
        source=readings[0].source,
        readings=len(readings),
        kv_use_peak=max(kv_use, default=None),
        kv_use_mean=sum(kv_use) / len(kv_use) if kv_use else None,
        prefix_hit_ratio=hits / queries if queries and hits is not None else None,
        prefix_queries_tokens=queries,
        prefix_hits_tokens=hits,
        preemptions=_increase(readings, "preemptions"),
        running_peak=_peak(readings, "running"),
        waiting_peak=_peak(readings, "waiting"),
        prompt_tokens=_increase(readings, "prompt_tokens"),
        output_tokens=_increase(readings, "output_tokens"),
    )


def _increase(readings: Sequence[Reading], figure: _Figure) -> float | None:
    first, last = readings[0].total(figure), readings[-1].total(figure)
    if first is None or last is None or last < first:  # a counter that fell: the engine restarted
        return None
    return last - first


def _peak(readings: Sequence[Reading], figure: _Figure) -> float | None:
    return max((value for reading in readings if (value := reading.total(figure)) is not None), default=None)


class MetricsWatch:
    """Looks at {base_url}/metrics: once by `look`, every second by `sample`, one look at a time."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, model: str) -> None:
        self._session = session
        self._url = f"{base_url}/metrics"
        self._model = model
        self.readings: list[Reading] = []

    async def look(self) -> bool:
        """Take one reading; False when there is none to be had, which is never an error."""
        try:
            async with asyncio.timeout(_SCRAPE_TIMEOUT_S), self._session.get(self._url) as response:
                text = await response.text(errors="replace") if response.status == 200 else ""
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            return False
        reading = read_metrics(text, self._model)
        if reading:
            self.readings.append(reading)
        return reading is not None

    async def sample(self, every_s: float = 1.0) -> None:
        """Look every `every_s` until cancelled; a look that takes longer delays the next instead of joining it."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def settle(self, output_tokens: int, *, patience_s: float = _SETTLE_S) -> None:
        """The closing look, repeated while the server has not yet counted what it sent (a gateway scrapes in turns)."""
        give_up_at = time.monotonic() + patience_s
        while await self.look():
            counted = _increase(self.readings, "output_tokens")
            if counted is None or counted >= output_tokens or time.monotonic() >= give_up_at:
                return
            await asyncio.sleep(1.0)
