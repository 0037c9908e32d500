"""Whether a request may come in at all now. Returns a ticket; whoever holds it settles it exactly once."""

from typing import Final

from gateway.errors import RefusedError
from gateway.wire import Fault

_RETRY_AFTER_S: Final = 1


class Ticket:
    """One admitted request. `settle` is synchronous so that no cancellation can lose it, and harmless when repeated."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._open = True

    def settle(self) -> None:
        """Give the place back."""
        if self._open:
            self._open = False
            self._admission.in_flight -= 1


class Admission:
    """Bounds the requests inside the gateway; the count changes before anything is awaited."""

    def __init__(self, max_in_flight: int | None = None) -> None:
        self.max_in_flight = max_in_flight
        self.in_flight = 0
        self.is_draining = False

    def admit(self) -> Ticket:
        """A ticket, or RefusedError 503 with Retry-After when the house is full or closing."""
        if self.is_draining:
            message = "the gateway is shutting down; try again shortly"
            raise RefusedError(Fault(503, message, code="shutting_down", retry_after_s=_RETRY_AFTER_S))
        if self.max_in_flight is not None and self.in_flight >= self.max_in_flight:
            message = f"{self.in_flight} requests are in flight, the most this gateway takes; try again shortly"
            raise RefusedError(Fault(503, message, code="overloaded", retry_after_s=_RETRY_AFTER_S))
        self.in_flight += 1
        return Ticket(self)
