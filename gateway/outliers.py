"""Which replicas are far worse than their peers, and how many of those may be taken out. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gateway.breaker import Reason

_SIGMAS_A_MAD = 1.4826  # the median absolute deviation of a normal distribution is 0.6745 of its standard deviation


@dataclass(frozen=True, slots=True)
class OutlierConfig:
    """How far is far, and how many may be out at once."""

    max_ejection_percent: int = 50
    min_peers: int = 3
    """Fewer replicas with enough answers say nothing: of two that differ, neither is the odd one."""
    deviations: float = 5.0
    error_margin: float = 0.2
    """An error rate must be so much above the median too: where all is well, any error is far away."""
    ttft_ratio: float = 3.0
    ttft_margin_s: float = 1.0
    """A time to first token must be so many medians, and so many seconds above it: prompts differ in length."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one replica of a model; None where there are too few answers to say."""

    is_out: bool
    error_rate: float | None
    ttft_s: float | None


def outliers(values: Sequence[float | None], deviations: float, margin: float, ratio: float = 1.0) -> list[int]:
    """The places of the values far above the median of all that are known, the worst first.

    Far: more than `deviations` robust standard deviations (1.4826 MAD) and more than `margin` above it, and more than
    `ratio` times it.
    """
    known = [value for value in values if value is not None]
    if not known:
        return []
    middle = median(known)
    sigma = _SIGMAS_A_MAD * median(abs(value - middle) for value in known)
    limit = max(middle + deviations * sigma, middle + margin, middle * ratio)
    far = [(value, place) for place, value in enumerate(values) if value is not None and value > limit]
    return [place for _, place in sorted(far, reverse=True)]


def ejections(standings: Sequence[Standing], config: OutlierConfig) -> list[tuple[int, Reason]]:
    """Which of a model's replicas to take out now. With those that are out already they are never more than
    `max_ejection_percent` of all, and never all."""
    room = min(len(standings) * config.max_ejection_percent // 100, len(standings) - 1)
    room -= sum(standing.is_out for standing in standings)
    found: dict[int, Reason] = {}
    inside = [None if standing.is_out else standing for standing in standings]
    errors = [standing.error_rate if standing else None for standing in inside]
    if sum(value is not None for value in errors) >= config.min_peers:
        found = dict.fromkeys(outliers(errors, config.deviations, config.error_margin), "outlier_errors")
    ttfts = [standing.ttft_s if standing else None for standing in inside]
    if sum(value is not None for value in ttfts) >= config.min_peers:
        for place in outliers(ttfts, config.deviations, config.ttft_margin_s, config.ttft_ratio):
            found.setdefault(place, "outlier_ttft")
    return list(found.items())[: max(0, room)]
