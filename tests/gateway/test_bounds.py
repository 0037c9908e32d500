"""What no client and no engine can make the gateway hold, nor wait for."""

import socket
import threading
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest

from gateway.errors import UpstreamError
from gateway.headers import Header
from gateway.patience import Patience
from gateway.wire import Dialect, read_event
from tests.fake_engine import FakeEngine, Script, chat_stream
from tests.gateway.harness import (
    CONFIG,
    PATHS,
    STREAMING,
    Door,
    body_for,
    door_before,
    golden_events,
    receive_rest,
    request_bytes,
    wait_until,
)
from tests.gateway.loopless import Wire

CHAT = PATHS["chat"]
BODY = b'{"model":"fake"}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
MORE_THAN_ALLOWED = 32 * 2**20  # loopback sockets hold up to ten while nobody reads


def _send(sock: socket.socket, piece: bytes, total: int = MORE_THAN_ALLOWED) -> int:
    """Send `piece` over and over until the other side has had enough; returns how much went out."""
    sent = 0
    try:
        while sent < total:
            sent += sock.send(piece)
    except (ConnectionResetError, BrokenPipeError):
        pass
    return sent


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (HEAD, b"a: b\r\n" * 1000),
        (HEAD + b"a: ", b"x" * 6000),
        (HEAD, b"x" * 6000),
        (b"POST /", b"x" * 6000),
    ],
    ids=["many headers", "one value", "one name", "the target"],
)
def test_a_head_that_never_ends_is_a_431(fake: FakeEngine, door: Door, start: bytes, piece: bytes) -> None:
    with door.connection() as sock:
        sock.sendall(start)
        _send(sock, piece, 300 * 1024)
        assert receive_rest(sock)[:12] in (b"HTTP/1.1 431", b"")  # nothing: a reset overtook it
        assert _send(sock, piece) < MORE_THAN_ALLOWED
    assert fake.seen == []


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"10;", b"x" * 6000),
        (b"10\r\n%b\r\n0\r\n" % BODY, b"a: b\r\n" * 1000),
        (b"10\r\n%b\r\n0\r\na:" % BODY, b"b" * 6000),
    ],
    ids=["a chunk extension", "trailers", "one trailer"],
)
def test_what_stands_between_chunks_does_not_go_on_for_ever(
    fake: FakeEngine, door: Door, start: bytes, piece: bytes
) -> None:
    with door.connection() as sock:
        sock.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n" + start)
        assert _send(sock, piece) < MORE_THAN_ALLOWED
    wait_until(lambda: door.is_at_rest)
    assert fake.seen == []


def test_a_large_head_that_ends_is_taken_and_a_large_body_has_nothing_to_do_with_it(
    fake: FakeEngine, door: Door
) -> None:
    body = b'{"model":"fake","pad":"' + b"x" * 2_000_000 + b'"}'
    padding = [f"x-padding-{i}: {'p' * 8000}" for i in range(30)]
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, body, *padding, "connection: close"))
        assert receive_rest(sock).startswith(b"HTTP/1.1 200")
    assert fake.seen[0].body == body


# Clients that keep us waiting. Patience is given a fraction of a second: what counts is who is given up, and who is not
def _hasty(fake: FakeEngine, stack: ExitStack) -> Door:
    return stack.enter_context(door_before(fake, timeouts=replace(CONFIG.timeouts, client_s=0.4)))


@pytest.mark.parametrize("start", [b"", b"P", HEAD, HEAD + b"a:"], ids=["nothing", "a letter", "a line", "half a line"])
def test_a_client_that_never_finishes_its_head_is_sent_away(fake: FakeEngine, stack: ExitStack, start: bytes) -> None:
    door = _hasty(fake, stack)
    with door.connection() as sock:
        sock.sendall(start)
        answer = receive_rest(sock)
    assert answer.startswith(b"HTTP/1.1 408") if start else answer == b""


@pytest.mark.parametrize(
    "start", [HEAD + b"a: ", request_bytes(CHAT, b"x" * 10_000, "a: b")[:200]], ids=["head", "body"]
)
def test_a_byte_now_and_then_does_not_help(fake: FakeEngine, stack: ExitStack, start: bytes) -> None:
    door = _hasty(fake, stack)
    with door.connection() as sock:
        sock.sendall(start)
        sock.settimeout(0.02)
        answer = b""
        while not answer:
            with suppress(TimeoutError):
                answer = sock.recv(65536)
            with suppress(ConnectionError):
                sock.sendall(b"b")
    assert answer.startswith(b"HTTP/1.1 408")
    wait_until(lambda: door.is_at_rest)
    assert fake.seen == []


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_body_that_stops_is_told_so_in_its_dialect(fake: FakeEngine, stack: ExitStack, dialect: Dialect) -> None:
    door = _hasty(fake, stack)
    with door.connection() as sock:
        sock.sendall(request_bytes(PATHS[dialect], BODY * 10)[:-1])
        head, _, body = receive_rest(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in head
    assert (b'"type":"error"' in body) == (dialect == "messages")
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", outcome="refused", dialect=dialect) == 1


def test_a_body_that_keeps_coming_is_waited_for(fake: FakeEngine, stack: ExitStack) -> None:
    door = _hasty(fake, stack)
    body = b'{"model":"fake","pad":"' + b"x" * 600_000 + b'"}'
    with door.connection() as sock:
        head, whole = request_bytes(CHAT, body, "connection: close").split(b"\r\n\r\n", 1)
        sock.sendall(head + b"\r\n\r\n")
        for start in range(0, len(whole), 40_000):  # 0.1 s apart: all of it takes four times what patience lasts
            sock.sendall(whole[start : start + 40_000])
            threading.Event().wait(0.1)
        assert receive_rest(sock).startswith(b"HTTP/1.1 200")
    assert fake.seen[0].body == body


def test_a_slow_engine_is_not_the_clients_fault(fake: FakeEngine, stack: ExitStack) -> None:
    door = _hasty(fake, stack)
    chunks = chat_stream(usage=False).chunks
    fake.enqueue(Script(chunks=((0.8, chunks[0][1]), (0.8, chunks[1][1]), *chunks[2:])))
    answer = door.post(CHAT, body_for("chat", stream=True))
    assert answer.content == b"".join(data for _, data in chunks)


def test_a_client_that_reads_no_more_gives_its_engine_back(fake: FakeEngine, stack: ExitStack) -> None:
    door = _hasty(fake, stack)
    fake.enqueue(Script(chunks=((0.0, golden_events("chat")[1] * 1000),) * 400))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, b'{"model":"fake","stream":true}'))
        wait_until(lambda: fake.seen and fake.seen[0].aborted)
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", outcome="client_gone") == 1


class _Silent:
    """A connection that waits for what it is told, and counts how often it was given up."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.given_up = 0

    def waits_for(self) -> object:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def give_up(self) -> None:
        self.given_up += 1


async def test_patience_counts_only_what_does_not_move() -> None:
    patience = Patience(3600.0)
    stuck, moving, idle = _Silent("head"), _Silent(*range(100)), _Silent(None)
    late = _Silent(*["a"] * 8, "b")
    for connection in (stuck, moving, idle, late):
        patience.add(connection)
    for _ in range(9):
        patience.tick()
    assert [one.given_up for one in (stuck, moving, idle, late)] == [1, 0, 0, 0]
    patience.discard(stuck)
    for _ in range(8):
        patience.tick()
    assert [one.given_up for one in (stuck, moving, idle, late)] == [1, 0, 0, 1]
    for connection in (moving, idle, late):
        patience.discard(connection)


# Engines without end
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize("stream", [True, False], ids=["an event", "an answer"])
@pytest.mark.parametrize("dialect", STREAMING)
def test_an_engine_that_never_ends_is_cut(fake: FakeEngine, stack: ExitStack, dialect: Dialect, stream: bool) -> None:
    door = stack.enter_context(door_before(fake, max_answer_bytes=2**20, max_event_bytes=2**20))
    kind = "text/event-stream" if stream else "application/json"
    fake.enqueue(Script(chunks=((0.0, b"data: " + b"x" * 2**16),) * 400, content_type=kind))
    answer = door.post(PATHS[dialect], body_for(dialect, stream=stream))
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "the engine's answer is too long"
    wait_until(lambda: fake.seen[0].aborted)
    wait_until(lambda: door.is_at_rest)
    assert len(fake.seen) == 1
    assert door.post(PATHS[dialect], body_for(dialect)).status_code == 200  # the replica is not blamed


@pytest.mark.parametrize("dialect", STREAMING)
def test_an_event_without_end_in_the_middle_of_a_stream(fake: FakeEngine, stack: ExitStack, dialect: Dialect) -> None:
    door = stack.enter_context(door_before(fake, max_event_bytes=2**20))
    first = golden_events(dialect)[:3]
    fake.enqueue(Script(chunks=(*((0.0, event) for event in first), *((0.0, b"data: x" * 10_000),) * 400)))
    answer = door.post(PATHS[dialect], body_for(dialect, stream=True))
    assert answer.content.startswith(b"".join(first))
    rest = answer.content.removeprefix(b"".join(first))
    assert read_event(dialect, rest).error == "the engine's answer is too long"
    wait_until(lambda: fake.seen[0].aborted)
    assert door.total("berth_requests_total", outcome="broken") == 1


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 500),
        (STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n5;"), b"x" * 16_000),
        (STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"), b"a: b\r\n" * 3000),
    ],
    ids=["interim answers", "a chunk extension", "trailers"],
)
def test_headers_without_end_from_an_engine(start: bytes, piece: bytes) -> None:
    """Without a socket: how a loop cuts what it reads would decide what is seen."""
    sink, wire = _Sink(), Wire()
    connection = wire.connect(sink)
    connection.data_received(start + piece)
    for _ in range(10):
        if not sink.failures:
            connection.data_received(piece)
    assert len(sink.failures) == 1
    assert connection.is_cut


class _Sink:
    def __init__(self) -> None:
        self.failures: list[UpstreamError] = []

    def began(self, status: int, headers: list[Header]) -> None: ...

    def received(self, data: bytes) -> None: ...

    def passed(self, chunk: bytes, start: int) -> bool:
        return False

    def ended(self) -> None: ...

    def failed(self, error: UpstreamError) -> None:
        self.failures.append(error)
