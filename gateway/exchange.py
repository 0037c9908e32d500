"""The path of one request: identify, admit, route, open, relay, settle. No I/O and nothing to await: it is called.

From one side calls the client's protocol (`gateway.lane`): the head is in, the body is in, the client is slow, is gone.
From the other calls its connection to an engine (`gateway.upstream`): began, received, ended, failed. Whatever comes
last settles it, exactly once; and because no step waits, there is no moment at which nobody watches the client.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from gateway import faults, headers
from gateway.admission.door import Ticket
from gateway.admission.gate import Answer, Waiter
from gateway.admission.line import Asker, Place, Priority
from gateway.admission.rates import CallerAccount
from gateway.admission.room import with_room
from gateway.breaker import failure_kind
from gateway.config import Chain, Hedge, Trouble
from gateway.continuation import Ask, Continuation, Trail
from gateway.errors import AnswerError, BrokenError, RefusedError, SilentError, UpstreamError
from gateway.fallback import next_attempt, remote_path, trouble_of
from gateway.headers import Head, Header, read_head
from gateway.junction import Led
from gateway.meter import Meter
from gateway.metrics import Tally
from gateway.owners import Owner
from gateway.relay import Client, Relay
from gateway.replica import Replica
from gateway.resumption import Resumption
from gateway.rival import Rival
from gateway.routing import POLICIES, Fate, Pick, Policy, Route
from gateway.session import session_key
from gateway.settlement import NO_FATES, NOBODY, Move, Outcome, Settlement
from gateway.tracing import Trace
from gateway.upstream import Connection, Sink
from gateway.wire import (
    Call,
    Dialect,
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
from gateway.wire.limits import limit_headers
from gateway.wire.remainder import CannotContinueError

_log = logging.getLogger("berth.gateway")
_MOST_CONTINUATIONS = 3


class Exchange:
    """One request as it goes through; the `Sink` of its engine's answer."""

    # class attributes are what most requests never change: they cost nothing to set
    _caller = ""
    _call: Call | None = None
    _ticket: Ticket | None = None
    _priority: Priority = "normal"
    _account: CallerAccount | None = None
    _is_counted = False
    _charged_tokens = 0
    _stand: Place[Waiter] | None = None
    _there = 0
    _place: Pick[Replica] | None = None
    _route: Route | None = None
    _predicted_tokens: int | None = None
    _fates: Mapping[Fate, int] = NO_FATES
    _connection: Connection | None = None
    _status = 0
    _meter: Meter | None = None
    _pass_on: Callable[[bytes], None] | None = None
    _tally: Tally | None = None
    _trace: Trace | None = None
    _moves: tuple[Move, ...] = ()
    _held_s = _came_s = _sent_s = _heard_s = _pinged_s = 0.0
    _held_bytes = 0
    _chain: Chain | None = None
    _chain_place = 0
    _deadline: asyncio.TimerHandle | None = None
    _hedge_timer: asyncio.TimerHandle | None = None
    _rival: Rival | None = None
    _led: Led | None = None
    _continued = 0
    _handed_on_by = ""
    _is_opened = _is_started = _is_over = False
    _awaits_token = True

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
            self._head, self._request_headers = head, request_headers
            self._caller = relay.keyring.identify(head.key)
            if relay.keyring.has_terms or head.priority is not None:
                self._heed_terms(head)
            self._ticket = relay.admission.admit()
            self.check_size(head.announced_bytes)
        except RefusedError as error:
            self._answer_fault(error.fault, "refused")
        except Exception:  # noqa: BLE001  (the outermost boundary: the caller gets a 500 with an id, the log the trace)
            self._stumble()

    def _heed_terms(self, head: Head) -> None:
        """What its key says of this caller. Raises RefusedError."""
        relay = self._relay
        self._priority = relay.keyring.priority(self._caller, head.priority)
        self._account = account = relay.accounts.of(self._caller)
        if account is not None:
            fault = account.enter(relay.clock())
            if fault is not None:
                raise RefusedError(fault)
            self._is_counted = True

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
            call = parse_call(self._endpoint, body, relay.salts.seed(self._caller))
            if isinstance(call, Fault):
                raise RefusedError(call)
            relay.watch.add(self)
            relay.pool.retry_budget.requested()
            self._begin(self._led_on(relay.salts.salted(call, self._caller)))
            self._held_s = relay.clock() - self._called_s
            if self._led is not None and not self._is_over:
                self._led.placed(self._head.forwarded)
        except RefusedError as error:
            self._answer_fault(error.fault if self._led is None else self._led.told(error.fault), "refused")
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def _led_on(self, call: Call) -> Call:
        """For the model that the rules lead it to."""
        junction = self._relay.junction
        if junction is None or not junction.rules:
            return call
        if call.response_id is not None:
            return junction.kept(call, self._relay.owners.find(call.response_id, self._caller))
        self._led = led = junction.lead(call, self._caller, self._head.session, self._request_headers)
        return call if led is None else led.call

    def _begin(self, call: Call) -> None:
        """On a replica of its model, or along the model's chain when none is fit for it. Raises RefusedError."""
        relay = self._relay
        pool = relay.pool
        if call.response_id is not None:
            self._call, candidates = relay.owners.candidates(call, self._caller, pool)
            self._attempt(self._call, candidates)
            return
        self._chain = relay.config.chains.get(call.model)
        if self._chain is not None:
            self._asked = call
            deadline_s = self._chain.ttft_deadline_s
            if deadline_s is not None and call.stream:
                self._deadline = asyncio.get_running_loop().call_later(deadline_s, self._late)
            if pool.is_panicking(call.model) and self._stood_in("failed"):
                return
        try:
            found = pool.candidates(call.model)
        except RefusedError as error:
            if not self._stood_in(trouble_of(error)):
                raise
            return
        self._call = call
        if not self._endpoint.generates:
            self._attempt(call, found)
        else:
            self._enter(call, found)

    # Room on a replica, or a place in line
    def _enter(self, call: Call, found: Sequence[Replica]) -> None:
        """Go where there is room, or wait for it. Raises RefusedError."""
        gate, route = self._relay.gate, self._routed(call)
        if gate.is_timed:
            self._relay.pool.router.look(route)
        free = gate.enter(call, route, found)
        if self._account is not None:
            self._charge(self._account, route)
        if free:
            self._first_attempt(call, free)
            return
        try:
            self._stand = gate.wait(call.model, Asker(self._caller, self._priority), route, self)
        except RefusedError as error:
            if not self._stood_in(trouble_of(error)):
                raise

    def _charge(self, account: CallerAccount, route: Route) -> None:
        tokens = route.prompt_tokens + route.output_tokens
        fault = account.charge(tokens, self._relay.clock())
        if fault is not None:
            raise RefusedError(fault)
        self._charged_tokens = tokens

    def _first_attempt(self, call: Call, free: Sequence[Replica]) -> None:
        self._attempt(call, free)
        hedge = self._relay.config.hedges.get(call.model)
        if hedge is not None:
            self._hedge_later(call, hedge)

    def admitted(self, candidates: Sequence[Replica]) -> None:
        """Called by the gate: its turn has come, and these have room."""
        place, self._stand = self._stand, None
        try:
            assert place is not None  # noqa: S101  (the gate calls who stands in its line)
            assert self._call is not None  # noqa: S101  (and only a call does)
            self._relay.metrics.waited(place.model, self._relay.clock() - place.since_s)
            self._first_attempt(self._call, candidates)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def turned_away(self, fault: Fault) -> None:
        """Called by the gate: there is no room, and will be none in time."""
        self._stand = None
        try:
            if not self._stood_in(trouble_of(RefusedError(fault))):
                self._end_with(fault, "refused")
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def _leave_line(self) -> None:
        place, self._stand = self._stand, None
        if place is not None:
            self._relay.gate.leave(place)

    def _stand_on(self, place: Place[Waiter], now_s: float) -> None:
        fault = self._relay.gate.check_time(place, now_s)
        if fault is not None:
            self.turned_away(fault)
        elif now_s - max(place.since_s, self._pinged_s) > self._relay.config.timeouts.keep_alive_s:
            self._ping(now_s)

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

    # Called by the watch
    def tick(self, now_s: float) -> None:
        """Nobody waits for ever: not for an engine, nor a proxy in between for a sign that the stream is alive."""
        timeouts, connection = self._relay.config.timeouts, self._connection
        if connection is None:
            if self._stand is not None:
                self._stand_on(self._stand, now_s)
            return
        if connection.is_heard or connection.is_paused:
            connection.is_heard = False
            self._heard_s = now_s
        self._presume(now_s)
        silent_s = now_s - self._heard_s
        limit_s = timeouts.gap_s if self._is_started else timeouts.first_token_s
        try:
            if silent_s > limit_s:
                connection.fail(SilentError(f"nothing came for {limit_s:g} s"))
            elif timeouts.total_s is not None and now_s - self.arrived_s > timeouts.total_s:
                error = SilentError(f"more than {timeouts.total_s:g} s have passed")
                self._end_with(faults.broken(self.request_id, self._tried[-1].name, error, "to be quick"), "broken")
            elif min(silent_s, now_s - self._pinged_s) > timeouts.keep_alive_s and not connection.is_paused:
                self._ping(now_s)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def _presume(self, now_s: float) -> None:
        """An answer that comes whole shows no first token: once it is due, its prompt counts as computed."""
        place, call = self._place, self._call
        if place is None or call is None or call.stream or not place.is_waiting:
            return
        if now_s - self._sent_s > place.expected_wait_s:
            place.computed()

    def _ping(self, now_s: float) -> None:
        if self._call is None or not self._call.stream:
            return
        self._pinged_s = now_s
        sign = keep_alive(self._endpoint.dialect)
        if not sign:
            return  # an empty chunk would be the end of the stream
        if self._is_opened:
            self._client.write(sign)
        else:
            self._is_opened = True
            self._client.start(200, headers.STREAM + self._own_lines(), sign)

    # Called by the connection to the engine
    def began(self, status: int, response_headers: list[Header]) -> None:
        """The head of the engine's answer."""
        try:
            self._begun(status, response_headers)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def _begun(self, status: int, response_headers: list[Header]) -> None:
        self._came_s = self._relay.clock()
        if self._tried[-1].kind == "remote":  # its cookies, limits and account are ours, not the caller's
            response_headers = [header for header in response_headers if header[0] == b"content-type"]
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
            is_kept = self._endpoint.generates and dialect in CONTINUED and self._relay.config.continue_streams
            trail = Trail(dialect) if is_kept else None
            self._meter = Meter(
                dialect,
                strip_usage=call.strip_usage,
                clock=self._relay.clock,
                request_id=self.request_id,
                trail=trail,
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
            self._forward(self._meter, self._meter.feed(data))
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def _forward(self, meter: Meter, data: bytes) -> None:
        if self._awaits_token and meter.first_token_s is not None:
            self._note_first_token()
        if not self._is_started:
            if data or meter.fault is not None:
                self._start(meter, data)
        elif data:
            self._client.write(data)
        if meter.fault is not None:
            if not self._is_over and self._is_started:
                self._gave_error(meter.fault, meter.error_event)
        elif meter.held_bytes > self._relay.config.max_event_bytes:
            self._overflow()

    def _gave_error(self, fault: Fault, event: bytes) -> None:
        """The engine ended its stream with an error; one of its own is as good as a broken connection."""
        if fault.status >= 500:
            self._broke(AnswerError(fault), event)
        else:
            self._end_stream(fault.status, event, "engine_error")

    def passed(self, chunk: bytes, start: int) -> bool:
        """Text of a stream that has begun goes out as it is on the wire, its chunk and all."""
        pass_on = self._pass_on
        if pass_on is None or not self._passes(chunk, start, len(chunk) - 2):
            return False
        pass_on(chunk)
        return True

    def ended(self) -> None:
        """The engine's answer is complete; its connection is no longer ours."""
        self._connection = None
        try:
            if self._meter is None:
                self._whole(b"".join(self._pieces))
                return
            self._over(self._meter)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def _over(self, meter: Meter) -> None:
        last = meter.rest()
        is_cut = self._endpoint.generates and not meter.is_complete
        if not self._is_started:
            self._start(meter, b"" if is_cut else last)
            last = b""
        if self._is_over or not self._is_started:
            return
        if is_cut:
            self._broke(BrokenError("its stream stopped before its end"))
            return
        self._client.end(last)
        self._settle("ok")

    def failed(self, error: UpstreamError) -> None:
        """The engine did not deliver; once the caller has seen some of its stream, only the stream can say so."""
        self._connection = None
        try:
            if not self._is_started:
                assert self._call is not None  # noqa: S101  (there is no attempt without a call)
                self._lost(self._call, error)
                return
            self._broke(error)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def _overflow(self) -> None:
        """More than can be held for the caller. No other replica is tried: it is the request that asks for so much."""
        self._end_with(faults.endless(self.request_id, self._tried[-1].name), "broken")

    # A stream that broke in the middle
    def _broke(self, error: UpstreamError, told: bytes | None = None) -> None:
        """Go on from another replica if that can be exact, else end it with an error event: the engine's, if it gave
        one."""
        self._blame(error)
        self._leave_replica()
        self._count_continuation()
        self._pass_on = None
        self._broken_by = (self._tried[-1], error, told)
        meter, call, others = self._meter, self._call, self._left()
        try:
            if meter is None or meter.trail is None or call is None:
                raise CannotContinueError("what was sent of it is not kept")
            if not others:
                raise CannotContinueError("no other replica can take it")
            continuation = Continuation(call, meter.trail)
        except CannotContinueError as reason:
            self.gave_up(str(reason))
            return
        failed, now_s = self._tried[-1].name, self._relay.clock()
        _log.warning("%s: %s failed (%s), its stream goes on elsewhere", self.request_id, failed, error)
        self._handed_on_by = failed
        self._moves = (*self._moves, Move("continuation", now_s, failed, str(error)))
        self._continued += 1
        meter.begin_again()
        self._place_on(others, call)
        self._resumption = Resumption(continuation, self)
        self._resumption.start()

    def _count_continuation(self) -> None:
        """Only now: of a replica whose stream nobody could take up, the failure is counted as what it became."""
        if self._handed_on_by:
            self._relay.metrics.continued(self._model, self._handed_on_by)
            self._handed_on_by = ""

    def _left(self) -> list[Replica]:
        if self._call is None or self._continued >= _MOST_CONTINUATIONS:
            return []
        try:
            found = self._relay.pool.candidates(self._call.model)
        except RefusedError:
            return []
        return [replica for replica in found if replica is not self._tried[-1] and replica.is_in]

    # Called by the resumption
    def ask(self, ask: Ask) -> None:
        """Send this to the replica."""
        self._heard_s = self._relay.clock()
        self._send(self._tried[-1], b"POST", ask.path.encode(), ask.body, self._resumption)

    def resumed(self, events: bytes) -> None:
        """The stream goes on."""
        try:
            self._count_continuation()
            if self._meter is not None and (forward := self._meter.feed(events)):
                self._note_first_token()
                self._client.write(forward)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def completed(self, events: bytes) -> None:
        """And is complete."""
        self._connection = None
        try:
            self._tried[-1].succeeded()
            self._client.end(self._meter.feed(events) if self._meter is not None else events)
            self._settle("ok")
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def broke(self, error: UpstreamError) -> None:
        """The replica it went on from has failed as well."""
        try:
            self._broke(error)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def gave_up(self, reason: str) -> None:
        """It cannot be continued."""
        replica, error, told = self._broken_by
        if replica is not self._tried[-1]:  # the other one only said that it cannot
            self._handed_on_by = ""
            self._leave_replica()
            self._tried.append(replica)
            self._tally = self._relay.metrics.tally(self._model, replica.name, self._endpoint.dialect)
        _log.warning("%s: its stream is not continued, because %s", self.request_id, reason)
        # half an event that the meter still holds is dropped: glued to the error it would hide it from the SDK
        fault = faults.broken(self.request_id, replica.name, error, "during the answer")
        if told is None:
            self._end_with(fault, "broken")
        else:
            self._end_stream(fault.status, told, "broken")

    # One attempt on one replica, counted there while it lasts
    def _attempt(self, call: Call, candidates: Sequence[Replica]) -> None:
        replica = self._place_on(candidates, call)
        endpoint = self._endpoint
        path = remote_path(endpoint) if replica.kind == "remote" else endpoint.raw_path
        self._send(replica, endpoint.method, path, call.body, self)

    def _place_on(self, candidates: Sequence[Replica], call: Call) -> Replica:
        relay = self._relay
        self._place = place = relay.pool.router.pick(self._routed(call), candidates, self._policy(call))
        self._predicted_tokens = place.predicted_tokens
        replica = place.load
        self._tried.append(replica)
        self._tally = tally = relay.metrics.tally(call.model, replica.name, self._endpoint.dialect)
        tally.in_flight += 1
        self._there = replica.in_flight
        self._awaits_token = True
        self._sent_s = self._heard_s = relay.clock()
        return replica

    def _routed(self, call: Call) -> Route:
        """Made once: what is tried elsewhere is the same prompt."""
        if self._route is None:
            estimate = self._relay.estimates.of(call.model)
            chain, ratio = call.chain, estimate.tokens_per_unit
            prompt, likely = 0, 0
            if self._endpoint.generates:
                prompt, likely = int(chain.size * ratio) + 1, estimate.likely_output(call.most_output_tokens)
            session = session_key(self._head.session, call.session, self._caller)
            self._route = Route(chain, prompt, likely, session, ratio)
        return self._route

    def _policy(self, call: Call) -> Policy[Replica] | None:
        routings = self._relay.config.routings
        return POLICIES[routings[call.model]] if call.model in routings else None

    def _note_first_token(self) -> None:
        self._awaits_token = False
        if self._place is not None:
            self._place.first_token(self._relay.clock() - self._sent_s)

    def _send(self, replica: Replica, method: bytes, path: bytes, body: bytes, sink: Sink) -> None:
        self._connection = connection = self._relay.upstream.open(replica.url)
        if self._client.is_slow:
            connection.pause()
        connection.send(method, path, self._lines(replica), body, sink)

    def _lines(self, replica: Replica) -> bytes:
        lines = b"%bx-request-id: %b\r\n" % (self._head.forwarded, self.request_id.encode())
        return lines + b"authorization: Bearer %b\r\n" % replica.api_key.encode() if replica.api_key else lines

    # A second replica is asked as well
    def _hedge_later(self, call: Call, hedge: Hedge) -> None:
        relay = self._relay
        relay.hedges.requested()
        after_s = relay.pool.hedge_after_s(call.model, hedge)
        if after_s is not None:
            self._hedge_timer = asyncio.get_running_loop().call_later(after_s, self._hedge, call, hedge)

    def _hedge(self, call: Call, hedge: Hedge) -> None:
        relay = self._relay
        try:
            if self._is_started or self._is_over or self._connection is None or self._call is not call:
                return
            others = [replica for replica in self._others(call) if replica.is_in]
            others = with_room(others, self._routed(call))
            if not others or not relay.hedges.take(hedge):
                return
            place = relay.pool.router.pick(self._routed(call), others, self._policy(call))
            replica = place.load
            relay.metrics.hedged(call.model, replica.name)
            tally = relay.metrics.tally(call.model, replica.name, self._endpoint.dialect)
            self._rival = rival = Rival(self, place, tally, relay.clock())
            rival.connection = connection = relay.upstream.open(replica.url)
            connection.send(self._endpoint.method, self._endpoint.raw_path, self._lines(replica), call.body, rival)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

    def overtaken(self, rival: Rival, data: bytes) -> None:
        """The second one was first."""
        connection, self._rival = rival.connection, None
        try:
            assert connection is not None  # noqa: S101  (the bytes came over it)
            slower, now_s = self._tried[-1], self._relay.clock()
            slower.was_late(now_s - self._sent_s)
            self._leave_replica()
            self._moves = (*self._moves, Move("hedge", now_s, slower.name, "slower"))
            self._tried.append(rival.replica)
            self._place, self._tally, self._connection = rival.place, rival.tally, connection
            self._predicted_tokens = rival.place.predicted_tokens
            self._sent_s, self._heard_s = rival.asked_s, now_s
            connection.hand_over(self)
            if self._client.is_slow:
                connection.pause()
            self.began(rival.status, rival.headers)
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()
        if not self._is_over:
            self.received(data)

    def _end_race(self) -> None:
        timer, self._hedge_timer = self._hedge_timer, None
        if timer is not None:
            timer.cancel()
        rival, self._rival = self._rival, None
        if rival is not None:
            rival.drop()
            if self._relay.gate.is_busy:
                self._relay.gate.serve()

    @property
    def _model(self) -> str:
        return NOBODY if self._call is None else self._call.model

    def _leave_replica(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut()
        place, self._place = self._place, None
        if place is not None and self._tally is not None:
            place.release()
            self._tally.in_flight -= 1
            if self._relay.gate.is_busy:
                self._relay.gate.serve()

    def _lost(self, call: Call, error: UpstreamError) -> None:
        """An attempt of which the caller has seen nothing: try another replica, or say what happened."""
        self._end_race()
        self._blame(error)
        self._leave_replica()
        others = self._others(call) if faults.worth_another(error) else []
        replica = self._tried[-1]
        if others and self._relay.pool.retry_budget.take():
            _log.warning("%s: %s failed (%s), trying another replica", self.request_id, replica.name, error)
            self._relay.metrics.retried(call.model, replica.name)
            self._moves = (*self._moves, Move("retry", self._relay.clock(), replica.name, str(error)))
            self._attempt(call, others)
        elif self._stood_in(trouble_of(error, of_remote=replica.kind == "remote")):
            pass
        elif isinstance(error, AnswerError):
            self._end_with(error.fault, "engine_error")
        else:
            self._end_with(faults.broken(self.request_id, replica.name, error, "before it answered"), "broken")

    def _stood_in(self, trouble: Trouble | None) -> bool:
        """Send the request on along its model's chain, if somebody there can take it."""
        pool = self._relay.pool
        if self._chain is None or trouble is None:
            return False
        there = next_attempt(
            self._chain, self._chain_place, trouble, self._asked, lambda step: bool(pool.stand_ins(step))
        )
        if there is None:
            return False
        _log.warning("%s: '%s' %s, '%s' stands in", self.request_id, self._asked.model, trouble, there.step.name)
        self._end_race()
        self._leave_line()
        if trouble == "late" and self._tried:
            self._tried[-1].was_late(self._relay.clock() - self._sent_s)
            self._leave_replica()
        self._chain_place, self._call, self._route = there.place, there.call, None
        failed = self._tried[-1].name if self._tried else NOBODY
        self._moves = (*self._moves, Move("fallback", self._relay.clock(), failed, trouble))
        self._attempt(there.call, pool.stand_ins(there.step))
        return True

    def _late(self) -> None:
        try:
            if not (self._is_started or self._is_over):
                self._stood_in("late")
        except Exception:  # noqa: BLE001  (see open)
            self._stumble()

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
        if self._is_opened:
            self._end_with(faults.not_a_stream(), "broken")
            return
        self._note_owner(body)
        if self._endpoint.generates:
            self._usage = read_answer(self._endpoint.dialect, body)
        lines = headers.returned(self._response_headers) + self._own_lines()
        if self._usage.cached_tokens is not None:
            lines += b"x-berth-cached-tokens: %d\r\n" % self._usage.cached_tokens
        self._client.answer(self._status, lines, body)
        self._note_added()
        self._settle("ok")

    def _start(self, meter: Meter, first: bytes) -> None:
        error = _error_at_the_start(meter, first)
        if error is not None:
            assert self._call is not None  # noqa: S101  (there is no answer without a call)
            self._lost(self._call, error)
            return
        self._is_started = True
        self._end_race()
        self._tried[-1].succeeded(self._came_s - self._sent_s)
        self._note_owner(first)
        if self._is_opened:
            if first:
                self._client.write(first)
        else:
            self._is_opened = True
            lines = headers.returned_of_stream(self._response_headers) + self._own_lines()
            self._client.start(self._status, lines, first)
        self._pass_on, self._passes = self._client.raw, meter.passes
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

    def _end_with(self, fault: Fault, outcome: Outcome) -> None:
        """The answer is this, or the end of it, where the caller has been sent something."""
        if self._is_opened:
            self._end_stream(fault.status, fault_event(self._endpoint.dialect, fault, self.request_id), outcome)
        else:
            self._answer_fault(fault, outcome)

    def _end_stream(self, status: int, event: bytes, outcome: Outcome) -> None:
        self._status = status
        self._client.end(event)
        self._settle(outcome)

    def _answer_fault(self, fault: Fault, outcome: Outcome) -> None:
        self._status = fault.status
        body = fault_body(self._endpoint.dialect, fault, self.request_id)
        lines = _JSON + headers.lines(fault_headers(fault)) + self._own_lines()
        self._client.answer(fault.status, lines, body)
        self._settle(outcome)

    def _own_lines(self) -> bytes:
        """What every answer carries: the request id under both SDKs' names, and who answered."""
        rid = self.request_id.encode()
        limits = b"" if self._account is None else self._limit_lines(self._account)
        if not self._tried:
            return b"x-request-id: %b\r\nrequest-id: %b\r\n%b" % (rid, rid, limits)
        who, predicted = self._tried[-1].name.encode(), self._predicted_tokens or 0
        return _OWN_LINES % (rid, rid, who, predicted) + limits

    def _limit_lines(self, account: CallerAccount) -> bytes:
        has = account.allowances(self._relay.clock())
        return headers.lines(limit_headers(self._endpoint.dialect, has, datetime.now(UTC)))

    # The end
    def _stumble(self) -> None:
        """A bug must not take a connection, a place or a count with it."""
        fault = faults.unexpected(self.request_id)
        if self._is_over:
            return
        if self._is_opened:
            self._client.close()
            self._settle("broken")
        else:
            self._answer_fault(fault, "broken")

    def _settle(self, outcome: Outcome) -> None:
        self._is_over = True
        self._pass_on = None
        self._end_race()
        self._relay.watch.discard(self)
        if self._deadline is not None:
            self._deadline.cancel()
        relay, endpoint = self._relay, self._endpoint
        meter = self._meter if endpoint.generates else None
        usage = self._usage if meter is None else meter.usage_or_least
        self._learn(usage, outcome)
        self._leave_line()
        self._leave_replica()
        self._count_continuation()
        if self._ticket is not None:
            self._ticket.settle()
        if self._is_counted and self._account is not None:
            self._account.leave(self._charged_tokens, self._used_tokens(usage), relay.clock())
        replica = self._tried[-1] if self._tried else None
        tally = self._tally or relay.metrics.tally(NOBODY, NOBODY, endpoint.dialect)
        first_s = None if meter is None else meter.first_token_s
        done = Settlement(
            self.request_id,
            self._caller,
            self._model,
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
            usage,
            self._trace,
            self._moves,
            self._predicted_tokens,
            self._fates,
        )
        tally.settle(done)
        relay.ledger.add(done)
        if self._led is not None:
            self._led.settled(done)

    def _learn(self, usage: Usage, outcome: Outcome) -> None:
        """What the engine says it has computed corrects what is believed of it."""
        place, prompt_tokens, call = self._place, usage.prompt_tokens, self._call
        if place is None or call is None or outcome != "ok" or self._continued:
            return  # what went on elsewhere was computed twice
        place.computed()
        if prompt_tokens is None:
            return
        self._fates = place.settle(prompt_tokens, usage.cached_tokens)
        if call.response_id is not None:
            return  # the prompt is more than we have seen of it
        self._relay.estimates.of(call.model).learn(call.chain.size, prompt_tokens, usage.output_tokens)
        now_s = self._relay.clock()
        if now_s >= self._relay.gate.learn_at_s:
            first_s, tpot_s = (None, None) if self._meter is None else (self._meter.first_token_s, self._meter.tpot_s)
            ttft_s = None if first_s is None else first_s - self._sent_s
            self._relay.gate.learn(place, call, usage, Answer(self._there, now_s, ttft_s, tpot_s))
        precise = self._relay.precise
        if precise is not None and not self._chain_place:  # one who stands in may have tokens of its own for this text
            precise.answered(place.load, call)

    def _used_tokens(self, usage: Usage) -> int:
        """As far as one knows, what was taken from its caller's allowance at first; nothing, where nobody had it."""
        if not self._tried:
            return 0
        if usage.prompt_tokens is None:
            return self._charged_tokens
        return usage.prompt_tokens + (usage.output_tokens or 0)


_UNKNOWN = Usage()
CONTINUED: frozenset[Dialect] = frozenset({"chat", "completions", "responses", "messages"})
"""Whose streams can go on from another replica."""
_JSON = b"content-type: application/json\r\n"
_OWN_LINES = b"x-request-id: %b\r\nrequest-id: %b\r\nx-berth-replica: %b\r\nx-berth-predicted-cached-tokens: %d\r\n"


def _error_at_the_start(meter: Meter, first: bytes) -> UpstreamError | None:
    """What is wrong with a stream that is empty or opens with an error: the caller has seen nothing of it yet."""
    if meter.fault is None:
        return None if first else BrokenError("its stream ended without a single event")
    if meter.first_token_s is not None:
        return None
    return AnswerError(meter.fault) if meter.fault.status < 500 else BrokenError(meter.fault.message)
