"""Shadows: another model gets a copy, and nothing that becomes of it matters to anybody but its own metrics."""

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.app import Gateway
from gateway.config import GatewayConfig, Timeouts
from gateway.errors import BrokenError
from gateway.mirror import Count, Shadow
from gateway.replica import ModelCard, Replica
from gateway.rules import Mirror, Rule, When
from gateway.settlement import Settlement
from gateway.watch import Watch
from gateway.wire import ENDPOINTS, Call, Dialect
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, Seen, chat_stream, json_answer, running
from tests.gateway.harness import (
    PATHS,
    STREAMING,
    Door,
    HandClock,
    body_for,
    door_before,
    free_port,
    golden,
    golden_events,
    opened,
    stream_of,
    wait_until,
)
from tests.gateway.loopless import Wire

CHAT = PATHS["chat"]
REQUESTS = "berth_shadow_requests_total"
IN_FLIGHT = "berth_shadow_requests_in_flight"
TTFTS = "berth_shadow_time_to_first_token_seconds_count"


def _mirrored(to: str = "dark", share: float = 1.0, max_in_flight: int = 16) -> tuple[Rule, ...]:
    return (Rule(When(model="fake"), mirror=Mirror(to, share, max_in_flight)),)


@pytest.fixture
def dark() -> Iterator[FakeEngine]:
    """The engine of the shadow."""
    with running(FakeEngine(models=("dark",))) as engine:
        yield engine


@pytest.fixture
def door(fake: FakeEngine, dark: FakeEngine, stack: ExitStack) -> Door:
    """Every request is mirrored."""
    return stack.enter_context(door_before(fake, dark, rules=_mirrored()))


def _over(door: Door, outcome: str, times: int = 1) -> None:
    wait_until(lambda: door.total(REQUESTS, model="fake", shadow="dark", outcome=outcome) == times)
    wait_until(lambda: door.is_at_rest)
    assert door.total(REQUESTS) == times
    assert door.total(IN_FLIGHT) == 0


def _headers(seen: Seen) -> dict[str, str]:
    return {name.lower(): value for name, value in seen.headers.items()}


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_copy_goes_there_and_its_answer_nowhere(
    fake: FakeEngine, dark: FakeEngine, door: Door, dialect: Dialect
) -> None:
    fake.enqueue(stream_of(dialect))
    dark.enqueue(stream_of(dialect))
    answer = door.post(PATHS[dialect], body_for(dialect, stream=True))
    assert (answer.content, answer.headers["x-berth-replica"]) == (golden(dialect), "e0")
    _over(door, "ok")
    (seen,), (original,) = dark.seen, fake.seen
    assert orjson.loads(seen.body) == {**orjson.loads(original.body), "model": "dark"}
    assert _headers(seen)["x-request-id"] != _headers(original)["x-request-id"]
    assert "authorization" not in _headers(seen)
    assert door.total(TTFTS) == 1


def test_it_is_no_request_and_nobodys_usage(fake: FakeEngine, dark: FakeEngine, stack: ExitStack) -> None:
    settled: list[Settlement] = []
    gateway = Gateway(
        GatewayConfig(probe_interval_s=0.05, rules=_mirrored()), readers=[lambda batch, _: settled.extend(batch)]
    )
    gateway.add(Replica("e0", fake.url))
    gateway.add(Replica("e1", dark.url))
    door = stack.enter_context(opened(gateway))
    door.wait_ready()
    door.post(CHAT, body_for("chat", stream=True))
    _over(door, "ok")
    assert door.total("berth_requests_total") == 1
    assert door.total("berth_output_tokens_total") == 2
    assert door.total("berth_output_tokens_total", model="dark") == 0
    wait_until(lambda: settled)
    assert [done.model for done in settled] == ["fake"]


def test_a_whole_answer_has_a_shadow_too(fake: FakeEngine, dark: FakeEngine, door: Door) -> None:
    fake.enqueue(json_answer({"n": 1}))
    dark.enqueue(json_answer({"n": 2}))
    assert door.post(CHAT, body_for("chat")).json() == {"n": 1}
    _over(door, "ok")
    assert door.total(TTFTS) == 0


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (json_answer({"error": {"message": "no"}}, 400), "engine_error"),
        (json_answer({"error": {"message": "boom"}}, 500), "engine_error"),
        (Script(ending="drop"), "broken"),
        (chat_stream(ending="drop"), "broken"),
        (Script(chunks=chat_stream().chunks[:2]), "broken"),  # properly closed, without its end
        (Script(chunks=((0.0, b'data: {"error":{"message":"x","code":500}}\n\n'),)), "broken"),
        (Script(chunks=((0.0, b'data: {"error":{"message":"x","code":400}}\n\n'),)), "engine_error"),
        (Script(raw=b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n"), "broken"),
        (Script(raw=b"nonsense"), "broken"),
        (Script(chunks=((0.0, b"data: " + b"x" * (2**20 + 1)),), ending="hang"), "broken"),
    ],
)
def test_its_failures_change_nothing(
    fake: FakeEngine, dark: FakeEngine, door: Door, script: Script, outcome: str
) -> None:
    for times in range(1, 7):  # as many as would open a breaker
        fake.enqueue(stream_of("chat"))
        dark.enqueue(script)
        answer = door.post(CHAT, body_for("chat", stream=True))
        assert (answer.status_code, answer.content) == (200, golden("chat"))
        _over(door, outcome, times)
    shadowed = door.gateway.pool.replicas[1]
    assert (shadowed.breaker.state, shadowed.state) == ("closed", "ready")
    assert door.total("berth_request_errors_total") == 0


def test_nobody_waits_for_it(fake: FakeEngine, dark: FakeEngine, door: Door) -> None:
    gate = threading.Event()
    dark.enqueue(Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate}))
    assert door.post(CHAT, body_for("chat", stream=True)).status_code == 200
    assert door.total(IN_FLIGHT) == 1
    gate.set()
    _over(door, "ok")


def test_it_ends_when_its_caller_leaves(fake: FakeEngine, dark: FakeEngine, door: Door) -> None:
    gate = threading.Event()
    for engine in (fake, dark):
        engine.enqueue(Script(chunks=chat_stream().chunks, gates={2: gate}))
    with door.client() as client, client.stream("POST", CHAT, json=body_for("chat", stream=True)) as held:
        next(held.iter_raw())
        wait_until(lambda: dark.seen and dark.seen[0].pieces >= 2)
    wait_until(lambda: dark.seen[0].aborted)
    _over(door, "client_gone")
    gate.set()


def test_it_waits_no_longer_than_a_request_would(fake: FakeEngine, dark: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, dark, rules=_mirrored(), timeouts=Timeouts(first_token_s=0.3)))
    dark.enqueue(Script(chunks=chat_stream().chunks, ending="hang", gates={BEFORE_HEADERS: threading.Event()}))
    assert door.post(CHAT, body_for("chat", stream=True)).status_code == 200
    _over(door, "broken")
    wait_until(lambda: dark.seen[0].aborted)


def test_there_are_no_more_than_may_be(fake: FakeEngine, dark: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, dark, rules=_mirrored(max_in_flight=2)))
    gate = threading.Event()
    dark.default = Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate})
    for _ in range(3):
        assert door.post(CHAT, body_for("chat", stream=True)).status_code == 200
    assert door.total(IN_FLIGHT) == 2
    assert door.total("berth_shadow_requests_omitted_total", reason="full") == 1
    gate.set()
    _over(door, "ok", 2)


def test_where_there_is_no_room_nothing_goes(fake: FakeEngine, dark: FakeEngine, stack: ExitStack) -> None:
    gateway = Gateway(GatewayConfig(probe_interval_s=0.05, rules=_mirrored(max_in_flight=9)))
    gateway.add(Replica("e0", fake.url))
    shadow = Replica("e1", dark.url, max_num_seqs=1)
    gateway.add(shadow)
    door = stack.enter_context(opened(gateway))
    door.wait_ready(2)
    gate = threading.Event()
    dark.default = Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate})
    for _ in range(2):
        assert door.post(CHAT, body_for("chat", stream=True)).status_code == 200
    assert (door.total(IN_FLIGHT), shadow.in_flight) == (1, 1)
    assert door.total("berth_shadow_requests_omitted_total", reason="full") == 1
    gate.set()
    _over(door, "ok")


def test_where_nobody_is_there_nothing_goes(fake: FakeEngine, stack: ExitStack) -> None:
    gateway = Gateway(GatewayConfig(probe_interval_s=0.05, rules=_mirrored()))
    gateway.add(Replica("e0", fake.url))
    gateway.add(Replica("e1", f"http://127.0.0.1:{free_port()}", (ModelCard("dark"),)))
    door = stack.enter_context(opened(gateway))
    wait_until(lambda: gateway.pool.replicas[0].state == "ready")
    assert door.post(CHAT, body_for("chat", stream=True)).status_code == 200
    assert door.total("berth_shadow_requests_omitted_total", reason="not_ready") == 1
    assert door.is_at_rest


def test_a_share_of_them(fake: FakeEngine, dark: FakeEngine, stack: ExitStack) -> None:
    gateway = Gateway(GatewayConfig(probe_interval_s=0.05, rules=_mirrored(share=0.25)), luck=random.Random(3))
    gateway.add(Replica("e0", fake.url))
    gateway.add(Replica("e1", dark.url))
    door = stack.enter_context(opened(gateway))
    door.wait_ready()
    luck = random.Random(3)
    expected = sum(luck.random() < 0.25 for _ in range(20))
    for _ in range(20):
        door.post(CHAT, body_for("chat", stream=True))
    assert 0 < expected < 20
    _over(door, "ok", expected)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
def test_what_generates_nothing_has_none(fake: FakeEngine, dark: FakeEngine, door: Door, path: str) -> None:
    fake.enqueue(json_answer({"count": 1}))
    assert door.post(path, {"model": "fake", "prompt": "x", "messages": []}).status_code == 200
    assert dark.seen == []


def test_a_request_that_is_refused_has_none(dark: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(dark, rules=_mirrored()))
    assert door.post(CHAT, body_for("chat")).status_code == 404
    assert dark.seen == []


def test_a_side_of_a_split_is_mirrored_under_its_own_name(fake: FakeEngine, dark: FakeEngine, stack: ExitStack) -> None:
    rule = Rule(name="chat", split=(("fake", 1.0),), mirror=Mirror("dark"))
    door = stack.enter_context(door_before(fake, dark, rules=(rule,)))
    assert door.post(CHAT, body_for("chat", stream=True, model="chat")).status_code == 200
    _over(door, "ok")
    assert [orjson.loads(seen.body)["model"] for engine in (fake, dark) for seen in engine.seen] == ["fake", "dark"]


# Whatever comes, in whatever order
class _Place:
    """Counts how often it is given back."""

    def __init__(self) -> None:
        self.released = 0

    def first_token(self, elapsed_s: float) -> None:
        assert elapsed_s > 0

    def settle(self, prompt_tokens: int, cached_tokens: int | None) -> None: ...

    def release(self) -> None:
        self.released += 1


EVENT_STREAM = [(b"content-type", b"text/event-stream")]
STEPS = st.sampled_from(["200", "500", "event", "error", "end", "fail", "leave", "time"])


@given(st.lists(STEPS, max_size=12), st.booleans())
def test_it_ends_once_and_leaves_nothing_behind(steps: list[str], stream: bool) -> None:
    clock, place, count, watch, wire = HandClock(), _Place(), Count(), Watch(), Wire()
    call = Call(ENDPOINTS[CHAT], "dark", stream, b"{}")
    shadow = Shadow(call, place, count, watch, Timeouts(), clock)
    shadow.send(wire.open(), b"")
    events = golden_events("chat")
    for step in steps:
        clock.now_s += 200 if step == "time" else 1
        if step in ("200", "500"):
            shadow.began(int(step), EVENT_STREAM)
        elif step == "event":
            shadow.received(events[1])
        elif step == "error":
            shadow.received(b'data: {"error":{"message":"x","code":500}}\n\n')
        elif step == "end":
            shadow.ended()
        elif step == "fail":
            shadow.failed(BrokenError("x"))
        elif step == "leave":
            shadow.leave()
        shadow.tick(clock.now_s)
        assert place.released == 1 - count.in_flight == sum(count.endings.values())
        assert bool(watch.watched) == bool(count.in_flight)
    shadow.leave()
    assert (place.released, count.in_flight, watch.watched) == (1, 0, [])
