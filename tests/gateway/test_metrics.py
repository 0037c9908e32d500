import asyncio
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.cost import Cost
from gateway.figures import parse_figures
from gateway.metrics import Metrics
from gateway.replica import Replica
from gateway.wire import DIALECTS, Dialect
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, chat_stream, json_answer, running
from tests.gateway.harness import (
    GOLDEN,
    PATHS,
    STREAMING,
    Door,
    body_for,
    door_before,
    opened,
    receive_until,
    request_bytes,
    stream_of,
    wait_until,
)

CHAT = PATHS["chat"]
VLLM = (GOLDEN / "metrics.txt").read_text()
PROMTOOL = Path(sys.executable).parent / "promtool"


def _samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition; fails when one series is there twice."""
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return samples


def _value(text: str, name: str, **labels: str) -> float:
    found = [v for (n, pairs), v in _samples(text).items() if n == name and labels.items() <= dict(pairs).items()]
    assert len(found) == 1, f"{name}{labels}: {len(found)} series"
    return found[0]


def _scrape(door: Door) -> str:
    return door.get("/metrics").text


# The page as a whole
def test_the_exposition_parses_and_promtool_finds_nothing_to_complain_of(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.metrics_text = second.metrics_text = VLLM
    for dialect in STREAMING:
        fake.enqueue(stream_of(dialect))
        second.enqueue(stream_of(dialect))
        pair.post(PATHS[dialect], body_for(dialect, stream=True))
        pair.post(PATHS[dialect], body_for(dialect, stream=True))
    pair.post(CHAT, content=b"")
    answer = pair.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    names = {name for name, _ in _samples(answer.text)}
    assert all(name.startswith("berth_") for name in names)
    if not PROMTOOL.exists():
        pytest.skip("promtool is not installed here")
    told = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=answer.text, capture_output=True, text=True, timeout=30, check=False
    )
    assert (told.returncode, told.stdout + told.stderr) == (0, "")


def test_series_exist_at_zero_before_the_first_request(stack: ExitStack, fake: FakeEngine) -> None:
    door = stack.enter_context(door_before(fake))
    page = _scrape(door)
    for dialect in DIALECTS:
        labels = {"model": "fake", "replica": "e0", "dialect": dialect}
        assert _value(page, "berth_requests_in_flight", **labels) == 0
        assert _value(page, "berth_requests_total", **labels, outcome="ok") == 0


# Requests
class _Clock:
    """Stands still until the test moves it: a timeline that can be worked out by hand, however often it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def _clocked(fake: FakeEngine, stack: ExitStack, clock: _Clock) -> Door:
    gateway = Gateway(GatewayConfig(probe_interval_s=0.05), clock=clock)
    gateway.add(Replica("e0", fake.url))
    door = stack.enter_context(opened(gateway))
    door.wait_ready()
    return door


def _sum(door: Door, name: str, **labels: str) -> float:
    return door.total(f"berth_{name}_sum", **labels)


def test_times_of_a_known_timeline(fake: FakeEngine, stack: ExitStack) -> None:
    clock = _Clock()
    door = _clocked(fake, stack, clock)
    words = ("a", "b", "c", "d", "e")
    chunks = chat_stream(words).chunks
    gates = {i: threading.Event() for i in range(1, len(chunks) + 1)}
    fake.enqueue(Script(chunks=chunks, gates=gates))
    body = body_for("chat", stream=True)
    with door.client() as client, client.stream("POST", CHAT, json=body) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        for i in range(1, len(chunks)):
            clock.now_s = (i + 1) / 4
            gates[i].set()
            next(pieces)
        clock.now_s = 10 / 4
        gates[len(chunks)].set()
        assert b"".join(pieces) == b""
    wait_until(lambda: door.total("berth_requests_total") == 1)
    # arrival and role 0, five tokens 2/4 .. 6/4, finish 7/4, usage 8/4, [DONE] 9/4, settled 10/4
    assert _sum(door, "time_to_first_token_seconds") == 2 / 4
    assert _sum(door, "time_per_output_token_seconds") == (6 / 4 - 2 / 4) / (5 - 1)
    assert _sum(door, "request_duration_seconds") == 10 / 4
    assert door.total("berth_prompt_tokens_total") == 7
    assert door.total("berth_output_tokens_total") == 5


@pytest.mark.parametrize(
    ("dialect", "prompt", "output"),
    [("chat", 37, 5), ("completions", 5, 4), ("responses", 37, 4), ("messages", 37, 4)],
)
def test_tokens_are_counted_in_every_dialect(
    fake: FakeEngine, door: Door, dialect: Dialect, prompt: int, output: int
) -> None:
    fake.enqueue(stream_of(dialect))
    door.post(PATHS[dialect], body_for(dialect, stream=True))
    labels = {"model": "fake", "replica": "e0", "dialect": dialect}
    wait_until(lambda: door.total("berth_requests_total", outcome="ok", **labels) == 1)
    assert door.total("berth_prompt_tokens_total", **labels) == prompt
    assert door.total("berth_output_tokens_total", **labels) == output
    assert door.total("berth_time_to_first_token_seconds_count", **labels) == 1
    assert door.total("berth_request_duration_seconds_count", **labels) == 1


def test_usage_is_counted_although_the_caller_did_not_ask_for_it(fake: FakeEngine, door: Door) -> None:
    door.post(CHAT, {"model": "fake", "stream": True})
    wait_until(lambda: door.total("berth_output_tokens_total") == 2)
    assert door.total("berth_prompt_tokens_total") == 7


def test_a_stream_that_broke_off_counts_the_tokens_it_had(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(chat_stream(("a", "b", "c"), ending="drop"))
    door.post(CHAT, body_for("chat", stream=True))
    wait_until(lambda: door.total("berth_requests_total", outcome="broken") == 1)
    assert door.total("berth_output_tokens_total") == 3


def test_counting_tokens_is_no_usage(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(json_answer({"input_tokens": 5000}))
    assert door.post("/v1/messages/count_tokens", body_for("messages")).json() == {"input_tokens": 5000}
    wait_until(lambda: door.total("berth_requests_total", outcome="ok") == 1)
    assert door.total("berth_prompt_tokens_total") == 0
    assert door.total("berth_request_duration_seconds_count") == 0


def test_an_unstreamed_answer_has_tokens_and_a_duration_but_no_first_token(fake: FakeEngine, door: Door) -> None:
    details = {"cached_tokens": 64}
    usage = {"prompt_tokens": 70, "completion_tokens": 3, "prompt_tokens_details": details}
    fake.enqueue(json_answer({"choices": [], "usage": usage}))
    door.post(CHAT, body_for("chat"))
    wait_until(lambda: door.total("berth_requests_total", outcome="ok") == 1)
    assert door.total("berth_prompt_tokens_total") == 70
    assert door.total("berth_cached_prompt_tokens_total") == 64
    assert door.total("berth_output_tokens_total") == 3
    assert door.total("berth_request_duration_seconds_count") == 1
    assert door.total("berth_time_to_first_token_seconds_count") == 0


def test_a_stream_without_tokens_has_no_first_token(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(chat_stream(()))
    door.post(CHAT, body_for("chat", stream=True))
    wait_until(lambda: door.total("berth_requests_total", outcome="ok") == 1)
    assert door.total("berth_time_to_first_token_seconds_count") == 0
    assert door.total("berth_time_per_output_token_seconds_count") == 0


def test_in_flight_while_a_stream_is_held(fake: FakeEngine, door: Door) -> None:
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={2: gate}))
    with door.client() as client, client.stream("POST", CHAT, json=body_for("chat", stream=True)) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        labels = {"model": "fake", "replica": "e0", "dialect": "chat"}
        assert _value(_scrape(door), "berth_requests_in_flight", **labels) == 1
        gate.set()
        b"".join(pieces)
    wait_until(lambda: _value(_scrape(door), "berth_requests_in_flight", **labels) == 0)


def test_errors_are_counted_by_how_and_where_they_ended(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(json_answer({"error": {"message": "no", "code": 400}}, 400), Script(ending="drop"))
    door.post(CHAT, body_for("chat"))
    door.post(CHAT, body_for("chat"))
    door.post(PATHS["messages"], content=b"{")
    wait_until(lambda: door.total("berth_requests_total") == 3)
    known = {"model": "fake", "replica": "e0", "dialect": "chat"}
    nothing = {"model": "(none)", "replica": "(none)", "dialect": "messages"}
    assert door.total("berth_requests_total", outcome="engine_error", **known) == 1
    assert door.total("berth_request_errors_total", status="400", **known) == 1
    assert door.total("berth_requests_total", outcome="broken", **known) == 1
    assert door.total("berth_request_errors_total", status="502", **known) == 1
    assert door.total("berth_requests_total", outcome="refused", **nothing) == 1
    assert door.total("berth_request_errors_total", status="400", **nothing) == 1
    assert door.total("berth_request_duration_seconds_count") == 0


def test_a_caller_that_leaves_is_counted_by_how_far_its_request_was(fake: FakeEngine, door: Door) -> None:
    role_only = Script(chunks=chat_stream().chunks[:1], ending="hang")
    fake.enqueue(chat_stream(ending="hang"), role_only, Script(ending="hang"))
    stream, whole = (request_bytes(CHAT, body) for body in (b'{"model":"fake","stream":true}', b'{"model":"fake"}'))
    with door.connection() as sock:
        sock.sendall(stream[:-10])
        wait_until(lambda: door.gateway.admission.in_flight == 1)
    with door.connection() as sock:
        sock.sendall(stream)
        receive_until(sock, b"there")
    wait_until(lambda: door.in_flight == 0)
    with door.connection() as sock:
        sock.sendall(stream)
        receive_until(sock, b'"role"')
    with door.connection() as sock:
        sock.sendall(whole)
        wait_until(lambda: len(fake.seen) == 3)
    wait_until(lambda: door.total("berth_requests_total", outcome="client_gone") == 4)
    known = {"model": "fake", "replica": "e0", "dialect": "chat"}
    assert door.total("berth_requests_aborted_total", stage="before_connect", model="(none)", replica="(none)") == 1
    assert door.total("berth_requests_aborted_total", stage="mid_stream", **known) == 1
    assert door.total("berth_requests_aborted_total", stage="first_token", **known) == 2
    assert door.total("berth_requests_aborted_total") == 4
    assert door.total("berth_requests_without_token_total", outcome="client_gone") == 3


def test_requests_that_never_produced_a_token_are_counted_apart(fake: FakeEngine, door: Door) -> None:
    nothing = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 0}}
    fake.enqueue(chat_stream(()), json_answer(nothing), json_answer({"choices": []}), chat_stream())
    fake.enqueue(json_answer({"error": {"message": "no", "code": 400}}, 400), json_answer({"input_tokens": 5}))
    for stream in (True, False, False, True, False):  # the third does not say; the fourth has two
        door.post(CHAT, body_for("chat", stream=stream))
    door.post("/v1/messages/count_tokens", body_for("messages"))  # is not asked for any
    door.post(CHAT, content=b"{")
    wait_until(lambda: door.total("berth_requests_total") == 7)
    assert door.total("berth_requests_without_token_total", outcome="ok") == 2
    assert door.total("berth_requests_without_token_total", outcome="engine_error") == 1
    assert door.total("berth_requests_without_token_total", outcome="refused") == 1
    assert door.total("berth_requests_without_token_total") == 4


def test_a_retry_is_counted_where_it_failed(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    assert pair.total("berth_retries_total") == 0
    fake.enqueue(Script(ending="drop"))
    assert pair.post(CHAT, body_for("chat", stream=True)).headers["x-berth-replica"] == "e1"
    assert pair.total("berth_retries_total", model="fake", replica="e0") == 1
    assert pair.total("berth_retries_total", replica="e1") == 0


def test_waits_in_a_queue_show_once_there_are_any() -> None:
    metrics = Metrics("0")
    assert "berth_queue_wait_seconds_count" not in generate_latest(metrics.registry).decode()
    metrics.waited("m", 0.02)
    metrics.waited("m", 0.0)
    page = generate_latest(metrics.registry).decode()
    assert _value(page, "berth_queue_wait_seconds_count", model="m") == 2
    assert _value(page, "berth_queue_wait_seconds_bucket", model="m", le="0.001") == 1
    assert _value(page, "berth_queue_wait_seconds_sum", model="m") == 0.02


# What the gateway itself costs
def test_what_the_gateway_adds_leaves_the_engines_time_out(fake: FakeEngine, stack: ExitStack) -> None:
    clock = _Clock()
    door = _clocked(fake, stack, clock)
    gates = {BEFORE_HEADERS: threading.Event(), 0: threading.Event()}
    fake.enqueue(Script(chunks=chat_stream().chunks, gates=gates))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, b'{"model":"fake","stream":true}'))
        wait_until(lambda: len(fake.seen) == 1)
        clock.now_s = 5.0  # the engine thinks
        gates[BEFORE_HEADERS].set()
        wait_until(lambda: fake.seen[0].pieces == 0)
        clock.now_s = 9.0  # and thinks
        gates[0].set()
        receive_until(sock, b"[DONE]")
    assert door.total("berth_gateway_added_seconds_count") == 1
    assert door.total("berth_gateway_added_seconds_sum") == 0


def test_the_gateways_own_figures_are_on_the_page(fake: FakeEngine, door: Door) -> None:
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={1: gate}))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, b'{"model":"fake","stream":true}'))
        receive_until(sock, b"role")
        assert _value(_scrape(door), "berth_gateway_upstream_connections", state="busy") >= 1
        gate.set()
        receive_until(sock, b"[DONE]")
        page = _scrape(door)
    assert _value(page, "berth_gateway_client_connections") >= 2  # this one, and the one that scrapes
    assert _value(page, "berth_gateway_upstream_connections", state="idle") >= 1
    resident_bytes = psutil.Process().memory_info().rss
    assert _value(page, "berth_gateway_resident_memory_bytes") == pytest.approx(resident_bytes, rel=0.1)
    before = _value(page, "berth_gateway_cpu_seconds_total")
    assert _value(_scrape(door), "berth_gateway_cpu_seconds_total") > before > 0
    wait_until(lambda: door.total("berth_gateway_loop_lag_seconds_count") > 0)


async def test_lag_is_how_late_a_timer_came() -> None:
    readings = iter((0.0, 0.1, 0.45, 0.5))  # due at 0.1: on time; at 0.2: 0.25 late; at 0.55: early, which is no lag
    done = asyncio.Event()

    def clock() -> float:
        now_s = next(readings)
        if now_s == 0.5:
            done.set()
        return now_s

    cost = Cost(lambda: 0, dict, clock)
    async with asyncio.timeout(20):
        with cost.watching(asyncio.get_running_loop()):
            await done.wait()
    assert cost.lag.total == pytest.approx(0.25)
    assert sum(cost.lag.counts) == 3


def test_names_a_caller_makes_up_never_become_a_label(fake: FakeEngine, door: Door) -> None:
    before = len(_samples(_scrape(door)))
    for i in range(20):
        door.post(CHAT, {"model": f"made-up-{i}"})
    page = _scrape(door)
    assert "made-up" not in page
    assert len(_samples(page)) - before < 20


# The engines' own figures, under names that stay
OLD_VLLM = """\
# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
vllm:num_requests_running{model_name="m"} 3.0
vllm:gpu_prefix_cache_queries_total{model_name="m"} 100.0
vllm:gpu_prefix_cache_hits_total{model_name="m"} 40.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0
"""


def test_figures_of_a_real_engine() -> None:
    figures = parse_figures(VLLM)
    assert figures.values == {
        "berth_engine_kv_cache_usage_ratio": 0.0,
        "berth_engine_requests_running": 0.0,
        "berth_engine_requests_waiting": 0.0,
        "berth_engine_prefix_cache_queries_tokens": 360.0,
        "berth_engine_prefix_cache_hits_tokens": 0.0,
        "berth_engine_preemptions": 0.0,
        "berth_engine_prompt_tokens": 360.0,
        "berth_engine_output_tokens": 35.0,
    }
    assert (figures.kv_cache_tokens, figures.kv_cache_blocks, figures.block_size) == (11648, 91, 128)


def test_figures_under_the_names_of_older_engines() -> None:
    figures = parse_figures(OLD_VLLM)
    assert figures.values == {
        "berth_engine_kv_cache_usage_ratio": 0.25,
        "berth_engine_requests_running": 3.0,
        "berth_engine_prefix_cache_queries_tokens": 100.0,
        "berth_engine_prefix_cache_hits_tokens": 40.0,
    }
    assert figures.kv_cache_tokens == 16 * 1000


def test_the_new_name_wins_where_an_engine_has_both() -> None:
    both = OLD_VLLM + 'vllm:kv_cache_usage_perc{model_name="m"} 0.5\n'
    assert parse_figures(both).values["berth_engine_kv_cache_usage_ratio"] == 0.5


def test_data_parallel_ranks_are_summed_and_their_cache_use_averaged() -> None:
    text = "".join(
        f'vllm:num_requests_running{{engine="{rank}"}} {running_}\n'
        f'vllm:kv_cache_usage_perc{{engine="{rank}"}} {use}\n'
        f'vllm:cache_config_info{{engine="{rank}",kv_cache_size_tokens="500"}} 1.0\n'
        for rank, running_, use in ((0, 2, 0.5), (1, 3, 0.25))
    )
    values = parse_figures(text).values
    assert values["berth_engine_requests_running"] == 5
    assert values["berth_engine_kv_cache_usage_ratio"] == 0.375


def test_figures_of_nothing() -> None:
    assert parse_figures("").values == {}
    assert parse_figures("# HELP x\nprocess_cpu_seconds_total 1.0\n").values == {}


def test_figures_of_running_engines_are_on_the_page(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    fake.metrics_text, second.metrics_text = VLLM, OLD_VLLM
    pair.gateway.pool.replicas[0].predicted_kv_tokens = 12_000
    page = _scrape(pair)
    first, other = {"model": "fake", "replica": "e0"}, {"model": "fake", "replica": "e1"}
    assert _value(page, "berth_engine_up", **first) == 1
    assert _value(page, "berth_replica_ready", **first) == 1
    assert _value(page, "berth_engine_prompt_tokens_total", **first) == 360
    assert _value(page, "berth_engine_kv_cache_tokens", **first) == 11648
    assert _value(page, "berth_engine_kv_cache_blocks", **first) == 91
    assert _value(page, "berth_engine_kv_cache_predicted_tokens", **first) == 12_000
    assert _value(page, "berth_engine_kv_cache_usage_ratio", **other) == 0.25
    assert _value(page, "berth_engine_prefix_cache_hits_tokens_total", **other) == 40


def test_an_engine_that_is_down_is_down_on_the_page_and_the_rest_stays(second: FakeEngine, stack: ExitStack) -> None:
    with running(FakeEngine(metrics_text=VLLM)) as dying:
        second.metrics_text = VLLM
        door = stack.enter_context(door_before(dying, second))
    page = _scrape(door)
    assert _value(page, "berth_engine_up", replica="e0") == 0
    assert _value(page, "berth_engine_up", replica="e1") == 1
    assert _value(page, "berth_engine_prompt_tokens_total", replica="e1") == 360
    assert 'berth_engine_prompt_tokens_total{model="fake",replica="e0"}' not in page
    wait_until(lambda: _value(_scrape(door), "berth_replica_ready", replica="e0") == 0)


@pytest.mark.parametrize(
    "text", ["vllm:num_requests_running oops\n", "vllm:num_requests_running{a=\n", "<html>", "\ufffd\n"]
)
def test_an_engine_that_writes_nonsense_takes_nobody_elses_figures_away(
    fake: FakeEngine, second: FakeEngine, pair: Door, text: str
) -> None:
    fake.metrics_text, second.metrics_text = text, VLLM
    assert _value(_scrape(pair), "berth_engine_prompt_tokens_total", replica="e1") == 360


def test_the_version_is_on_the_page(door: Door) -> None:
    assert _value(_scrape(door), "berth_build_info") == 1
