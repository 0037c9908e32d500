"""How many requests may be sent a second time, so that a failing fleet does not double its own load. Pure, O(1).

A token bucket (as Finagle's RetryBudget): every request pays in `share`, every second `floor_per_s`, and every retry
takes one out. So over any time: retries <= burst + share * requests + floor_per_s * seconds + what was granted.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryBudgetConfig:
    """`burst` is what the bucket holds at most, and at first."""

    share: float = 0.2
    floor_per_s: float = 2.0
    burst: float = 50.0
    grant_s: float = 10.0
    """How long a grant can be used."""


class RetryBudget:
    """The bucket of one gateway."""

    __slots__ = ("_balance", "_clock", "_config", "_granted", "_granted_until_s", "_paid_until_s", "refused")

    def __init__(self, config: RetryBudgetConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._balance = config.burst
        self._paid_until_s = clock()
        self._granted = 0
        self._granted_until_s = float("-inf")
        self.refused = 0

    @property
    def balance(self) -> float:
        """What is in the bucket; what time has paid in since the last retry is not yet counted."""
        return self._balance

    def requested(self) -> None:
        """A request came in (its retries are none)."""
        if self._balance < self._config.burst:
            self._balance = min(self._config.burst, self._balance + self._config.share)

    def grant(self, requests: int) -> None:
        """A replica went away with `requests` in flight, or fails all it has: each may be sent once more for nothing,
        since its work there has ended. A crash of one of two must not cost more than the budget of a quiet hour."""
        now_s = self._clock()
        left = self._granted if now_s < self._granted_until_s else 0
        self._granted = left + requests
        self._granted_until_s = now_s + self._config.grant_s

    def take(self) -> bool:
        """Whether one retry may be made now; if so it is counted."""
        now_s = self._clock()
        if self._granted and now_s < self._granted_until_s:
            self._granted -= 1
            return True
        paid = (now_s - self._paid_until_s) * self._config.floor_per_s
        self._paid_until_s = now_s
        self._balance = min(self._config.burst, self._balance + paid)
        if self._balance < 1:
            self.refused += 1
            return False
        self._balance -= 1
        return True
