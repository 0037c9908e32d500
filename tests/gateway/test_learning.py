"""What answers teach the gateway about the next request of their model."""

import threading
from dataclasses import replace

import pytest

from tests.fake_engine import BEFORE_HEADERS, FakeEngine, json_answer
from tests.gateway.harness import PATHS, Door, body_for, wait_until


@pytest.mark.parametrize("answers", [1, 3])
def test_the_tokens_of_a_byte_are_those_of_its_answers(door: Door, fake: FakeEngine, answers: int) -> None:
    """Until then it is a quarter, as in English: 400 bytes would be 100 tokens, and are 40."""
    usage = {"prompt_tokens": 40, "completion_tokens": 1, "total_tokens": 41}
    fake.default = json_answer({"id": "c", "object": "text_completion", "choices": [], "usage": usage})
    for _ in range(answers):
        door.post("/v1/completions", {"model": "fake", "prompt": "word " * 80, "max_tokens": 1})
    estimate = door.gateway._relay.estimates.of("fake")
    assert estimate.tokens_per_unit == pytest.approx(0.1)
    assert estimate.output_tokens == pytest.approx(1)


def test_each_of_several_answers_is_charged_and_together_they_teach_the_length_of_one(
    door: Door, fake: FakeEngine
) -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 90, "total_tokens": 130}
    gate, replica = threading.Event(), door.gateway.pool.replicas[0]
    fake.default = replace(json_answer({"choices": [], "usage": usage}), gates={BEFORE_HEADERS: gate})
    body = body_for("chat") | {"n": 3, "max_tokens": 50}
    asking = threading.Thread(target=door.post, args=(PATHS["chat"], body))
    asking.start()
    wait_until(lambda: fake.running)
    assert replica.output_tokens == 150  # 257 are likely and 50 allowed, three times
    gate.set()
    asking.join()
    wait_until(lambda: door.is_at_rest)
    assert door.gateway._relay.estimates.of("fake").output_tokens == pytest.approx(30)


def test_what_cannot_be_learnt_costs_no_caller_an_answer_and_no_replica_a_place(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr("gateway.exchange.learn", broken)
    for _ in range(3):
        assert door.post(PATHS["chat"], body_for("chat")).status_code == 200
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", outcome="ok") == 3
    assert "a bug of ours" in caplog.text
