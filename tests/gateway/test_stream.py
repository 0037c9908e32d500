import http.client
import threading
from dataclasses import replace

import httpx2
import psutil
import pytest

from gateway.meter import Meter
from gateway.wire import Dialect, Usage
from tests.fake_engine import FakeEngine, Script, chat_chunk, chat_stream, event
from tests.gateway.harness import (
    PATHS,
    STREAMING,
    Door,
    body_for,
    golden,
    golden_events,
    receive_until,
    request_bytes,
    stream_of,
    wait_until,
)


@pytest.mark.parametrize("dialect", STREAMING)
def test_the_client_gets_the_engines_bytes(fake: FakeEngine, door: Door, dialect: Dialect) -> None:
    fake.enqueue(stream_of(dialect))
    answer = door.post(PATHS[dialect], body_for(dialect, stream=True))
    assert answer.content == golden(dialect)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-berth-replica"] == "e0"
    assert answer.headers["x-request-id"] == answer.headers["request-id"]


@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_usage_nobody_asked_for_is_the_one_event_left_out(fake: FakeEngine, door: Door, dialect: Dialect) -> None:
    fake.enqueue(stream_of(dialect))
    answer = door.post(PATHS[dialect], {"model": "fake", "stream": True})
    assert answer.content == b"".join(e for e in golden_events(dialect) if b'"usage"' not in e)
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert b'"include_usage":true' in fake.seen[0].body


def test_a_stream_is_known_as_one_however_its_type_is_spelt(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(replace(stream_of("chat"), content_type="Text/Event-Stream"))
    answer = door.post(PATHS["chat"], body_for("chat") | {"stream": True})
    assert answer.content == b"".join(e for e in golden_events("chat") if b'"usage"' not in e)


@pytest.mark.parametrize("asked", [True, False], ids=["usage asked for", "usage not asked for"])
@pytest.mark.parametrize("size", [1, 5, 700])
def test_how_the_engines_writes_are_cut_changes_nothing(fake: FakeEngine, door: Door, size: int, asked: bool) -> None:
    data = golden("chat")
    fake.enqueue(Script(chunks=tuple((0.0, data[i : i + size]) for i in range(0, len(data), size))))
    answer = door.post(PATHS["chat"], {"model": "fake", "stream": True, "stream_options": {"include_usage": asked}})
    assert answer.content == b"".join(e for e in golden_events("chat") if asked or b'"usage"' not in e)


@pytest.mark.parametrize("asked", [True, False], ids=["usage asked for", "usage not asked for"])
def test_a_stream_that_ends_in_the_middle_of_an_event_is_passed_on_whole(
    fake: FakeEngine, door: Door, asked: bool
) -> None:
    data = chat_chunk({"content": "x"}) + b"data: [DONE]"  # some servers leave the last blank line out
    fake.enqueue(Script(chunks=((0.0, data),)))
    answer = door.post(PATHS["chat"], {"model": "fake", "stream": True, "stream_options": {"include_usage": asked}})
    assert answer.content == data


@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize("asked", [True, False], ids=["usage asked for", "usage not asked for"])
def test_each_event_arrives_before_the_engine_writes_the_next(
    fake: FakeEngine, door: Door, dialect: Dialect, asked: bool
) -> None:
    events = golden_events(dialect)
    gates = {i: threading.Event() for i in range(1, len(events))}
    fake.enqueue(Script(chunks=tuple((0.0, e) for e in events), gates=gates))
    body = body_for(dialect, stream=True) if asked else {"model": "fake", "stream": True}
    expected = [e for e in events if asked or dialect not in ("chat", "completions") or b'"usage"' not in e]
    with door.client() as client, client.stream("POST", PATHS[dialect], json=body) as answer:
        received = b""
        pieces = answer.iter_raw()
        for i, sent in enumerate(events):
            if sent in expected:
                wanted = received + sent
                while len(received) < len(wanted):
                    received += next(pieces)
                assert received == wanted
            if i + 1 in gates:
                gates[i + 1].set()
        assert b"".join(pieces) == b""


def test_an_unstreamed_answer_is_passed_on_whole(fake: FakeEngine, door: Door) -> None:
    body = b'{"id": "1",  "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}'
    fake.enqueue(Script(chunks=((0.0, body),), content_type="application/json", headers=(("x-engine", "yes"),)))
    answer = door.post(PATHS["chat"], body_for("chat"))
    assert answer.content == body
    assert answer.headers["content-length"] == str(len(body))
    assert answer.headers["x-engine"] == "yes"


def test_a_stream_that_the_engine_answers_with_one_document_is_passed_on_as_that(fake: FakeEngine, door: Door) -> None:
    body = b'{"id":"1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
    fake.enqueue(Script(chunks=((0.0, body[:10]), (0.0, body[10:])), content_type="application/json"))
    answer = door.post(PATHS["chat"], {"model": "fake", "stream": True})
    assert answer.content == body
    assert answer.headers["content-type"] == "application/json"
    wait_until(lambda: door.total("berth_output_tokens_total") == 2)


def test_keep_alive_comments_of_the_engine_are_passed_on(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(chunks=((0.0, b": ping\n\n"), (0.0, chat_chunk({"content": "x"})), (0.0, b"data: [DONE]\n\n"))))
    answer = door.post(PATHS["chat"], {"model": "fake", "stream": True})
    assert answer.content == b": ping\n\n" + chat_chunk({"content": "x"}) + b"data: [DONE]\n\n"


def test_the_connection_serves_another_request_after_a_stream(fake: FakeEngine, door: Door) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=30)
    for _ in range(3):
        body = b'{"model":"fake","stream":true}'
        connection.request("POST", PATHS["chat"], body, {"content-type": "application/json"})
        assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    connection.close()


# Back-pressure: the fake offers 200 MB; what is not read must stay in the engine, not in the gateway.
_PIECE = b"data: " + b"x" * (2**20 - 8) + b"\n\n"
_PIECES = 200
END = b'data: {"type":"response.completed","response":{}}\n\n'


def _flood() -> Script:
    return Script(chunks=(*((0.0, _PIECE),) * _PIECES, (0.0, b"data: [DONE]\n\n")))


def test_a_client_that_does_not_read_stops_the_engine_not_the_memory(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(_flood())
    process = psutil.Process()
    before = process.memory_info().rss
    with door.connection() as sock:
        sock.sendall(request_bytes(PATHS["chat"], b'{"model":"fake","stream":true}'))
        wait_until(lambda: fake.seen and fake.seen[0].pieces > 0)
        written = -1
        while written != fake.seen[0].pieces:  # until the engine has stood still for half a second
            written = fake.seen[0].pieces
            threading.Event().wait(0.5)
        assert written < _PIECES // 4  # kernel buffers on both sides, and a few pieces in between
        assert process.memory_info().rss - before < 64 * 2**20
        assert door.get("/health").status_code == 200  # and nobody else waits for it
    wait_until(lambda: fake.seen[0].aborted)
    wait_until(lambda: door.is_at_rest)


def test_a_client_that_reads_gets_all_of_a_large_stream(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(_flood())
    process = psutil.Process()
    before, peak, size = process.memory_info().rss, 0, 0
    body = {"model": "fake", "stream": True}
    with door.client() as client, client.stream("POST", PATHS["chat"], json=body) as answer:
        for i, piece in enumerate(answer.iter_raw()):
            size += len(piece)
            if i % 50 == 0:
                peak = max(peak, process.memory_info().rss)
    assert size == _PIECES * len(_PIECE) + len(b"data: [DONE]\n\n")
    assert peak - before < 64 * 2**20


def test_one_very_large_event_in_many_writes_does_not_hold_up_the_rest(fake: FakeEngine, door: Door) -> None:
    piece = b"x" * 65536
    fake.enqueue(Script(chunks=((0.0, b"data: "), *(((0.0, piece),) * 320), (0.0, b"\n\n" + END))))  # 20 MiB: an image
    answer = door.post(PATHS["responses"], body_for("responses", stream=True))
    assert len(answer.content) == 320 * 65536 + 8 + len(END)


# The meter on its own
def _meter(times: list[float]) -> Meter:
    return Meter("chat", strip_usage=True, clock=iter(times).__next__)


def _usage(n: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": n}})


def test_tpot_is_the_time_after_the_first_token_per_further_token() -> None:
    meter = _meter([1.0, 2.0, 2.5, 4.0, 9.0])
    meter.feed(chat_chunk({"role": "assistant", "content": ""}))
    for _ in range(3):
        meter.feed(chat_chunk({"content": "x"}))
    meter.feed(_usage(5))  # chunks of several tokens: the engine's count decides
    assert (meter.first_token_s, meter.last_token_s) == (2.0, 4.0)
    assert meter.tpot_s == (4.0 - 2.0) / (5 - 1)
    assert meter.usage == Usage(1, 5)


def test_tpot_is_unknown_where_there_was_no_second_moment() -> None:
    assert _meter([]).tpot_s is None
    meter = _meter([1.0, 2.0])
    meter.feed(chat_chunk({"content": "all at once"}))
    meter.feed(_usage(3))
    assert meter.tpot_s is None


def test_the_meter_holds_back_half_an_event_and_gives_it_out_once() -> None:
    meter = _meter([0.0, 0.0])
    assert meter.feed(b"data: {}\n\ndata: {") == b"data: {}\n\n"
    assert meter.rest() == b"data: {"
    assert meter.rest() == b""


def test_two_streams_at_once_do_not_mix(fake: FakeEngine, door: Door) -> None:
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream(("one",)).chunks, gates={2: gate}), chat_stream(("two",)))
    body = {"model": "fake", "stream": True}
    with door.client() as client, client.stream("POST", PATHS["chat"], json=body) as held:
        pieces = held.iter_raw()
        first = next(pieces)
        other = door.post(PATHS["chat"], body)
        assert b"two" in other.content
        gate.set()
        rest = first + b"".join(pieces)
    assert b"one" in rest
    assert b"two" not in rest


def test_http_1_0_clients_get_their_answer(fake: FakeEngine, door: Door) -> None:
    with door.connection() as sock:
        sock.sendall(request_bytes(PATHS["chat"], b'{"model":"fake"}').replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert receive_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_the_clients_own_timeout_is_not_ours(fake: FakeEngine, door: Door) -> None:
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={0: gate}))
    with httpx2.Client(base_url=door.url, timeout=0.3) as client, pytest.raises(httpx2.ReadTimeout):
        client.post(PATHS["chat"], json={"model": "fake", "stream": True})
    wait_until(lambda: fake.seen[0].aborted)
    wait_until(lambda: door.is_at_rest)
