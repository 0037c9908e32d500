"""A client that leaves while the gateway still connects to its engine, and engines that lie about their answers."""

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from gateway.errors import UpstreamError
from gateway.headers import Header
from gateway.upstream import Upstream
from gateway.wire import Dialect, read_event
from tests.fake_engine import FakeEngine, Script, json_answer
from tests.gateway.harness import (
    CONFIG,
    PATHS,
    STREAMING,
    Door,
    body_for,
    door_before,
    golden_events,
    request_bytes,
    wait_until,
)
from tests.gateway.loopless import FakeTransport, Wire

CHAT = PATHS["chat"]


@pytest.fixture
def busy() -> Iterator[socket.socket]:
    """A listener whose queue is full: who connects now waits."""
    with ExitStack() as exits:
        listener = exits.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            waiting = exits.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "unstreamed"])
@pytest.mark.parametrize("dialect", PATHS)
def test_leaving_while_the_gateway_connects(
    fake: FakeEngine, stack: ExitStack, busy: socket.socket, dialect: Dialect, stream: bool
) -> None:
    door = stack.enter_context(door_before(fake, probe_interval_s=3600.0))
    door.gateway.pool.replicas[0].url = f"http://127.0.0.1:{busy.getsockname()[1]}"
    with door.connection() as sock:
        sock.sendall(request_bytes(PATHS[dialect], json.dumps(body_for(dialect, stream=stream)).encode()))
        wait_until(lambda: door.in_flight == 1)
    wait_until(lambda: door.is_at_rest, timeout_s=1.0)
    assert door.total("berth_requests_total", outcome="client_gone") == 1
    assert door.total("berth_request_errors_total") == 0
    assert fake.seen == []


class _Elsewhere:
    """A request that goes on to another engine when one has failed."""

    def __init__(self, upstream: Upstream, urls: list[str]) -> None:
        self._upstream = upstream
        self._urls = urls
        self.errors: list[str] = []

    def send(self) -> None:
        connection = self._upstream.open(self._urls.pop(0))
        connection.send(b"GET", b"/", b"", b"", self)

    def began(self, status: int, headers: list[Header]) -> None:
        raise AssertionError("nobody answers")

    def received(self, data: bytes) -> None:
        raise AssertionError("nobody answers")

    def passed(self, chunk: bytes, start: int) -> bool:
        raise AssertionError("nobody answers")

    def ended(self) -> None:
        raise AssertionError("nobody answers")

    def failed(self, error: UpstreamError) -> None:
        self.errors.append(str(error))
        if self._urls:
            self.send()


async def test_what_fails_because_the_gateway_ends_connects_nowhere_else(busy: socket.socket) -> None:
    there = f"http://127.0.0.1:{busy.getsockname()[1]}"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        other.setblocking(False)
        async with Upstream(CONFIG.timeouts) as upstream:
            request = _Elsewhere(upstream, [there, f"http://127.0.0.1:{other.getsockname()[1]}"])
            request.send()
        assert request.errors == [f"the gateway closed its connections to {there}", "the gateway ends"]
        await asyncio.sleep(0.05)
        with pytest.raises(BlockingIOError):
            other.accept()


# What engines say of the length of their answers
def _raw(head: str, body: bytes, kind: str = "application/json") -> Script:
    return Script(raw=f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{head}\r\n\r\n".encode() + body)


@pytest.mark.parametrize(
    "script",
    [
        _raw("content-length: 100", b'{"a":1}'),
        _raw("content-length: 7\r\ncontent-length: 8", b'{"a":1}'),
        _raw("content-length: 7\r\ntransfer-encoding: chunked", b"7\r\n" + b'{"a":1}' + b"\r\n0\r\n\r\n"),
        _raw("content-length: -7", b'{"a":1}'),
        _raw("transfer-encoding: chunked", b'7\r\n{"a":1}\r\n'),
        _raw("transfer-encoding: chunked", b'zz\r\n{"a":1}\r\n0\r\n\r\n'),
        _raw("x y: 1", b'{"a":1}'),
        Script(raw=b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello"),
        Script(raw=b"HTTP/1.1 100 Continue\r\n\r\n"),
        Script(raw=b"\x16\x03\x01\x02\x00"),
    ],
    ids=[
        "too short",
        "two lengths",
        "length and chunks",
        "negative",
        "no last chunk",
        "bad chunk",
        "bad header",
        "another protocol",
        "interim only",
        "TLS",
    ],
)
def test_an_answer_that_is_not_whole_is_never_passed_on_as_one(fake: FakeEngine, door: Door, script: Script) -> None:
    fake.enqueue(script, json_answer({"id": "next"}))
    answer = door.post(CHAT, body_for("chat"))
    assert answer.status_code == 502
    assert answer.json()["error"]["message"].startswith("the engine failed")
    wait_until(lambda: door.is_at_rest)
    wait_until(lambda: door.gateway.pool.replicas[0].state == "ready")
    assert door.post(CHAT, body_for("chat")).json() == {"id": "next"}


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_stream_shorter_than_its_length_ends_in_an_error_event(
    fake: FakeEngine, door: Door, dialect: Dialect
) -> None:
    begun = b"".join(golden_events(dialect)[:3])
    fake.enqueue(_raw("content-length: 100000", begun, "text/event-stream"))
    answer = door.post(PATHS[dialect], body_for(dialect, stream=True))
    assert answer.content.startswith(begun)
    assert read_event(dialect, answer.content.removeprefix(begun)).error == "the engine failed during the answer"


def test_http_1_0_without_a_length(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(raw=b'HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{"old":1}'))
    assert door.post(CHAT, body_for("chat")).json() == {"old": 1}


def test_trailers_of_an_engine_stay_with_us(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(_raw("transfer-encoding: chunked\r\ntrailer: x-late", b'7\r\n{"a":1}\r\n0\r\nx-late: 1\r\n\r\n'))
    answer = door.post(CHAT, body_for("chat"))
    assert answer.json() == {"a": 1}
    assert not {"trailer", "x-late"} & set(answer.headers)


def test_a_second_answer_behind_the_first_is_nobodys(fake: FakeEngine, door: Door) -> None:
    second = b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"second":1}'
    fake.enqueue(_raw("content-length: 7", b'{"a":1}' + second), json_answer({"id": "next"}))
    with door.client() as client:
        assert client.post(CHAT, json=body_for("chat")).json() == {"a": 1}
        assert client.post(CHAT, json=body_for("chat")).json() == {"id": "next"}


class _Socketed(FakeTransport):
    """Has a socket that a poll can look at."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self._sock = sock

    def get_extra_info(self, name: str, default: object = None) -> object:
        return self._sock if name == "socket" else default


def test_a_second_answer_that_has_arrived_a_moment_after_the_first_is_not_the_next_requests(stack: ExitStack) -> None:
    ours, theirs = map(stack.enter_context, socket.socketpair())
    wire, sink = Wire(), _Deaf()
    connection = wire.open()
    connection.connection_made(_Socketed(ours))
    connection.send(b"POST", b"/", b"", b"", sink)
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    assert wire.engine.idle == [connection]
    assert connection.is_alive(connection.idle_since_s)
    theirs.send(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n")
    assert not connection.is_alive(connection.idle_since_s)


class _Deaf:
    def began(self, status: int, headers: list[Header]) -> None: ...

    def received(self, data: bytes) -> None: ...

    def passed(self, chunk: bytes, start: int) -> bool:
        return False

    def ended(self) -> None: ...

    def failed(self, error: UpstreamError) -> None: ...
