"""When a model cannot answer, who is next in its chain does, and the caller only sees an answer."""

import threading
from contextlib import ExitStack

import orjson
import pytest

from gateway.config import Chain, Remote, Step
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, chat_stream, json_answer, running
from tests.gateway.harness import PATHS, Door, body_for, door_before, free_port, golden, stream_of, wait_until
from tests.gateway.test_failover import BROKEN, BUSY, NO_FIRST_BYTE

CHAT = PATHS["chat"]


@pytest.fixture
def other(stack: ExitStack) -> FakeEngine:
    """An engine with another model."""
    return stack.enter_context(running(FakeEngine(models=("other",))))


@pytest.fixture
def far(stack: ExitStack) -> FakeEngine:
    """A provider elsewhere: nobody probes it."""
    return stack.enter_context(running(FakeEngine(models=())))


def _remote(engine: FakeEngine) -> Remote:
    return Remote("far", f"{engine.url}/v1", "far-large", api_key="far-secret")


def _door(stack: ExitStack, *engines: FakeEngine, chain: Chain) -> Door:
    remotes = tuple(step.remote for step in chain.steps if step.remote)
    return stack.enter_context(door_before(*engines, chains={"fake": chain}, remotes=remotes))


@pytest.mark.parametrize("failure", [BROKEN, BUSY, NO_FIRST_BYTE, Script(ending="drop")])
def test_another_model_answers(fake: FakeEngine, other: FakeEngine, stack: ExitStack, failure: Script) -> None:
    door = _door(stack, fake, other, chain=Chain((Step("other"),)))
    fake.enqueue(failure)
    other.enqueue(stream_of("messages"))
    answer = door.post(PATHS["messages"], body_for("messages", stream=True))
    assert (answer.status_code, answer.content) == (200, golden("messages"))
    assert answer.headers["x-berth-replica"] == "e1"
    assert orjson.loads(other.seen[0].body) == {**orjson.loads(fake.seen[0].body), "model": "other"}
    wait_until(lambda: door.is_at_rest)


def test_a_provider_answers_when_no_replica_is_there(far: FakeEngine, stack: ExitStack) -> None:
    fake = FakeEngine(url=f"http://127.0.0.1:{free_port()}")
    chain = Chain((Step("far", _remote(far)),))
    door = stack.enter_context(
        door_before(fake, wait=False, chains={"fake": chain}, remotes=(_remote(far),)),
    )
    script = json_answer({"id": "far"})
    far.enqueue(Script(**{**script.__dict__, "headers": (("set-cookie", "account=ours"), ("x-ratelimit-limit", "9"))}))
    answer = door.post(CHAT, {**body_for("chat"), "min_tokens": 3})
    assert (answer.status_code, answer.json()) == (200, {"id": "far"})
    assert not {"set-cookie", "x-ratelimit-limit"} & answer.headers.keys()
    (seen,) = far.seen
    assert (seen.path, seen.headers["Authorization"]) == ("/v1/chat/completions", "Bearer far-secret")
    assert orjson.loads(seen.body) == {**body_for("chat"), "model": "far-large"}
    assert "far-secret" not in door.get("/status").text


def test_the_chain_is_walked_to_its_end_and_the_last_failure_is_told(
    fake: FakeEngine, other: FakeEngine, far: FakeEngine, stack: ExitStack
) -> None:
    door = _door(stack, fake, other, chain=Chain((Step("other"), Step("far", _remote(far)))))
    fake.default, other.default, far.default = BROKEN, BUSY, json_answer({"error": {"message": "no such"}}, 404)
    answer = door.post(CHAT, body_for("chat"))
    assert (answer.status_code, answer.headers["x-berth-replica"]) == (404, "far")
    assert [len(engine.seen) for engine in (fake, other, far)] == [1, 1, 1]
    wait_until(lambda: door.is_at_rest)


def test_the_requests_own_fault_stays_with_it(fake: FakeEngine, other: FakeEngine, stack: ExitStack) -> None:
    door = _door(stack, fake, other, chain=Chain((Step("other"),)))
    fake.enqueue(json_answer({"error": {"message": "temperature must be non-negative", "code": 400}}, 400))
    assert door.post(CHAT, body_for("chat")).status_code == 400
    assert other.seen == []


def test_an_unknown_model_is_unknown(fake: FakeEngine, other: FakeEngine, stack: ExitStack) -> None:
    door = _door(stack, fake, other, chain=Chain((Step("other"),)))
    assert door.post(CHAT, body_for("chat", model="nobody")).status_code == 404


def test_late_is_without_a_first_byte_at_the_deadline(fake: FakeEngine, other: FakeEngine, stack: ExitStack) -> None:
    door = _door(stack, fake, other, chain=Chain((Step("other"),), ttft_deadline_s=0.05))
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate}))
    other.enqueue(stream_of("chat"))
    answer = door.post(CHAT, body_for("chat", stream=True))
    assert (answer.content, answer.headers["x-berth-replica"]) == (golden("chat"), "e1")
    wait_until(lambda: fake.seen[0].aborted)  # the one that was late stops
    gate.set()
    assert door.gateway.pool.replicas[0].state == "ready"
    wait_until(lambda: door.is_at_rest)


def test_nobody_is_late_when_nobody_could_stand_in(fake: FakeEngine, other: FakeEngine, stack: ExitStack) -> None:
    door = _door(stack, fake, other, chain=Chain((Step("nobody"),), ttft_deadline_s=0.01))
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate}))
    threading.Timer(0.2, gate.set).start()
    answer = door.post(CHAT, body_for("chat", stream=True))
    assert (answer.status_code, answer.headers["x-berth-replica"]) == (200, "e0")


def test_a_stream_that_has_begun_is_never_late(fake: FakeEngine, other: FakeEngine, stack: ExitStack) -> None:
    door = _door(stack, fake, other, chain=Chain((Step("other"),), ttft_deadline_s=1.0))
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={2: gate}))
    with door.client() as client, client.stream("POST", CHAT, json=body_for("chat", stream=True)) as held:
        pieces = held.iter_raw()
        next(pieces)
        threading.Timer(1.2, gate.set).start()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    assert other.seen == []


def test_a_model_whose_replicas_are_all_out_is_spared(fake: FakeEngine, other: FakeEngine, stack: ExitStack) -> None:
    door = _door(stack, fake, other, chain=Chain((Step("other"),)))
    fake.default = BROKEN
    for _ in range(10):
        assert door.post(CHAT, body_for("chat")).status_code == 200
    assert len(fake.seen) == 5  # then its breaker is open, and there is somebody better
    other.default = BROKEN
    assert door.post(CHAT, body_for("chat")).status_code == 500
