"""What one request counts for against its caller's limits, until it is over."""

from collections.abc import Callable
from datetime import UTC, datetime

from gateway.admission.rates import CallerAccount
from gateway.errors import RefusedError
from gateway.headers import lines
from gateway.routing import Route
from gateway.wire import Dialect, Usage
from gateway.wire.limits import limit_headers


class Dues:
    """Made for a request whose caller has limits; `clock` in seconds."""

    def __init__(self, account: CallerAccount, clock: Callable[[], float]) -> None:
        self._account = account
        self._clock = clock
        self._is_counted = False
        self._charged_tokens = 0

    def enter(self) -> None:
        """One more request. Raises RefusedError (429), which is not counted."""
        fault = self._account.enter(self._clock())
        if fault is not None:
            raise RefusedError(fault)
        self._is_counted = True

    def charge(self, route: Route) -> None:
        """The tokens it is likely to use. Raises RefusedError (429) when they are not there."""
        tokens = route.prompt_tokens + route.output_tokens
        fault = self._account.charge(tokens, self._clock())
        if fault is not None:
            raise RefusedError(fault)
        self._charged_tokens = tokens

    def lines(self, dialect: Dialect) -> bytes:
        """What is left, as header lines of its answer."""
        return lines(limit_headers(dialect, self._account.allowances(self._clock()), datetime.now(UTC)))

    def leave(self, usage: Usage, *, is_tried: bool) -> None:
        """It is over, and this is what it used: as far as one knows, what was taken at first; nothing, where no
        replica had it."""
        if not self._is_counted:
            return
        if not is_tried:
            used_tokens = 0
        elif usage.prompt_tokens is None:
            used_tokens = self._charged_tokens
        else:
            used_tokens = usage.prompt_tokens + (usage.output_tokens or 0)
        self._account.leave(self._charged_tokens, used_tokens, self._clock())
