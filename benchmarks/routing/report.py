"""Runs as figures, and figures as a table for people."""

import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from benchmarks.errors import ConfigError
from benchmarks.routing.cards import Card
from benchmarks.routing.scenarios import WHAT, Name, Pace
from benchmarks.routing.simulation import Outcome
from benchmarks.routing.traces import Trace
from benchmarks.statistics import percentile


@dataclass(frozen=True, slots=True)
class Figures:
    """One policy in one scenario. Times in seconds, shares in 0..1."""

    hit_rate: float
    of_oracle: float
    """Hits beside those of one endless cache."""
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    e2e_p90_s: float
    imbalance: float
    """Work of the replica that had most of it, beside the mean."""


def figures(outcome: Outcome, most_hits: float) -> Figures:
    """Of one run; `most_hits` is the hit rate of the endless cache."""
    hits = outcome.cached_tokens / max(outcome.prompt_tokens, 1)
    mean_s = statistics.fmean(outcome.work_s)
    return Figures(
        hits,
        hits / most_hits if most_hits else 1.0,
        percentile(outcome.ttft_s, 0.5),
        percentile(outcome.ttft_s, 0.9),
        percentile(outcome.ttft_s, 0.99),
        percentile(outcome.e2e_s, 0.9),
        max(outcome.work_s) / mean_s if mean_s else 1.0,
    )


def medians(runs: Sequence[Figures]) -> Figures:
    """Each figure's median over the seeds."""
    return Figures(*(statistics.median(values) for values in zip(*map(astuple, runs), strict=True)))


def head(trace: Trace, card: Card, pace: Pace, seeds: int) -> str:
    """On what, with which settings."""
    how = (
        f"played {pace.speed:g} times as fast as recorded"
        if pace.speed is not None
        else f"played so fast that the fleet is at {pace.utilisation:.0%} of what it could do with one KV cache"
    )
    return "\n".join(
        (
            f"{trace.name} ({trace.kind}): {len(trace.requests):,} requests in {trace.span_s:,.0f} s, {how}, "
            f"at most {pace.most_requests:,} requests a run",
            f"Simulated engine: {card.name} ({card.source})",
            f"  a step: {card.step_s * 1e3:g} ms + {card.token_s * 1e6:g} us a prompt token + "
            f"{card.attention_s * 1e9:g} ns for each token before it + "
            f"{card.sequence_s * 1e6:g} us a sequence + {card.context_s * 1e9:g} ns a "
            "token of context",
            f"  max_num_batched_tokens {card.max_num_batched_tokens:,}, max_num_seqs {card.max_num_seqs:,}, KV cache "
            f"{card.kv_capacity_tokens:,} tokens",
            f"Medians over {seeds} seed{'s' if seeds > 1 else ''} (1 to {seeds}); Python {platform.python_version()}, "
            f"one of {os.cpu_count()} cores ({platform.machine()})",
            "",
        )
    )


def table(
    name: Name, replicas: int, note: str, bounds: Sequence[tuple[float, float]], rows: Mapping[str, Figures]
) -> str:
    """`bounds`: hit rates of an endless cache, and of one as large as the fleet's, by seed."""
    endless, fleet = (statistics.median(values) for values in zip(*bounds, strict=True))
    width = max(map(len, rows))
    lines = [
        f"## {name}, {replicas} replicas",
        f"{WHAT[name]} ({note})",
        f"hits of one endless cache: {endless:.1%}, of one cache as large as the fleet's: {fleet:.1%}",
        "",
        f"| {'policy':{width}} | hit rate | of oracle | TTFT p50 s | p90 s | p99 s | e2e p90 s | max/mean work |",
        f"|{'-' * (width + 2)}|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {policy:{width}} | {row.hit_rate:.1%} | {row.of_oracle:.0%} | "
        f"{row.ttft_p50_s:.3f} | {row.ttft_p90_s:.3f} | {row.ttft_p99_s:.3f} | "
        f"{row.e2e_p90_s:.2f} | {row.imbalance:.2f} |"
        for policy, row in rows.items()
    ]
    return "\n".join(lines) + "\n"


class Paper:
    """Standard output, and a file beside it where one is asked for."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept: list[str] = []

    def __enter__(self) -> Callable[[str], None]:
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.touch()
            except OSError as error:
                raise ConfigError(f"cannot write {self._path}: {error}; choose another OUT") from error
        return self._write

    def _write(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        self._kept.append(text)

    def __exit__(self, *_: object) -> None:
        if self._path is not None and self._kept:
            self._path.write_text("\n".join(self._kept) + "\n")
