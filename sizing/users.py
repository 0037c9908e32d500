"""How many people an engine serves within an SLO, when each reads and thinks before asking again."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from sizing.efficiency import EFFICIENCY, Efficiency
from sizing.errors import QuestionError
from sizing.roofline import Engine
from sizing.speed import Load, Pace, pace
from sizing.speed_shape import SpeedShape

Limiter = Literal["ttft", "tpot", "most_concurrency"]


@dataclass(frozen=True)
class LatencyBound:
    """Upper bounds of the mean time to first token and the mean time per token, in seconds; None is no bound."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def of_means(self, percentile: float) -> "LatencyBound":
        """The bounds that means have to keep for that share of requests to keep these.

        First tokens wait in a queue, so their times spread like an exponential distribution, whose p-th quantile is
        -ln(1 - p) times its mean (2.3 times at 0.9). A time per token is the mean over a whole answer: its excess is
        taken as a quarter of that (1.3 times at 0.9, 1.9 at 0.99, where public runs have 1.02 to 2.0).

        Raises:
            QuestionError: a percentile that is not above 0 and below 1.
        """
        if not 0 < percentile < 1:
            raise QuestionError(f"percentile is {percentile}; it has to be above 0 and below 1, as 0.9")
        spread = max(1.0, -math.log(1 - percentile))
        return LatencyBound(
            None if self.ttft_s is None else self.ttft_s / spread,
            None if self.tpot_s is None else self.tpot_s / (1 + (spread - 1) / 4),
        )

    def missed(self, found: Pace) -> Limiter | None:
        """The first bound that this pace does not keep."""
        if self.ttft_s is not None and found.ttft_s > self.ttft_s:
            return "ttft"
        if self.tpot_s is not None and found.tpot_s is not None and found.tpot_s > self.tpot_s:
            return "tpot"
        return None


@dataclass(frozen=True)
class Users:
    """The most that keep within the bounds, on average."""

    users: int
    concurrency: int
    """How many of them wait for an answer at a time; 0 where not even one is served in time."""
    pace: Pace | None
    limiter: Limiter
    """What one more request in flight would miss."""


def users_within(
    shape: SpeedShape,
    engine: Engine,
    bound: LatencyBound,
    *,
    prompt_tokens: float,
    output_tokens: float,
    think_time_s: float,
    most_concurrency: int = 4096,
    efficiency: Efficiency = EFFICIENCY,
) -> Users:
    """The most users: those in flight, and by Little's law those who think meanwhile (requests/s x think time).

    Bounds are held against means: a percentile bound needs room below it.

    Raises:
        QuestionError: a think time below 0, or a question `pace` refuses.
    """
    if think_time_s < 0 or not math.isfinite(think_time_s):
        raise QuestionError(f"think_time_s is {think_time_s}; it has to be 0 or more")
    load = Load(prompt_tokens, output_tokens, 1)

    def at(concurrency: int) -> Pace:
        return pace(shape, engine, replace(load, concurrency=concurrency), efficiency=efficiency)

    missed = bound.missed(at(1))
    if missed is not None:
        return Users(0, 0, None, missed)
    kept, over = 1, most_concurrency + 1
    while over - kept > 1:  # both bounds only get worse with more in flight
        middle = (kept + over) // 2
        if bound.missed(at(middle)) is None:
            kept = middle
        else:
            over = middle
    found = at(kept)
    limiter = bound.missed(at(over)) if over <= most_concurrency else None
    return Users(int(kept + found.requests_s * think_time_s), kept, found, limiter or "most_concurrency")
