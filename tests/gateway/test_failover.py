import threading
from collections.abc import Sequence
from contextlib import ExitStack

import anthropic
import openai
import pytest

from gateway.config import Health, Timeouts
from gateway.replica import Replica
from gateway.retry_budget import RetryBudgetConfig
from gateway.routing import Route
from gateway.wire import Dialect, own_error_event
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, chat_chunk, chat_stream, event, json_answer, running
from tests.gateway.harness import (
    PATHS,
    STREAMING,
    Door,
    body_for,
    door_before,
    free_port,
    golden,
    golden_events,
    stream_of,
    wait_until,
)

BUSY = json_answer({"error": {"message": "engine is currently busy", "type": "ServiceUnavailable", "code": 503}}, 503)
BROKEN = json_answer({"error": {"message": "CUDA error", "type": "InternalServerError", "code": 500}}, 500)
NO_FIRST_BYTE = Script(chunks=((0.0, b""),), ending="drop")
EARLY_FAILURES = {
    "before the head": Script(ending="drop"),
    "before the first byte": NO_FIRST_BYTE,
    "in the first event": Script(chunks=((0.0, b"data: {"),), ending="drop"),
    "no event at all": Script(),
    "half an event and a proper end": Script(chunks=((0.0, b'data: {"id":'),)),
    "an error without its last line end": Script(chunks=((0.0, event({"error": {"code": 500}}).strip()),)),
    "an error as the first event": Script(chunks=((0.0, event({"error": {"message": "dead", "code": 500}})),)),
    "busy": BUSY,
    "500": BROKEN,
    "gateway timeout": Script(status=504),
    "a redirect": Script(status=307, headers=(("location", "/elsewhere"),)),
    "not HTTP": Script(raw=b"SSH-2.0-OpenSSH_9.2\r\n"),
    "a head cut short": Script(raw=b"HTTP/1.1 200 OK\r\ncontent-ty"),
    "our key refused": json_answer({"error": "Unauthorized"}, 401),
}


@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize("failure", EARLY_FAILURES.values(), ids=EARLY_FAILURES)
def test_before_the_first_byte_another_replica_answers_and_the_client_never_knows(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect, failure: Script
) -> None:
    fake.enqueue(failure)
    second.enqueue(stream_of(dialect))
    answer = pair.post(PATHS[dialect], body_for(dialect, stream=True))
    assert answer.status_code == 200
    assert answer.content == golden(dialect)
    assert answer.headers["x-berth-replica"] == "e1"
    assert len(fake.seen) == 1
    assert fake.seen[0].body == second.seen[0].body
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_retries_total", model="fake") == 1
    assert pair.total("berth_requests_total") == pair.total("berth_requests_total", outcome="ok", replica="e1") == 1
    assert pair.total("berth_request_errors_total") == 0


UNSTREAMED_FAILURES = {
    "before the head": Script(ending="drop"),
    "in the body": Script(chunks=((0.0, b'{"id":'),), content_type="application/json", ending="drop"),
    "a length that is a lie": Script(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}"),
    "busy": BUSY,
}


@pytest.mark.parametrize("failure", UNSTREAMED_FAILURES.values(), ids=UNSTREAMED_FAILURES)
def test_an_unstreamed_request_can_move_until_its_whole_answer_is_in(
    fake: FakeEngine, second: FakeEngine, pair: Door, failure: Script
) -> None:
    fake.enqueue(failure)
    second.enqueue(json_answer({"id": "ok"}))
    answer = pair.post(PATHS["chat"], body_for("chat"))
    assert (answer.status_code, answer.json()) == (200, {"id": "ok"})


def test_a_replica_that_cannot_be_connected_to_is_passed_over(second: FakeEngine, stack: ExitStack) -> None:
    dead = FakeEngine(url=f"http://127.0.0.1:{free_port()}")
    door = stack.enter_context(door_before(dead, second, wait=False))
    door.wait_ready(1)
    first = door.gateway.pool.replicas[0]
    first.models = door.gateway.pool.replicas[1].models  # seen alive before, and dead since
    first.state = "ready"
    for _ in range(4):
        assert door.post(PATHS["chat"], body_for("chat", stream=True)).status_code == 200
    assert len(second.seen) == 4
    assert door.get("/status").json()["replicas"][0]["state"] == "unhealthy"


def test_a_replica_that_died_is_used_again_when_it_is_back(stack: ExitStack) -> None:
    stable, port = stack.enter_context(running(FakeEngine())), free_port()
    returning = FakeEngine(url=f"http://127.0.0.1:{port}")
    with running(returning, port=port):
        door = stack.enter_context(door_before(returning, stable))
        assert door.post(PATHS["chat"], body_for("chat")).headers["x-berth-replica"] == "e0"
    wait_until(lambda: door.gateway.pool.replicas[0].state == "unhealthy")
    answers = [door.post(PATHS["chat"], body_for("chat")) for _ in range(3)]
    assert [(a.status_code, a.headers["x-berth-replica"]) for a in answers] == [(200, "e1")] * 3
    with running(returning, port=port):
        door.wait_ready(2)
        used = {door.post(PATHS["chat"], body_for("chat")).headers["x-berth-replica"] for _ in range(8)}
        assert used == {"e0", "e1"}


def test_an_engine_whose_own_health_check_fails_is_not_routed_to(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.healthy = False
    wait_until(lambda: pair.gateway.pool.replicas[0].state == "unhealthy")
    for _ in range(3):
        assert pair.post(PATHS["chat"], body_for("chat")).headers["x-berth-replica"] == "e1"
    fake.healthy = True
    wait_until(lambda: pair.gateway.pool.replicas[0].state == "ready")


def test_an_engine_that_is_healthy_and_fails_every_request_is_left_alone(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.default = BROKEN
    for _ in range(20):
        assert pair.post(PATHS["chat"], body_for("chat")).status_code == 200
    assert len(fake.seen) == 5
    first, _ = pair.get("/status").json()["replicas"]
    assert (first["state"], first["breaker"], first["ejections"]) == ("ready", "open", {"consecutive": 1})
    assert pair.total("berth_replica_ejections_total", replica="e0", reason="consecutive") == 1


def test_one_that_fails_its_streams_half_way_is_left_alone_too(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    error = event({"error": {"message": "CUDA error", "type": "InternalServerError", "code": 500}})
    fake.default = Script(chunks=((0.0, chat_chunk({"content": "x"})), (0.0, error), (0.0, b"data: [DONE]\n\n")))
    for _ in range(60):
        assert pair.post(PATHS["chat"], body_for("chat", stream=True)).status_code == 200
    assert len(fake.seen) == 10  # ten beginnings and ten failures: half of twenty answers
    wait_until(lambda: pair.is_at_rest)


def _dead(status: int = 500) -> Script:
    """A stream of which nothing comes but the engine's own error."""
    return Script(chunks=((0.0, event({"error": {"message": "CUDA error", "code": status}})),))


@pytest.mark.parametrize("dialect", STREAMING)
def test_one_stream_that_opens_with_the_engines_own_error_does_not_take_its_replica_out(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack, dialect: Dialect
) -> None:
    door = stack.enter_context(door_before(fake, second, probe_interval_s=600))
    fake.enqueue(_dead())
    second.enqueue(stream_of(dialect))
    assert door.post(PATHS[dialect], body_for(dialect, stream=True)).headers["x-berth-replica"] == "e1"
    first = door.gateway.pool.replicas[0]
    assert (first.state, first.is_suspect, first.is_in) == ("ready", False, True)


def test_five_that_open_with_it_do(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    fake.default = _dead()
    for _ in range(20):
        assert pair.post(PATHS["chat"], body_for("chat", stream=True)).headers["x-berth-replica"] == "e1"
    assert len(fake.seen) == 5
    assert pair.total("berth_replica_ejections_total", replica="e0", reason="consecutive") == 1


@pytest.mark.parametrize(("status", "retry_after"), [(500, None), (503, "1")])
def test_with_nobody_else_it_is_answered_with_its_own_words_and_status(
    fake: FakeEngine, door: Door, status: int, retry_after: str | None
) -> None:
    fake.enqueue(_dead(status))
    answer = door.post(PATHS["chat"], body_for("chat", stream=True))
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, "CUDA error")
    assert answer.headers.get("retry-after") == retry_after


def test_all_that_wait_on_an_engine_whose_core_dies_go_on_elsewhere(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack
) -> None:
    budget = RetryBudgetConfig(share=0.0, floor_per_s=0.0, burst=5)  # for the five that show that it is broken
    door = stack.enter_context(door_before(fake, second, health=Health(retry_budget=budget), probe_interval_s=600))
    door.gateway.pool.replicas[1].state = "draining"
    gate = threading.Event()
    fake.default = Script(chunks=_dead().chunks, gates={BEFORE_HEADERS: gate})
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(door.post(PATHS["chat"], body_for("chat", stream=True)).status_code)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: fake.running == 20)
    door.gateway.pool.replicas[1].state = "ready"
    gate.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 20
    assert len(second.seen) == 20


def test_full_is_not_broken(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    fake.default = BUSY
    for _ in range(20):
        assert pair.post(PATHS["chat"], body_for("chat")).status_code == 200
    assert len(fake.seen) >= 10  # it is still offered requests
    assert pair.gateway.pool.replicas[0].breaker.state == "closed"


def test_a_failing_fleet_is_not_asked_twice_for_everything(stack: ExitStack) -> None:
    engines = [stack.enter_context(running(FakeEngine(default=BROKEN))) for _ in range(2)]
    budget = RetryBudgetConfig(share=0.25, floor_per_s=0.0, burst=2)
    door = stack.enter_context(door_before(*engines, health=Health(retry_budget=budget)))
    for _ in range(40):
        assert door.post(PATHS["chat"], body_for("chat")).status_code == 500
    granted = 2  # to the one in flight on each, when that went out
    assert 40 < sum(len(engine.seen) for engine in engines) <= 40 + 2 + 10 + granted
    assert door.total("berth_retries_refused_total") > 0


def test_one_request_is_tried_on_at_most_retries_plus_one_replicas(stack: ExitStack) -> None:
    engines = [stack.enter_context(running(FakeEngine(default=Script(ending="drop")))) for _ in range(4)]
    door = stack.enter_context(door_before(*engines, retries=2))
    answer = door.post(PATHS["chat"], body_for("chat"))
    assert answer.status_code == 502
    assert sum(len(engine.seen) for engine in engines) == 3
    assert door.total("berth_retries_total") == 2
    assert door.total("berth_requests_total") == door.total("berth_requests_total", outcome="broken") == 1


def test_no_replica_is_tried_twice(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    fake.default = second.default = BUSY
    answer = pair.post(PATHS["chat"], body_for("chat"))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert (len(fake.seen), len(second.seen)) == (1, 1)


def test_a_refusal_of_the_request_itself_is_not_tried_elsewhere(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.enqueue(json_answer({"error": {"message": "temperature must be non-negative", "code": 400}}, 400))
    assert pair.post(PATHS["chat"], body_for("chat")).status_code == 400
    assert second.seen == []
    assert pair.gateway.pool.replicas[0].state == "ready"


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_refusal_as_the_first_event_is_answered_as_the_refusal_it_is(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect
) -> None:
    error = {"message": "no such tool", "type": "invalid_request_error", "code": 400}
    fake.enqueue(Script(chunks=((0.0, event({"type": "error", "error": error}, "error")),)))
    answer = pair.post(PATHS[dialect], body_for(dialect, stream=True))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "no such tool"
    assert second.seen == []


@pytest.mark.parametrize("failure", [Script(ending="drop"), NO_FIRST_BYTE], ids=["before the head", "before a byte"])
def test_with_one_replica_the_caller_gets_a_proper_error(fake: FakeEngine, door: Door, failure: Script) -> None:
    fake.enqueue(failure)
    answer = door.post(PATHS["messages"], body_for("messages", stream=True))
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "api_error"
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["request-id"] == answer.json()["request_id"]
    assert door.total("berth_request_errors_total", status="502") == 1


def test_a_replica_whose_connection_broke_is_probed_at_once(fake: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, probe_interval_s=600))
    replica = door.gateway.pool.replicas[0]
    for times in (1, 2, 3):
        fake.enqueue(Script(ending="drop"))
        assert door.post(PATHS["chat"], body_for("chat")).status_code == 502
        wait_until(lambda: replica.is_in)
        assert (replica.state, len(fake.seen)) == ("ready", times)


def test_one_broken_connection_does_not_shut_the_only_replica_out(fake: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, probe_interval_s=600))
    fake.healthy = False
    fake.enqueue(Script(ending="drop"), chat_stream())
    with door.client() as client:
        assert client.post(PATHS["chat"], json=body_for("chat")).status_code == 502
        assert door.gateway.pool.replicas[0].is_suspect
        assert door.get("/ready").status_code == 200
        assert client.post(PATHS["chat"], json=body_for("chat")).status_code == 200


def test_an_engine_that_falls_silent_is_given_up(fake: FakeEngine, second: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, second, timeouts=Timeouts(first_token_s=0.3, gap_s=0.3)))
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={0: threading.Event()}))
    answer = door.post(PATHS["chat"], body_for("chat", stream=True))
    assert answer.headers["x-berth-replica"] == "e1"
    wait_until(lambda: fake.seen[0].aborted)


# After the first byte
def test_an_error_event_without_its_last_line_end_is_no_good_end(fake: FakeEngine, door: Door) -> None:
    begun, error = chat_chunk({"content": "x"}), event({"error": {"message": "CUDA error", "code": 500}})
    fake.enqueue(Script(chunks=((0.0, begun), (0.0, error.strip()))))
    answer = door.post(PATHS["chat"], body_for("chat", stream=True))
    assert answer.content.startswith(begun + b'data: {"error":')
    assert answer.content.endswith(b"\n\n")
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", outcome="broken") == 1


def _broken_at(dialect: Dialect, *, inside_an_event: bool) -> Script:
    events = golden_events(dialect)
    half = events[2][: len(events[2]) // 2] if inside_an_event else b""
    return Script(chunks=tuple((0.0, data) for data in (*events[:2], half)), ending="drop")


@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize("inside_an_event", [False, True], ids=["between events", "inside an event"])
def test_a_break_in_the_middle_ends_with_the_dialects_error_event_and_a_proper_end(
    fake: FakeEngine, second: FakeEngine, pair: Door, dialect: Dialect, inside_an_event: bool
) -> None:
    fake.enqueue(_broken_at(dialect, inside_an_event=inside_an_event))
    answer = pair.post(PATHS[dialect], body_for(dialect, stream=True))  # raises if the chunked body has no end
    events = golden_events(dialect)
    relayed, error = answer.content[: len(events[0] + events[1])], answer.content[len(events[0] + events[1]) :]
    assert relayed == events[0] + events[1]
    assert error.startswith(b"event: error\ndata: {" if dialect in ("responses", "messages") else b'data: {"error":{')
    assert error.count(b"\n\n") == 1
    assert b"the engine failed during the answer" in error
    assert [seen.path for seen in second.seen] == ["/tokenize"]  # which it did not understand
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_requests_total", outcome="broken", replica="e0") == 1
    assert pair.total("berth_request_errors_total") == 1


@pytest.mark.parametrize("inside_an_event", [False, True], ids=["between events", "inside an event"])
def test_openai_raises_on_a_chat_stream_that_broke(fake: FakeEngine, door: Door, inside_an_event: bool) -> None:
    fake.enqueue(_broken_at("chat", inside_an_event=inside_an_event))
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="x") as client:
        stream = client.chat.completions.create(
            model="fake",
            stream=True,
            messages=[{"role": "user", "content": "hi"}],
            stream_options={"include_usage": True},
        )
        with pytest.raises(openai.APIError, match="the engine failed during the answer"):
            list(stream)
    assert len(fake.seen) == 1


@pytest.mark.parametrize("inside_an_event", [False, True], ids=["between events", "inside an event"])
def test_openai_sees_a_responses_stream_that_broke(fake: FakeEngine, door: Door, inside_an_event: bool) -> None:
    fake.enqueue(_broken_at("responses", inside_an_event=inside_an_event))
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="x") as client:
        *_, last = client.responses.create(model="fake", stream=True, input="hi")
    assert last.type == "error"  # the Responses API's way: an event of the union, not an exception
    assert "the engine failed during the answer" in last.message
    assert last.code == "engine_failed"


@pytest.mark.parametrize("inside_an_event", [False, True], ids=["between events", "inside an event"])
def test_anthropic_raises_on_a_stream_that_broke(fake: FakeEngine, door: Door, inside_an_event: bool) -> None:
    fake.enqueue(_broken_at("messages", inside_an_event=inside_an_event))
    with anthropic.Anthropic(base_url=door.url, api_key="x") as client:
        stream = client.messages.create(
            model="fake", max_tokens=4, stream=True, messages=[{"role": "user", "content": "hi"}]
        )
        with pytest.raises(anthropic.APIStatusError, match="the engine failed during the answer") as caught:
            list(stream)
    assert caught.value.body["error"]["type"] == "api_error"  # type: ignore[index]  # the SDK types it as object


def test_an_error_event_of_the_engine_itself_is_put_in_the_dialect_and_counted(fake: FakeEngine, door: Door) -> None:
    error = event({"error": {"message": "CUDA error", "type": "InternalServerError", "code": 500}})
    fake.enqueue(Script(chunks=((0.0, chat_chunk({"content": "x"})), (0.0, error), (0.0, b"data: [DONE]\n\n"))))
    answer = door.post(PATHS["chat"], body_for("chat", stream=True))
    own = own_error_event("chat", error, answer.headers["x-request-id"])
    assert answer.content.endswith(own)
    wait_until(lambda: door.total("berth_requests_total", outcome="broken") == 1)


# Who gets the next request
def test_a_busy_replica_is_spared(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate}))
    threads = [threading.Thread(target=pair.post, args=(PATHS["chat"], body_for("chat", stream=True)))]
    threads[0].start()
    wait_until(lambda: fake.running == 1)
    for _ in range(3):
        assert pair.post(PATHS["chat"], body_for("chat")).headers["x-berth-replica"] == "e1"
    gate.set()
    threads[0].join()


def test_requests_that_come_together_are_spread(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    gate = threading.Event()
    fake.default = second.default = Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate})
    threads = [threading.Thread(target=pair.post, args=(PATHS["chat"], body_for("chat"))) for _ in range(10)]
    for thread in threads:
        thread.start()
    wait_until(lambda: fake.running + second.running == 10)
    assert (fake.running, second.running) == (5, 5)
    gate.set()
    for thread in threads:
        thread.join()


def test_a_model_only_one_engine_serves_goes_there(fake: FakeEngine, stack: ExitStack) -> None:
    other = stack.enter_context(running(FakeEngine(models=("other", "third"))))
    door = stack.enter_context(door_before(fake, other))
    for model in ("other", "third"):
        assert door.post(PATHS["chat"], body_for("chat", model=model)).headers["x-berth-replica"] == "e1"
    assert door.post(PATHS["chat"], body_for("chat")).headers["x-berth-replica"] == "e0"


def test_a_draining_replica_gets_nothing_new_and_finishes_what_it_has(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={2: gate}))
    body = body_for("chat", stream=True)
    with pair.client() as client, client.stream("POST", PATHS["chat"], json=body) as held:
        pieces = held.iter_raw()
        next(pieces)
        pair.gateway.pool.replicas[0].state = "draining"
        assert pair.post(PATHS["chat"], body).headers["x-berth-replica"] == "e1"
        gate.set()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def test_a_replica_added_later_takes_part(fake: FakeEngine, second: FakeEngine, door: Door) -> None:
    door.gateway.add(Replica("late", second.url))
    door.wait_ready(2)
    used = {door.post(PATHS["chat"], body_for("chat")).headers["x-berth-replica"] for _ in range(4)}
    assert used == {"e0", "late"}


def test_a_bug_while_a_redirect_is_dealt_with_takes_nothing_with_it(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.enqueue(EARLY_FAILURES["a redirect"])
    router = pair.gateway.pool.router
    sound = router.policy

    def once(route: Route, candidates: Sequence[Replica]) -> Replica:
        router.policy = broken
        return sound(route, candidates)

    def broken(_: Route, __: Sequence[Replica]) -> Replica:
        raise RuntimeError("a bug")

    router.policy = once
    assert pair.post(PATHS["chat"], body_for("chat")).status_code == 500
    wait_until(lambda: pair.is_at_rest)
