"""A second replica asked because the first is slow: the first bytes win, and nothing is left of the loser."""

import threading
from contextlib import ExitStack

import pytest

from gateway.config import Hedge
from gateway.wire import Dialect
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, json_answer
from tests.gateway.harness import PATHS, STREAMING, Door, body_for, door_before, golden, stream_of, wait_until


@pytest.fixture
def hedged(fake: FakeEngine, second: FakeEngine, stack: ExitStack) -> Door:
    """Two replicas whose first tokens came at once so far; each request may be sent twice."""
    door = stack.enter_context(door_before(fake, second, hedges={"fake": Hedge(min_s=0.05, share=1.0)}))
    for replica in door.gateway.pool.replicas:
        for _ in range(20):
            replica.succeeded(0.001)
    door.gateway.pool.sweep()
    return door


@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize("gate", [BEFORE_HEADERS, 0], ids=["no head", "no event"])
def test_the_second_one_answers(
    fake: FakeEngine, second: FakeEngine, hedged: Door, dialect: Dialect, gate: int
) -> None:
    held = threading.Event()
    fake.enqueue(Script(chunks=stream_of(dialect).chunks, gates={gate: held}))
    second.enqueue(stream_of(dialect))
    answer = hedged.post(PATHS[dialect], body_for(dialect, stream=True))
    assert answer.content == golden(dialect)
    assert answer.headers["x-berth-replica"] == "e1"
    wait_until(lambda: fake.seen[0].aborted)
    wait_until(lambda: hedged.is_at_rest)
    assert hedged.total("berth_hedges_total") == 1
    assert hedged.total("berth_requests_total", outcome="ok", replica="e1") == 1
    assert hedged.total("berth_requests_total") == 1
    held.set()


def test_a_whole_answer_too(fake: FakeEngine, second: FakeEngine, hedged: Door) -> None:
    held = threading.Event()
    fake.enqueue(Script(chunks=((0.0, b"{}"),), gates={BEFORE_HEADERS: held}))
    second.enqueue(json_answer({"n": 2}))
    answer = hedged.post(PATHS["chat"], body_for("chat"))
    assert answer.json() == {"n": 2}
    wait_until(lambda: fake.seen[0].aborted)
    wait_until(lambda: hedged.is_at_rest)
    held.set()


def test_the_first_one_was_only_a_little_slow(fake: FakeEngine, second: FakeEngine, hedged: Door) -> None:
    first, other = threading.Event(), threading.Event()
    fake.enqueue(Script(chunks=stream_of("chat").chunks, gates={0: first}))
    second.enqueue(Script(chunks=stream_of("chat").chunks, gates={0: other}))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(hedged.post(PATHS["chat"], body_for("chat", stream=True))))
    thread.start()
    wait_until(lambda: second.seen)
    first.set()
    thread.join()
    assert answers[0].content == golden("chat")
    assert answers[0].headers["x-berth-replica"] == "e0"
    wait_until(lambda: second.seen[0].aborted)
    wait_until(lambda: hedged.is_at_rest)
    other.set()


def test_a_rival_that_fails_changes_nothing(fake: FakeEngine, second: FakeEngine, hedged: Door) -> None:
    first = threading.Event()
    fake.enqueue(Script(chunks=stream_of("chat").chunks, gates={0: first}))
    second.enqueue(Script(status=500, content_type="application/json", chunks=((0.0, b"{}"),)))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(hedged.post(PATHS["chat"], body_for("chat", stream=True))))
    thread.start()
    wait_until(lambda: second.seen and hedged.gateway.pool.replicas[1].in_flight == 0)
    first.set()
    thread.join()
    assert answers[0].content == golden("chat")
    wait_until(lambda: hedged.is_at_rest)


def test_who_leaves_stops_both(fake: FakeEngine, second: FakeEngine, hedged: Door) -> None:
    held = threading.Event()
    for engine in (fake, second):
        engine.enqueue(Script(chunks=stream_of("chat").chunks, gates={0: held}))
    with hedged.client() as client, client.stream("GET", "/health"):
        pass
    with hedged.connection() as sock:
        body = b'{"model":"fake","stream":true,"messages":[]}'
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_until(lambda: second.seen)
    wait_until(lambda: fake.seen[0].aborted and second.seen[0].aborted)
    wait_until(lambda: hedged.is_at_rest)
    assert hedged.total("berth_requests_total", outcome="client_gone") == 1
    held.set()


def test_no_second_one_without_the_setting(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    fake.enqueue(Script(chunks=tuple((0.1, data) for _, data in stream_of("chat").chunks)))
    assert pair.post(PATHS["chat"], body_for("chat", stream=True)).content == golden("chat")
    assert second.seen == []
