"""A broken stream that another replica is asked to go on with: whatever that one answers, the stream ends."""

from contextlib import ExitStack

import pytest

from gateway.replica import Replica
from tests.fake_engine import FakeEngine, Script, chat_chunk, event, json_answer
from tests.gateway.harness import PATHS, Door, body_for, door_before, wait_until

BEGUN = Script(chunks=((0.0, chat_chunk({"role": "assistant", "content": ""})), (0.0, chat_chunk({"content": "a"}))))
PROMPT = json_answer({"tokens": [1, 2], "token_strs": ["M", "x"]})
SENT = json_answer({"tokens": [3]})


def _rest(*payloads: object) -> Script:
    return Script(chunks=tuple((0.0, event(payload)) for payload in payloads))  # type: ignore[arg-type]  # odd ones


def _post(pair: Door, **more: object) -> bytes:
    return pair.post(PATHS["chat"], {**body_for("chat", stream=True), **more}).content


def _goes_on(text: str) -> Script:
    choice = {"index": 0, "text": text, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    return _rest({"choices": [choice]}, {"choices": [], "usage": usage})


ODD = {
    "a list in the stream": (PROMPT, SENT, _rest([1])),
    "a choice that is none": (PROMPT, SENT, _rest({"choices": [1]})),
    "usage without counts": (PROMPT, SENT, _rest({"choices": [{"finish_reason": "stop"}]}, {"usage": {"tokens": 1}})),
    "token strings that are numbers": (json_answer({"tokens": [1], "token_strs": [7]}), SENT, _rest([1])),
    "tokens that are nested": (json_answer({"tokens": [[1]], "token_strs": 5}),),
}


@pytest.mark.parametrize("answers", ODD.values(), ids=ODD)
def test_an_odd_answer_ends_the_stream_with_an_error(
    fake: FakeEngine, second: FakeEngine, pair: Door, answers: tuple[Script, ...]
) -> None:
    fake.enqueue(BEGUN)
    second.enqueue(*answers)
    assert b"the engine failed during the answer" in _post(pair)
    wait_until(lambda: pair.is_at_rest)


def test_a_limit_that_is_not_a_number_is_no_reason_to_hang(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    fake.enqueue(BEGUN)
    second.enqueue(PROMPT, SENT)
    assert b"the engine failed during the answer" in _post(pair, max_tokens="8")  # engines take it for a number
    wait_until(lambda: pair.is_at_rest)


REFUSALS = {
    "full": Script(status=503),
    "the request": Script(status=400),
    "an error in its stream": _rest({"error": {"message": "CUDA error", "code": 500}}),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_replica_that_refuses_to_go_on_is_not_taken_for_dead(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack, refusal: Script
) -> None:
    door = stack.enter_context(door_before(fake, second))
    fake.enqueue(BEGUN)
    second.enqueue(PROMPT, SENT, refusal)
    suspected: list[str] = []
    replica = door.gateway.pool.replicas[1]
    heard = replica._on_change

    def hear(changed: Replica) -> None:
        suspected.append(changed.state)
        heard(changed)

    replica._on_change = hear
    assert b"the engine failed during the answer" in _post(door)
    wait_until(lambda: door.is_at_rest)
    assert "unhealthy" not in suspected


def test_one_that_goes_on_is_counted_and_one_that_cannot_is_not(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.enqueue(BEGUN, BEGUN)
    second.enqueue(PROMPT, SENT, _goes_on("b"), json_answer({}, 404))
    assert b'"content":"b"' in _post(pair)
    wait_until(lambda: pair.gateway.pool.replicas[0].state == "ready")
    pair.gateway.pool.replicas[1].turn += 9  # the first one's turn again
    assert b"the engine failed during the answer" in _post(pair)
    wait_until(lambda: pair.is_at_rest)
    assert pair.total("berth_continuations_total", replica="e0") == 1
    assert pair.gateway.metrics.errors_of("e0") == 2
    assert pair.gateway.metrics.errors_of("e1") == 0
