"""How an engine's time per token grows with what it has to do, learnt from its own answers. Pure.

    TPOT(n) = a + b n         n requests there at once; a, b >= 0

Least squares over the answers of `_SPAN_S` before the newest (with other contexts, and other neighbours, an engine is
another), once more without the tenth that is furthest off, and pulled towards b = TPOT / 2n: while all answers are of
one n, their slope is anybody's guess. An SLO is a promise to nearly all, not to the median, so what is held against it
is the line times `spread`, the 90th percentile of measured over fitted.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_RECENT: Final = 128
_SPAN_S: Final = 15.0
_LEAST_RECENT: Final = 12
_LEAST_SAMPLES: Final = 4
_FIRST_MOST: Final = 8
"""How many at once an engine is given of which nothing is known yet."""
_GROWTH: Final = 2.0
"""A line is not believed further out than this many times the most that was seen."""
_KEPT: Final = 0.9
_PRIOR_SHARE: Final = 0.5
_ROUNDING: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Fit:
    """TPOT(n) = a_s + b_s n, in seconds; nine of ten answers stay below `spread` times that."""

    a_s: float
    b_s: float
    spread: float
    seen: float
    """The largest n it was made from."""

    def tpot_s(self, n: float) -> float:
        """At n requests at once, of nine in ten."""
        return (self.a_s + self.b_s * n) * self.spread

    def most(self, tpot_s: float) -> int:
        """How many at once keep `tpot_s`; at least one."""
        furthest = max(_FIRST_MOST, int(self.seen * _GROWTH))
        if self.b_s <= 0:
            return furthest if self.tpot_s(0) <= tpot_s else 1
        return max(1, min(furthest, int((tpot_s / self.spread - self.a_s) / self.b_s + _ROUNDING)))


class Pace:
    """One engine's answers."""

    __slots__ = ("_fit", "_is_stale", "_samples")

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=_RECENT)
        self._fit: Fit | None = None
        self._is_stale = False

    def learn(self, now_s: float, n: float, tpot_s: float) -> None:
        """An answer took so long a token while `n` requests were there on average."""
        self._samples.append((now_s, n, tpot_s))
        self._is_stale = True

    def forget(self) -> None:
        """It is another process now."""
        self._samples.clear()
        self._fit, self._is_stale = None, False

    @property
    def fit(self) -> Fit | None:
        """None before enough answers."""
        if self._is_stale and len(self._samples) >= _LEAST_SAMPLES:
            self._fit, self._is_stale = fitted(self._recent()), False
        return self._fit

    def _recent(self) -> list[tuple[float, float]]:
        """The last ones in time, and a dozen in any case."""
        since_s, spare = self._samples[-1][0] - _SPAN_S, len(self._samples) - _LEAST_RECENT
        return [(n, tpot_s) for at, (at_s, n, tpot_s) in enumerate(self._samples) if at_s >= since_s or at >= spare]

    def most(self, tpot_s: float) -> int:
        """How many requests at once keep `tpot_s`, as far as is known."""
        fit = self.fit
        return _FIRST_MOST if fit is None else fit.most(tpot_s)


def fitted(samples: Sequence[tuple[float, float]]) -> Fit:
    """The line through (n, tpot_s); not empty, n > 0."""
    a_s, b_s = _line(samples)
    ranked = sorted(samples, key=lambda sample: abs(sample[1] - a_s - b_s * sample[0]))
    a_s, b_s = _line(ranked[: max(1, int(len(ranked) * _KEPT))])
    ratios = sorted(tpot_s / max(a_s + b_s * n, 1e-9) for n, tpot_s in samples)
    spread = max(1.0, ratios[min(len(ratios) - 1, int(len(ratios) * _KEPT))])
    return Fit(a_s, b_s, spread, max(n for n, _ in samples))


def _line(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    count = len(samples)
    mean_n = sum(n for n, _ in samples) / count
    mean_s = sum(tpot_s for _, tpot_s in samples) / count
    square = sum((n - mean_n) ** 2 for n, _ in samples)
    product = sum((n - mean_n) * (tpot_s - mean_s) for n, tpot_s in samples)
    weight = mean_n**2
    b_s = (product + weight * _PRIOR_SHARE * mean_s / mean_n) / (square + weight)
    b_s = min(max(b_s, 0.0), mean_s / mean_n)
    return mean_s - b_s * mean_n, b_s
