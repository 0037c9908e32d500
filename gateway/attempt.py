"""One attempt of a request on one replica: placed and counted there until it leaves, and the `Sink` of its answer.

What an engine says goes out to the caller from here; how that begins, what follows when it fails, and the end are for
the request.
"""

from collections.abc import Callable
from typing import Final, Protocol

from gateway import faults
from gateway.breaker import failure_kind
from gateway.connection import Connection, Sink
from gateway.continuation import Trail
from gateway.errors import AnswerError, BrokenError, UpstreamError
from gateway.headers import Head, Header, is_event_stream
from gateway.meter import Meter
from gateway.relay import Request
from gateway.replica import Replica
from gateway.routing import Pick
from gateway.wire import Call, Dialect, Fault, Usage

CONTINUED: Final[frozenset[Dialect]] = frozenset({"chat", "completions", "responses", "messages"})
"""Whose streams can go on from another replica."""
_UNKNOWN: Final = Usage()


class Attempted(Request, Protocol):
    """Whose attempt it is."""

    head: Head
    """Of which its engine gets to see some lines."""

    def started(self, attempt: "Attempt", first: bytes) -> None:
        """The first bytes of its stream, perhaps none; all that follows goes to its client without it."""

    def answered(self, attempt: "Attempt", body: bytes) -> None:
        """Its whole answer, which is no error."""


class Onward(Protocol):
    """Where it goes when the attempt has failed."""

    def lost(self, attempt: "Attempt", error: UpstreamError) -> None:
        """The caller has seen nothing of it."""

    def broke(self, attempt: "Attempt", error: UpstreamError, told: bytes | None = None) -> None:
        """In the middle of its stream; `told` is the event in which the engine itself says so."""


class Attempt:
    """One made for each replica tried; the request leaves with the last. `place` and `connection` are None once they
    are given back."""

    __slots__ = (
        "_awaits_token", "_first", "_held_bytes", "_onward", "_pass_on", "_pieces", "_relay", "_request",
        "call", "came_s", "connection", "headers", "heard_s", "is_started", "meter", "place", "predicted_tokens",
        "replica", "sent_s", "status", "tally", "there", "usage",
    )  # fmt: skip

    # of an answer that has begun
    came_s: float
    status: int
    headers: list[Header]
    _first: bytes
    _pieces: list[bytes] | None
    _held_bytes: int

    def __init__(self, request: Attempted, onward: Onward, call: Call, place: Pick[Replica]) -> None:
        self._request = request
        self._onward = onward
        self._relay = relay = request.relay
        self.call = call
        self.place: Pick[Replica] | None = place
        self.replica = replica = place.load
        self.predicted_tokens = place.predicted_tokens
        self.tally = tally = relay.metrics.tally(call.model, replica.name, call.endpoint.dialect)
        tally.in_flight += 1
        self.there = replica.in_flight
        """Requests at its replica when it was sent, itself among them."""
        self.sent_s = self.heard_s = relay.clock()
        self.connection: Connection | None = None
        self.meter: Meter | None = None
        """Reads the answer; None for one that comes whole."""
        self.usage = _UNKNOWN
        """What a whole answer said."""
        self.is_started = False
        """Whether the caller has been sent any of its answer."""
        self._awaits_token = True
        self._pass_on: Callable[[bytes], None] | None = None

    # Called by the request
    def send(self, method: bytes, path: bytes, body: bytes, sink: Sink) -> None:
        """Ask its replica; `sink` hears the answer."""
        replica, request = self.replica, self._request
        self.connection = connection = self._relay.upstream.open(replica.url)
        lines = b"%bx-request-id: %b\r\n" % (request.head.forwarded, request.request_id.encode())
        if replica.api_key:
            lines += b"authorization: Bearer %b\r\n" % replica.api_key.encode()
        connection.send(method, path, lines, body, sink)

    def take_up(self, broken: "Attempt") -> None:
        """What it answers belongs to the stream that `broken` could not finish."""
        self.meter, self.status, self.is_started = broken.meter, broken.status, True

    def pause(self) -> None:
        """The client is slower than the engine."""
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        """It has caught up."""
        if self.connection is not None:
            self.connection.resume()

    def listen(self, connection: Connection, now_s: float) -> None:
        """Note whether anything has come over its connection since it was last asked; a pause of ours is no silence."""
        if connection.is_heard or connection.is_paused:
            connection.is_heard = False
            self.heard_s = now_s
        place = self.place
        if self.call.stream or place is None or not place.is_waiting:
            return
        if now_s - self.sent_s > place.expected_wait_s:
            place.computed()  # an answer that comes whole shows no first token: its prompt was due by now

    def note_first_token(self) -> None:
        """It has come; harmless when repeated."""
        self._awaits_token = False
        if self.place is not None:
            self.place.first_token(self._relay.clock() - self.sent_s)

    def blame(self, error: UpstreamError) -> None:
        """Hold a failure against its replica; one that refused the request itself has shown that it works."""
        kind = failure_kind(error)
        if kind is not None:
            self.replica.failed(kind)
        elif isinstance(error, AnswerError) and error.fault.status in (400, 404, 413, 422):
            self.replica.succeeded()

    def leave(self) -> None:
        """Give everything back; an engine that still works on it stops. Harmless when repeated."""
        self._pass_on = None
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.cut()
        place, self.place = self.place, None
        if place is not None:
            place.release()
            self.tally.in_flight -= 1
            if self._relay.gate.is_busy:
                self._relay.gate.serve()

    # Called by the connection to the engine
    def began(self, status: int, headers: list[Header]) -> None:
        """The head of the engine's answer."""
        try:
            self._begun(status, headers)
        except Exception:  # noqa: BLE001  (a boundary, as in Exchange.open)
            self._request.stumble()

    def _begun(self, status: int, headers: list[Header]) -> None:
        relay, call = self._relay, self.call
        self.came_s = relay.clock()
        if self.replica.kind == "remote":  # its cookies, limits and account are ours, not the caller's
            headers = [header for header in headers if header[0] == b"content-type"]
        self.status, self.headers = status, headers
        if 300 <= status < 400:
            error = BrokenError(f"it answered {status}, a redirect: not followed, keys must not travel")
            self._onward.lost(self, error)
        elif call.stream and status < 400 and is_event_stream(headers):
            dialect = call.endpoint.dialect
            is_kept = call.endpoint.generates and dialect in CONTINUED and relay.config.continue_streams
            self.meter = Meter(
                dialect,
                strip_usage=call.strip_usage,
                clock=relay.clock,
                request_id=self._request.request_id,
                trail=Trail(dialect) if is_kept else None,
            )
        else:
            self._first, self._pieces, self._held_bytes = b"", None, 0

    def received(self, data: bytes) -> None:
        """Bytes of a stream go out as they come in; the pieces of one document wait for its end."""
        try:
            if not self.is_started:
                self.came_s = self._relay.clock()
            if self.meter is not None:
                self._forward(self.meter, self.meter.feed(data))
                return
            if self._pieces is not None:
                self._pieces.append(data)
            elif self._held_bytes:
                self._pieces = [self._first, data]
            else:
                self._first = data  # nearly always all of it
            self._held_bytes += len(data)
            if self._held_bytes > self._relay.config.max_answer_bytes:
                self._overflow()
        except Exception:  # noqa: BLE001  (see began)
            self._request.stumble()

    def _forward(self, meter: Meter, data: bytes) -> None:
        if self._awaits_token and meter.first_token_s is not None:
            self.note_first_token()
        if not self.is_started:
            if data or meter.fault is not None:
                self._start(meter, data)
        elif data:
            self._request.client.write(data)
        if meter.fault is not None:
            if self.is_started and self.place is not None:
                self._gave_error(meter.fault, meter.error_event)
        elif meter.held_bytes > self._relay.config.max_event_bytes:
            self._overflow()

    def _start(self, meter: Meter, first: bytes) -> None:
        error = _error_at_the_start(meter, first)
        if error is not None:
            self._onward.lost(self, error)
            return
        self.is_started = True
        self.replica.succeeded(self.came_s - self.sent_s)
        self._request.started(self, first)
        self._pass_on = self._request.client.raw

    def _gave_error(self, fault: Fault, event: bytes) -> None:
        """The engine ended its stream with an error; one of its own is as good as a broken connection."""
        if fault.status >= 500:
            self._onward.broke(self, AnswerError(fault), event)
        else:
            self._request.end_stream(event, fault.status, "engine_error")

    def passed(self, chunk: bytes, start: int) -> bool:
        """Text of a stream that has begun goes out as it is on the wire, its chunk and all."""
        pass_on, meter = self._pass_on, self.meter
        if pass_on is None or meter is None or not meter.passes(chunk, start, len(chunk) - 2):
            return False
        pass_on(chunk)
        return True

    def ended(self) -> None:
        """The engine's answer is complete; its connection is no longer ours."""
        self.connection = None
        try:
            if self.meter is None:
                self._whole(self._first if self._pieces is None else b"".join(self._pieces))
            else:
                self._over(self.meter)
        except Exception:  # noqa: BLE001  (see began)
            self._request.stumble()

    def _whole(self, body: bytes) -> None:
        if self.status >= 400:
            self._onward.lost(
                self, AnswerError(faults.engine_fault(self.replica.name, self.status, body, self.headers))
            )
            return
        self.replica.succeeded()
        self._request.answered(self, body)

    def _over(self, meter: Meter) -> None:
        last = meter.rest()
        is_cut = self.call.endpoint.generates and not meter.is_complete
        if not self.is_started:
            self._start(meter, b"" if is_cut else last)
            last = b""
        if not self.is_started or self.place is None:
            return
        if is_cut:
            self._onward.broke(self, BrokenError("its stream stopped before its end"))
            return
        self._request.client.end(last)
        self._request.settle("ok", self.status)

    def failed(self, error: UpstreamError) -> None:
        """The engine did not deliver; once the caller has seen some of its stream, only the stream can say so."""
        self.connection = None
        try:
            if self.is_started and self.meter is not None and self.meter.is_complete:
                self.blame(error)  # nothing is missing but the end of its connection
                self._over(self.meter)
            elif self.is_started:
                self._onward.broke(self, error)
            else:
                self._onward.lost(self, error)
        except Exception:  # noqa: BLE001  (see began)
            self._request.stumble()

    def _overflow(self) -> None:
        """More than can be held for the caller. No other replica is tried: it is the request that asks for so much."""
        self._request.end_with(faults.endless(self._request.request_id, self.replica.name), "broken")


def _error_at_the_start(meter: Meter, first: bytes) -> UpstreamError | None:
    """What is wrong with a stream that is empty or opens with an error: the caller has seen nothing of it yet. An
    engine that says so itself has answered, as with a status."""
    if meter.fault is None:
        return None if first else BrokenError("its stream ended without a single event")
    return None if meter.first_token_s is not None else AnswerError(meter.fault)
