"""When a second replica is asked for the same answer, so that one slow replica does not make a slow request. Pure.

"The Tail at Scale" (Dean and Barroso, 2013): wait until the first is slower than nearly all were, then take whichever
answers first. A few per cent more work, for as long as a few per cent of the requests are slow.
"""

from collections.abc import Sequence
from math import ceil

from gateway.config import Hedge

_MIN_SAMPLES = 20
_KEPT = 1000


def hedge_after_s(recent_ttfts_s: Sequence[float], hedge: Hedge) -> float | None:
    """How long to wait for a first token before asking a second replica, by recent ones in seconds; None: not at all,
    since below twenty nobody knows what is slow."""
    if len(recent_ttfts_s) < _MIN_SAMPLES:
        return None
    ranked = sorted(recent_ttfts_s)
    return max(hedge.min_s, ranked[ceil(hedge.quantile * len(ranked)) - 1])


class HedgeCount:
    """Requests of late, and how many of them were sent twice; half of both is forgotten every thousand requests."""

    def __init__(self) -> None:
        self._requests = self._hedged = 0.0

    def requested(self) -> None:
        """One more that may be hedged."""
        self._requests += 1
        if self._requests > _KEPT:
            self._requests, self._hedged = self._requests / 2, self._hedged / 2

    def take(self, hedge: Hedge) -> bool:
        """Whether one may be sent twice now; if so it is counted."""
        if not may_hedge(self._hedged, self._requests, hedge):
            return False
        self._hedged += 1
        return True


def may_hedge(hedged: float, requests: float, hedge: Hedge) -> bool:
    """Whether one more of `requests` recent ones may be sent twice, when `hedged` of them were: if everything is slow,
    sending it twice makes it slower."""
    return hedged + 1 <= hedge.share * requests
