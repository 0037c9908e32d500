"""A client that leaves, at any stage of any kind of request: the engine stops within a second, all counts are zero."""

import gc
import json
import socket
import struct
import threading
import time

import pytest

from gateway.connection import Connection
from gateway.exchange import Exchange
from gateway.turn import Turn
from gateway.wire import Dialect
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, Seen
from tests.gateway.harness import (
    PATHS,
    STREAMING,
    Door,
    body_for,
    first_seen,
    golden_events,
    receive_until,
    request_bytes,
    wait_until,
)

UNSTREAMED = [*PATHS.values(), "/v1/messages/count_tokens"]
NEVER = threading.Event()
ABORT_S = 1.0


def _dialect(path: str) -> Dialect:
    return next((dialect for dialect, known in PATHS.items() if known == path), "messages")


def _stream_request(dialect: Dialect) -> bytes:
    return request_bytes(PATHS[dialect], json.dumps(body_for(dialect, stream=True)).encode())


def _held_stream(dialect: Dialect, at: int) -> Script:
    return Script(chunks=tuple((0.0, event) for event in golden_events(dialect)), gates={at: NEVER})


def _leave(sock: socket.socket, *, abruptly: bool = False) -> None:
    if abruptly:  # a reset in place of a proper close: what a killed process or a mobile client leaves behind
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _assert_freed(seen: Seen, door: Door) -> None:
    left_at = time.monotonic()
    wait_until(lambda: seen.aborted)
    assert time.monotonic() - left_at < ABORT_S
    wait_until(lambda: door.is_at_rest)
    wait_until(lambda: door.total("berth_requests_total", outcome="client_gone") == 1)
    assert door.total("berth_requests_total") == 1
    assert door.total("berth_request_errors_total") == 0


@pytest.mark.parametrize("abruptly", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize("stage", [BEFORE_HEADERS, 0], ids=["before the head", "before the first token"])
def test_before_the_first_byte(fake: FakeEngine, door: Door, dialect: Dialect, stage: int, abruptly: bool) -> None:
    fake.enqueue(_held_stream(dialect, stage))
    with door.connection() as sock:
        sock.sendall(_stream_request(dialect))
        seen = first_seen(fake)
        wait_until(lambda: seen.pieces == stage)
        assert door.in_flight == 1
        assert door.gateway.admission.in_flight == 1
        assert door.gateway.pool.replicas[0].work_tokens > 0
        _leave(sock, abruptly=abruptly)
    _assert_freed(seen, door)


@pytest.mark.parametrize("abruptly", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize("asked", [True, False], ids=["usage asked for", "usage not asked for"])
def test_in_the_middle_of_a_stream(fake: FakeEngine, door: Door, dialect: Dialect, asked: bool, abruptly: bool) -> None:
    fake.enqueue(_held_stream(dialect, 2))
    body = body_for(dialect, stream=True) if asked else {"model": "fake", "stream": True}
    with door.connection() as sock:
        sock.sendall(request_bytes(PATHS[dialect], json.dumps(body).encode()))
        receive_until(sock, golden_events(dialect)[1])
        seen = first_seen(fake)
        _leave(sock, abruptly=abruptly)
    _assert_freed(seen, door)


@pytest.mark.parametrize("path", UNSTREAMED)
@pytest.mark.parametrize("stage", [BEFORE_HEADERS, 0, 1], ids=["before the head", "before the body", "in the body"])
def test_unstreamed(fake: FakeEngine, door: Door, path: str, stage: int) -> None:
    fake.enqueue(Script(chunks=((0.0, b'{"a":'), (0.0, b"1}")), content_type="application/json", gates={stage: NEVER}))
    with door.connection() as sock:
        sock.sendall(request_bytes(path, json.dumps(body_for(_dialect(path))).encode()))
        seen = first_seen(fake)
        wait_until(lambda: seen.pieces == stage)
        _leave(sock)
    _assert_freed(seen, door)


def test_while_its_own_body_is_still_being_sent(fake: FakeEngine, door: Door) -> None:
    with door.connection() as sock:
        sock.sendall(request_bytes(PATHS["chat"], b"x" * 100_000)[:50_000])
        wait_until(lambda: door.gateway.admission.in_flight == 1)
        _leave(sock)
    wait_until(lambda: door.is_at_rest)
    wait_until(lambda: door.total("berth_requests_total", outcome="client_gone") == 1)
    assert fake.seen == []


def test_closing_only_its_sending_side_counts_as_leaving(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(_held_stream("chat", 2))
    with door.connection() as sock:
        sock.sendall(_stream_request("chat"))
        receive_until(sock, golden_events("chat")[1])
        seen = first_seen(fake)
        sock.shutdown(socket.SHUT_WR)
        _assert_freed(seen, door)


def test_while_the_gateway_moves_it_to_another_replica(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    fake.enqueue(Script(ending="drop"))
    second.enqueue(_held_stream("chat", BEFORE_HEADERS))
    with pair.connection() as sock:
        sock.sendall(_stream_request("chat"))
        seen = first_seen(second)
        _leave(sock)
    _assert_freed(seen, pair)


def test_while_the_engine_takes_a_large_body(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(_held_stream("chat", BEFORE_HEADERS))
    body = json.dumps({**body_for("chat", stream=True), "pad": "x" * 8_000_000}).encode()
    with door.connection() as sock:
        sock.sendall(request_bytes(PATHS["chat"], body))
        seen = first_seen(fake)
        _leave(sock)
    _assert_freed(seen, door)


def test_leaving_right_after_the_last_byte_is_no_loss(fake: FakeEngine, door: Door) -> None:
    for _ in range(20):
        with door.connection() as sock:
            sock.sendall(_stream_request("chat"))
            receive_until(sock, b"data: [DONE]\n\n")
    wait_until(lambda: door.is_at_rest)
    wait_until(lambda: door.total("berth_requests_total") == 20)
    assert not any(seen.aborted for seen in fake.seen)


def test_fifty_that_leave_at_once_leave_nothing_behind(fake: FakeEngine, door: Door) -> None:
    fake.default = _held_stream("chat", 1)
    socks = []
    for _ in range(50):
        sock = socket.create_connection(("127.0.0.1", door.port), timeout=30)
        sock.sendall(_stream_request("chat"))
        socks.append(sock)
    wait_until(lambda: fake.running == 50)
    assert door.in_flight == 50
    for sock in socks:
        _leave(sock)
    wait_until(lambda: fake.running == 0)
    wait_until(lambda: door.is_at_rest)
    assert all(seen.aborted for seen in fake.seen)


def test_connections_that_are_cut_leave_nothing_to_the_garbage_collector(fake: FakeEngine, door: Door) -> None:
    def left() -> int:
        return sum(type(found) in (Connection, Exchange, Turn) for found in gc.get_objects())

    dialect: Dialect = "chat"
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            before = len(fake.seen)
            fake.enqueue(_held_stream(dialect, 0))
            with door.connection() as sock:
                sock.sendall(_stream_request(dialect))
                wait_until(lambda: len(fake.seen) > before)  # noqa: B023  (asked before the next turn)
            wait_until(lambda: door.is_at_rest)
        wait_until(lambda: left() <= 1)  # the one that probes
    finally:
        gc.enable()
