"""The path of one request: identify, admit, send on its way, answer, settle. No I/O and nothing to await: it is called.

From one side calls the client's protocol (`gateway.lane`): the head is in, the body is in, the client is slow, is gone.
From the other calls what happens on its way (`gateway.course`, which leads to an engine): started, answered, ended.
Whatever comes last settles it, exactly once; and because no step waits, there is no moment at which nobody watches the
client.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from gateway import faults, headers
from gateway.admission.door import Ticket
from gateway.admission.line import Priority
from gateway.attempt import Attempt
from gateway.connection import Connection
from gateway.course import Course
from gateway.dues import Dues
from gateway.errors import RefusedError, SilentError
from gateway.headers import Head, Header, read_head
from gateway.junction import Led
from gateway.lessons import learn
from gateway.owners import Owner
from gateway.relay import Client, Relay
from gateway.routing import Fate
from gateway.settlement import NO_FATES, NO_MOVES, NOBODY, Move, Outcome, Settlement
from gateway.tracing import Trace
from gateway.wire import (
    Call,
    Endpoint,
    Fault,
    Usage,
    fault_body,
    fault_event,
    fault_headers,
    keep_alive,
    parse_call,
    read_answer,
    read_response_id,
)

_UNKNOWN: Final = Usage()


class Exchange:
    """One request as it goes through."""

    # class attributes are what most requests never change: they cost nothing to set
    caller = ""
    priority: Priority = "normal"
    dues: Dues | None = None
    _ticket: Ticket | None = None
    _led: Led | None = None
    _course: Course | None = None
    _trace: Trace | None = None
    _cors = b""
    _held_s = 0.0
    _pinged_s = 0.0
    _opened_as = 0  # the status with which the caller's stream has begun
    _is_over = False

    def __init__(self, relay: Relay, client: Client, endpoint: Endpoint) -> None:
        self.relay = relay
        self.client = client
        self._endpoint = endpoint
        self.request_id = relay.request_ids.new()
        self.arrived_s = relay.clock()

    # Called by the client's protocol
    def open(self, request_headers: list[Header], head: Head, announced_bytes: int) -> None:
        """The head is in: whose it is and whether it may come in is known before any of its body is read."""
        relay = self.relay
        try:
            if relay.tracing is not None:
                self._trace = relay.tracing.begin(request_headers)
                head = read_head(self._trace.carried(request_headers))
            self.head, self._request_headers = head, request_headers
            if head.known_by is not relay.keyring:
                head.caller, head.known_by = relay.keyring.identify(head.key), relay.keyring
            if head.origin is not None:
                self._cors = relay.origins.lines(head.origin)
            self.caller = head.caller
            if relay.keyring.has_terms or head.priority is not None:
                self._heed_terms(head)
            self._ticket = relay.admission.admit()
            self.check_size(announced_bytes)
        except RefusedError as error:
            self._answer_fault(error.fault, "refused")
        except Exception:  # noqa: BLE001  (the outermost boundary: the caller gets a 500 with an id, the log the trace)
            self.stumble()

    def _heed_terms(self, head: Head) -> None:
        """What its key says of this caller. Raises RefusedError."""
        relay = self.relay
        self.priority = relay.keyring.priority(self.caller, head.priority)
        account = relay.accounts.of(self.caller)
        if account is not None:
            self.dues = Dues(account, relay.clock)
            self.dues.enter()

    def check_size(self, size: int) -> None:
        """Refuse a body of `size` bytes if that is too many."""
        limit = self.relay.config.max_body_bytes
        if size > limit:
            self._answer_fault(faults.too_large(size, limit), "refused")

    def time_out(self) -> None:
        """The body did not come."""
        self._answer_fault(faults.too_slow(self.relay.config.timeouts.client_s), "refused")

    def call(self, body: bytes) -> None:
        """The body is in: send it to a replica."""
        if self._is_over:
            return
        relay = self.relay
        called_s = relay.clock()
        try:
            if not body and self.head.offers_upgrade:
                raise RefusedError(faults.hidden_by_upgrade())
            call = parse_call(self._endpoint, body, relay.salts.seed(self.caller))
            if isinstance(call, Fault):
                raise RefusedError(call)
            relay.watch.add(self)
            relay.pool.retry_budget.requested()
            self._course = course = Course(self)
            course.begin(self._led_on(relay.salts.salted(call, self.caller)))
            self._held_s = relay.clock() - called_s
            if self._led is not None and not self._is_over:
                self._led.placed(self.head.forwarded)
        except RefusedError as error:
            self._answer_fault(error.fault if self._led is None else self._led.told(error.fault), "refused")
        except Exception:  # noqa: BLE001  (see open)
            self.stumble()

    def _led_on(self, call: Call) -> Call:
        """For the model that the rules lead it to."""
        junction = self.relay.junction
        if junction is None or not junction.rules:
            return call
        if call.response_id is not None:
            return junction.kept(call, self.relay.owners.find(call.response_id, self.caller))
        self._led = led = junction.lead(call, self.caller, self.head.session, self._request_headers)
        return call if led is None else led.call

    def leave(self) -> None:
        """The client is gone: the engine stops, and everything is given back."""
        if not self._is_over:
            self.settle("client_gone", 499)

    def pause(self) -> None:
        """The client takes its answer slower than the engine gives it: read no more for now."""
        if self._course is not None and self._course.attempt is not None:
            self._course.attempt.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self._course is not None and self._course.attempt is not None:
            self._course.attempt.resume()

    # Called by the watch
    def tick(self, now_s: float) -> None:
        """Nobody waits for ever: not for an engine, nor a proxy in between for a sign that the stream is alive."""
        course = self._course
        try:
            if course is None:
                return
            if course.attempt is not None and course.attempt.connection is not None:
                self._watch(course.attempt, course.attempt.connection, now_s)
            elif course.stand is not None:
                if self._is_overdue(now_s):
                    self.end_with(faults.overdue_in_line(), "refused")
                elif course.stand.tick(now_s, self._pinged_s):
                    self._ping(now_s)
        except Exception:  # noqa: BLE001  (see open)
            self.stumble()

    def _watch(self, attempt: Attempt, connection: Connection, now_s: float) -> None:
        timeouts = self.relay.config.timeouts
        attempt.listen(connection, now_s)
        limit_s = timeouts.gap_s if attempt.is_started else timeouts.first_token_s
        if now_s - attempt.heard_s > limit_s:
            connection.fail(SilentError(f"nothing came for {limit_s:g} s"))
        elif self._is_overdue(now_s):
            error = SilentError(f"more than {timeouts.total_s:g} s have passed")
            self.end_with(faults.broken(self.request_id, attempt.replica.name, error, "to be quick"), "broken")
        elif now_s - max(attempt.heard_s, self._pinged_s) > timeouts.keep_alive_s and not connection.is_paused:
            self._ping(now_s)

    def _is_overdue(self, now_s: float) -> bool:
        total_s = self.relay.config.timeouts.total_s
        return total_s is not None and now_s - self.arrived_s > total_s

    def _ping(self, now_s: float) -> None:
        call = None if self._course is None else self._course.call
        if call is None or not call.stream:
            return
        self._pinged_s = now_s
        sign = keep_alive(self._endpoint.dialect)
        if not sign:
            return  # an empty chunk would be the end of the stream
        if self._opened_as:
            self.client.write(sign)
        else:
            self._opened_as = 200
            self.client.start(200, headers.STREAM + self._own_lines(), sign)

    # What the caller gets
    def started(self, attempt: Attempt, first: bytes) -> None:
        """Called by the attempt: its stream begins."""
        if self._course is not None:
            self._course.end_race()
        self._note_owner(attempt, first)
        if not self._opened_as:
            self._opened_as = attempt.status
            lines = headers.returned_of_stream(attempt.headers) + self._own_lines()
            self.client.start(attempt.status, lines, first)
        elif first:
            self.client.write(first)
        self.relay.cost.added.observe(self._held_s + self.relay.clock() - attempt.came_s)

    def answered(self, attempt: Attempt, body: bytes) -> None:
        """Called by the attempt: this is all."""
        if self._opened_as:
            self.end_with(faults.not_a_stream(), "broken")
            return
        self._note_owner(attempt, body)
        if self._endpoint.generates:
            attempt.usage = read_answer(self._endpoint.dialect, body)
        lines = headers.returned(attempt.headers) + self._own_lines()
        if attempt.usage.cached_tokens is not None:
            lines += b"x-berth-cached-tokens: %d\r\n" % attempt.usage.cached_tokens
        self.client.answer(attempt.status, lines, body)
        self.relay.cost.added.observe(self._held_s + self.relay.clock() - attempt.came_s)
        self.settle("ok", attempt.status)

    def _note_owner(self, attempt: Attempt, data: bytes) -> None:
        """A response can be asked for as soon as its caller knows its id."""
        if self._endpoint.dialect != "responses" or not self._endpoint.generates:
            return
        response_id = read_response_id(data)
        if response_id is not None:
            self.relay.owners.note(response_id, Owner(attempt.replica.name, attempt.call.model, self.caller))

    def end_with(self, fault: Fault, outcome: Outcome) -> None:
        """The answer is this, or the end of it, where the caller has been sent something."""
        if self._opened_as:
            self.end_stream(fault_event(self._endpoint.dialect, fault, self.request_id), fault.status, outcome)
        else:
            self._answer_fault(fault, outcome)

    def end_stream(self, event: bytes, status: int, outcome: Outcome) -> None:
        """The end of its stream is `event`."""
        self.client.end(event)
        self.settle(outcome, status)

    def _answer_fault(self, fault: Fault, outcome: Outcome) -> None:
        body = fault_body(self._endpoint.dialect, fault, self.request_id)
        lines = headers.JSON + headers.lines(fault_headers(fault)) + self._own_lines()
        self.client.answer(fault.status, lines, body)
        self.settle(outcome, fault.status)

    def _own_lines(self) -> bytes:
        attempt, dues = None if self._course is None else self._course.attempt, self.dues
        if attempt is None:
            own = headers.own(self.request_id, None, 0)
        else:
            own = headers.own(self.request_id, attempt.replica.name, attempt.predicted_tokens)
        if self._cors:
            own += self._cors
        return own if dues is None else own + dues.lines(self._endpoint.dialect)

    # The end
    def stumble(self) -> None:
        """A bug must not take a connection, a place or a count with it."""
        fault = faults.unexpected(self.request_id)
        if self._is_over:
            return
        if self._opened_as:
            self.client.close()
            self.settle("broken", self._opened_as)
        else:
            self._answer_fault(fault, "broken")

    def _learnt(self, attempt: Attempt, usage: Usage, moves: Sequence[Move]) -> Mapping[Fate, int]:
        try:
            return learn(self.relay, attempt, usage, moves)
        except Exception:  # noqa: BLE001  (see stumble; the caller has its answer)
            faults.unexpected(self.request_id)
            return NO_FATES

    def settle(self, outcome: Outcome, status: int) -> None:
        """Give everything back, and say what came of it."""
        self._is_over = True
        relay, endpoint = self.relay, self._endpoint
        relay.watch.discard(self)
        course, self._course = self._course, None
        call = attempt = meter = None
        usage, fates, moves = _UNKNOWN, NO_FATES, NO_MOVES
        if course is not None:
            call, attempt, moves = course.call, course.attempt, course.moves
            if attempt is not None:
                meter = attempt.meter if endpoint.generates else None
                usage = attempt.usage if meter is None else meter.usage_or_least
                if outcome == "ok":
                    fates = self._learnt(attempt, usage, moves)
            course.end()
        if self._ticket is not None:
            self._ticket.settle()
        if self.dues is not None:
            self.dues.leave(usage, is_tried=attempt is not None)
        first_s = None if meter is None else meter.first_token_s
        done = Settlement(
            self.request_id,
            self.caller,
            NOBODY if call is None else call.model,
            NOBODY if attempt is None else attempt.replica.name,
            "" if attempt is None else attempt.replica.url,
            endpoint.dialect,
            endpoint.generates,
            call is not None and call.stream,
            outcome,
            status,
            self.arrived_s,
            relay.clock(),
            None if first_s is None else first_s - self.arrived_s,
            None if meter is None else meter.tpot_s,
            usage,
            self._trace,
            moves,
            None if attempt is None else attempt.predicted_tokens,
            fates,
        )
        tally = relay.metrics.tally(NOBODY, NOBODY, endpoint.dialect) if attempt is None else attempt.tally
        tally.settle(done)
        relay.ledger.add(done)
        if self._led is not None:
            self._led.settled(done)
