"""Nobody waits for ever: limits on an engine's silence, and signs of life for the caller of a stream while it lasts.

The clock is set by hand: what a test waits for is that the gateway has noticed, never that time passes.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import anthropic
import openai
import pytest

from gateway.config import Chain, Step, Timeouts
from gateway.exchange import Exchange
from gateway.wire import Dialect
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, event, json_answer, running
from tests.gateway.harness import (
    PATHS,
    STREAMING,
    Door,
    HandClock,
    body_for,
    door_before,
    first_seen,
    golden,
    golden_events,
    receive_rest,
    receive_until,
    request_bytes,
    stream_of,
    wait_until,
)

FIRST_S, GAP_S, KEEP_ALIVE_S = 100.0, 40.0, 15.0
TIMEOUTS = Timeouts(first_token_s=FIRST_S, gap_s=GAP_S, keep_alive_s=1e9)
ALIVE = Timeouts(first_token_s=FIRST_S, gap_s=GAP_S, keep_alive_s=KEEP_ALIVE_S)
NEVER = threading.Event()
PINGS: dict[Dialect, bytes] = {
    "chat": b": keep-alive\n\n",
    "completions": b": keep-alive\n\n",
    "responses": b": keep-alive\n\n",
    "messages": b'event: ping\ndata: {"type": "ping"}\n\n',
}
EVENT_ERRORS: dict[Dialect, bytes] = {
    "chat": b'data: {"error":{',
    "completions": b'data: {"error":{',
    "responses": b'event: error\ndata: {"type":"error",',
    "messages": b'event: error\ndata: {"type":"error",',
}


@pytest.fixture
def clock() -> HandClock:
    """Of every gateway in this module."""
    return HandClock()


@contextmanager
def asked(door: Door, dialect: Dialect, *, stream: bool = True, path: str = "") -> Iterator[socket.socket]:
    """A caller whose request is on its way; it closes its connection behind its answer."""
    body = json.dumps(body_for(dialect, stream=stream)).encode()
    with door.connection() as sock:
        sock.sendall(request_bytes(path or PATHS[dialect], body, "connection: close"))
        yield sock


def unchunked(answer: bytes) -> bytes:
    """The body of a chunked answer that ends as it should."""
    rest, body = answer.partition(b"\r\n\r\n")[2], b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, end, rest = body + rest[:length], rest[length : length + 2], rest[length + 2 :]
        assert end == b"\r\n"
        if not length:
            assert rest == b""
            return body


def held(dialect: Dialect, at: int, gate: threading.Event = NEVER) -> Script:
    """A stream that stops before its event `at`."""
    return Script(chunks=stream_of(dialect).chunks, gates={at: gate})


# Limits
@pytest.mark.parametrize("stage", [BEFORE_HEADERS, 0], ids=["before the head", "after the head"])
@pytest.mark.parametrize("dialect", STREAMING)
def test_no_first_token_in_time_and_another_replica_is_asked(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect, stage: int
) -> None:
    door = stack.enter_context(door_before(fake, second, clock=clock, timeouts=TIMEOUTS))
    fake.enqueue(held(dialect, stage))
    second.enqueue(stream_of(dialect))
    with asked(door, dialect) as sock:
        seen = first_seen(fake)
        wait_until(lambda: seen.pieces == stage)
        clock.now_s += FIRST_S - 1
        ticks(door, clock, 3)
        assert second.seen == []
        clock.now_s += FIRST_S + 1
        answer = receive_rest(sock)
    assert b"x-berth-replica: e1" in answer
    assert unchunked(answer) == golden(dialect)
    wait_until(lambda: seen.aborted)
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_retries_total", replica="e0") == 1
    assert door.total("berth_requests_total") == door.total("berth_requests_total", outcome="ok", replica="e1") == 1


def ticks(door: Door, clock: HandClock, times: int) -> None:
    """Let the watch look so many times at the clock as it stands."""
    watch, seen = door.gateway._relay.watch, threading.Semaphore(0)

    class Looker:
        def tick(self, now_s: float) -> None:
            seen.release()

    looker = Looker()
    watch.add(looker)
    for _ in range(times):
        assert seen.acquire(timeout=20)
    watch.discard(looker)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
@pytest.mark.parametrize("dialect", STREAMING)
def test_no_first_token_and_nobody_else_is_a_timeout(
    fake: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect, stream: bool
) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=TIMEOUTS))
    fake.enqueue(Script(gates={BEFORE_HEADERS: NEVER}))
    with asked(door, dialect, stream=stream) as sock:
        seen = first_seen(fake)
        clock.now_s += FIRST_S + 1
        answer = receive_rest(sock)
    assert answer.startswith(b"HTTP/1.1 504 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert "100 s" in error["message"]
    if dialect == "messages":
        assert error["type"] == "timeout_error"
    else:
        assert error["code"] == "timeout"
    wait_until(lambda: seen.aborted)
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", outcome="broken", replica="e0") == 1


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_gap_in_the_middle_ends_with_the_dialects_error(
    fake: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect
) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=TIMEOUTS))
    fake.enqueue(held(dialect, 2))
    events = golden_events(dialect)
    with asked(door, dialect) as sock:
        got = receive_until(sock, events[1])
        ticks(door, clock, 2)  # it has been heard
        clock.now_s += GAP_S - 1
        ticks(door, clock, 2)
        assert door.in_flight == 1
        clock.now_s += 2
        body = unchunked(got + receive_rest(sock))
    error = body.removeprefix(events[0] + events[1])
    assert error.startswith(EVENT_ERRORS[dialect])
    assert b"the engine took too long" in error
    assert error.count(b"\n\n") == 1
    wait_until(lambda: fake.seen[0].aborted)
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_request_errors_total", status="504") == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "no stream"])
def test_a_request_may_not_take_longer_than_it_may_in_all(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack, clock: HandClock, stream: bool
) -> None:
    timeouts = Timeouts(first_token_s=FIRST_S, gap_s=GAP_S, total_s=60.0, keep_alive_s=1e9)
    door = stack.enter_context(door_before(fake, second, clock=clock, timeouts=timeouts))
    fake.enqueue(Script(gates={BEFORE_HEADERS: NEVER}))
    with asked(door, "chat", stream=stream) as sock:
        first_seen(fake)
        clock.now_s += 59
        ticks(door, clock, 2)
        clock.now_s += 2
        answer = receive_rest(sock)
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b'"code":"timeout"' in answer
    assert second.seen == []
    assert door.gateway.pool.replicas[0].state == "ready"
    wait_until(lambda: door.is_at_rest)


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_stream_that_takes_longer_than_it_may_in_all_ends_with_an_error(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect
) -> None:
    timeouts = Timeouts(first_token_s=FIRST_S, gap_s=GAP_S, total_s=30.0, keep_alive_s=1e9)
    door = stack.enter_context(door_before(fake, second, clock=clock, timeouts=timeouts))
    fake.enqueue(held(dialect, 2))
    events = golden_events(dialect)
    with asked(door, dialect) as sock:
        got = receive_until(sock, events[1])
        clock.now_s += 31
        body = unchunked(got + receive_rest(sock))
    error = body.removeprefix(events[0] + events[1])
    assert error.startswith(EVENT_ERRORS[dialect])
    assert b"more than 30 s have passed" in error
    assert second.seen == []  # it is the request that takes too long, not the replica
    wait_until(lambda: door.is_at_rest)


def test_a_client_that_does_not_read_is_not_held_against_the_engine(
    fake: FakeEngine, stack: ExitStack, clock: HandClock
) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=ALIVE))
    big = event({"choices": [{"index": 0, "delta": {"content": "x" * 2**16}, "finish_reason": None}]})
    fake.enqueue(Script(chunks=((0.0, big),) * 200 + ((0.0, b"data: [DONE]\n\n"),)))
    with asked(door, "chat") as sock:
        request = wait_for_one(door)
        assert request._course is not None
        attempt = request._course.attempt
        assert attempt is not None
        wait_until(lambda: attempt.connection is not None and attempt.connection.is_paused)
        for _ in range(3):
            clock.now_s += 3 * GAP_S
            ticks(door, clock, 2)
        body = unchunked(receive_rest(sock))
    assert body == big * 200 + b"data: [DONE]\n\n"
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", outcome="ok") == 1


def wait_for_one(door: Door) -> Exchange:
    """The request in flight, once there is one."""
    watch = door.gateway._relay.watch
    wait_until(lambda: watch.watched)
    (request,) = watch.watched
    assert isinstance(request, Exchange)
    return request


# Signs of life
@contextmanager
def pinged(
    fake: FakeEngine,
    door: Door,
    clock: HandClock,
    dialect: Dialect,
    script: Callable[[threading.Event], Script],
) -> Iterator[tuple[socket.socket, bytes]]:
    """A caller that has had one sign of life of an engine that had not answered yet, and now plays on."""
    gate = threading.Event()
    fake.enqueue(script(gate))
    with asked(door, dialect) as sock:
        first_seen(fake)
        clock.now_s += KEEP_ALIVE_S + 1
        got = receive_until(sock, PINGS[dialect])
        gate.set()
        yield sock, got


@pytest.mark.parametrize("stage", [BEFORE_HEADERS, 0], ids=["before the head", "after the head"])
@pytest.mark.parametrize("dialect", STREAMING)
def test_a_long_prefill_is_bridged(
    fake: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect, stage: int
) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=ALIVE))
    gate = threading.Event()
    fake.enqueue(held(dialect, stage, gate))
    with asked(door, dialect) as sock:
        seen = first_seen(fake)
        wait_until(lambda: seen.pieces == stage)
        ticks(door, clock, 2)
        got = b""
        for _ in range(3):
            clock.now_s += KEEP_ALIVE_S + 1
            got += receive_until(sock, PINGS[dialect])
            ticks(door, clock, 3)  # one sign for each silence, however often it is looked at
        gate.set()
        body = unchunked(got + receive_rest(sock))
    assert got.startswith(b"HTTP/1.1 200 ")
    assert b"content-type: text/event-stream" in got
    assert b"x-berth-replica: e0" in got
    assert body == PINGS[dialect] * 3 + golden(dialect)
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", outcome="ok") == 1


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_pause_in_the_middle_is_bridged_between_events(
    fake: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect
) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=ALIVE))
    gate, events = threading.Event(), golden_events(dialect)
    half = len(events[2]) // 2
    pieces = (*events[:2], events[2][:half], events[2][half:], *events[3:])
    fake.enqueue(Script(chunks=tuple((0.0, piece) for piece in pieces), gates={3: gate}))
    with asked(door, dialect) as sock:
        got = receive_until(sock, events[1])
        wait_until(lambda: fake.seen[0].pieces == 3)
        ticks(door, clock, 2)
        clock.now_s += KEEP_ALIVE_S + 1
        got += receive_until(sock, PINGS[dialect])
        gate.set()
        body = unchunked(got + receive_rest(sock))
    assert body == b"".join((*events[:2], PINGS[dialect], *events[2:]))


def test_a_pause_in_a_transcription_does_not_end_it(fake: FakeEngine, stack: ExitStack, clock: HandClock) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=ALIVE))
    gate, events = threading.Event(), golden_events("chat")
    fake.enqueue(held("chat", 2, gate))
    form = b"".join(
        b'--b\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n' % field
        for field in ((b"model", b"fake"), (b"stream", b"true"), (b"file", b"x"))
    )
    with door.connection() as sock:
        body = form + b"--b--\r\n"
        head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: t\r\ncontent-length: {len(body)}\r\n"
        kind = "content-type: multipart/form-data; boundary=b\r\nconnection: close\r\n\r\n"
        sock.sendall((head + kind).encode() + body)
        got = receive_until(sock, events[1])
        ticks(door, clock, 2)
        clock.now_s += KEEP_ALIVE_S + 1
        ticks(door, clock, 2)
        gate.set()
        answer = unchunked(got + receive_rest(sock))
    assert answer == b"".join(one for one in events if b'"usage"' not in one)  # which the caller did not ask for


def _is_error(dialect: Dialect, body: bytes, message: bytes) -> bool:
    error = body.removeprefix(PINGS[dialect])
    return error.startswith(EVENT_ERRORS[dialect]) and error.count(b"\n\n") == 1 and message in error


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_refusal_behind_a_sign_of_life_is_an_error_event(
    fake: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect
) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=ALIVE))
    refusal = json_answer({"error": {"message": "temperature must be non-negative", "code": 400}}, 400)

    def script(gate: threading.Event) -> Script:
        return Script(refusal.chunks, 400, refusal.content_type, gates={BEFORE_HEADERS: gate})

    with pinged(fake, door, clock, dialect, script) as (sock, got):
        body = unchunked(got + receive_rest(sock))
    assert _is_error(dialect, body, b"temperature must be non-negative")
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", outcome="engine_error") == 1
    assert door.total("berth_request_errors_total", status="400") == 1


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_document_behind_a_sign_of_life_is_an_error_event(
    fake: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect
) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=ALIVE))
    document = json_answer({"id": "whole"})

    def script(gate: threading.Event) -> Script:
        return Script(document.chunks, 200, document.content_type, gates={BEFORE_HEADERS: gate})

    with pinged(fake, door, clock, dialect, script) as (sock, got):
        body = unchunked(got + receive_rest(sock))
    assert _is_error(dialect, body, b"the engine answered without a stream")
    assert b"whole" not in body
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", outcome="broken") == 1


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_retry_behind_a_sign_of_life_cannot_be_seen(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect
) -> None:
    door = stack.enter_context(door_before(fake, second, clock=clock, timeouts=ALIVE))
    second.enqueue(stream_of(dialect))

    def script(gate: threading.Event) -> Script:
        return Script(status=503, gates={BEFORE_HEADERS: gate})

    with pinged(fake, door, clock, dialect, script) as (sock, got):
        body = unchunked(got + receive_rest(sock))
    assert body == PINGS[dialect] + golden(dialect)
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total") == door.total("berth_requests_total", outcome="ok", replica="e1") == 1
    assert door.total("berth_retries_total", replica="e0") == 1


def test_one_that_stands_in_behind_a_sign_of_life_cannot_be_seen(
    fake: FakeEngine, stack: ExitStack, clock: HandClock
) -> None:
    other = stack.enter_context(running(FakeEngine(models=("other",))))
    chains = {"fake": Chain(steps=(Step("other"),))}
    door = stack.enter_context(door_before(fake, other, clock=clock, timeouts=ALIVE, chains=chains))
    other.enqueue(stream_of("chat"))

    def script(gate: threading.Event) -> Script:
        return Script(status=503, gates={BEFORE_HEADERS: gate})

    with pinged(fake, door, clock, "chat", script) as (sock, got):
        body = unchunked(got + receive_rest(sock))
    assert body == PINGS["chat"] + golden("chat")


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_request_without_a_stream_gets_no_sign(
    fake: FakeEngine, stack: ExitStack, clock: HandClock, dialect: Dialect
) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=ALIVE))
    gate, document = threading.Event(), json_answer({"id": "whole"})
    fake.enqueue(Script(document.chunks, 200, document.content_type, gates={BEFORE_HEADERS: gate}))
    with asked(door, dialect, stream=False) as sock:
        first_seen(fake)
        for _ in range(3):
            clock.now_s += KEEP_ALIVE_S + 1
            ticks(door, clock, 2)
        gate.set()
        answer = receive_rest(sock)
    assert answer.partition(b"\r\n\r\n")[2] == b'{"id": "whole"}'


@pytest.mark.parametrize("at", [BEFORE_HEADERS, 2], ids=["before the head", "in the middle"])
def test_openai_reads_through_signs_of_life(fake: FakeEngine, stack: ExitStack, clock: HandClock, at: int) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=ALIVE))
    gate = threading.Event()
    fake.enqueue(held("chat", at, gate))
    with (
        openai.OpenAI(base_url=f"{door.url}/v1", api_key="x", max_retries=0) as client,
        _pinging(fake, clock, at, gate),
    ):
        stream = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}], stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in stream) == "The capital of France is"


@pytest.mark.parametrize("at", [BEFORE_HEADERS, 2], ids=["before the head", "in the middle"])
def test_anthropic_reads_through_signs_of_life(fake: FakeEngine, stack: ExitStack, clock: HandClock, at: int) -> None:
    door = stack.enter_context(door_before(fake, clock=clock, timeouts=ALIVE))
    gate = threading.Event()
    fake.enqueue(held("messages", at, gate))
    with anthropic.Anthropic(base_url=door.url, api_key="x", max_retries=0) as client, _pinging(fake, clock, at, gate):
        asking = client.messages.stream(model="fake", max_tokens=4, messages=[{"role": "user", "content": "hi"}])
        with asking as stream:
            assert "".join(stream.text_stream) == "The capital of France"
            assert stream.get_final_message().usage.output_tokens == 4


@contextmanager
def _pinging(fake: FakeEngine, clock: HandClock, at: int, gate: threading.Event) -> Iterator[None]:
    """While a caller reads: three silences, then the rest of the stream."""
    done = threading.Event()

    def play() -> None:
        seen = first_seen(fake)
        wait_until(lambda: seen.pieces == at)
        for _ in range(3):
            clock.now_s += KEEP_ALIVE_S + 1
            done.wait(0.6)  # two ticks of the watch
        gate.set()

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        thread.join()
