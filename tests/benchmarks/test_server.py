import math

import pytest
from aiohttp import ClientSession

from benchmarks.server import MetricsWatch, Reading, figures, read_metrics
from tests.fake_engine import FakeEngine

VLLM = """# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {kv}
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} 0.0
vllm:num_requests_waiting_by_reason{{engine="0",model_name="m",reason="capacity"}} 99.0
vllm:prefix_cache_queries_total{{engine="0",model_name="m"}} {queries}
vllm:prefix_cache_queries_created{{engine="0",model_name="m"}} 1.7e+09
vllm:prefix_cache_hits_total{{engine="0",model_name="m"}} {hits}
vllm:num_preemptions_total{{engine="0",model_name="m"}} 2.0
vllm:prompt_tokens_total{{engine="0",model_name="m"}} {queries}
vllm:generation_tokens_total{{engine="0",model_name="m"}} {output}
"""
BERTH = """berth_engine_kv_cache_usage_ratio{model="m",replica="m-0"} 0.2
berth_engine_kv_cache_usage_ratio{model="m",replica="m-1"} 0.6
berth_engine_requests_running{model="m",replica="m-0"} 3
berth_engine_requests_running{model="m",replica="m-1"} 4
berth_engine_requests_running{model="other",replica="o-0"} 50
berth_engine_requests_waiting{model="m",replica="m-0"} 1
berth_engine_prefix_cache_queries_tokens_total{model="m",replica="m-0"} 100
berth_engine_prefix_cache_hits_tokens_total{model="m",replica="m-0"} 40
berth_engine_preemptions_total{model="m",replica="m-0"} 1
berth_engine_prompt_tokens_total{model="m",replica="m-0"} 100
berth_engine_output_tokens_total{model="m",replica="m-0"} 10
"""


def vllm(kv: float = 0.0, running: int = 0, queries: int = 0, hits: int = 0, output: int = 0) -> str:
    return VLLM.format(kv=kv, running=running, queries=queries, hits=hits, output=output)


def readings(*texts: str) -> list[Reading]:
    return [reading for text in texts if (reading := read_metrics(text, "m"))]


def test_an_engines_figures_over_a_run() -> None:
    seen = figures(
        readings(
            vllm(kv=0.1, running=0, queries=1000, hits=900, output=50),
            vllm(kv=0.5, running=7),
            vllm(kv=0.3, running=2, queries=1400, hits=1000, output=250),
        )
    )
    assert seen is not None
    assert seen.source == "vllm"
    assert seen.kv_use_peak == 0.5
    assert seen.kv_use_mean == pytest.approx(0.3)
    assert seen.prefix_hit_ratio == pytest.approx(100 / 400)  # of this run alone, whatever was before
    assert seen.preemptions == 0
    assert (seen.running_peak, seen.waiting_peak) == (7, 0)
    assert (seen.prompt_tokens, seen.output_tokens) == (400, 200)


def test_a_gateways_replicas_are_summed_and_other_models_left_out() -> None:
    seen = figures(readings(BERTH, BERTH))
    assert seen is not None
    assert seen.source == "berth"
    assert seen.kv_use_peak == 0.6
    assert seen.kv_use_mean == pytest.approx(0.4)
    assert seen.running_peak == 7
    assert seen.prefix_hit_ratio is None  # nothing was looked up


def test_a_model_known_under_another_name_still_counts() -> None:
    reading = read_metrics(vllm(running=3), "alias")
    assert reading is not None
    assert reading.total("running") == 3


def test_a_restarted_engine_has_no_differences() -> None:
    seen = figures(readings(vllm(queries=1000, hits=10), vllm(queries=5, hits=1)))
    assert seen is not None
    assert seen.prefix_hit_ratio is None
    assert seen.prompt_tokens is None


@pytest.mark.parametrize("text", ["", "<html>", "http_requests_total 5\n", "vllm:num_requests_running{ broken\n"])
def test_what_is_not_exported_is_none(text: str) -> None:
    assert read_metrics(text, "m") is None
    assert figures(readings(text)) is None


def test_figures_a_server_leaves_out_are_none() -> None:
    seen = figures(readings("vllm:num_requests_running 3.0\n"))
    assert seen is not None
    assert seen.running_peak == 3
    assert (seen.kv_use_peak, seen.prefix_hit_ratio, seen.preemptions) == (None, None, None)


async def test_a_look_over_http(fake: FakeEngine) -> None:
    fake.metrics_text = vllm(kv=0.25, running=1)
    async with ClientSession() as session:
        watch = MetricsWatch(session, fake.url, "m")
        assert await watch.look()
        assert watch.readings[0].total("kv_use") == 0.25
        fake.metrics_text = ""
        assert not await watch.look()
        assert not await MetricsWatch(session, "http://127.0.0.1:1", "m").look()


async def test_the_closing_look_gives_up_on_a_server_that_never_counts(fake: FakeEngine) -> None:
    fake.metrics_text = vllm(output=5)
    async with ClientSession() as session:
        watch = MetricsWatch(session, fake.url, "m")
        await watch.look()
        await watch.settle(100, patience_s=0)
        assert len(watch.readings) == 2
        await watch.settle(0, patience_s=math.inf)
        assert len(watch.readings) == 3
