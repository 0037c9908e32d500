"""Order statistics of small samples."""

import math
from collections.abc import Iterable


def percentile(values: Iterable[float], share: float) -> float:
    """By linear interpolation between the two nearest; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
