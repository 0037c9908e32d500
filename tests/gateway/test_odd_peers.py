"""Clients and engines that behave in ways that are allowed, rude or broken."""

import asyncio
import gzip
import http.client
import json
import socket
import struct
import threading
from contextlib import ExitStack

import aiohttp
import pytest

from gateway.config import Timeouts
from gateway.errors import BrokenError
from gateway.upstream import Upstream
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, chat_chunk, chat_stream, json_answer, running
from tests.gateway.harness import (
    PATHS,
    STREAMING,
    Door,
    body_for,
    door_before,
    receive_rest,
    receive_until,
    request_bytes,
    wait_until,
)

CHAT = PATHS["chat"]
STREAM = json.dumps(body_for("chat", stream=True)).encode()
WHOLE = json.dumps(body_for("chat")).encode()
DONE = b"data: [DONE]\n\n"


# Clients
def test_requests_sent_without_waiting_for_answers_are_answered_in_order(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(*(json_answer({"n": i}) for i in range(3)))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, WHOLE) * 2 + request_bytes(CHAT, WHOLE, "connection: close"))
        answers = receive_rest(sock)
    assert [answers.index(b'{"n": %d}' % i) for i in range(3)] == sorted(
        answers.index(b'{"n": %d}' % i) for i in range(3)
    )
    assert answers.count(b"HTTP/1.1 200") == 3
    wait_until(lambda: door.is_at_rest)


def test_a_client_that_leaves_with_a_second_request_in_line_frees_the_engine(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={0: threading.Event()}))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM) * 2)
        wait_until(lambda: fake.running == 1)
    wait_until(lambda: fake.seen[0].aborted, timeout_s=2)


BEHIND = {
    "eight": request_bytes(CHAT, STREAM) * 8,
    "twenty": request_bytes(CHAT, STREAM) * 20,
    "a large one": request_bytes(CHAT, b"{" + b" " * 200_000 + STREAM[1:]),
    "an unfinished one": request_bytes(CHAT, b"{" + b" " * 200_000)[:-1],
}


@pytest.mark.parametrize("abruptly", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_a_client_that_leaves_with_so_much_in_line_that_it_is_not_read_any_more_frees_the_engine(
    fake: FakeEngine, door: Door, behind: bytes, abruptly: bool
) -> None:
    never = threading.Event()
    fake.enqueue(*[Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: never}) for _ in range(21)])
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM) + behind)
        wait_until(lambda: fake.running == 1)
        wait_until(lambda: any(c.flow.read_paused for c in door.gateway._server_state.connections))  # type: ignore[union-attr]
        if abruptly:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: fake.seen[0].aborted, timeout_s=2)
    wait_until(lambda: door.is_at_rest)
    assert len(fake.seen) == 1


@pytest.mark.parametrize(
    "request_",
    [
        request_bytes(CHAT, b"{"),
        request_bytes(CHAT, b'{"model":"nope"}'),
        request_bytes("/nowhere", b"{}"),
        b"GET /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["400", "404 model", "404 path", "405"],
)
def test_a_connection_lives_on_after_an_error(door: Door, request_: bytes) -> None:
    with door.connection() as sock:
        sock.sendall(request_)
        assert receive_until(sock, b"}").startswith(b"HTTP/1.1 4")
        sock.sendall(request_bytes(CHAT, STREAM))
        assert b"HTTP/1.1 200" in receive_until(sock, DONE)


def test_a_connection_lives_on_after_a_refusal_that_read_no_body(fake: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, max_body_bytes=10_000))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, b"x" * 500_000))
        assert receive_until(sock, b'"request_too_large"}}').startswith(b"HTTP/1.1 413")
        sock.sendall(request_bytes(CHAT, STREAM))
        assert b"HTTP/1.1 200" in receive_until(sock, DONE)


def test_a_client_that_waits_for_100_continue(fake: FakeEngine, door: Door) -> None:
    head, body = request_bytes(CHAT, STREAM, "expect: 100-continue").split(b"\r\n\r\n", 1)
    with door.connection() as sock:
        sock.sendall(head + b"\r\n\r\n")
        assert receive_until(sock, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert receive_until(sock, DONE).startswith(b"HTTP/1.1 200")


def test_a_client_that_offers_http_2_as_java_does_is_told_not_to(fake: FakeEngine, door: Door) -> None:
    offer = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA")
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM, *offer))
        answer = receive_until(sock, b'"upgrade_not_supported"}}')  # httptools hides the body of such a request
    assert answer.startswith(b"HTTP/1.1 400")
    assert fake.seen == []


@pytest.mark.parametrize("path", [CHAT, "/health"])
def test_such_an_offer_is_no_accident(door: Door, caplog: pytest.LogCaptureFixture, path: str) -> None:
    with door.connection() as sock:
        sock.sendall(request_bytes(path, STREAM, "connection: Upgrade", "upgrade: h2c"))
        assert receive_rest(sock).startswith(b"HTTP/1.1 40")
    wait_until(lambda: door.gateway.client_connections() == 0)
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


def test_a_body_in_chunks_byte_by_byte(fake: FakeEngine, door: Door) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with door.connection() as sock:
        sock.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        for i in range(len(STREAM)):
            sock.sendall(b"1\r\n%b\r\n" % STREAM[i : i + 1])
        sock.sendall(b"0\r\n\r\n")
        receive_until(sock, DONE)
    assert fake.seen[0].body == STREAM


def test_two_ways_of_saying_how_long_the_body_is(fake: FakeEngine, door: Door) -> None:
    """Request smuggling: whatever the second request is taken for, the engine must not see it as one of its own."""
    smuggled = request_bytes("/v1/completions", WHOLE)
    head = request_bytes(CHAT, b"", "transfer-encoding: chunked").replace(b"content-length: 0", b"content-length: 5")
    with door.connection() as sock:
        sock.sendall(head + b"0\r\n\r\n" + smuggled)
        assert receive_until(sock, b"\r\n").startswith(b"HTTP/1.1 400")
    assert fake.seen == []


@pytest.mark.parametrize(
    "junk",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"POST /v1/chat/completions HTTP/9.9\r\n\r\n", b"\x00" * 100],
    ids=["TLS", "no target", "HTTP/9.9", "zeros"],
)
def test_what_is_not_http_is_a_400_and_the_end(door: Door, junk: bytes) -> None:
    with door.connection() as sock:
        sock.sendall(junk)
        assert receive_rest(sock).startswith(b"HTTP/1.1 400")
    assert door.is_at_rest


def test_large_headers_stay_with_us(fake: FakeEngine, door: Door) -> None:
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM, *(f"x-padding-{i}: {'p' * 8000}" for i in range(25))))
        assert receive_until(sock, DONE).startswith(b"HTTP/1.1 200")
    assert "padding" not in str(fake.seen[0].headers)


def test_header_values_that_are_not_ascii(fake: FakeEngine, door: Door) -> None:
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM, "anthropic-beta: caf\u00e9"))
        assert receive_until(sock, DONE).startswith(b"HTTP/1.1 200")


def test_a_query_string_is_no_reason_to_refuse(fake: FakeEngine, door: Door) -> None:
    assert door.post(f"{CHAT}?api-version=1&beta=true", body_for("chat")).status_code == 200
    assert fake.seen[0].path == CHAT


async def test_five_hundred_streams_at_once(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    gate = threading.Event()
    fake.default = second.default = Script(chunks=chat_stream(("a", "b", "c")).chunks, gates={2: gate})
    expected = b"".join(data for _, data in fake.default.chunks)

    async def one(session: aiohttp.ClientSession) -> bytes:
        async with session.post(f"{pair.url}{CHAT}", json=body_for("chat", stream=True)) as answer:
            return await answer.read()

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,  # none is left behind by an assertion that fails
    ):
        tasks = [group.create_task(one(session)) for _ in range(500)]
        await asyncio.to_thread(wait_until, lambda: fake.running + second.running == 500)
        assert pair.in_flight == pair.gateway.admission.in_flight == 500
        assert abs(fake.running - second.running) <= 25  # the paces learned from first tokens differ a little
        gate.set()
    assert {task.result() for task in tasks} == {expected}
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_requests_total", outcome="ok") == 500


def test_idle_connections_cost_nobody_anything(door: Door) -> None:
    with ExitStack() as exits:
        for _ in range(200):
            exits.enter_context(door.connection())
        assert door.post(CHAT, body_for("chat")).status_code == 200


# Engines
def test_an_engine_that_closes_idle_connections(stack: ExitStack) -> None:
    engine = stack.enter_context(running(FakeEngine(), keep_alive_s=0.05))
    door = stack.enter_context(door_before(engine, probe_interval_s=5.0))
    with door.client() as client:
        for _ in range(5):
            assert client.post(CHAT, json=body_for("chat", stream=True)).status_code == 200
            threading.Event().wait(0.15)  # longer than the engine keeps it open
    assert door.total("berth_request_errors_total") == 0


@pytest.mark.parametrize("dialect", STREAMING)
def test_an_engine_that_sends_a_head_and_ends_without_a_byte(fake: FakeEngine, door: Door, dialect: str) -> None:
    fake.enqueue(Script())
    answer = door.post(PATHS[dialect], body_for(dialect, stream=True))  # type: ignore[index, arg-type]
    assert answer.status_code == 502
    assert answer.json()["error"]["message"] == "the engine failed before it answered"


def test_an_engine_that_says_close_after_each_answer(fake: FakeEngine, door: Door) -> None:
    chunks = chat_stream().chunks
    fake.enqueue(*(Script(chunks=chunks, headers=(("connection", "close"),)) for _ in range(3)))
    with door.client() as client:
        for _ in range(3):
            answer = client.post(CHAT, json=body_for("chat", stream=True))
            assert answer.content == b"".join(data for _, data in chunks)
            assert "connection" not in answer.headers


def test_an_engine_that_answers_without_length_or_chunks(fake: FakeEngine, door: Door) -> None:
    body = chat_chunk({"content": "x"}) + DONE
    fake.enqueue(Script(raw=b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + body))
    assert door.post(CHAT, body_for("chat", stream=True)).content == body


def test_an_engine_that_sends_more_than_it_announced(fake: FakeEngine, door: Door) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
    fake.enqueue(Script(raw=head + b'{}{"smuggled":1}'), json_answer({"id": "ok"}))
    assert b"smuggled" not in door.post(CHAT, body_for("chat")).content
    assert door.post(CHAT, body_for("chat")).json() == {"id": "ok"}


def test_an_engine_with_a_header_that_never_ends(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(raw=b"HTTP/1.1 200 OK\r\nx: " + b"a" * 1_000_000 + b"\r\n\r\n{}"))
    assert door.post(CHAT, body_for("chat")).status_code == 502
    assert door.post(CHAT, body_for("chat")).status_code == 200


@pytest.mark.parametrize("status", [201, 202, 299])
def test_other_kinds_of_success_are_passed_on(fake: FakeEngine, door: Door, status: int) -> None:
    fake.enqueue(json_answer({"id": "1"}, status))
    assert door.post(CHAT, body_for("chat")).status_code == status


def test_an_engine_that_answers_before_it_has_read_the_body(fake: FakeEngine, door: Door) -> None:
    """vLLM refuses an overlong body without reading it; its answer counts, not our failure to write the rest."""
    body = json.dumps({**body_for("chat"), "pad": "x" * 3_000_000}).encode()
    fake.enqueue(json_answer({"error": {"message": "too much", "code": 413}}, 413))
    assert door.post(CHAT, content=body).status_code == 413


def test_an_engine_that_compresses_though_nobody_asked(fake: FakeEngine, door: Door) -> None:
    packed = gzip.compress(b'{"id":"1"}')
    headers = (("content-encoding", "gzip"),)
    fake.enqueue(Script(chunks=((0.0, packed),), content_type="application/json", headers=headers))
    with door.client() as client, client.stream("POST", CHAT, json=body_for("chat")) as answer:
        assert b"".join(answer.iter_raw()) == packed
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-length"] == str(len(packed))


async def test_a_url_that_leads_nowhere_is_an_error_of_ours() -> None:
    async with Upstream(Timeouts(connect_s=0.5)) as upstream:
        for url in ("unix:/nowhere.sock", "http://127.0.0.1:1", "http://no.such.host.invalid"):
            with pytest.raises(Exception, match=f"cannot connect to {url}"):
                await upstream.get(url, CHAT, None, 5.0)
        with pytest.raises(BrokenError):
            await upstream.get("not a url", CHAT, None, 5.0)


def test_a_held_request_survives_the_failure_of_its_neighbours(fake: FakeEngine, door: Door) -> None:
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate}))
    answers: list[int] = []
    held = threading.Thread(target=lambda: answers.append(door.post(CHAT, body_for("chat")).status_code))
    held.start()
    wait_until(lambda: fake.running == 1)
    fake.enqueue(*(Script(ending="drop") for _ in range(5)))
    assert [door.post(CHAT, body_for("chat")).status_code for _ in range(5)] == [502] * 5
    gate.set()
    held.join()
    assert answers == [200]


def test_keep_alive_from_a_plain_http_client(fake: FakeEngine, door: Door) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=30)
    for _ in range(3):
        connection.request("POST", CHAT, WHOLE, {"content-type": "application/json"})
        first = connection.sock
        assert connection.getresponse().read()
        assert connection.sock is first
    connection.close()
