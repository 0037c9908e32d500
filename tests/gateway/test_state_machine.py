"""Clients, gateway and engines in any order that hypothesis thinks of, without sockets: nothing is lost or left behind.

The protocol objects of both sides are the real ones, called as a loop would call them. After each step every count must
agree with what a bystander sees of the bytes; at the end all of them are zero, and whatever reached a client is the
beginning of what one engine sent for that very request.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import uvicorn
from httptools import HttpRequestParser, HttpResponseParser
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from uvicorn.server import ServerState

from gateway.admission.door import Admission
from gateway.admission.gate import Gate
from gateway.admission.rates import Accounts
from gateway.attempt import Attempt
from gateway.config import GatewayConfig, Queue
from gateway.connection import Connection
from gateway.cost import Cost
from gateway.errors import ConnectError
from gateway.exchange import Exchange
from gateway.headers import RequestIds
from gateway.identity import Keyring
from gateway.lane import LaneProtocol
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.patience import Patience
from gateway.relay import Relay
from gateway.replica import ModelCard, Pool, Replica
from gateway.resumption import Resumption
from gateway.routing import Router
from gateway.routing.policies import least_work
from gateway.settlement import Settlement
from gateway.takeover import Takeover
from gateway.turn import Turn
from gateway.upstream import Upstream
from gateway.wire import EventSplitter
from tests.gateway.loopless import FakeTransport, Wire

Answer = Literal["stream", "whole", "refusal", "crash", "error event", "redirect", "empty stream", "nonsense"]
MOST_IN_FLIGHT = 5
CLIENTS = 4


class _Later:
    """A timer that never fires."""

    def cancel(self) -> None: ...


@dataclass
class _Loop:
    """What uvicorn's protocol asks of an event loop."""

    waiting: list[Coroutine[Any, Any, None]] = field(default_factory=list)

    def create_task(self, work: Coroutine[Any, Any, None], **_: object) -> Any:
        self.waiting.append(work)
        return asyncio.Future(loop=cast(Any, self))  # only to be kept and forgotten

    def call_later(self, *_: object) -> _Later:
        return _Later()

    def get_debug(self) -> bool:
        return False

    def turn(self) -> None:
        """Run what was created since the last turn."""
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            try:
                work.send(None)
            except StopIteration:
                continue
            raise AssertionError("the lane awaits nothing")


class _NoPatience(Patience):
    def __init__(self) -> None: ...

    def add(self, connection: object) -> None: ...

    def discard(self, connection: object) -> None: ...


class _Ledger(Ledger):
    """Remembers every settlement."""

    def __init__(self) -> None:
        super().__init__(())
        self.settled: list[Settlement] = []

    def add(self, done: Settlement) -> None:
        self.settled.append(done)


class _Metrics(Metrics):
    """Can be asked."""

    def in_flight(self, replica: str) -> float:
        samples = (sample for family in self.collect() for sample in family.samples)
        return sum(
            sample.value
            for sample in samples
            if sample.name == "berth_requests_in_flight" and sample.labels["replica"] == replica
        )


@dataclass
class _Attempt:
    """One request as an engine got it, and what it has answered so far."""

    tag: int
    wanted_stream: bool
    body: bytes = b""
    """Of the answer, without its framing, as far as it was sent."""
    outbox: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Still to send: bytes on the wire, and the body in them."""
    is_stream: bool = False
    is_done: bool = False


class Line:
    """One connection between gateway and engine, seen from the engine."""

    def __init__(self, connection: Connection, replica: str) -> None:
        self.connection = connection
        self.replica = replica
        self.transport: FakeTransport | None = None
        self.was_refused = False
        self.was_told = False
        self.attempts: list[_Attempt] = []
        self._parser = HttpRequestParser(self)
        self._body = b""

    @property
    def is_open(self) -> bool:
        return self.transport is not None and not self.transport.is_closed

    @property
    def is_connecting(self) -> bool:
        return self.transport is None and not self.was_refused

    @property
    def now(self) -> _Attempt | None:
        """The request that waits for an answer."""
        return self.attempts[-1] if self.attempts and not self.attempts[-1].is_done else None

    def read(self) -> None:
        """What the gateway wrote since."""
        if self.is_open and self.transport is not None and self.transport.written:
            data, self.transport.written = bytes(self.transport.written), bytearray()
            self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        assert self.now is None, "a second request before the answer to the first"
        self.attempts.append(_Attempt(self.tag_of(self._body), b'"stream":true' in self._body))
        self._body = b""

    def tag_of(self, body: bytes) -> int:
        """Whose request it is."""
        return int(body.partition(b'"tag":')[2].partition(b",")[0])

    def prepare(self, kind: Answer, events: int) -> None:
        """Decide on the answer."""
        attempt = self.now
        assert attempt is not None
        mark = f"{attempt.tag} by {self.replica} at try {len(self.attempts)}"
        if kind in ("stream", "error event", "empty stream"):
            attempt.is_stream = True
            frames = [f'data: {{"choices":[{{"delta":{{"content":"{mark} {i}"}}}}]}}\n\n' for i in range(events)]
            if kind == "error event":
                frames = ['data: {"error":{"message":"no","code":503}}\n\n']
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            attempt.outbox = [(head, b"")]
            if kind != "empty stream":
                pieces = [frame.encode() for frame in [*frames, "data: [DONE]\n\n"]]
                attempt.outbox += [(b"%x\r\n%b\r\n" % (len(piece), piece), piece) for piece in pieces]
            attempt.outbox.append((b"0\r\n\r\n", b""))
            return
        if kind == "nonsense":
            attempt.outbox = [(b"SMTP ready\r\n\r\n", b"")]
            return
        status = {"whole": 200, "refusal": 400, "crash": 500, "redirect": 307}[kind]
        body = f'{{"answer":"{mark}"}}'.encode()
        head = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        attempt.outbox = [(head, b""), (body[:5], body[:5]), (body[5:], body[5:])]

    def send(self, pieces: int) -> None:
        """So many pieces of the prepared answer in one read."""
        attempt = self.now
        assert attempt is not None
        due, attempt.outbox = attempt.outbox[:pieces], attempt.outbox[pieces:]
        attempt.body += b"".join(body for _, body in due)
        attempt.is_done = not attempt.outbox
        self.connection.data_received(b"".join(data for data, _ in due))

    def close(self, error: Exception | None) -> None:
        """The connection is gone."""
        assert self.transport is not None
        self.transport.is_closed = self.was_told = True
        self.connection.connection_lost(error)


class _ClientTransport(FakeTransport):
    """One whose buffer may be full after a write, which it says before the write returns."""

    fills_up: Callable[[], None] | None = None

    def write(self, data: Any) -> None:
        super().write(data)
        if self.fills_up is not None:
            fills_up, self.fills_up = self.fills_up, None
            fills_up()


class Caller:
    """One client connection, seen from the client: what it sent, and every answer it got as far as it came."""

    def __init__(self, protocol: LaneProtocol) -> None:
        self.protocol = protocol
        self.transport = _ClientTransport()
        protocol.connection_made(self.transport)
        self.outbox = b""
        self.tags: list[int] = []
        self.sent_heads = 0
        self.is_gone = False
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self.complete = 0
        self._parser = HttpResponseParser(self)

    @property
    def is_open(self) -> bool:
        return not self.is_gone and not self.transport.is_closed

    def ask(self, tag: int, *, stream: bool, chunked: bool) -> None:
        """Have a request to send."""
        body = self.body(tag, stream=stream)
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
        if chunked:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        self.outbox += b"POST /v1/chat/completions HTTP/1.1\r\n" + framing + b"\r\n\r\n" + body
        self.tags.append(tag)

    def body(self, tag: int, *, stream: bool) -> bytes:
        """What it asks."""
        options = b',"stream":true,"stream_options":{"include_usage":true}' if stream else b""
        return b'{"tag":%d,"model":"m"%b}' % (tag, options)

    def feed(self, size: int) -> None:
        """Send the next `size` bytes."""
        data, self.outbox = self.outbox[:size], self.outbox[size:]
        self.protocol.data_received(data)

    def read(self) -> None:
        """What the gateway wrote since, held to the rules of HTTP by a parser."""
        data, self.transport.written = bytes(self.transport.written), bytearray()
        if data:
            self._parser.feed_data(data)

    def leave(self) -> None:
        self.is_gone = self.transport.is_closed = True
        self.protocol.connection_lost(None)

    def on_message_begin(self) -> None:
        self.bodies.append(b"")

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.complete += 1


def attempt_of(sink: object) -> Attempt:
    """Whose connection it is that this hears."""
    if isinstance(sink, Resumption):
        assert isinstance(sink._resumed, Takeover)
        return sink._resumed._attempt
    assert isinstance(sink, Attempt)
    return sink


def _request_of(attempt: Attempt) -> Exchange:
    request = attempt._request
    assert isinstance(request, Exchange)
    return request


class _CountingIds(RequestIds):
    """Counts the requests that were opened: each has an id."""

    opened = 0

    def new(self) -> str:
        self.opened += 1
        return super().new()


class Gateway(RuleBasedStateMachine):
    """The world: two replicas, a few clients, one gateway between them."""

    most_on_a_replica: int | None = None
    line_type = Line
    caller_type = Caller

    def __init__(self) -> None:
        super().__init__()
        self.replicas = [
            Replica(f"e{i}", f"http://e{i}", (ModelCard("m"),), state="ready", max_num_seqs=self.most_on_a_replica)
            for i in range(2)
        ]
        self.wires = {replica.url: Wire() for replica in self.replicas}
        self.lines: list[Line] = []
        self.callers: list[Caller] = []
        self.attempts_of: dict[int, list[_Attempt]] = {}
        self.next_tag = 0
        self.was_back_in_line = False
        self.loop = _Loop()
        self.ledger = _Ledger()
        self.metrics = _Metrics("test")
        self.admission = Admission(MOST_IN_FLIGHT)
        self.request_ids = _CountingIds()
        self.pool = Pool(cast(Upstream, self), self.replicas, router=Router(least_work))
        self.config = uvicorn.Config(cast(Any, None), log_config=None, ws="none", access_log=False, interface="asgi3")
        self.config.loaded, self.config.loaded_app, self.config.ws_protocol_class = True, cast(Any, None), None
        self.gate = Gate(lambda: self.pool.replicas, self.pool.candidates, lambda: 0.0, Queue(max_waiting=2), {})
        self.gate.refresh()
        self.relay = Relay(
            config=GatewayConfig(),
            pool=self.pool,
            upstream=cast(Upstream, self),
            admission=self.admission,
            gate=self.gate,
            accounts=Accounts({}, 0.0),
            metrics=self.metrics,
            clock=lambda: 0.0,
            keyring=Keyring(()),
            request_ids=self.request_ids,
            ledger=self.ledger,
            cost=Cost(lambda: 0, dict),
        )

    # What the gateway calls
    def open(self, url: str) -> Connection:
        """As Upstream.open."""
        connection = self.wires[url].open()
        if all(line.connection is not connection for line in self.lines):
            self.lines.append(self.line_type(connection, url[-2:]))
        return connection

    def _step(self) -> None:
        """Everybody reads what was written for them."""
        self.loop.turn()
        for line in self.lines:
            known = len(line.attempts)
            line.read()
            for attempt in line.attempts[known:]:
                self.attempts_of.setdefault(attempt.tag, []).append(attempt)
        for caller in self.callers:
            caller.read()

    def _open_callers(self) -> list[Caller]:
        return [caller for caller in self.callers if caller.is_open]

    def _answering(self) -> list[Line]:
        return [
            line
            for line in self.lines
            if line.is_open and line.now is not None and line.transport is not None and line.transport.reads
        ]

    def _connecting(self) -> list[Line]:
        return [line for line in self.lines if line.is_connecting]

    @initialize(asked=st.lists(st.booleans(), min_size=1, max_size=3), answered=st.booleans())
    def begin(self, asked: list[bool], answered: bool) -> None:
        """Not from nothing: a few callers have asked, and their engines have taken the call or answered it."""
        for stream in asked:
            self.come()
            self._ask(self.callers[-1], stream=stream, chunked=False)
        for line in self._connecting():
            self._connect(line, accepts=True)
        self._step()
        for line in self._answering() if answered else ():
            line.prepare("stream", 3)
            line.send(2)
        self._step()

    # Clients
    @precondition(lambda self: len(self._open_callers()) < CLIENTS)
    @rule()
    def come(self) -> None:
        protocol = LaneProtocol(
            self.relay, _NoPatience(), self.config, ServerState(), {}, cast(asyncio.AbstractEventLoop, self.loop)
        )
        self.callers.append(self.caller_type(protocol))

    @precondition(lambda self: self._open_callers())
    @rule(data=st.data(), stream=st.booleans(), chunked=st.booleans(), now=st.booleans())
    def ask(self, data: st.DataObject, stream: bool, chunked: bool, now: bool) -> None:
        caller = data.draw(st.sampled_from(self._open_callers()))
        self._ask(caller, stream=stream, chunked=chunked, now=now)

    def _ask(self, caller: Caller, *, stream: bool, chunked: bool, now: bool = True) -> None:
        caller.ask(self.next_tag, stream=stream, chunked=chunked)
        self.next_tag += 1
        if now:
            caller.feed(len(caller.outbox))
        self._step()

    @precondition(lambda self: any(caller.outbox for caller in self._open_callers()))
    @rule(data=st.data(), size=st.integers(1, 200))
    def send_some(self, data: st.DataObject, size: int) -> None:
        caller = data.draw(st.sampled_from([caller for caller in self._open_callers() if caller.outbox]))
        caller.feed(size)
        self._step()

    @precondition(lambda self: self._open_callers())
    @rule(data=st.data())
    def read_slower_or_faster(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self._open_callers()))
        protocol = caller.protocol
        caller.transport.fills_up = None
        if protocol.flow.write_paused:
            protocol.resume_writing()
        else:
            protocol.pause_writing()
        self._step()

    @precondition(lambda self: self._open_callers())
    @rule(data=st.data())
    def be_full_after_the_next_write(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(self._open_callers()))
        if not caller.protocol.flow.write_paused:
            caller.transport.fills_up = caller.protocol.pause_writing

    @precondition(lambda self: self._open_callers())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self._open_callers())).leave()
        self._step()

    # Engines
    @precondition(lambda self: self._connecting())
    @rule(data=st.data(), accepts=st.sampled_from([True, True, False]))
    def connect(self, data: st.DataObject, accepts: bool) -> None:
        self._connect(data.draw(st.sampled_from(self._connecting())), accepts)
        self._step()

    def _connect(self, line: Line, accepts: bool) -> None:
        if accepts:
            line.transport = FakeTransport()
            line.connection.connection_made(line.transport)
        else:
            line.was_refused = True
            line.connection.fail(ConnectError("refused"))

    @precondition(lambda self: self._answering())
    @rule(
        data=st.data(),
        pieces=st.integers(1, 9),
        events=st.integers(0, 4),
        kind=st.sampled_from(Answer.__args__),  # type: ignore[attr-defined]
    )
    def answer(self, data: st.DataObject, pieces: int, events: int, kind: Answer) -> None:
        line = data.draw(st.sampled_from(self._answering()))
        assert line.now is not None
        if not line.now.outbox:
            line.prepare(kind, events)
        line.send(pieces)
        self._step()

    @precondition(lambda self: any(line.is_open for line in self.lines))
    @rule(data=st.data(), error=st.sampled_from([None, ConnectionResetError("reset")]))
    def break_off(self, data: st.DataObject, error: Exception | None) -> None:
        data.draw(st.sampled_from([line for line in self.lines if line.is_open])).close(error)
        self._step()

    @precondition(lambda self: any(line.is_open for line in self.lines))
    @rule(data=st.data())
    def be_silent(self, data: st.DataObject) -> None:
        line = data.draw(st.sampled_from([line for line in self.lines if line.is_open]))
        sink = line.connection._sink
        if sink is not None:
            line.connection.is_heard = False
            _request_of(attempt_of(sink)).tick(1e6)
        self._step()

    @rule(number=st.integers(0, 9))
    def die(self, number: int) -> None:
        if number > 1:
            return  # a rare thing: most of the time both can be asked
        self.replicas[number].state = "unhealthy"
        for line in [line for line in self.lines if line.replica == f"e{number}"]:
            if line.is_open:
                line.close(None)
            elif line.is_connecting:
                self._connect(line, accepts=False)
        self._step()

    @rule()
    def probe(self) -> None:
        for replica in self.replicas:
            replica.state = "ready"
        self.gate.refresh()
        self._step()

    # The loop tells each side of what was closed
    @rule()
    def tell(self) -> None:
        for line in self.lines:
            if line.transport is not None and line.transport.is_closed and not line.was_told:
                line.close(None)
        for caller in self.callers:
            if caller.transport.is_closed and not caller.is_gone:
                caller.leave()
        self._step()

    @rule()
    def all_goes_well(self) -> None:
        """Whatever state things are in: when nothing goes wrong any more, everybody gets all answers."""
        self.probe()
        for caller in self._open_callers():
            caller.transport.fills_up = None
            if caller.protocol.flow.write_paused:
                caller.protocol.resume_writing()
            caller.feed(len(caller.outbox))
        self._step()
        for _ in range(200):
            busy = [*self._connecting(), *self._answering()]
            if not busy:
                break
            line = busy[0]
            if line.is_connecting:
                self._connect(line, accepts=True)
            else:
                assert line.now is not None
                if not line.now.outbox:
                    line.prepare("stream" if line.now.wanted_stream else "whole", 3)
                line.send(99)
            self._step()
        assert not self.admission.in_flight
        for caller in self._open_callers():
            assert caller.complete == len(caller.tags)

    # What must hold
    @invariant()
    def counts_agree_with_what_can_be_seen(self) -> None:
        for replica in self.replicas:
            owned = [line for line in self.lines if line.replica == replica.name and line.connection._sink is not None]
            assert replica.in_flight == len(owned) == self.metrics.in_flight(replica.name)
            assert (replica.work_tokens > 0) == (replica.in_flight > 0)
        running = [exchange for exchange in self._exchanges() if not exchange._is_over]
        holding = [exchange for exchange in running if exchange._ticket is not None]
        assert self.admission.in_flight == len(holding) == len(running)
        assert self.request_ids.opened == len(self.ledger.settled) + len(running)

    @invariant()
    def whoever_waits_is_in_line_and_nobody_else(self) -> None:
        running = [exchange for exchange in self._exchanges() if not exchange._is_over]
        courses = [exchange._course for exchange in running if exchange._course is not None]
        standing = [course for course in courses if course.stand is not None]
        lines = [desk.line for desk in self.gate.desks.values()]
        assert sum(line.count for line in lines) == len(standing)
        back = [course for course in standing if course.attempt is not None]  # they lost a place that they had
        assert sum(len(line.returned) for line in lines) == len(back)
        assert len(standing) - len(back) <= 2
        self.was_back_in_line |= bool(back)
        assert all(course.attempt is None or course.attempt.place is None for course in standing)

    def _exchanges(self) -> list[Exchange]:
        turns = [caller.protocol._running for caller in self.callers]
        return [turn._exchange for turn in turns if isinstance(turn, Turn) and turn._exchange is not None]

    @invariant()
    def a_request_runs_while_its_answer_is_not_complete(self) -> None:
        """Seen from outside: the exchange of a caller is over exactly when its answer, or the caller, is gone."""
        for caller in self.callers:
            running = caller.protocol._running
            if isinstance(running, Turn) and running._exchange is not None and caller.is_open:
                is_answered = caller.complete == len(caller.bodies) and len(caller.bodies) == len(caller.tags)
                assert running._exchange._is_over or not is_answered
            if caller.is_gone:
                assert running is None

    @invariant()
    def every_connection_has_an_owner(self) -> None:
        for line in self.lines:
            idle = self.wires[f"http://{line.replica}"].engine.idle
            sink = line.connection._sink
            if sink is not None:
                attempt = attempt_of(sink)
                assert attempt.connection is line.connection
                course = _request_of(attempt)._course
                assert course is not None
                assert course.attempt is attempt
                assert line.connection not in idle
            elif line.is_open:
                assert line.connection in idle or line.connection.is_cut
            elif line.is_connecting:
                assert line.connection.is_cut
        owners = [line.connection._sink for line in self.lines if line.connection._sink is not None]
        assert len(owners) == len(set(map(id, owners)))

    @invariant()
    def an_engine_is_read_exactly_while_its_caller_reads(self) -> None:
        for caller in self.callers:
            turn = caller.protocol._running
            exchange = turn._exchange if isinstance(turn, Turn) else None
            attempt = exchange._course.attempt if exchange is not None and exchange._course is not None else None
            if attempt is not None and attempt.connection is not None:
                assert attempt.connection.is_paused == caller.protocol.flow.write_paused
        for wire in self.wires.values():
            assert not any(connection.is_paused for connection in wire.engine.idle)

    @invariant()
    def answers_are_what_an_engine_said_to_that_request(self) -> None:
        for caller in self.callers:
            for i, (status, body) in enumerate(zip(caller.statuses, caller.bodies, strict=False)):
                if status == 200:
                    attempts = self.attempts_of[caller.tags[i]]
                    is_complete = i < caller.complete
                    assert any(_comes_from(body, attempt, is_complete=is_complete) for attempt in attempts)

    def teardown(self) -> None:
        """All leave: nothing is left."""
        self._step()
        for caller in self.callers:
            if not caller.is_gone:
                caller.leave()
        self.tell()
        assert self.admission.in_flight == 0
        assert all((replica.in_flight, replica.work_tokens) == (0, 0) for replica in self.replicas)
        assert all(self.metrics.in_flight(replica.name) == 0 for replica in self.replicas)
        assert self.request_ids.opened == len(self.ledger.settled)
        left = [line for line in self.lines if line.is_open or line.is_connecting]
        idle = [connection for wire in self.wires.values() for connection in wire.engine.idle]
        assert all(line.connection.is_cut or line.connection in idle for line in left)
        assert all(settlement.status for settlement in self.ledger.settled)
        for settlement in self.ledger.settled:
            event(settlement.outcome)
        for caller in self.callers:
            if len(caller.statuses) > caller.complete:
                event("a stream that broke off")
        seen = {
            "moved to another replica": bool(self.metrics._retries),
            "stood in line": bool(self.metrics._queue_waits),
            "stood in line again": self.was_back_in_line,
        }
        for name in filter(seen.get, seen):
            event(name)


def _comes_from(body: bytes, attempt: _Attempt, *, is_complete: bool) -> bool:
    """Whether a client's body is what this attempt sent, as far as it got, with an error event behind it or not."""
    if attempt.body.startswith(body) and (body == attempt.body or not is_complete):
        return True
    events = EventSplitter().feed(body)
    *before, last = events or [b""]
    return (
        attempt.is_stream
        and is_complete
        and (b"engine_failed" in last or b'"code":"timeout"' in last)
        and bool(before)
        and attempt.body.startswith(b"".join(before))
    )


Gateway.TestCase.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestGateway = Gateway.TestCase


class CrowdedGateway(Gateway):
    """The same, with room for one request on each replica: the others stand in line."""

    most_on_a_replica = 1

    @invariant()
    def nobody_is_where_there_is_no_room(self) -> None:
        """Whatever was lost with another replica."""
        assert all(replica.in_flight <= 1 for replica in self.replicas)

    @invariant()
    def while_one_is_free_and_well_nobody_waits_for_it(self) -> None:
        if any(replica.is_in and not replica.in_flight for replica in self.replicas):
            assert not any(desk.line.first() for desk in self.gate.desks.values())


CrowdedGateway.TestCase.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCrowdedGateway = CrowdedGateway.TestCase
