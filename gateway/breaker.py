"""When a replica is given no requests, or fewer, because of how it answered: one circuit breaker per replica.

    closed ──(failures in a row | error rate | outlier)──▶ open ──(time)──▶ half_open ──(a success)──▶ closed, slowly
                                                             ◀──────(a failure)──────┘

Nygard's breaker ("Release It!") with Envoy's outlier detection and slow start, for fleets of two to a few dozen. Pure:
the clock and the jitter are given. What counts as a failure is `failure_kind`'s to say.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from gateway.errors import AnswerError, ConnectError, UpstreamError
from gateway.window import Window

BreakerState = Literal["closed", "open", "half_open"]
FailureKind = Literal["connect", "broken", "error"]
"""connect: no connection; broken: it broke or stayed silent; error: the engine said that it failed."""
Reason = Literal["consecutive", "error_rate", "trial", "outlier_errors", "outlier_ttft"]
"""Why a breaker opened. The last two: it is far worse than its peers (`gateway.outliers`)."""

_OWN_FAULT: Final = {500, 502, 504}  # not 503: vLLM's word for "full"
_TTFTS_KEPT: Final = 100
_RAMP_STEPS: Final = 20


@dataclass(frozen=True, slots=True)
class BreakerConfig:
    """When one replica's breaker opens, and how it closes again."""

    consecutive_failures: int = 5
    error_rate: float = 0.5
    min_requests: int = 20
    """Below so many answers in the window an error rate says nothing."""
    window_s: float = 30.0
    open_s: float = 5.0
    open_max_s: float = 120.0
    """Open for `open_s`, doubled each time it opens again, up to this; closed for as long, it forgets the doubling."""
    jitter: float = 0.2
    """Up to this share less, at random: replicas that failed together are not tried together."""
    trials: int = 3
    """Requests let through at a time while half open."""
    slow_start_s: float = 10.0
    min_share: float = 0.1


def failure_kind(error: UpstreamError) -> FailureKind | None:
    """How `error` counts against its replica; None when it is the request's fault, or only says that it is full."""
    if isinstance(error, AnswerError):
        return "error" if error.fault.status in _OWN_FAULT else None
    return "connect" if isinstance(error, ConnectError) else "broken"


def open_time_s(config: BreakerConfig, times_in_a_row: int, luck: float) -> float:
    """How long to stay open the n-th time in a row (from 1). `luck` is in [0, 1)."""
    doubled = config.open_s * 2.0 ** min(times_in_a_row - 1, 60)
    return min(doubled, config.open_max_s) * (1 - config.jitter * luck)


class Breaker:
    """One replica's record. `trials` is kept by its reservations, so that a trial ends however its request ends."""

    __slots__ = (
        "_clock", "_closed_since_s", "_config", "_failed", "_failures_in_a_row", "_luck", "_open_until_s",
        "_openings_in_a_row", "_ramp_from_s", "_succeeded", "_ttfts", "ejections", "state", "trials",
    )  # fmt: skip

    def __init__(
        self, config: BreakerConfig, clock: Callable[[], float], luck: Callable[[], float] = random.random
    ) -> None:
        self._config = config
        self._clock = clock
        self._luck = luck
        self.state: BreakerState = "closed"
        self.trials = 0
        self.ejections: dict[Reason, int] = {}
        self._failures_in_a_row = self._openings_in_a_row = 0
        self._succeeded, self._failed = Window(config.window_s), Window(config.window_s)
        self._ttfts: deque[tuple[float, float]] = deque(maxlen=_TTFTS_KEPT)
        self._closed_since_s = self._ramp_from_s = self._open_until_s = float("-inf")

    # What its requests say
    def succeeded(self, ttft_s: float | None) -> None:
        """A request was answered, or has its first token after `ttft_s`. One that was a trial closes the breaker."""
        now_s = self._clock()
        self._failures_in_a_row = 0
        if self.state == "closed":
            self._succeeded.add(now_s)
            if ttft_s is not None:
                self._ttfts.append((now_s, ttft_s))
        elif self.trials:  # without one it is a straggler, sent before the breaker opened: old news
            self._close(now_s)

    def was_late(self, waited_s: float) -> None:
        """A request was given up after `waited_s` without a first token: slow, which is not yet a failure."""
        if self.state == "closed":
            self._ttfts.append((self._clock(), waited_s))

    def failed(self) -> None:
        """A request failed, and it was the replica's fault."""
        now_s = self._clock()
        if self.state == "half_open":
            self._open(now_s, "trial")
        elif self.state == "closed":
            self._failures_in_a_row += 1
            self._failed.add(now_s)
            if self._failures_in_a_row >= self._config.consecutive_failures:
                self._open(now_s, "consecutive")
            elif (self.error_rate() or 0.0) >= self._config.error_rate:
                self._open(now_s, "error_rate")

    def eject(self, reason: Reason) -> None:
        """Open: its peers show that it is the odd one out."""
        if self.state == "closed":
            self._open(self._clock(), reason)

    def restarted(self) -> None:
        """There is a new process: what the old one did is not held against it, and it starts slowly."""
        self._close(self._clock())

    def advance(self) -> None:
        """An open breaker whose time is over becomes half open."""
        if self.state == "open" and self._clock() >= self._open_until_s:
            self.state = "half_open"

    # What is known
    @property
    def lets_through(self) -> bool:
        """Whether one more request may be sent."""
        return self.state == "closed" or (self.state == "half_open" and self.trials < self._config.trials)

    def share(self) -> float:
        """In (0, 1]: how much of a peer's load it should get. Grows over `slow_start_s` after a start or a recovery."""
        config = self._config
        if self.state != "closed":
            return config.min_share
        ramped_s = self._clock() - self._ramp_from_s
        if ramped_s >= config.slow_start_s:
            return 1.0
        return min(1.0, max(config.min_share, ramped_s / config.slow_start_s))

    def changes_at_s(self) -> float:
        """When `state` or `share` next changes by time alone; infinity for never."""
        if self.state == "open":
            return self._open_until_s
        now_s, slow_start_s = self._clock(), self._config.slow_start_s
        is_ramping = self.state == "closed" and now_s - self._ramp_from_s < slow_start_s
        return now_s + slow_start_s / _RAMP_STEPS if is_ramping else float("inf")

    def error_rate(self) -> float | None:
        """Failures among the answers of the window; None below `min_requests`."""
        now_s = self._clock()
        failed = self._failed.total(now_s)
        answered = failed + self._succeeded.total(now_s)
        return failed / answered if answered >= self._config.min_requests else None

    def ttft_s(self) -> float | None:
        """The median of the window's last hundred times to first token; None below `min_requests`."""
        oldest_s = self._clock() - self._config.window_s
        while self._ttfts and self._ttfts[0][0] < oldest_s:
            self._ttfts.popleft()
        if len(self._ttfts) < self._config.min_requests:
            return None
        return median(ttft_s for _, ttft_s in self._ttfts)

    def recent_ttfts(self) -> list[float]:
        """The times to first token behind `ttft_s`, in seconds."""
        oldest_s = self._clock() - self._config.window_s
        return [ttft_s for at_s, ttft_s in self._ttfts if at_s >= oldest_s]

    def _open(self, now_s: float, reason: Reason) -> None:
        if now_s - self._closed_since_s >= self._config.open_max_s and self.state == "closed":
            self._openings_in_a_row = 0
        self._openings_in_a_row += 1
        self._open_until_s = now_s + open_time_s(self._config, self._openings_in_a_row, self._luck())
        self.state = "open"
        self.ejections[reason] = self.ejections.get(reason, 0) + 1
        self._forget()

    def _close(self, now_s: float) -> None:
        self.state = "closed"
        self._closed_since_s = self._ramp_from_s = now_s
        self._forget()

    def _forget(self) -> None:
        self._failures_in_a_row = 0
        self._succeeded.clear()
        self._failed.clear()
        self._ttfts.clear()
