"""Fitting the efficiencies to measured runs: least squares on the logarithms of predicted over measured."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sizing.efficiency import FITTED, SHARES, START, Efficiency
from sizing.least_squares import least_squares
from sizing.roofline import Engine, Roofline
from sizing.speed import Load, pace
from sizing.speed_shape import SpeedShape

_TTFT_WEIGHT = 0.6
"""A first token depends on the opening of a run and on the machine before the engine; it says less than the others."""
_OUTLIER = 0.2
"""Errors above this count linearly (Huber), so that one odd row does not bend all coefficients."""
_INDEPENDENT = 4
"""Rows of one group repeat each other: together they weigh at most like so many."""
_PULL = 0.15
"""How hard the starting values hold: a coefficient off by e weighs like a row off by 15 %."""


@dataclass(frozen=True)
class Measurement:
    """A run as it was measured: means over its requests, in seconds. None is what was not measured."""

    name: str
    group: str
    """Runs of one model on one card are alike: they are never on both sides of a split."""
    shape: SpeedShape
    engine: Engine
    load: Load
    ttft_s: float | None = None
    tpot_s: float | None = None
    step_s: float | None = None
    """One step that holds answers only, of all requests in flight, halfway through them."""
    prefill_s: float | None = None
    """One step that holds one prompt only."""

    @property
    def output_tokens_s(self) -> float | None:
        """Of all cards: tokens of the requests in flight over the time that each is in flight."""
        if self.ttft_s is None or self.tpot_s is None:
            return None
        request_s = self.ttft_s + self.tpot_s * (self.load.output_tokens - 1)
        return self.load.concurrency * self.load.output_tokens / request_s


@dataclass(frozen=True)
class LogErrors:
    """ln(predicted / measured), where it was measured; 0.1 is about 10 % too much."""

    ttft: float | None
    tpot: float | None
    """Steps without prompts count as this too: it is what they are when nothing comes in."""
    output_rate: float | None
    prefill: float | None


def log_errors(row: Measurement, efficiency: Efficiency) -> LogErrors:
    found = pace(row.shape, row.engine, row.load, efficiency=efficiency)
    tpot = _log(found.tpot_s, row.tpot_s)
    roofline = Roofline(row.shape, row.engine, efficiency)
    if row.step_s is not None:
        context = row.load.prompt_tokens + row.load.output_tokens / 2
        tpot = _log(roofline.decode_s(row.load.concurrency, context), row.step_s)
    alone_s = roofline.prefill_s(row.load.prompt_tokens) + roofline.fixed_s if row.prefill_s is not None else None
    return LogErrors(
        ttft=_log(found.ttft_s, row.ttft_s),
        tpot=tpot,
        output_rate=_log(found.output_tokens_s, row.output_tokens_s),
        prefill=_log(alone_s, row.prefill_s),
    )


def _log(predicted: float | None, measured: float | None) -> float | None:
    return math.log(predicted / measured) if predicted is not None and measured is not None else None


def fit(rows: Sequence[Measurement], *, start: Efficiency = START, pull: float = _PULL) -> Efficiency:
    """The coefficients (`FITTED`) that suit these rows best; where rows say nothing they stay at `start`."""
    sizes = Counter(row.group for row in rows)
    weights = {group: min(1.0, math.sqrt(_INDEPENDENT / size)) for group, size in sizes.items()}
    origin = [_encode(name, getattr(start, name)) for name in FITTED]

    def residuals(at: Sequence[float]) -> list[float]:
        efficiency = _decoded(at, start)
        found = []
        for row in rows:
            errors, weight = log_errors(row, efficiency), weights[row.group]
            found += [weight * _huber(errors.tpot or 0.0), weight * _huber(_TTFT_WEIGHT * (errors.ttft or 0.0))]
            found.append(weight * _huber(errors.prefill or 0.0))
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
