"""What the lane shares with uvicorn's side of a connection, and its upstream client on its own."""

import asyncio
from pathlib import Path

from gateway.config import Timeouts
from gateway.upstream import Upstream
from tests.fake_engine import FakeEngine, Script, chat_stream, json_answer
from tests.gateway.harness import PATHS, Door, receive_rest, receive_until, request_bytes, wait_until

CHAT = PATHS["chat"]
STREAM = b'{"model":"fake","stream":true}'
WHOLE = b'{"model":"fake"}'
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


def test_both_sides_of_one_connection_answer_in_the_order_of_the_requests(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(json_answer({"n": 1}), json_answer({"n": 2}))
    last = HEALTH.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    with door.connection() as sock:
        sock.sendall(HEALTH + request_bytes(CHAT, WHOLE) + HEALTH + request_bytes(CHAT, WHOLE) + last)
        answers = receive_rest(sock)
    marks = (b'"version"', b'{"n": 1}', b'"version"', b'{"n": 2}', b'"version"')
    at = 0
    for mark in marks:
        at = answers.index(mark, at) + 1
    wait_until(lambda: door.is_at_rest)


def test_a_client_that_sends_more_requests_than_may_stand_in_line_gets_all_answers(door: Door) -> None:
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM) * 40 + request_bytes(CHAT, STREAM, "connection: close"))
        assert receive_rest(sock).count(b"data: [DONE]\n\n") == 41
    assert door.total("berth_requests_total", outcome="ok") == 41


def test_a_large_body_in_line_behind_a_stream_arrives_whole(fake: FakeEngine, door: Door) -> None:
    body = b'{"model":"fake","pad":"' + b"x" * 3_000_000 + b'"}'
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM) + request_bytes(CHAT, body, "connection: close"))
        assert receive_rest(sock).count(b"HTTP/1.1 200") == 2
    assert fake.seen[1].body == body


def test_a_stream_to_http_1_0_has_no_chunks(fake: FakeEngine, door: Door) -> None:
    script = chat_stream(usage=False)
    fake.enqueue(script)
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = receive_rest(sock).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body == b"".join(data for _, data in script.chunks)


def test_interim_answers_of_an_engine_are_skipped(fake: FakeEngine, door: Door) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    fake.enqueue(Script(raw=interim + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, WHOLE, "connection: close"))
        answer = receive_rest(sock)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"{}")
    assert b"link" not in answer


def test_the_target_may_be_written_in_other_ways(fake: FakeEngine, door: Door) -> None:
    for target in ("http://test/v1/chat/completions", "/v1/chat%2Fcompletions", "/v1/chat/completions?a=b"):
        with door.connection() as sock:
            sock.sendall(request_bytes(target, STREAM))
            assert receive_until(sock, b"[DONE]\n\n").startswith(b"HTTP/1.1 200")
    assert [seen.path for seen in fake.seen] == [CHAT] * 3


async def test_unix_sockets_and_what_is_left_idle_by_a_dead_engine(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        answered += 1
        await asyncio.sleep(0.05)
        writer.close()  # without a word, as a killed process does

    async with await asyncio.start_unix_server(serve, path), Upstream(Timeouts()) as upstream:
        for _ in range(3):
            assert await upstream.get(f"unix:{path}", "/", None, 5.0) == (200, b"ok")
            await asyncio.sleep(0.1)
    assert answered == 3
