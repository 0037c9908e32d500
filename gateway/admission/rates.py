"""What a caller may ask for: requests and tokens a minute, and how many at once. Pure.

A minute's allowance is a bucket that is full at first and fills evenly; tokens are taken by estimate and put right when
the engine has counted. A request larger than the whole bucket may come in when that is full, and leaves it in debt:
refusing it for ever would not make it smaller.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.wire import Fault
from gateway.wire.limits import Allowance, Counted

_MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Of one caller, over all of its keys; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_in_flight: int | None = None


class _Bucket:
    """`size` a minute; what is left may be negative."""

    __slots__ = ("_at_s", "_left", "size")

    def __init__(self, size: int, now_s: float) -> None:
        self.size = size
        self._left = float(size)
        self._at_s = now_s

    def left(self, now_s: float) -> float:
        """What is in it now."""
        filled = self._left + (now_s - self._at_s) * self.size / _MINUTE_S
        self._left, self._at_s = min(float(self.size), filled), now_s
        return self._left

    def take(self, amount: float, now_s: float) -> None:
        """Less than nothing (`amount` negative) puts it back."""
        self._left = min(float(self.size), self.left(now_s) - amount)

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until `amount` is in it, or until it is full."""
        return max(0.0, min(amount, self.size) - self.left(now_s)) * _MINUTE_S / self.size

    def allowance(self, counted: Counted, now_s: float) -> Allowance:
        left = self.left(now_s)
        return Allowance(counted, self.size, max(0, math.floor(left)), (self.size - left) * _MINUTE_S / self.size)


class CallerAccount:
    """One caller against its limits."""

    __slots__ = ("_caller", "_limits", "_requests", "_tokens", "in_flight")

    def __init__(self, caller: str, limits: CallerLimits, now_s: float) -> None:
        self._caller = caller
        self.in_flight = 0
        self._requests: _Bucket | None = None
        self._tokens: _Bucket | None = None
        self.use(limits, now_s)

    def use(self, limits: CallerLimits, now_s: float) -> None:
        """Other limits from now on; a limit that stays keeps its count."""
        self._limits = limits
        self._requests = _resized(self._requests, limits.requests_per_minute, now_s)
        self._tokens = _resized(self._tokens, limits.tokens_per_minute, now_s)

    def enter(self, now_s: float) -> Fault | None:
        """Count one request, until `leave`; a Fault 429 says which limit it is over, and nothing is counted."""
        most = self._limits.max_in_flight
        if most is not None and self.in_flight >= most:
            message = f"'{self._caller}' has {self.in_flight} requests in flight, its limit is {most} (max_in_flight)"
            return Fault(429, message, code="rate_limit_exceeded", retry_after_s=1)
        if self._requests is not None:
            wait_s = self._requests.wait_s(1, now_s)
            if wait_s > 0:
                return self._over("requests", self._requests.size, wait_s)
            self._requests.take(1, now_s)
        self.in_flight += 1
        return None

    def charge(self, tokens: int, now_s: float) -> Fault | None:
        """Take the tokens a request is likely to use; a Fault 429 when they are not there, and nothing is taken."""
        if self._tokens is None:
            return None
        wait_s = self._tokens.wait_s(tokens, now_s)
        if wait_s > 0:
            return self._over("tokens", self._tokens.size, wait_s)
        self._tokens.take(tokens, now_s)
        return None

    def leave(self, charged_tokens: int, used_tokens: int, now_s: float) -> None:
        """A request that came in is over: it was charged so many tokens, and used so many. Once a request."""
        self.in_flight -= 1
        if self._tokens is not None and used_tokens != charged_tokens:
            self._tokens.take(used_tokens - charged_tokens, now_s)

    def allowances(self, now_s: float) -> list[Allowance]:
        """What is left, for the headers of an answer."""
        found = []
        if self._requests is not None:
            found.append(self._requests.allowance("requests", now_s))
        if self._tokens is not None:
            found.append(self._tokens.allowance("tokens", now_s))
        return found

    def _over(self, counted: Counted, limit: int, wait_s: float) -> Fault:
        seconds = max(1, math.ceil(wait_s))
        message = f"'{self._caller}' is over its limit of {limit:,} {counted} a minute; try again in {seconds} s"
        return Fault(429, message, code="rate_limit_exceeded", retry_after_s=seconds)


class Accounts:
    """The callers that have limits."""

    def __init__(self, limits: Mapping[str, CallerLimits], now_s: float) -> None:
        self._accounts: dict[str, CallerAccount] = {}
        self.use(limits, now_s)

    def use(self, limits: Mapping[str, CallerLimits], now_s: float) -> None:
        """Other limits from now on; whoever had an account keeps it."""
        had = self._accounts
        self._accounts = {}
        for caller, theirs in limits.items():
            account = had.get(caller)
            if account is None:
                account = CallerAccount(caller, theirs, now_s)
            else:
                account.use(theirs, now_s)
            self._accounts[caller] = account

    def of(self, caller: str) -> CallerAccount | None:
        """None for a caller without limits."""
        return self._accounts.get(caller)


def _resized(bucket: _Bucket | None, size: int | None, now_s: float) -> _Bucket | None:
    if size is None:
        return None
    if bucket is None:
        return _Bucket(size, now_s)
    spent = bucket.size - bucket.left(now_s)
    bucket.size = size
    bucket.take(0, now_s)
    bucket.take(bucket.left(now_s) - (size - spent), now_s)
    return bucket
