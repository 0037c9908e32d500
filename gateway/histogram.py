"""A histogram of plain numbers: cheap to add to, given its Prometheus shape only when somebody scrapes."""

from bisect import bisect_left


class Histogram:
    """How many values fell into each bucket, and their sum; a bucket holds values up to and including its bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted yet."""
        return not any(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: each bucket with all below it."""
        rows, running = [], 0
        for name, count in zip((*map(str, map(float, self.bounds)), "+Inf"), self.counts, strict=True):
            running += count
            rows.append((name, float(running)))
        return rows
