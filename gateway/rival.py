"""A second replica that is asked the same because the first is slow; the first bytes of an answer win.

The request the loser had is given up, which makes its engine stop. A rival that fails changes nothing: it was extra.
"""

from typing import Protocol

from gateway.breaker import failure_kind
from gateway.errors import UpstreamError
from gateway.headers import Header
from gateway.metrics import Tally
from gateway.replica import Replica
from gateway.routing import Pick
from gateway.upstream import Connection


class Hedged(Protocol):
    """Whose request it is."""

    def overtaken(self, rival: "Rival", data: bytes) -> None:
        """The rival is first: these are the first bytes of its answer, and all that follows is yours."""


class Rival:
    """The `Sink` of the second request until it has won or lost."""

    def __init__(self, hedged: Hedged, place: Pick[Replica], tally: Tally, asked_s: float) -> None:
        self._hedged = hedged
        self.replica = place.load
        self.place = place
        self.tally = tally
        self.asked_s = asked_s
        self.connection: Connection | None = None
        self.status = 0
        self.headers: list[Header] = []
        tally.in_flight += 1

    def began(self, status: int, headers: list[Header]) -> None:
        """The head of its answer; an engine sends that before it has done anything."""
        self.status, self.headers = status, headers
        if status >= 300:
            self.drop()

    def received(self, data: bytes) -> None:
        """The first bytes."""
        self._hedged.overtaken(self, data)

    def passed(self, chunk: bytes, start: int) -> bool:
        """There is nothing to be passed on before the first bytes."""
        return False

    def ended(self) -> None:
        """An answer without a byte."""
        self.connection = None
        self.drop()

    def failed(self, error: UpstreamError) -> None:
        """It did not deliver."""
        kind = failure_kind(error)
        if kind is not None:
            self.replica.failed(kind)
        self.connection = None
        self.drop()

    def drop(self) -> None:
        """It has lost; harmless when repeated."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.cut()
        if self.place.is_open:
            self.place.release()
            self.tally.in_flight -= 1
