"""Percentiles of a set of times, which may hold +inf for what never came. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Distribution:
    """Seconds. A percentile is None where no value lies beyond it: p90 under 10 values, p95 under 20, p99 under 100."""

    count: int
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None


def distribution(values: Iterable[float]) -> Distribution:
    """Summarise `values`; of none it is all None."""
    ordered = sorted(values)
    count = len(ordered)

    def at(percent: int) -> float | None:
        return percentile(ordered, percent) if count * (100 - percent) >= 100 else None

    return Distribution(
        count=count,
        mean=_mean(ordered),
        p50=percentile(ordered, 50),
        p90=at(90),
        p95=at(95),
        p99=at(99),
        max=ordered[-1] if ordered else None,
    )


def percentile(ordered: Sequence[float], percent: int) -> float | None:
    """Nearest rank: the smallest of the sorted values that at least `percent` % of them do not exceed; None of nothing.

    Always a value that was seen, so that +inf for a failure needs no special case.
    """
    if not ordered:
        return None
    rank = -(-len(ordered) * percent // 100)  # rounded up, in whole numbers: 0.95 * 20 is not 19 in floats everywhere
    return ordered[max(1, rank) - 1]


def _mean(ordered: list[float]) -> float | None:
    return math.fsum(ordered) / len(ordered) if ordered else None
