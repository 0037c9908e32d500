"""What an answer says about the KV cache, end to end: headers, metrics and log lines, and where the next request goes.

A prompt is 1024 bytes of text, which the engines count as 256 tokens.
"""

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.wire import Dialect
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, chat_chunk, event, json_answer
from tests.gateway.harness import PATHS, STREAMING, Door, door_before, first_seen, request_bytes, wait_until

PROMPT_TOKENS = 256
BOTH = [(dialect, stream) for dialect in STREAMING for stream in (False, True)]


@pytest.fixture
def logged(fake: FakeEngine, second: FakeEngine, caplog: pytest.LogCaptureFixture) -> Iterator[Door]:
    """A gateway before two engines that logs in JSON."""
    caplog.set_level(logging.INFO, logger="berth.access")
    with door_before(fake, second, log_format="json") as door:
        yield door


def body_of(dialect: Dialect, *, stream: bool = False, letter: str = "x") -> dict[str, Any]:
    """1024 bytes of prompt: its text, and 20 bytes that say whose turn it is."""
    body: dict[str, Any] = {"model": "fake", "stream": stream}
    if dialect == "completions":
        return {**body, "prompt": letter * 1024}
    turns = [{"role": "user", "content": letter * 1004}]
    return {**body, "max_tokens": 8, ("input" if dialect == "responses" else "messages"): turns}


def usage_of(dialect: Dialect, cached_tokens: int) -> dict[str, Any]:
    """As vLLM states it."""
    if dialect == "messages":
        new = PROMPT_TOKENS - cached_tokens
        return {"input_tokens": new, "cache_read_input_tokens": cached_tokens, "output_tokens": 1}
    details = {"cached_tokens": cached_tokens}
    if dialect == "responses":
        return {"input_tokens": PROMPT_TOKENS, "input_tokens_details": details, "output_tokens": 1}
    return {"prompt_tokens": PROMPT_TOKENS, "prompt_tokens_details": details, "completion_tokens": 1}


def answer_of(dialect: Dialect, cached_tokens: int, *, stream: bool = False) -> Script:
    """One token, and what it cost."""
    usage = usage_of(dialect, cached_tokens)
    if not stream:
        return json_answer({"id": "resp_1", "usage": usage})
    events = {
        "chat": (chat_chunk({"content": "hi"}), event({"choices": [], "usage": usage}), b"data: [DONE]\n\n"),
        "completions": (
            event({"choices": [{"index": 0, "text": "hi"}]}),
            event({"choices": [], "usage": usage}),
            b"data: [DONE]\n\n",
        ),
        "responses": (
            event({"type": "response.output_text.delta", "delta": "hi"}, "response.output_text.delta"),
            event({"type": "response.completed", "response": {"id": "r", "usage": usage}}, "response.completed"),
        ),
        "messages": (
            event(
                {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}, "content_block_delta"
            ),
            event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}, "message_delta"),
            event({"type": "message_stop"}, "message_stop"),
        ),
    }[dialect]
    return Script(chunks=tuple((0.0, data) for data in events))


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Of the access log; a record holds a batch of them."""
    records = [record for record in caplog.records if record.name == "berth.access"]
    return [json.loads(line) for record in records for line in record.getMessage().split("\n")]


def wait_for_lines(caplog: pytest.LogCaptureFixture, count: int) -> None:
    """Until so many requests are settled and logged."""
    wait_until(lambda: len(lines(caplog)) == count)


def fates(door: Door) -> dict[str, float]:
    """All prompt tokens by their fate."""
    names = ("hit", "no_reuse", "evicted", "routed_elsewhere", "restarted")
    totals = {name: door.total("berth_prompt_token_fates_total", fate=name) for name in names}
    return {name: total for name, total in totals.items() if total}


@pytest.mark.parametrize(("dialect", "stream"), BOTH)
def test_predicted_and_found(
    fake: FakeEngine, logged: Door, caplog: pytest.LogCaptureFixture, dialect: Dialect, stream: bool
) -> None:
    """Nothing, then all but the last block, then the engine has been restarted and did not say so."""
    logged.gateway.pool.replicas[0].kv_capacity_tokens = 10_000
    fake.enqueue(*(answer_of(dialect, cached, stream=stream) for cached in (0, 240, 0)))
    answers = []
    for count in (1, 2, 3):
        answers.append(logged.post(PATHS[dialect], body_of(dialect, stream=stream)))
        wait_for_lines(caplog, count)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [answer.headers["x-berth-replica"] for answer in answers] == ["e0"] * 3
    assert [answer.headers["x-berth-predicted-cached-tokens"] for answer in answers] == ["0", "256", "256"]
    stated = [None] * 3 if stream else ["0", "240", "0"]  # a stream's head is out before the engine has counted
    assert [answer.headers.get("x-berth-cached-tokens") for answer in answers] == stated
    assert [line["predicted_cached_tokens"] for line in lines(caplog)] == [0, 256, 256]
    assert [line["cached_tokens"] for line in lines(caplog)] == [0, 240, 0]
    assert [line["prompt_fates"] for line in lines(caplog)] == [
        {"no_reuse": 256},
        {"hit": 240, "no_reuse": 16},
        {"restarted": 255, "no_reuse": 1},
    ]
    assert fates(logged) == {"hit": 240, "no_reuse": 256 + 16 + 1, "restarted": 255}
    labels = {"model": "fake", "replica": "e0", "dialect": dialect}
    assert logged.total("berth_prompt_token_fates_total", **labels) == 3 * 256
    assert logged.total("berth_predicted_cached_prompt_tokens_total", **labels) == 512
    assert logged.total("berth_cached_prompt_tokens_total", **labels) == 240
    assert logged.is_at_rest


def test_a_prefix_stays_where_it_is_and_another_goes_elsewhere(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.reply = second.reply = lambda _: answer_of("chat", 0)
    homes = {
        letter: pair.post(PATHS["chat"], body_of("chat", letter=letter)).headers["x-berth-replica"] for letter in "ab"
    }
    assert sorted(homes.values()) == ["e0", "e1"]
    fake.reply = second.reply = lambda _: answer_of("chat", 240)
    for letter in "abbaabab":
        answer = pair.post(PATHS["chat"], body_of("chat", letter=letter))
        assert answer.headers["x-berth-replica"] == homes[letter]
        assert answer.headers["x-berth-predicted-cached-tokens"] == "256"


def test_who_fails_is_not_believed_to_hold_what_it_was_sent(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    fake.enqueue(Script(ending="drop"))
    second.reply = lambda _: answer_of("chat", 0)
    first = pair.post(PATHS["chat"], body_of("chat"))
    assert (first.headers["x-berth-replica"], first.headers["x-berth-predicted-cached-tokens"]) == ("e1", "0")
    index = pair.gateway.pool.router.index
    assert [index.blocks(replica.slot) for replica in pair.gateway.pool.replicas] == [0, 4]
    wait_until(lambda: fates(pair) == {"no_reuse": 256})


def test_a_client_that_leaves_takes_nothing_along(fake: FakeEngine, door: Door) -> None:
    """It had no token yet; what was there before it came is still there."""
    fake.enqueue(answer_of("chat", 0))
    door.post(PATHS["chat"], body_of("chat"))
    seen = len(fake.seen)
    fake.enqueue(Script(ending="hang", delay_s=60))
    longer = body_of("chat")
    longer["messages"].append({"role": "user", "content": "y" * 2000})
    with door.connection() as sock:
        sock.sendall(request_bytes(PATHS["chat"], json.dumps(longer).encode()))
        wait_until(lambda: len(fake.seen) > seen)
        assert door.gateway.pool.router.index.blocks(0) > 4
    wait_until(lambda: door.is_at_rest)
    assert door.gateway.pool.router.index.blocks(0) == 4
    fake.enqueue(answer_of("chat", 240))
    assert door.post(PATHS["chat"], body_of("chat")).headers["x-berth-predicted-cached-tokens"] == "256"


def test_an_answer_without_usage_was_computed_too(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(json_answer({"choices": []}), answer_of("chat", 240))
    door.post(PATHS["chat"], body_of("chat"))
    wait_until(lambda: door.is_at_rest)
    assert door.gateway.pool.router.index.blocks(0) == 4
    assert fates(door) == {}
    assert door.post(PATHS["chat"], body_of("chat")).headers["x-berth-predicted-cached-tokens"] == "256"


def test_counting_tokens_costs_nothing_and_leaves_nothing(fake: FakeEngine, door: Door) -> None:
    gate = threading.Event()
    fake.enqueue(
        Script(((0.0, b'{"input_tokens":256}'),), content_type="application/json", gates={BEFORE_HEADERS: gate})
    )
    body = json.dumps({"model": "fake", "messages": body_of("messages")["messages"]}).encode()
    with door.connection() as sock:
        sock.sendall(request_bytes("/v1/messages/count_tokens", body))
        first_seen(fake)
        replica = door.gateway.pool.replicas[0]
        assert (replica.in_flight, replica.work_tokens, replica.queued_tokens) == (1, 0, 0)
        assert door.gateway.pool.router.index.blocks(0) == 0
        gate.set()
        wait_until(lambda: door.is_at_rest)


def test_a_whole_answer_that_is_long_under_way_counts_as_computed_once_it_is_due(fake: FakeEngine, door: Door) -> None:
    """257 tokens at 8000 a second: after 32 ms, so that others need not wait behind it by our count."""
    gate = threading.Event()
    script = answer_of("chat", 0)
    fake.enqueue(Script(script.chunks, content_type=script.content_type, gates={BEFORE_HEADERS: gate}))
    with door.connection() as sock:
        sock.sendall(request_bytes(PATHS["chat"], json.dumps(body_of("chat")).encode()))
        first_seen(fake)
        replica = door.gateway.pool.replicas[0]
        wait_until(lambda: replica.waiting == 0)
        assert (replica.in_flight, replica.queued_tokens) == (1, 0)
        gate.set()
        wait_until(lambda: door.is_at_rest)
    assert door.gateway.pool.router.index.blocks(0) == 4


def test_a_restart_that_the_gateway_knows_of(fake: FakeEngine, pair: Door) -> None:
    fake.enqueue(answer_of("chat", 0), answer_of("chat", 0))
    pair.post(PATHS["chat"], body_of("chat"))
    pair.gateway.pool.replicas[0].state = "starting"
    assert pair.gateway.pool.router.index.blocks(0) == 0
    wait_until(lambda: pair.gateway.pool.replicas[0].state == "ready")
    fake.reply = lambda _: answer_of("chat", 0)
    answer = pair.post(PATHS["chat"], body_of("chat"))
    assert answer.headers["x-berth-predicted-cached-tokens"] == "0"


def test_answers_teach_how_many_tokens_a_prompt_and_an_answer_have(fake: FakeEngine, door: Door) -> None:
    """1024 bytes that are 256 tokens are a quarter each, as assumed; the answers have one token, and not 256."""
    fake.reply = lambda _: answer_of("chat", 0)
    for letter in "abc":
        door.post(PATHS["chat"], body_of("chat", letter=letter))
        wait_until(lambda: door.is_at_rest)
    estimate = door.gateway._relay.estimates.of("fake")
    assert (estimate.tokens_per_unit, estimate.likely_output(None)) == (0.25, 2)
