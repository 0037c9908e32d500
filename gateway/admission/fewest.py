"""The fewest tokens that a prompt can plausibly have. Pure."""

from collections import deque
from typing import Final

_RECENT: Final = 256
_SURE: Final = 32
_OF_FEWEST: Final = 0.2
"""Of the fewest tokens a unit that were seen: prose and code have some 0.2 a byte, tables 0.14, and a log with lines of
ruling and blanks 0.06. Who refuses what would have fitted does worse than who lets an engine say how long it is."""
_MOST_A_UNIT: Final = 0.05
"""However little was seen to be dense."""
_TOKENS_A_UNIT: Final = 1 / 64
"""Of text, before enough was seen. Long runs of one sign are the densest that vocabularies have."""
_LEAST_UNITS: Final = 64


class Fewest:
    """Of one model's requests. A unit is a byte of the prompt's text, as in `routing.Chain`."""

    __slots__ = ("_is_stale", "_ratios", "_tokens_a_unit")

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=_RECENT)
        self._tokens_a_unit = _TOKENS_A_UNIT
        self._is_stale = False

    def learn(self, units: int, prompt_tokens: int) -> None:
        """An engine counted so many tokens in a prompt of so many units."""
        if units >= _LEAST_UNITS and prompt_tokens:
            self._ratios.append(prompt_tokens / units)
            self._is_stale = True

    def tokens(self, units: int) -> int:
        """No fewer than these."""
        if self._is_stale and len(self._ratios) >= _SURE:
            self._is_stale = False
            self._tokens_a_unit = min(_MOST_A_UNIT, min(self._ratios) * _OF_FEWEST)
        return int(units * self._tokens_a_unit)
