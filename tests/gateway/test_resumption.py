"""A stream that breaks goes on from another replica, through real sockets: its caller cannot tell, or is told once."""

import json
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import orjson
import pytest

from gateway.config import GatewayConfig, Timeouts
from gateway.connection import Connection
from gateway.continuation import Ask
from gateway.exchange import Exchange
from gateway.wire import Dialect, EventSplitter
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, Seen, event, json_answer, running
from tests.gateway.harness import (
    CONFIG,
    STREAMING,
    Door,
    HandClock,
    door_before,
    receive_until,
    request_bytes,
    wait_until,
)
from tests.gateway.test_continuation import DIALECTS, Replica, outline, stream_of

PIECES = ["Hel", "lo", ' "wor', "ld\n", "é🙂 ", "and", " on"]
TEXT = "".join(PIECES)
NEVER = threading.Event()
TIMEOUTS = Timeouts(first_token_s=100.0, gap_s=40.0, keep_alive_s=1e9)


def continuing(
    finish: str = "stop", *, stop_after: int | None = None, gates: dict[str, threading.Event] | None = None
) -> Callable[[Seen], Script]:
    """How an engine like vLLM replies that would have given the same answer.

    Its stream breaks off behind `stop_after` events; `gates` by path hold an answer back: a plain one before its head,
    the stream before its third event.
    """
    gates = gates or {}

    def reply(seen: Seen) -> Script:
        path, body = seen.path, seen.body
        replica = Replica(TEXT, finish, 2)
        if path != "/v1/completions":
            answer = replica.plain(Ask(path, body, is_stream=False))
            held = {BEFORE_HEADERS: gates[path]} if path in gates else {}
            return Script(((0.0, answer),), content_type="application/json", gates=held)
        events = replica.stream(Ask(path, body, is_stream=True))
        held = {2: gates[path]} if path in gates else {}
        chunks = tuple((0.0, one) for one in events[:stop_after])
        return Script(chunks, ending="end" if stop_after is None else "drop", gates=held)

    return reply


def body_of(dialect: Dialect, *, usage: bool = True, **more: object) -> dict[str, object]:
    asks = {"stream_options": {"include_usage": True}} if usage and dialect in ("chat", "completions") else {}
    return {"model": "fake", "stream": True, **asks, **DIALECTS[dialect][1], **more}


def error_event(dialect: Dialect, code: int, message: str) -> bytes:
    """As vLLM ends a stream."""
    error = {"error": {"message": message, "type": "InternalServerError", "param": None, "code": code}}
    return event({"type": "error", **error}, "error") if dialect in ("messages", "responses") else event(error)


def broken(dialect: Dialect, begun: list[bytes], death: str) -> Script:
    """A stream that breaks behind these events."""
    last: dict[str, tuple[bytes, ...]] = {
        "killed in an event": (b'data: {"choi',),
        "its own error": (error_event(dialect, 500, "CUDA error"), b"data: [DONE]\n\n"),
        "no end, in an event": (b'data: {"choi',),
    }
    ending = "drop" if death.startswith("killed") else "end"
    return Script(tuple((0.0, one) for one in (*begun, *last.get(death, ()))), ending=ending)  # type: ignore[arg-type]


def ask(door: Door, dialect: Dialect, *, usage: bool = True, **more: object) -> tuple[list[bytes], str]:
    """The events of the answer, which has a proper end, and who is said to have given it."""
    answer = door.post(DIALECTS[dialect][0], body_of(dialect, usage=usage, **more))
    assert answer.status_code == 200
    splitter = EventSplitter()
    events = splitter.feed(answer.content)
    assert splitter.tail == b""
    return events, answer.headers["x-berth-replica"]


def told(dialect: Dialect, events: list[bytes]) -> dict[str, object]:
    """What a caller can tell, apart from how many events there were."""
    outlined = outline(dialect, events)
    del outlined["numbers"]
    assert dialect != "responses" or outlined["is_numbered"]
    outlined["kinds"] = [kind for kind in outlined["kinds"] if kind != "response.in_progress"]
    return outlined


def is_error(dialect: Dialect, events: list[bytes], message: bytes) -> bool:
    """Whether the last event, and it alone, is the dialect's error."""
    start = b'data: {"error":{' if dialect in ("chat", "completions") else b'event: error\ndata: {"type":"error",'
    return [one.startswith(start) for one in events] == [False] * (len(events) - 1) + [True] and message in events[-1]


DEATHS = ["killed", "killed in an event", "its own error", "no end", "no end, in an event"]


@pytest.mark.parametrize("sent", [1, 4, 7])
@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("dialect", STREAMING)
def test_the_caller_cannot_tell(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect, death: str, sent: int
) -> None:
    whole = stream_of(dialect, PIECES, "stop")
    gate = threading.Event()  # an error in the same read as what has no text is one before the first byte
    fake.enqueue(replace(broken(dialect, whole[:sent], death), gates={sent: gate}))
    second.reply = continuing()
    path, body = DIALECTS[dialect][0], body_of(dialect)
    with pair.client() as client, client.stream("POST", path, json=body) as answer:
        pieces = answer.iter_raw()
        got = next(pieces)
        gate.set()
        got += b"".join(pieces)
    assert told(dialect, EventSplitter().feed(got)) == told(dialect, whole)
    assert answer.headers["x-berth-replica"] == "e0"  # who began it: the head had gone out
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_continuations_total") == pair.total("berth_continuations_total", replica="e0") == 1
    assert pair.total("berth_requests_total") == pair.total("berth_requests_total", outcome="ok", replica="e1") == 1
    assert pair.total("berth_request_errors_total") == pair.total("berth_retries_total") == 0
    assert pair.total("berth_output_tokens_total") == len(TEXT)


@pytest.mark.parametrize("dialect", STREAMING)
def test_only_the_end_was_missing(fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect) -> None:
    whole = stream_of(dialect, PIECES, "stop")
    fake.enqueue(broken(dialect, whole[:-1], "killed"))
    second.reply = continuing()
    events, _ = ask(pair, dialect)
    assert told(dialect, events) == told(dialect, whole)
    wait_until(lambda: pair.is_at_rest)


@pytest.mark.parametrize("dialect", STREAMING)
def test_only_the_end_of_the_connection_was_missing(fake: FakeEngine, door: Door, dialect: Dialect) -> None:
    whole = stream_of(dialect, PIECES, "stop")
    fake.enqueue(broken(dialect, whole, "killed"))
    events, _ = ask(door, dialect)
    assert events == whole
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total") == door.total("berth_requests_total", outcome="ok") == 1
    assert door.total("berth_output_tokens_total") == len(TEXT)


@pytest.mark.parametrize("stop_after", [-1, -2])
@pytest.mark.parametrize("dialect", STREAMING)
def test_the_replica_that_continues_may_die_behind_its_last_word(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect, stop_after: int
) -> None:
    whole = stream_of(dialect, PIECES, "stop")
    fake.enqueue(broken(dialect, whole[:5], "killed"))
    second.reply = continuing(stop_after=stop_after)  # without [DONE], without usage
    events, _ = ask(pair, dialect)
    assert told(dialect, events) == told(dialect, whole)
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_requests_total") == pair.total("berth_requests_total", outcome="ok", replica="e1") == 1


@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_usage_that_was_not_asked_for_is_not_told_behind_the_seam_either(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect
) -> None:
    whole = stream_of(dialect, PIECES, "stop")
    fake.enqueue(broken(dialect, whole[:4], "killed"))
    second.reply = continuing()
    events, _ = ask(pair, dialect, usage=False)
    expected = told(dialect, [one for one in whole if b'"usage"' not in one])
    assert told(dialect, events) == expected
    assert expected["usage"] == []
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_output_tokens_total") == len(TEXT)
    assert pair.total("berth_prompt_tokens_total") == 3


@pytest.mark.parametrize("dialect", ["chat", "completions"])
def test_token_ids_that_were_not_asked_for_are_not_told_behind_the_seam_either(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect
) -> None:
    fake.enqueue(broken(dialect, stream_of(dialect, PIECES, "stop")[:4], "killed"))
    second.reply = continuing()
    events, _ = ask(pair, dialect)
    assert b'token_ids":[' not in b"".join(events)


def test_token_ids_that_were_asked_for_are_told_behind_the_seam_too(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.enqueue(broken("chat", stream_of("chat", PIECES, "stop", with_ids=True)[:4], "killed"))
    second.reply = continuing()
    events, _ = ask(pair, "chat", return_token_ids=True)
    ids = [orjson.loads(one[6:])["choices"][0].get("token_ids") for one in events if b'"choices":[{' in one]
    assert [token for some in ids for token in some or []] == list(map(ord, TEXT))


@pytest.mark.parametrize("dialect", STREAMING)
def test_the_replica_that_continues_may_die_as_well(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack, dialect: Dialect
) -> None:
    third = stack.enter_context(running(FakeEngine()))
    door = stack.enter_context(door_before(fake, second, third))
    whole = stream_of(dialect, PIECES, "stop")
    fake.enqueue(broken(dialect, whole[:5], "killed"))
    second.reply, third.reply = continuing(stop_after=3), continuing()
    events, _ = ask(door, dialect)
    assert told(dialect, events) == told(dialect, whole)
    wait_until(lambda: door.is_at_rest)
    assert second.seen[-1].path == third.seen[-1].path == "/v1/completions"
    assert [door.total("berth_continuations_total", replica=name) for name in ("e0", "e1", "e2")] == [1, 1, 0]
    assert door.total("berth_requests_total") == door.total("berth_requests_total", outcome="ok", replica="e2") == 1


@pytest.mark.parametrize("dialect", STREAMING)
def test_when_all_have_died_the_last_is_named(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect
) -> None:
    fake.enqueue(broken(dialect, stream_of(dialect, PIECES, "stop")[:5], "killed"))
    second.reply = continuing(stop_after=3)
    events, _ = ask(pair, dialect)
    assert is_error(dialect, events, b"the engine failed during the answer")
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_requests_total") == pair.total("berth_requests_total", outcome="broken", replica="e1") == 1


def test_the_log_has_its_moves(fake: FakeEngine, second: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="berth.access")
    config = replace(CONFIG, log_format="json")
    fake.enqueue(broken("chat", stream_of("chat", PIECES, "stop")[:4], "killed"))
    second.reply = continuing()
    with door_before(fake, second, config=config) as door:
        ask(door, "chat")
        wait_until(lambda: any(record.name == "berth.access" for record in caplog.records))
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.name == "berth.access"]
    assert (line["replica"], line["continuations"], line["retries"], line["outcome"]) == ("e1", 1, 0, "ok")
    assert line["output_tokens"] == len(TEXT)
    assert "Hel" not in caplog.text


@pytest.mark.parametrize(
    ("dialect", "more"),
    [
        ("chat", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("chat", {"logprobs": True}),
        ("completions", {"logprobs": 1}),
        ("messages", {"tools": [{"name": "f", "input_schema": {}}]}),
        ("responses", {"tools": [{"type": "function", "name": "f"}]}),
    ],
)
@pytest.mark.parametrize("death", DEATHS)
def test_what_cannot_be_continued_exactly_ends_with_an_error(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect, more: dict[str, object], death: str
) -> None:
    begun = stream_of(dialect, PIECES, "stop")[:5]
    fake.enqueue(broken(dialect, begun, death))
    events, _ = ask(pair, dialect, usage=True, **more)
    assert events[:-1] == begun
    assert is_error(dialect, events, b"CUDA error" if death == "its own error" else b"the engine failed")
    assert second.seen == []
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_requests_total") == pair.total("berth_requests_total", outcome="broken", replica="e0") == 1
    assert pair.total("berth_continuations_total") == 0


ODD_ANSWERS = {
    "not found": json_answer({"detail": "Not Found"}, 404),
    "broken": json_answer({"error": "x"}, 500),
    "not JSON": Script(((0.0, b"{"),), content_type="application/json"),
    "not an object": json_answer([1]),  # type: ignore[arg-type]
    "no tokens": json_answer({"count": 3}),
    "tokens of another kind": json_answer({"tokens": [None, {}], "token_strs": [3]}),
    "strings of another kind": json_answer({"tokens": [7, 8, 9], "token_strs": {"a": 1}}),
    "an empty body": Script(content_type="application/json"),
}


@pytest.mark.parametrize("odd", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
@pytest.mark.parametrize("dialect", STREAMING)
def test_another_replica_that_does_not_tell_tokens_is_not_the_one_that_failed(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect, odd: Script
) -> None:
    begun = stream_of(dialect, PIECES, "stop")[:5]
    fake.enqueue(broken(dialect, begun, "killed"))
    second.enqueue(odd)
    events, _ = ask(pair, dialect)
    assert events[:-1] == begun
    assert is_error(dialect, events, b"the engine failed during the answer")
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_requests_total") == pair.total("berth_requests_total", outcome="broken", replica="e0") == 1


@pytest.mark.parametrize("name", ODD_ANSWERS.keys() - {"strings of another kind"})
@pytest.mark.parametrize("dialect", STREAMING)
def test_where_one_replica_does_not_tell_tokens_a_third_takes_it_up(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack, dialect: Dialect, name: str
) -> None:
    third = stack.enter_context(running(FakeEngine()))
    door = stack.enter_context(door_before(fake, second, third))
    whole = stream_of(dialect, PIECES, "stop")
    fake.enqueue(broken(dialect, whole[:5], "killed"))
    second.enqueue(ODD_ANSWERS[name])
    second.reply, third.reply = continuing(), continuing()
    events, _ = ask(door, dialect)
    assert told(dialect, events) == told(dialect, whole)
    wait_until(lambda: door.is_at_rest)
    assert len(second.seen) == 1
    assert door.total("berth_continuations_total") == door.total("berth_continuations_total", replica="e0") == 1
    assert door.total("berth_requests_total") == door.total("berth_requests_total", outcome="ok", replica="e2") == 1
    assert door.gateway.pool.replicas[1].state == "ready"


@pytest.mark.parametrize("dialect", STREAMING)
def test_tokens_are_counted_also_where_no_usage_follows(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect
) -> None:
    whole = stream_of(dialect, PIECES, "stop")
    fake.enqueue(broken(dialect, whole[:5], "killed"))
    usual = continuing()

    def reply(seen: Seen) -> Script:
        script = usual(seen)
        return replace(script, chunks=tuple(chunk for chunk in script.chunks if b'"usage"' not in chunk[1]))

    second.reply = reply
    events, _ = ask(pair, dialect)
    assert told(dialect, events) == told(dialect, whole)
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_output_tokens_total", replica="e1") == len(TEXT)
    assert pair.total("berth_prompt_tokens_total", replica="e1") == 3


ODD_STREAMS = {
    "refused": json_answer({"error": {"message": "busy", "code": 503}}, 503),
    "a document": json_answer({"choices": []}),
    "an error": Script(((0.0, error_event("chat", 500, "CUDA error")),)),
    "not JSON": Script(((0.0, b"data: {\n\n"),)),
    "a number": Script(((0.0, b"data: 3\n\n"),)),
    "choices of another kind": Script(((0.0, b'data: {"choices":["a"]}\n\n'),)),
    "usage of another kind": Script(
        ((0.0, b'data: {"choices":[{"finish_reason":"stop"}]}\n\n'), (0.0, b'data: {"choices":[],"usage":{"a":1}}\n\n'))
    ),
    "nothing": Script(),
}


@pytest.mark.parametrize("odd", ODD_STREAMS.values(), ids=ODD_STREAMS)
@pytest.mark.parametrize("dialect", STREAMING)
def test_another_replica_that_does_not_go_on_has_failed_too(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect, odd: Script
) -> None:
    begun = stream_of(dialect, PIECES, "stop")[:5]
    fake.enqueue(broken(dialect, begun, "killed"))
    usual = continuing()
    second.reply = lambda seen: odd if seen.path == "/v1/completions" else usual(seen)
    events, _ = ask(pair, dialect)
    assert events[:-1] == begun
    assert is_error(dialect, events, b"the engine failed during the answer")
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_requests_total") == pair.total("berth_requests_total", outcome="broken", replica="e1") == 1


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_refusal_in_the_middle_of_a_stream_is_not_continued(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect
) -> None:
    begun = stream_of(dialect, PIECES, "stop")[:5]
    refusal = error_event(dialect, 400, "too long")
    fake.enqueue(Script(tuple((0.0, one) for one in (*begun, refusal))))
    events, _ = ask(pair, dialect)
    assert events[:-1] == begun
    assert is_error(dialect, events, b"too long")
    assert second.seen == []
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_requests_total", outcome="engine_error", replica="e0") == 1


@pytest.mark.parametrize("dialect", STREAMING)
def test_half_an_event_is_no_beginning(fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect) -> None:
    whole = stream_of(dialect, PIECES, "stop")
    fake.enqueue(broken(dialect, [], "no end, in an event"))
    second.enqueue(Script(tuple((0.0, one) for one in whole)))
    events, replica = ask(pair, dialect)
    assert events == whole
    assert replica == "e1"


def test_an_event_that_nobody_understands_is_passed_on_and_ends_with_an_error(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    begun = [*stream_of("chat", PIECES, "stop")[:3], b'data: {"choices":["a"]}\n\n']
    fake.enqueue(broken("chat", begun, "killed"))
    second.reply = continuing()
    events, _ = ask(pair, "chat")
    assert events[:-1] == begun
    assert is_error("chat", events, b"the engine failed during the answer")


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_silent_engine_is_left_for_another(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack, dialect: Dialect
) -> None:
    clock = HandClock()
    door = stack.enter_context(door_before(fake, second, clock=clock, timeouts=TIMEOUTS))
    whole = stream_of(dialect, PIECES, "stop")
    fake.enqueue(replace(broken(dialect, whole[:5], "killed"), ending="hang"))
    second.reply = continuing()
    with door.client() as client, client.stream("POST", DIALECTS[dialect][0], json=body_of(dialect)) as answer:
        pieces = answer.iter_raw()
        got = b""
        while not got.endswith(whole[4]):
            got += next(pieces)
        wait_until(lambda: not _connection(door).is_heard)  # the watch has seen that it was
        clock.now_s += 41
        got += b"".join(pieces)
    assert told(dialect, EventSplitter().feed(got)) == told(dialect, whole)
    wait_until(lambda: fake.seen[0].aborted)
    wait_until(lambda: door.is_at_rest)


def test_the_replica_that_goes_on_may_be_silent_too(fake: FakeEngine, second: FakeEngine, stack: ExitStack) -> None:
    clock = HandClock()
    door = stack.enter_context(door_before(fake, second, clock=clock, timeouts=TIMEOUTS))
    fake.enqueue(broken("chat", stream_of("chat", PIECES, "stop")[:4], "killed"))
    second.reply = continuing(gates={"/tokenize": NEVER})
    with door.client() as client, client.stream("POST", DIALECTS["chat"][0], json=body_of("chat")) as answer:
        wait_until(lambda: second.seen)
        clock.now_s += 41
        events = EventSplitter().feed(answer.read())
    assert is_error("chat", events, b"the engine took too long")
    wait_until(lambda: second.seen[0].aborted)
    wait_until(lambda: door.is_at_rest)


def _connection(door: Door) -> Connection:
    """To an engine, of the only request in flight."""
    (request,) = door.gateway._relay.watch.watched
    assert isinstance(request, Exchange)
    assert request._course is not None
    assert request._course.attempt is not None
    assert request._course.attempt.connection is not None
    return request._course.attempt.connection


@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions"])
@pytest.mark.parametrize("dialect", STREAMING)
def test_a_caller_that_leaves_meanwhile_frees_everything(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect, path: str
) -> None:
    fake.enqueue(broken(dialect, stream_of(dialect, PIECES, "stop")[:4], "killed"))
    second.reply = continuing(gates={path: NEVER})
    with pair.connection() as sock:
        sock.sendall(request_bytes(DIALECTS[dialect][0], json.dumps(body_of(dialect)).encode()))
        receive_until(sock, b"\r\n\r\n")
        wait_until(lambda: second.seen and second.seen[-1].path == path)
        assert pair.in_flight == 1
    wait_until(lambda: second.seen[-1].aborted)
    wait_until(lambda: pair.is_at_rest)
    wait_until(lambda: pair.total("berth_requests_total", outcome="client_gone", replica="e1") == 1)
    assert pair.total("berth_requests_total") == 1
    assert second.running == 0


@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions"])
def test_a_reload_and_a_drain_meanwhile_change_nothing(
    fake: FakeEngine, second: FakeEngine, pair: Door, path: str
) -> None:
    gate, whole = threading.Event(), stream_of("chat", PIECES, "stop")
    fake.enqueue(broken("chat", whole[:4], "killed"))
    second.reply = continuing(gates={path: gate})
    with pair.client() as client, client.stream("POST", DIALECTS["chat"][0], json=body_of("chat")) as answer:
        wait_until(lambda: second.seen and second.seen[-1].path == path)
        for replica in pair.gateway.pool.replicas:
            replica.state = "draining"
        pair.gateway.reconfigure(GatewayConfig(retries=0, timeouts=pair.gateway.config.timeouts))
        gate.set()
        events = EventSplitter().feed(answer.read())
    assert told("chat", events) == told("chat", whole)
    wait_until(lambda: pair.is_at_rest)


def test_a_draining_replica_is_not_gone_on_from(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    gate = threading.Event()
    fake.enqueue(replace(broken("chat", stream_of("chat", PIECES, "stop")[:4], "killed"), gates={4: gate}))
    with pair.client() as client, client.stream("POST", DIALECTS["chat"][0], json=body_of("chat")) as answer:
        pair.gateway.pool.replicas[1].state = "draining"
        gate.set()
        events = EventSplitter().feed(answer.read())
    assert is_error("chat", events, b"the engine failed during the answer")
    assert second.seen == []
