"""When each request is meant to arrive, in seconds from the start of the run. Pure.

Only open loops have a schedule: in a closed loop a request is sent when an earlier one ends, so nothing was intended.
"""

import random
from itertools import accumulate
from typing import Literal, get_args

Arrivals = Literal["poisson", "constant"]
"""How an open loop spaces its requests."""

ARRIVALS: tuple[Arrivals, ...] = get_args(Arrivals)


def poisson(rate: float, requests: int, seed: int) -> tuple[float, ...]:
    """Arrivals of a Poisson process of `rate` per second: independent exponential gaps. The first is at 0."""
    source = random.Random(f"{seed}:arrivals")  # noqa: S311 - repeatable on purpose, nothing secret hangs on it
    gaps = (source.expovariate(rate) for _ in range(requests - 1))
    return tuple(accumulate(gaps, initial=0.0))[:requests]


def constant(rate: float, requests: int) -> tuple[float, ...]:
    """One arrival every 1/`rate` seconds, the first at 0."""
    return tuple(index / rate for index in range(requests))
