"""The path of one request: identify, admit, route, open, relay, settle. No I/O and nothing to await: it is called.

From one side calls the client's protocol (`gateway.lane`): the head is in, the body is in, the client is slow, is gone.
From the other calls its connection to an engine (`gateway.upstream`): began, received, ended, failed. Whatever comes
last settles it, exactly once; and because no step waits, there is no moment at which nobody watches the client.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway import faults, headers
from gateway.admission import Admission, Ticket
from gateway.breaker import failure_kind
from gateway.config import GatewayConfig
from gateway.cost import Cost
from gateway.errors import AnswerError, BrokenError, RefusedError, UpstreamError
from gateway.headers import Head, Header, RequestIds, read_head
from gateway.identity import Keyring
from gateway.ledger import Ledger
from gateway.meter import Meter
from gateway.metrics import Metrics, Tally
from gateway.owners import Owner, Owners
from gateway.replica import Pool, Replica, Reservation
from gateway.routing import Policy
from gateway.settlement import NOBODY, Move, Outcome, Settlement
from gateway.tracing import Trace, Tracing
from gateway.upstream import Connection, Upstream
from gateway.wire import (
    Call,
    Endpoint,
    Fault,
    Usage,
    fault_body,
    fault_event,
    fault_headers,
    parse_call,
    read_answer,
    read_response_id,
)

_log = logging.getLogger("berth.gateway")
_CHARS_A_TOKEN = 4
_OUTPUT_GUESS_TOKENS = 256


class Client(Protocol):
    """The caller's end of one request: takes its answer, whole or in pieces."""

    @property
    def is_slow(self) -> bool:
        """Whether what it was sent already has not gone out."""

    @property
    def raw(self) -> Callable[[bytes], None] | None:
        """Where whole chunks of a stream may be written as they are on the wire; None where nobody can read them."""

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        """A whole answer; `headers` are complete lines."""

    def start(self, status: int, headers: bytes, data: bytes) -> None:
        """The head of an answer whose length nobody knows, and its first bytes."""

    def write(self, data: bytes) -> None:
        """The next bytes; not empty."""

    def end(self, data: bytes) -> None:
        """The last bytes, if any, and the end."""

    def close(self) -> None:
        """Break off an answer that cannot be finished."""


@dataclass(slots=True)
class Relay:
    """What all requests share. A reload puts another `config` and `keyring` in; whoever needs one reads it anew."""

    config: GatewayConfig
    pool: Pool
    upstream: Upstream
    admission: Admission
    metrics: Metrics
    policy: Policy[Replica]
    clock: Callable[[], float]
    keyring: Keyring
    request_ids: RequestIds
    ledger: Ledger
    cost: Cost
    tracing: Tracing | None = None
    owners: Owners = field(default_factory=Owners)


class Exchange:
    """One request as it goes through; the `Sink` of its engine's answer."""

    # class attributes are what most requests never change: they cost nothing to set
    _caller = ""
    _call: Call | None = None
    _ticket: Ticket | None = None
    _place: Reservation | None = None
    _connection: Connection | None = None
    _status = 0
    _meter: Meter | None = None
    _pass_on: Callable[[bytes], None] | None = None
    _tally: Tally | None = None
    _trace: Trace | None = None
    _moves: tuple[Move, ...] = ()
    _held_s = _came_s = 0.0
    _held_bytes = 0
    _is_started = _is_over = False

    def __init__(self, relay: Relay, client: Client, endpoint: Endpoint) -> None:
        self._relay = relay
        self._client = client
        self._endpoint = endpoint
        self.request_id = relay.request_ids.new()
        self.arrived_s = relay.clock()
        self._tried: list[Replica] = []
        self._usage = _UNKNOWN

    # Called by the client's protocol
    def open(self, request_headers: list[Header], head: Head) -> None:
        """The head is in: whose it is and whether it may come in is known before any of its body is read."""
        relay = self._relay
        try:
            if relay.tracing is not None:
                self._trace = relay.tracing.begin(request_headers)
                head = read_head(self._trace.carried(request_headers))
            self._head = head
            self._caller = relay.keyring.identify(head.key)
            self._ticket = relay.admission.admit()
            self.check_size(head.announced_bytes)
        except RefusedError as error:
            self._answer_fault(error.fault, "refused")
        except Exception:  # noqa: BLE001  (the outermost boundary: the caller gets a 500 with an id, the log the trace)
            self._stumble()

    def check_size(self, size: int) -> None:
        """Refuse a body of `size` bytes if that is too many."""
        limit = self._relay.config.max_body_bytes
        if size > limit:
            self._answer_fault(faults.too_large(size, limit), "refused")

    def time_out(self) -> None:
        """The body did not come."""
        self._answer_fault(faults.too_slow(self._relay.config.timeouts.client_s), "refused")

    def call(self, body: bytes) -> None:
        """The body is in: send it to a replica."""
        if self._is_over:
            return
        relay = self._relay
        self._called_s = relay.clock()
        try:
            if not body and self._head.offers_upgrade:
                raise RefusedError(faults.hidden_by_upgrade())
            call = parse_call(self._endpoint, body)
            if isinstance(call, Fault):
                raise RefusedError(call)
            candidates: Sequence[Replica]
            if call.response_id is None:
                candidates = relay.pool.candidates(call.model)
            else:
                call, candidates = relay.owners.candidates(call, self._caller, relay.pool)
            self._call = call
            relay.pool.retry_budget.requested()
            self._sent_s = self._called_s
            self._attempt(call, candidates)
            self._held_s = relay.clock() - self._called_s
        except RefusedError as error:
            self._answer_fault(error.fault, "refused")
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def leave(self) -> None:
        """The client is gone: the engine stops, and everything is given back."""
        if not self._is_over:
            self._status = 499
            self._settle("client_gone")

    def pause(self) -> None:
        """The client takes its answer slower than the engine gives it: read no more for now."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self._connection is not None:
            self._connection.resume()

    # Called by the connection to the engine
    def began(self, status: int, response_headers: list[Header]) -> None:
        """The head of the engine's answer."""
        self._came_s = self._relay.clock()
        self._response_headers = response_headers
        self._status = status
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._meter = None
        call = self._call
        assert call is not None  # noqa: S101  (there is no answer without a call)
        if 300 <= status < 400:
            self._lost(call, BrokenError(f"it answered {status}, a redirect: not followed, keys must not travel"))
        elif call.stream and status < 400 and headers.is_event_stream(response_headers):
            dialect = self._endpoint.dialect
            self._meter = Meter(
                dialect, strip_usage=call.strip_usage, clock=self._relay.clock, request_id=self.request_id
            )

    def received(self, data: bytes) -> None:
        """Bytes of a stream go out as they come in; the pieces of one document wait for its end."""
        try:
            if not self._is_started:
                self._came_s = self._relay.clock()
            if self._meter is None:
                self._pieces.append(data)
                self._held_bytes += len(data)
                if self._held_bytes > self._relay.config.max_answer_bytes:
                    self._overflow()
                return
            forward = self._meter.feed(data)
            if not forward:
                if self._meter.held_bytes > self._relay.config.max_event_bytes:
                    self._overflow()
                return
            if self._is_started:
                self._client.write(forward)
            else:
                self._start(self._meter, forward)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def passed(self, chunk: bytes, start: int) -> bool:
        """Text of a stream that has begun goes out as it is on the wire, its chunk and all."""
        if self._pass_on is None or self._meter is None or not self._meter.passes(chunk, start, len(chunk) - 2):
            return False
        self._pass_on(chunk)
        return True

    def ended(self) -> None:
        """The engine's answer is complete; its connection is no longer ours."""
        self._connection = None
        try:
            if self._meter is None:
                self._whole(b"".join(self._pieces))
                return
            last = self._meter.rest()
            if not self._is_started:
                self._start(self._meter, last)
                last = b""
            if not self._is_over and self._is_started:
                self._client.end(last)
                if self._meter.fault is not None:
                    self._tried[-1].failed("error")
                self._settle("ok" if self._meter.fault is None else "broken")
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def failed(self, error: UpstreamError) -> None:
        """The engine did not deliver; once the caller has seen some of its stream, only the stream can say so."""
        self._connection = None
        try:
            if not self._is_started:
                assert self._call is not None  # noqa: S101  (there is no attempt without a call)
                self._lost(self._call, error)
                return
            self._blame(error)
            fault = faults.broken(self.request_id, self._tried[-1].name, error, "during the answer")
            # half an event that the meter still holds is dropped: glued to the error it would hide it from the SDK
            self._client.end(fault_event(self._endpoint.dialect, fault, self.request_id))
            self._settle("broken")
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def _overflow(self) -> None:
        """More than can be held for the caller. No other replica is tried: it is the request that asks for so much."""
        fault = faults.endless(self.request_id, self._tried[-1].name)
        if self._is_started:
            self._client.end(fault_event(self._endpoint.dialect, fault, self.request_id))
            self._settle("broken")
        else:
            self._answer_fault(fault, "broken")

    # One attempt on one replica, counted there while it lasts
    def _attempt(self, call: Call, candidates: Sequence[Replica]) -> None:
        relay = self._relay
        replica = relay.policy(candidates)
        self._tried.append(replica)
        self._place = replica.reserve(len(call.body) // _CHARS_A_TOKEN + _OUTPUT_GUESS_TOKENS)
        self._tally = tally = relay.metrics.tally(call.model, replica.name, self._endpoint.dialect)
        tally.in_flight += 1
        lines = b"%bx-request-id: %b\r\n" % (self._head.forwarded, self.request_id.encode())
        if replica.api_key:
            lines += b"authorization: Bearer %b\r\n" % replica.api_key.encode()
        self._connection = connection = relay.upstream.open(replica.url)
        if self._client.is_slow:
            connection.pause()
        connection.send(self._endpoint.method, self._endpoint.raw_path, lines, call.body, self)

    def _leave_replica(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut()
        place, self._place = self._place, None
        if place is not None and self._tally is not None:
            place.release()
            self._tally.in_flight -= 1

    def _lost(self, call: Call, error: UpstreamError) -> None:
        """An attempt of which the caller has seen nothing: try another replica, or say what happened."""
        self._blame(error)
        self._leave_replica()
        others = self._others(call) if faults.worth_another(error) else []
        replica = self._tried[-1]
        if others and self._relay.pool.retry_budget.take():
            self._sent_s = self._relay.clock()
            _log.warning("%s: %s failed (%s), trying another replica", self.request_id, replica.name, error)
            self._relay.metrics.retried(call.model, replica.name)
            self._moves = (*self._moves, Move("retry", self._sent_s, replica.name, str(error)))
            self._attempt(call, others)
        elif isinstance(error, AnswerError):
            self._answer_fault(error.fault, "engine_error")
        else:
            self._answer_fault(faults.broken(self.request_id, replica.name, error, "before it answered"), "broken")

    def _blame(self, error: UpstreamError) -> None:
        """Hold a failure against its replica; one that refused the request itself has shown that it works."""
        kind = failure_kind(error)
        if kind is not None:
            self._tried[-1].failed(kind)
        elif isinstance(error, AnswerError) and error.fault.status in (400, 404, 413, 422):
            self._tried[-1].succeeded()

    def _others(self, call: Call) -> list[Replica]:
        if len(self._tried) > self._relay.config.retries or call.response_id is not None:
            return []
        try:
            return [replica for replica in self._relay.pool.candidates(call.model) if replica not in self._tried]
        except RefusedError:
            return []

    # What the caller gets
    def _whole(self, body: bytes) -> None:
        if self._status >= 400:
            assert self._call is not None  # noqa: S101  (there is no answer without a call)
            self._lost(self._call, AnswerError(self._engine_fault(body)))
            return
        self._tried[-1].succeeded()
        self._note_owner(body)
        self._client.answer(self._status, headers.returned(self._response_headers) + self._own_lines(), body)
        self._note_added()
        if self._endpoint.generates:
            self._usage = read_answer(self._endpoint.dialect, body)
        self._settle("ok")

    def _start(self, meter: Meter, first: bytes) -> None:
        error = _error_at_the_start(meter, first)
        if error is not None:
            assert self._call is not None  # noqa: S101  (there is no answer without a call)
            self._lost(self._call, error)
            return
        self._is_started = True
        self._tried[-1].succeeded(self._came_s - self._sent_s)
        self._note_owner(first)
        lines = headers.returned_of_stream(self._response_headers) + self._own_lines()
        self._client.start(self._status, lines, first)
        self._pass_on = self._client.raw
        self._note_added()

    def _note_added(self) -> None:
        relay = self._relay
        relay.cost.added.observe(self._held_s + relay.clock() - self._came_s)

    def _engine_fault(self, body: bytes) -> Fault:
        return faults.engine_fault(self._tried[-1].name, self._status, body, self._response_headers)

    def _note_owner(self, data: bytes) -> None:
        """A response can be asked for as soon as its caller knows its id."""
        if self._endpoint.dialect != "responses" or not self._endpoint.generates or self._call is None:
            return
        response_id = read_response_id(data)
        if response_id is not None:
            self._relay.owners.note(response_id, Owner(self._tried[-1].name, self._call.model, self._caller))

    def _answer_fault(self, fault: Fault, outcome: Outcome) -> None:
        self._status = fault.status
        body = fault_body(self._endpoint.dialect, fault, self.request_id)
        lines = _JSON + headers.lines(fault_headers(fault)) + self._own_lines()
        self._client.answer(fault.status, lines, body)
        self._settle(outcome)

    def _own_lines(self) -> bytes:
        """What every answer carries: the request id under both SDKs' names, and who answered."""
        rid = self.request_id.encode()
        if not self._tried:
            return b"x-request-id: %b\r\nrequest-id: %b\r\n" % (rid, rid)
        who = self._tried[-1].name.encode()
        return b"x-request-id: %b\r\nrequest-id: %b\r\nx-berth-replica: %b\r\n" % (rid, rid, who)

    # The end
    def _stumble(self) -> None:
        """A bug must not take a connection, a place or a count with it."""
        fault = faults.unexpected(self.request_id)
        if self._is_over:
            return
        if self._is_started:
            self._client.close()
            self._settle("broken")
        else:
            self._answer_fault(fault, "broken")

    def _settle(self, outcome: Outcome) -> None:
        self._is_over = True
        self._pass_on = None
        self._leave_replica()
        if self._ticket is not None:
            self._ticket.settle()
        relay, endpoint = self._relay, self._endpoint
        meter = self._meter if endpoint.generates else None
        replica = self._tried[-1] if self._tried else None
        tally = self._tally or relay.metrics.tally(NOBODY, NOBODY, endpoint.dialect)
        first_s = None if meter is None else meter.first_token_s
        done = Settlement(
            self.request_id,
            self._caller,
            NOBODY if self._call is None else self._call.model,
            NOBODY if replica is None else replica.name,
            "" if replica is None else replica.url,
            endpoint.dialect,
            endpoint.generates,
            self._call is not None and self._call.stream,
            outcome,
            self._status,
            self.arrived_s,
            relay.clock(),
            None if first_s is None else first_s - self.arrived_s,
            None if meter is None else meter.tpot_s,
            self._usage if meter is None else meter.usage_or_least,
            self._trace,
            self._moves,
        )
        tally.settle(done)
        relay.ledger.add(done)


_UNKNOWN = Usage()
_JSON = b"content-type: application/json\r\n"


def _error_at_the_start(meter: Meter, first: bytes) -> UpstreamError | None:
    """What is wrong with a stream that is empty or opens with an error: the caller has seen nothing of it yet."""
    if not first:
        return BrokenError("its stream ended without a single event")
    if meter.fault is None or meter.first_token_s is not None:
        return None
    return AnswerError(meter.fault) if meter.fault.status < 500 else BrokenError(meter.fault.message)
