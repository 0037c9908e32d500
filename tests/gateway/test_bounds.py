"""What no client and no engine can make the gateway hold, nor wait for."""

import socket

import pytest

from tests.fake_engine import FakeEngine
from tests.gateway.harness import PATHS, Door, receive_rest, request_bytes, wait_until

CHAT = PATHS["chat"]
BODY = b'{"model":"fake"}'
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
MORE_THAN_ALLOWED = 4 * 2**20


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
