"""Whether a figure that was sampled over time grew: its slope with a band. Pure."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_BLOCKS = 10
_T_95 = 2.306  # Student's t for 8 degrees of freedom, two-sided 95 %: a line through ten points has two parameters


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through the samples: units per second, and half the width of its 95 % band."""

    slope: float
    band: float
    span_s: float
    level: float

    def is_flat(self, share: float) -> bool:
        """Whether the figure grew by less than `share` of its level over the whole span, band included."""
        return (self.slope + self.band) * self.span_s <= share * self.level


def trend(times_s: Sequence[float], values: Sequence[float]) -> Trend:
    """Least squares over the means of ten equal parts: neighbouring samples are not independent, such means nearly are.

    Raises ValueError for fewer than ten samples.
    """
    count = len(values)
    if count < _BLOCKS or count != len(times_s):
        raise ValueError(f"a trend needs {_BLOCKS} samples or more, and a time for each; got {count}")
    cuts = [count * i // _BLOCKS for i in range(_BLOCKS + 1)]
    blocks = [slice(start, end) for start, end in itertools.pairwise(cuts)]
    x = [statistics.fmean(times_s[block]) for block in blocks]
    y = [statistics.fmean(values[block]) for block in blocks]
    slope, start = statistics.linear_regression(x, y)
    middle = statistics.fmean(x)
    residual = math.fsum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True)) / (_BLOCKS - 2)
    spread = math.fsum((a - middle) ** 2 for a in x)
    return Trend(slope, _T_95 * math.sqrt(residual / spread), times_s[-1] - times_s[0], statistics.fmean(values))
