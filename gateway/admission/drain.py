"""How fast a line is served, measured only while somebody stands in it. Pure."""

import math
from typing import Final

_SPAN_S: Final = 40.0
"""Several times what a whole batch of long answers takes: until the first of it is done nobody is served, and a rate
over less than that would fall to nothing each time."""
_LEAST_BUSY_S: Final = 1.0
_LEAST_SERVED: Final = 4


class Drain:
    """Tokens served over seconds in which somebody waited, both faded out over the last forty: an idle hour says
    nothing about how fast a line moves, and neither does the last line but for its first seconds."""

    __slots__ = ("_busy_s", "_served", "_since_s", "_tokens")

    def __init__(self) -> None:
        self._tokens = self._busy_s = 0.0
        self._served = 0
        self._since_s: float | None = None

    def opened(self, now_s: float) -> None:
        """Somebody waits from now on."""
        self._since_s = now_s

    def closed(self, now_s: float) -> None:
        """Nobody does any more."""
        self._advance(now_s)
        self._since_s = None

    def served(self, tokens: int, now_s: float) -> None:
        """Somebody with so many tokens was."""
        self._advance(now_s)
        self._tokens += tokens
        self._served += 1

    def wait_s(self, tokens: float, now_s: float) -> float | None:
        """How long so many take; None while that cannot be known."""
        self._advance(now_s)
        if self._served < _LEAST_SERVED or self._busy_s < _LEAST_BUSY_S or self._tokens <= 0:
            return None
        return tokens * self._busy_s / self._tokens

    def _advance(self, now_s: float) -> None:
        if self._since_s is None:
            return
        faded = math.exp((self._since_s - now_s) / _SPAN_S)
        self._tokens *= faded
        self._busy_s = self._busy_s * faded + _SPAN_S * (1 - faded)
        self._since_s = now_s
