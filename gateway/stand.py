"""One request that stands in its model's line, until its turn comes, its time is over, or its caller leaves."""

from collections.abc import Sequence
from typing import Protocol

from gateway.admission.desk import Waiter
from gateway.admission.line import Asker, Place, Return
from gateway.relay import Request
from gateway.replica import Replica
from gateway.routing import Route
from gateway.wire import Fault


class Standing(Protocol):
    """The way that it is a part of."""

    def among(self, candidates: Sequence[Replica]) -> Sequence[Replica]:
        """Those of them to which it may go; asked only of one that lost its place."""

    def let_in(self, candidates: Sequence[Replica]) -> None:
        """These have room: take a place on one of them."""

    def sent_away(self, fault: Fault) -> None:
        """There is no room, and will be none in time."""


class Stand:
    """What the gate calls (`Waiter`) instead of the request."""

    def __init__(self, request: Request, standing: Standing) -> None:
        self._request = request
        self._standing = standing
        self._place: Place[Waiter] | None = None

    def join(self, model: str, asker: Asker, route: Route) -> None:
        """Stand in line from now on; `let_in` may come at once. Raises RefusedError, as `Gate.wait`."""
        self._request.relay.gate.wait(model, asker, route, self)

    def rejoin(self, model: str, asker: Asker, route: Route, back: Return) -> None:
        """The same of one that lost its place, before all others."""
        self._request.relay.gate.wait_again(model, asker, route, back, self)

    def stands(self, place: Place[Waiter]) -> None:
        """Called by the gate, before anything else."""
        self._place = place

    def among(self, candidates: Sequence[Replica]) -> Sequence[Replica]:
        """Called by the gate: those of them to which it may go."""
        return self._standing.among(candidates)

    def admitted(self, candidates: Sequence[Replica]) -> None:
        """Called by the gate: its turn has come, and these have room."""
        place, self._place = self._place, None
        relay = self._request.relay
        try:
            assert place is not None  # noqa: S101  (the gate calls who stands in its line)
            relay.metrics.waited(place.model, relay.clock() - place.since_s)
            self._standing.let_in(candidates)
        except Exception:  # noqa: BLE001  (a boundary, as in Exchange.open)
            self._request.stumble()

    def turned_away(self, fault: Fault) -> None:
        """Called by the gate, which has taken it out of the line."""
        self._place = None
        try:
            self._standing.sent_away(fault)
        except Exception:  # noqa: BLE001  (see admitted)
            self._request.stumble()

    def tick(self, now_s: float, pinged_s: float) -> bool:
        """Called by the watch, through the request: its time may be over. Whether its caller needs a sign of life, of
        which the last was sent at `pinged_s`."""
        place, relay = self._place, self._request.relay
        if place is None:
            return False
        fault = relay.gate.check_time(place, now_s)
        if fault is not None:
            self.turned_away(fault)
            return False
        return now_s - max(place.since_s, pinged_s) > relay.config.timeouts.keep_alive_s

    def leave(self) -> None:
        """It goes, served or not; harmless when repeated."""
        place, self._place = self._place, None
        if place is not None:
            self._request.relay.gate.leave(place)
