"""The caller's one entry: what limits a load, what replicas add, and what users and tokens follow from it."""

from dataclasses import replace
from itertools import pairwise

import pytest

from sizing.cards import card
from sizing.cost import ApiPrice, owned
from sizing.errors import QuestionError
from sizing.forecast import Setup, cost, curve, forecast, setup, users
from sizing.speed import Load, pace
from sizing.speed_shape import speed_shape_of
from sizing.users import LatencyBound
from tests.sizing.models import published
from tests.sizing.speed_models import SHAPES, engine

LLAMA = setup(SHAPES["llama"], card("H100"), "nvlink", tensor_parallel_size=4)


def at(asked: Setup, concurrency: float, prompt: float = 1024, output: float = 256) -> str:
    return forecast(asked, prompt_tokens=prompt, output_tokens=output, concurrency=concurrency).limiter


def test_it_is_the_pace_of_the_engine_it_describes() -> None:
    found = forecast(LLAMA, prompt_tokens=1024, output_tokens=256, concurrency=32)
    assert found.speed.pace == pace(SHAPES["llama"], engine("H100", 4), Load(1024, 256, 32))
    assert (found.num_cards, found.note) == (4, None)


def test_a_model_is_as_good_as_its_shape() -> None:
    model = published("meta-llama/Llama-3.1-70B-Instruct")
    whole = setup(model, card("H100"), "nvlink", kv_cache_dtype="fp8")
    assert whole.shape == speed_shape_of(model, kv_cache_dtype="fp8")


def test_replicas_share_the_load_and_add_up() -> None:
    two = replace(LLAMA, replicas=2)
    one, both = (
        forecast(asked, prompt_tokens=1024, output_tokens=256, concurrency=concurrency)
        for asked, concurrency in ((LLAMA, 32), (two, 64))
    )
    assert both.speed.tpot_s == one.speed.tpot_s
    assert both.speed.output_tokens_s.value == pytest.approx(2 * one.speed.output_tokens_s.value)
    assert both.speed.output_tokens_s_per_card.value == pytest.approx(one.speed.output_tokens_s_per_card.value)
    assert both.speed.pace.requests_s == pytest.approx(2 * one.speed.pace.requests_s)
    # one request keeps one of the replicas busy, and no more
    single = forecast(two, prompt_tokens=1024, output_tokens=256, concurrency=1)
    alone = forecast(LLAMA, prompt_tokens=1024, output_tokens=256, concurrency=1)
    assert single.speed.output_tokens_s.value == pytest.approx(alone.speed.output_tokens_s.value)


def test_what_limits_it_is_named() -> None:
    assert at(LLAMA, 4) == "memory bandwidth"
    assert at(LLAMA, 512) == "compute"
    assert at(LLAMA, 4, prompt=32_768, output=16) == "compute"
    assert at(setup(SHAPES["gpt-oss"], card("B200"), "nvlink", tensor_parallel_size=8), 1) == "latency"
    assert at(replace(LLAMA, max_num_seqs=16), 32) == "max_num_seqs"
    assert at(replace(LLAMA, max_num_seqs=256, kv_cache_tokens=20_000), 32) == "KV cache"  # 17 of 1,024 + 128


def test_a_full_cache_is_said() -> None:
    tight = replace(LLAMA, kv_cache_tokens=40_000)
    asked = {"prompt_tokens": 1024, "output_tokens": 256}
    assert forecast(tight, **asked, concurrency=31).note is None  # 39,680 tokens
    assert "preempted" in (forecast(tight, **asked, concurrency=33).note or "")
    assert "about 30 of 64" in (forecast(tight, **asked, concurrency=64).note or "")  # 34 fit halfway through


def test_a_curve_never_gets_a_shorter_wait_or_fewer_tokens() -> None:
    found = curve(replace(LLAMA, max_num_seqs=256), prompt_tokens=1024, output_tokens=256)
    assert [point.concurrency for point in found] == [2**n for n in range(11)]
    waits = [point.speed.ttft_s.value for point in found]
    rates = [point.speed.output_tokens_s.value for point in found]
    assert waits == sorted(waits)
    assert all(after >= before * 0.99 for before, after in pairwise(rates))


def test_fewer_users_where_more_of_them_have_to_be_served_in_time() -> None:
    bound = LatencyBound(ttft_s=1.0, tpot_s=0.05)
    asked = {"prompt_tokens": 1024, "output_tokens": 256, "think_time_s": 30}
    mean = users(LLAMA, bound, **asked)
    most = users(LLAMA, bound, **asked, percentile=0.9)
    assert 0 < most.users < mean.users
    assert users(replace(LLAMA, replicas=2), bound, **asked).users == 2 * mean.users
    # -ln(0.1) = 2.303 for the first token, a quarter of the excess for the rest
    tighter = bound.of_means(0.9)
    assert tighter.ttft_s == pytest.approx(1 / 2.302585)
    assert tighter.tpot_s == pytest.approx(0.05 / (1 + 1.302585 / 4))
    assert bound.of_means(0.5) == bound  # half the requests are faster than the mean by themselves
    with pytest.raises(QuestionError, match="percentile"):
        users(LLAMA, bound, **asked, percentile=90)


def test_tokens_cost_what_the_catalogue_says_or_what_is_given() -> None:
    found = forecast(LLAMA, prompt_tokens=1024, output_tokens=256, concurrency=32)
    price = card("H100").price
    assert price is not None
    listed = cost(LLAMA, found, prompt_tokens=1024, output_tokens=256, api=ApiPrice(5.0, 15.0))
    assert listed.hourly.fixed_usd == pytest.approx(4 * price.usd_per_hour)
    assert str(price.as_of) in listed.basis
    per_request = 4 * price.usd_per_hour / 3600 / found.speed.pace.requests_s
    assert listed.tokens.blended_usd == pytest.approx(per_request / 1280 * 1e6)
    assert listed.break_even is not None
    assert 0 < (listed.break_even.utilization or 0) < 1
    bought = owned(usd_per_card=25_000, years=4, power_w=700, usd_per_kwh=0.2, num_cards=4)
    given = cost(LLAMA, found, prompt_tokens=1024, output_tokens=256, hourly=bought)
    assert (given.basis, given.break_even) == ("as given", None)
    with pytest.raises(QuestionError, match="no price of GB10"):
        cost(setup(SHAPES["llama"], card("GB10"), "none"), found, prompt_tokens=1, output_tokens=1)


def test_impossible_setups_are_refused() -> None:
    with pytest.raises(QuestionError, match="replicas is 0"):
        replace(LLAMA, replicas=0)
    with pytest.raises(QuestionError, match="max_num_seqs is 0"):
        replace(LLAMA, max_num_seqs=0)
    with pytest.raises(QuestionError, match="kv_cache_tokens is 0"):
        replace(LLAMA, kv_cache_tokens=0)
