"""Engines and providers behind https: the same bytes, the same ends, and a certificate that nobody vouches for."""

import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from gateway.wire import Dialect
from tests.fake_engine import FakeEngine, Script, chat_chunk, running
from tests.gateway.harness import (
    CONFIG,
    PATHS,
    STREAMING,
    Door,
    body_for,
    door_before,
    first_seen,
    golden,
    golden_events,
    receive_until,
    request_bytes,
    stream_of,
    wait_until,
)

CHAT = PATHS["chat"]
AUTHORITY = trustme.CA()


def _context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def secure() -> Iterator[FakeEngine]:
    with running(FakeEngine(), tls=_context(AUTHORITY)) as engine:
        yield engine


@pytest.fixture
def door(secure: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with door_before(secure) as opened_door:
        yield opened_door


@pytest.mark.parametrize("dialect", STREAMING)
def test_the_client_gets_the_engines_bytes(secure: FakeEngine, door: Door, dialect: Dialect) -> None:
    for _ in range(3):  # the first on a new connection, the others on one that was used
        secure.enqueue(stream_of(dialect))
        assert door.post(PATHS[dialect], body_for(dialect, stream=True)).content == golden(dialect)
    wait_until(lambda: door.gateway.upstream.states()["busy"] == 0)
    assert door.gateway.upstream.states()["idle"] >= 1


def test_records_that_come_in_one_read_are_told_apart(secure: FakeEngine, door: Door) -> None:
    words = tuple(chat_chunk({"content": f"word {n} "}) for n in range(2000))
    body = (*words, chat_chunk({}, "stop"), b"data: [DONE]\n\n")
    secure.enqueue(Script(chunks=tuple((0.0, event) for event in body)))
    assert door.post(CHAT, body_for("chat", stream=True)).content == b"".join(body)


def test_a_large_answer_comes_whole(secure: FakeEngine, door: Door) -> None:
    answer = json.dumps({"id": "x", "choices": [{"message": {"content": "y" * 5_000_000}}]}).encode()
    secure.enqueue(Script(chunks=((0.0, answer),), content_type="application/json"))
    assert door.post(CHAT, body_for("chat")).content == answer


def test_a_client_that_leaves_frees_the_engine(secure: FakeEngine, door: Door) -> None:
    secure.enqueue(Script(chunks=tuple((0.0, event) for event in golden_events("chat")), gates={3: threading.Event()}))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, json.dumps(body_for("chat", stream=True)).encode()))
        receive_until(sock, golden_events("chat")[2])
    left_s = time.monotonic()
    wait_until(lambda: first_seen(secure).aborted)
    assert time.monotonic() - left_s < 1.0
    wait_until(lambda: door.is_at_rest)


def test_a_client_that_does_not_read_stops_the_engine(secure: FakeEngine, door: Door) -> None:
    piece = chat_chunk({"content": "z" * 60_000})
    secure.enqueue(Script(chunks=tuple((0.0, piece) for _ in range(2000)), ending="hang"))  # 120 MB
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, json.dumps(body_for("chat", stream=True)).encode()))
        receive_until(sock, b"zzz")
        seen = first_seen(secure)
        written = -1
        while written != seen.pieces:
            written = seen.pieces
            time.sleep(0.5)
        assert written < 1000
    wait_until(lambda: seen.aborted)
    wait_until(lambda: door.is_at_rest)


def test_a_certificate_that_nobody_vouches_for(stack: ExitStack) -> None:
    engine = stack.enter_context(running(FakeEngine(), tls=_context(trustme.CA())))
    door = stack.enter_context(door_before(engine, config=CONFIG, wait=False))
    wait_until(lambda: door.gateway.pool.replicas[0].probed_s is not None)
    answer = door.post(CHAT, body_for("chat"))
    assert answer.status_code == 503
    assert engine.seen == []
