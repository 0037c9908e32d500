"""How many events the last `span_s` seconds saw, in two counters: the running half and the one before it, faded out."""


class Window:
    """A sliding count. `now_s` never goes back; memory and time do not depend on how many events there were."""

    __slots__ = ("_before", "_count", "_half_s", "_since_s")

    def __init__(self, span_s: float) -> None:
        self._half_s = span_s / 2
        self._since_s = float("-inf")
        self._count = 0
        self._before = 0

    def add(self, now_s: float) -> None:
        """One event, now."""
        if now_s - self._since_s >= self._half_s:
            self._turn(now_s)
        self._count += 1

    def total(self, now_s: float) -> float:
        """Events of the last `span_s`; what is older than half of it is taken to have come evenly."""
        if now_s - self._since_s >= self._half_s:
            self._turn(now_s)
        return self._count + self._before * (1 - (now_s - self._since_s) / self._half_s)

    def clear(self) -> None:
        """Forget everything."""
        self._count = self._before = 0

    def _turn(self, now_s: float) -> None:
        is_next = now_s - self._since_s < 2 * self._half_s
        self._before = self._count if is_next else 0
        self._since_s = self._since_s + self._half_s if is_next else now_s
        self._count = 0
