"""Fitting the efficiencies to measured runs: least squares on the logarithms of predicted over measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sizing.efficiency import FITTED, SHARES, START, Efficiency
from sizing.least_squares import least_squares
from sizing.roofline import Engine
from sizing.speed import Load, pace
from sizing.speed_shape import SpeedShape

_TTFT_WEIGHT = 0.6
"""A first token depends on the opening of a run and on the machine before the engine; it says less than the others."""
_OUTLIER = 0.2
"""Errors above this count linearly (Huber), so that one odd row does not bend all coefficients."""
_PULL = 0.15
"""How hard the starting values hold: a coefficient off by e weighs like a row off by 15 %."""


@dataclass(frozen=True)
class Measurement:
    """A run as it was measured: means over its requests, in seconds."""

    name: str
    group: str
    """Runs of one model on one card are alike: they are never on both sides of a split."""
    shape: SpeedShape
    engine: Engine
    load: Load
    ttft_s: float
    tpot_s: float

    @property
    def output_tokens_s(self) -> float:
        """Of all cards: tokens of the requests in flight over the time that each is in flight."""
        request_s = self.ttft_s + self.tpot_s * (self.load.output_tokens - 1)
        return self.load.concurrency * self.load.output_tokens / request_s


@dataclass(frozen=True)
class LogErrors:
    """ln(predicted / measured); 0.1 is about 10 % too much."""

    ttft: float
    tpot: float
    output_rate: float


def log_errors(row: Measurement, efficiency: Efficiency) -> LogErrors:
    found = pace(row.shape, row.engine, row.load, efficiency=efficiency)
    return LogErrors(
        ttft=math.log(found.ttft_s / row.ttft_s),
        tpot=math.log((found.tpot_s or row.tpot_s) / row.tpot_s),
        output_rate=math.log(found.output_tokens_s / row.output_tokens_s),
    )


def fit(rows: Sequence[Measurement], *, start: Efficiency = START, pull: float = _PULL) -> Efficiency:
    """The ten coefficients that suit these rows best; where rows say nothing they stay at `start`."""
    origin = [_encode(name, getattr(start, name)) for name in FITTED]

    def residuals(at: Sequence[float]) -> list[float]:
        efficiency = _decoded(at, start)
        found = []
        for row in rows:
            errors = log_errors(row, efficiency)
            found += [_huber(errors.tpot), _huber(_TTFT_WEIGHT * errors.ttft)]
        return found + [pull * (x - x0) for x, x0 in zip(at, origin, strict=True)]

    return _decoded(least_squares(residuals, origin), start)


def _decoded(at: Sequence[float], start: Efficiency) -> Efficiency:
    return replace(start, **{name: _decode(name, x) for name, x in zip(FITTED, at, strict=True)})


def _encode(name: str, value: float) -> float:
    return math.log(value / (1 - value)) if name in SHARES else math.log(value)


def _decode(name: str, x: float) -> float:
    return 1 / (1 + math.exp(-x)) if name in SHARES else math.exp(x)


def _huber(error: float) -> float:
    size = abs(error)
    if size <= _OUTLIER:
        return error
    return math.copysign(math.sqrt(2 * _OUTLIER * size - _OUTLIER**2), error)
