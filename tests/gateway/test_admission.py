"""Waiting for room, limits and refusals through real sockets: what callers see, and that nothing is left behind."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import httpx2
import pytest

from gateway.admission.rates import CallerLimits
from gateway.app import Gateway
from gateway.config import Chain, GatewayConfig, Queue, Slo, Step
from gateway.identity import KeyHash, hash_key
from gateway.replica import Replica
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, chat_stream, json_answer, running
from tests.gateway.harness import (
    CONFIG,
    PATHS,
    Door,
    HandClock,
    body_for,
    door_before,
    free_port,
    opened,
    request_bytes,
    wait_until,
)
from tests.gateway.harness import receive_rest as rest
from tests.gateway.harness import receive_until as until

METRICS = """\
process_start_time_seconds {started}
vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}",kv_cache_size_tokens="{tokens}"}} 1.0
vllm:kv_cache_usage_perc{{model_name="fake"}} {usage}
vllm:engine_sleep_state{{sleep_state="awake"}} {awake}
vllm:engine_sleep_state{{sleep_state="discard_all"}} 0.0
"""


def metrics(tokens: int, *, started: float = 1000.5, usage: float = 0.0, awake: float = 1.0) -> str:
    return METRICS.format(tokens=tokens, blocks=tokens // 16, started=started, usage=usage, awake=awake)


def held(gate: threading.Event) -> Script:
    """A stream of which nothing comes before `gate` is set."""
    script = chat_stream()
    return Script(script.chunks, gates={BEFORE_HEADERS: gate})


@contextmanager
def narrow_door(engine: FakeEngine, config: GatewayConfig = CONFIG, **changes: object) -> Iterator[Door]:
    """A gateway before one engine that runs one request at once."""
    gateway = Gateway(replace(config, **changes))  # type: ignore[arg-type]  # as in door_before
    gateway.add(Replica("e0", engine.url, max_num_seqs=1))
    with opened(gateway) as door:
        door.wait_ready()
        wait_until(lambda: gateway.pool.replicas[0].most_in_flight == 1)
        yield door


def ask(door: Door, results: list[httpx2.Response], **headers: Any) -> threading.Thread:
    """One streamed chat request, in a thread of its own."""
    thread = threading.Thread(
        target=lambda: results.append(door.post(PATHS["chat"], body_for("chat", stream=True), **headers)), daemon=True
    )
    thread.start()
    return thread


def test_a_request_waits_for_room_and_is_answered_when_there_is() -> None:
    gate = threading.Event()
    with running(FakeEngine()) as engine, narrow_door(engine) as door:
        engine.enqueue(held(gate))
        results: list[httpx2.Response] = []
        threads = [ask(door, results)]
        wait_until(lambda: len(engine.seen) == 1)
        threads.append(ask(door, results))
        wait_until(lambda: door.total("berth_requests_waiting", model="fake") == 1)
        status = door.get("/status").json()["models"][0]
        assert status["waiting"] == {"high": 0, "normal": 1, "low": 0}
        assert status["headroom"] == 0
        assert len(engine.seen) == 1
        gate.set()
        for thread in threads:
            thread.join(20)
        assert [result.status_code for result in results] == [200, 200]
        assert door.total("berth_queue_wait_seconds_count", model="fake") == 1
        wait_until(lambda: door.is_at_rest)


def test_whoever_leaves_the_line_is_not_asked_for() -> None:
    gate = threading.Event()
    with running(FakeEngine()) as engine, narrow_door(engine) as door:
        engine.enqueue(held(gate))
        results: list[httpx2.Response] = []
        thread = ask(door, results)
        wait_until(lambda: len(engine.seen) == 1)
        with door.connection() as sock:
            sock.sendall(request_bytes(PATHS["chat"], b'{"model":"fake","messages":[]}'))
            wait_until(lambda: door.total("berth_requests_waiting") == 1)
        wait_until(lambda: door.total("berth_requests_waiting") == 0)
        gate.set()
        thread.join(20)
        wait_until(lambda: door.is_at_rest)
        assert len(engine.seen) == 1
        assert door.total("berth_requests_aborted_total", stage="before_connect") == 1


def test_who_waits_for_too_long_is_told_when_to_come_back_in_its_dialect() -> None:
    gate = threading.Event()
    with running(FakeEngine()) as engine, narrow_door(engine, queue=Queue(max_wait_s=0.2)) as door:
        engine.enqueue(held(gate))
        results: list[httpx2.Response] = []
        thread = ask(door, results)
        wait_until(lambda: len(engine.seen) == 1)
        refused = door.post(PATHS["messages"], body_for("messages"))
        assert refused.status_code == 503
        assert refused.json()["error"]["type"] == "overloaded_error"
        assert refused.headers["retry-after"] == "1"
        assert door.total("berth_requests_refused_total", model="fake", reason="late") == 1
        gate.set()
        thread.join(20)
        wait_until(lambda: door.is_at_rest)


def test_a_stream_in_line_shows_a_sign_of_life_and_then_its_end() -> None:
    gate = threading.Event()
    timeouts = replace(CONFIG.timeouts, keep_alive_s=0.3)
    with (
        running(FakeEngine()) as engine,
        narrow_door(engine, queue=Queue(max_wait_s=1.5), timeouts=timeouts) as door,
    ):
        engine.enqueue(held(gate))
        thread = ask(door, [])
        wait_until(lambda: len(engine.seen) == 1)
        with door.connection() as sock:
            sock.sendall(
                request_bytes(PATHS["chat"], b'{"model":"fake","stream":true,"messages":[]}', "connection: close")
            )
            assert b"HTTP/1.1 200" in until(sock, b": keep-alive")
            assert b"no replica had room in time" in rest(sock)
        gate.set()
        thread.join(20)
        wait_until(lambda: door.is_at_rest)


def test_the_time_in_line_is_part_of_all_the_time_a_request_may_take() -> None:
    clock, timeouts = HandClock(), replace(CONFIG.timeouts, total_s=30.0, keep_alive_s=1e9)
    asleep = FakeEngine(metrics_text=metrics(9600, awake=0.0))
    with running(asleep) as engine, door_before(engine, clock=clock, timeouts=timeouts) as door:
        wait_until(lambda: door.gateway.pool.replicas[0].is_closed)
        results: list[httpx2.Response] = []
        ask(door, results)
        wait_until(partial(_waits, door, 1))
        clock.now_s += 31  # the line alone would let it stand for 60 s
        wait_until(lambda: results)
        assert (results[0].status_code, results[0].json()["error"]["code"]) == (504, "timeout")
        assert door.total("berth_requests_waiting") == 0
        assert engine.seen == []
        wait_until(lambda: door.is_at_rest)


def test_a_full_model_has_somebody_stand_in() -> None:
    gate = threading.Event()
    chain = Chain((Step("other"),))
    with running(FakeEngine()) as engine, running(FakeEngine(models=("other",))) as other:
        gateway = Gateway(GatewayConfig(probe_interval_s=0.05, queue=Queue(max_wait_s=0.1), chains={"fake": chain}))
        gateway.add(Replica("e0", engine.url, max_num_seqs=1))
        gateway.add(Replica("o0", other.url))
        with opened(gateway) as door:
            door.wait_ready()
            wait_until(lambda: gateway.pool.replicas[0].most_in_flight == 1)
            engine.enqueue(held(gate))
            thread = ask(door, [])
            wait_until(lambda: len(engine.seen) == 1)
            answer = door.post(PATHS["chat"], body_for("chat", stream=True))
            assert (answer.status_code, answer.headers["x-berth-replica"]) == (200, "o0")
            gate.set()
            thread.join(20)
            wait_until(lambda: door.is_at_rest)


@pytest.mark.parametrize("dialect", ["chat", "messages", "responses"])
def test_more_output_than_fits_is_refused_at_the_door(dialect: str) -> None:
    with running(FakeEngine(max_model_len=100)) as engine, door_before(engine) as door:
        name = "max_output_tokens" if dialect == "responses" else "max_tokens"
        body = {**body_for(dialect), name: 101}  # type: ignore[arg-type]
        answer = door.post(PATHS[dialect], body)  # type: ignore[index]
        assert answer.status_code == 400
        said = "max_tokens is 101; 'fake' takes 100 tokens together (prompt and output)"
        assert answer.json()["error"]["message"] == said
        assert not engine.seen
        wait_until(lambda: door.is_at_rest)


def test_at_the_end_of_the_gateway_nobody_is_left_in_line() -> None:
    gate = threading.Event()
    results: list[httpx2.Response] = []
    with running(FakeEngine()) as engine:
        with narrow_door(engine) as door:
            engine.enqueue(held(gate))
            ask(door, [])
            wait_until(lambda: len(engine.seen) == 1)
            thread = ask(door, results)
            wait_until(partial(_waits, door, 1))
        thread.join(20)
        gate.set()
    assert [result.status_code for result in results] == [503]
    assert results[0].json()["error"]["code"] == "shutting_down"


# Callers
def keys(**limits: int) -> tuple[KeyHash, ...]:
    """Ann's, with limits, and bob's, without."""
    return (
        replace(hash_key("ann", "secret"), priority="high", limits=CallerLimits(**limits)),
        hash_key("bob", "other"),
    )


def test_over_its_requests_a_caller_gets_429_and_every_answer_says_what_is_left() -> None:
    with running(FakeEngine()) as engine, door_before(engine, keys=keys(requests_per_minute=2)) as door:
        answers = [
            door.post(PATHS["chat"], body_for("chat", stream=True), authorization="Bearer secret") for _ in range(3)
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
        assert answers[2].json()["error"]["type"] == "rate_limit_error"
        assert 28 <= int(answers[2].headers["retry-after"]) <= 30
        other = door.post(PATHS["chat"], body_for("chat", stream=True), authorization="Bearer other")
        assert other.status_code == 200
        assert "x-ratelimit-remaining-requests" not in other.headers
        in_theirs = door.post(PATHS["messages"], body_for("messages"), x_api_key="secret")
        assert in_theirs.headers["anthropic-ratelimit-requests-remaining"] == "0"
        wait_until(lambda: door.is_at_rest)


def test_tokens_are_counted_by_what_the_engine_says() -> None:
    answer = {"id": "x", "choices": [], "usage": {"prompt_tokens": 300, "completion_tokens": 100}}
    with running(FakeEngine()) as engine, door_before(engine, keys=keys(tokens_per_minute=1000)) as door:
        engine.enqueue(json_answer(answer))
        asked = body_for("chat")  # max_tokens 8: charged with a few, and put right
        assert door.post(PATHS["chat"], asked, authorization="Bearer secret").status_code == 200
        wait_until(lambda: door.is_at_rest)
        account = door.gateway.accounts.of("ann")
        assert account is not None
        left = account.allowances(door.gateway.clock())[0].remaining
        assert 600 <= left <= 620


def spend(door: Door, tokens: int) -> None:
    """Take so many of ann's."""
    account = door.gateway.accounts.of("ann")
    assert account is not None
    assert account.charge(tokens, door.gateway.clock()) is None


def test_who_stands_in_is_no_way_round_the_limit_of_tokens() -> None:
    gone, chain = FakeEngine(url=f"http://127.0.0.1:{free_port()}"), Chain((Step("other"),))
    with (
        running(FakeEngine(models=("other",))) as other,
        door_before(gone, other, wait=False, keys=keys(tokens_per_minute=1000), chains={"fake": chain}) as door,
    ):
        door.wait_ready(1)
        answers = []
        for taken in (0, 990):
            spend(door, taken)
            answers.append(door.post(PATHS["chat"], body_for("chat"), authorization="Bearer secret").status_code)
        assert answers == [200, 429]
        assert len(other.seen) == 1
        wait_until(lambda: door.is_at_rest)


def test_going_on_from_a_response_is_no_way_round_the_limit_of_tokens() -> None:
    kept = {"id": "resp_1", "object": "response", "output": [], "usage": {"input_tokens": 7, "output_tokens": 2}}
    with running(FakeEngine()) as engine, door_before(engine, keys=keys(tokens_per_minute=1000)) as door:
        engine.enqueue(json_answer(kept), json_answer({**kept, "id": "resp_2"}))
        body, answers = body_for("responses"), []
        for taken in (0, 0, 980):
            spend(door, taken)
            answer = door.post(PATHS["responses"], body, authorization="Bearer secret")
            answers.append(answer.status_code)
            body["previous_response_id"] = "resp_1"
        assert answers == [200, 200, 429]
        assert door.get(f"{PATHS['responses']}/resp_1", authorization="Bearer secret").status_code == 200
        wait_until(lambda: door.is_at_rest)


def test_so_many_in_flight_and_one_that_leaves_makes_room() -> None:
    gate = threading.Event()
    with running(FakeEngine()) as engine, door_before(engine, keys=keys(max_in_flight=1)) as door:
        engine.enqueue(held(gate))
        results: list[httpx2.Response] = []
        thread = ask(door, results, authorization="Bearer secret")
        wait_until(lambda: len(engine.seen) == 1)
        refused = door.post(PATHS["chat"], body_for("chat"), authorization="Bearer secret")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        gate.set()
        thread.join(20)
        wait_until(lambda: door.is_at_rest)
        assert door.post(PATHS["chat"], body_for("chat"), authorization="Bearer secret").status_code == 200


def _waits(door: Door, count: int) -> bool:
    return door.total("berth_requests_waiting") == count


def test_a_priority_may_be_lowered_and_not_raised() -> None:
    gate = threading.Event()
    with running(FakeEngine()) as engine, narrow_door(engine, keys=keys()) as door:
        engine.enqueue(held(gate))
        threads = [ask(door, [], authorization="Bearer secret")]
        wait_until(lambda: len(engine.seen) == 1)
        for key, asked, given in (
            ("secret", None, "high"),
            ("secret", "low", "low"),
            ("other", "high", "normal"),
        ):
            number = len(threads)
            headers = {"authorization": f"Bearer {key}"} | ({"x_berth_priority": asked} if asked else {})
            threads.append(ask(door, [], **headers))
            wait_until(partial(_waits, door, number))
            status = door.get("/status", authorization="Bearer other").json()
            assert status["models"][0]["waiting"][given] == 1
        odd = door.post(PATHS["chat"], body_for("chat"), authorization="Bearer other", x_berth_priority="urgent")
        assert (odd.status_code, odd.json()["error"]["code"]) == (400, "invalid_priority")
        gate.set()
        for thread in threads:
            thread.join(20)
        wait_until(lambda: door.is_at_rest)


# Engines
def test_what_the_engine_says_of_its_capacity_replaces_what_was_predicted() -> None:
    with running(FakeEngine(metrics_text=metrics(9600, usage=0.25))) as engine:
        gateway = Gateway(CONFIG)
        gateway.add(Replica("e0", engine.url, predicted_kv_tokens=5000))
        with opened(gateway) as door:
            door.wait_ready()
            wait_until(lambda: gateway.pool.replicas[0].kv_capacity_tokens == 9600)
            wait_until(lambda: door.total("berth_replica_kv_tokens_budget", replica="e0") == pytest.approx(9120))
            assert door.total("berth_replica_kv_tokens_used", replica="e0") == 2400
            assert door.get("/status").json()["models"][0]["budget_tokens"] == 9120


def test_an_slo_bounds_an_unknown_engine_to_eight_at_once() -> None:
    with (
        running(FakeEngine()) as engine,
        door_before(engine, slos={"fake": Slo(ttft_s=5.0, tpot_s=0.1)}) as door,
    ):
        wait_until(lambda: door.total("berth_replica_most_in_flight", replica="e0") == 8)
        assert door.post(PATHS["chat"], body_for("chat", stream=True)).status_code == 200
        wait_until(lambda: door.total("berth_headroom_requests", model="fake") == 8)
