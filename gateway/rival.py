"""A second replica that is asked the same because the first is slow; the first bytes of an answer win.

The request the loser had is given up, which makes its engine stop. A rival that fails changes nothing: it was extra.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gateway.admission.room import with_room
from gateway.attempt import Attempt
from gateway.breaker import failure_kind
from gateway.config import Hedge
from gateway.errors import UpstreamError
from gateway.headers import Header
from gateway.relay import Request
from gateway.replica import Replica
from gateway.routing import Route
from gateway.wire import Call


class Hedged(Protocol):
    """The way of the request that it is for."""

    @property
    def is_answered(self) -> bool:
        """Whether anything of an answer has come: then nobody else is asked."""

    def others(self) -> list[Replica]:
        """Who else may be tried."""

    def placed_beside(self, call: Call, candidates: Sequence[Replica]) -> Attempt:
        """An attempt on one of them beside the one that goes on; not sent yet."""

    def overtaken(self, winner: Attempt) -> None:
        """The second attempt is first: it is the request's only one from now on."""


class Rival:
    """The timer until a second replica is asked; then the `Sink` of that request, until it has won or lost."""

    def __init__(
        self, request: Request, hedged: Hedged, call: Call, route: Route, hedge: Hedge, after_s: float
    ) -> None:
        self._request = request
        self._hedged = hedged
        self._call = call
        self._route = route
        self._hedge = hedge
        self._timer = asyncio.get_running_loop().call_later(after_s, self._ask)
        self._attempt: Attempt | None = None
        self._status = 0
        self._headers: list[Header] = []

    def _ask(self) -> None:
        hedged, call, relay = self._hedged, self._call, self._request.relay
        try:
            if hedged.is_answered:
                return
            others = with_room([replica for replica in hedged.others() if replica.is_in], self._route)
            if not others or not relay.hedges.take(self._hedge):
                return
            self._attempt = attempt = hedged.placed_beside(call, others)
            relay.metrics.hedged(call.model, attempt.replica.name)
            attempt.send(call.endpoint.method, call.endpoint.raw_path, call.body, self)
        except Exception:  # noqa: BLE001  (a boundary, as in Exchange.open)
            self._request.stumble()

    def began(self, status: int, headers: list[Header]) -> None:
        """The head of its answer; an engine sends that before it has done anything."""
        self._status, self._headers = status, headers
        if status >= 300:
            self.drop()

    def received(self, data: bytes) -> None:
        """The first bytes: all that follows is the request's."""
        attempt, self._attempt = self._attempt, None
        assert attempt is not None  # noqa: S101  (the bytes came over its connection)
        try:
            self._hedged.overtaken(attempt)
            assert attempt.connection is not None  # noqa: S101  (see above)
            attempt.connection.hand_over(attempt)
            attempt.began(self._status, self._headers)
        except Exception:  # noqa: BLE001  (see _ask)
            self._request.stumble()
            attempt.leave()
        if attempt.place is not None:
            attempt.received(data)

    def passed(self, chunk: bytes, start: int) -> bool:
        """There is nothing to be passed on before the first bytes."""
        return False

    def ended(self) -> None:
        """An answer without a byte."""
        self._give_up()

    def failed(self, error: UpstreamError) -> None:
        """It did not deliver."""
        kind = failure_kind(error)
        if kind is not None and self._attempt is not None:
            self._attempt.replica.failed(kind)
        self._give_up()

    def _give_up(self) -> None:
        if self._attempt is not None:
            self._attempt.connection = None
        self.drop()

    def drop(self) -> None:
        """It has lost, or is not needed; harmless when repeated."""
        self._timer.cancel()
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.leave()
