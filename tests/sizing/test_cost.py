"""Money and people, by hand: what tokens cost, when an API is cheaper, how many users keep within an SLO."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizing.cost import ApiPrice, HourlyCost, break_even, owned, rented, token_cost
from sizing.errors import QuestionError
from sizing.roofline import Engine
from sizing.speed import Load, Pace, pace
from sizing.users import LatencyBound, users_within
from tests.sizing.speed_models import SHAPES, engine

# Two requests a second of 1,000 + 500 tokens, a quarter of the time in prompts.
PACE = Pace(ttft_s=0.2, tpot_s=0.01, requests_s=2.0, output_tokens_s=1000.0, running=10, prefill_share=0.25)
GPT_OSS = SHAPES["gpt-oss"]


def test_a_rented_hour_is_paid_by_its_requests() -> None:
    # 7.20 dollars an hour / 7,200 requests = 0.1 cent each: a quarter of it over 1,000 tokens, the rest over 500
    cost = token_cost(PACE, rented(3.60, 2), prompt_tokens=1000, output_tokens=500)
    assert cost.input_usd == pytest.approx(0.25)
    assert cost.output_usd == pytest.approx(1.5)
    assert cost.blended_usd == pytest.approx(1 / 1.5)
    assert (cost.input_usd * 1000 + cost.output_usd * 500) / 1500 == pytest.approx(cost.blended_usd)


def test_idle_hours_are_paid_by_working_ones() -> None:
    whole = token_cost(PACE, rented(3.60, 2), prompt_tokens=1000, output_tokens=500)
    half = token_cost(PACE, rented(3.60, 2), prompt_tokens=1000, output_tokens=500, utilization=0.5)
    assert half.blended_usd == pytest.approx(2 * whole.blended_usd)


def test_an_owned_card_is_its_price_over_its_years_and_its_electricity() -> None:
    # 35,064 dollars over 4 years of 8,766 hours is 1 an hour; 500 W x 1.4 at 0.30 is 0.21
    cost = owned(usd_per_card=35_064, years=4, power_w=500, usd_per_kwh=0.30, num_cards=2, overhead=1.4)
    assert cost.fixed_usd == pytest.approx(2.0)
    assert cost.working_usd == pytest.approx(0.42)
    assert cost.per_working_hour(0.5) == pytest.approx(4.42)  # electricity only while it works


def test_break_even_by_hand() -> None:
    # The API asks 1,000 x 1 + 500 x 2 dollars per million = 0.2 cent a request, 14.40 an hour at full pace
    api = ApiPrice(1.0, 2.0)
    found = break_even(PACE, HourlyCost(3.60), api, prompt_tokens=1000, output_tokens=500)
    assert found.utilization == pytest.approx(0.25)
    assert found.requests_per_day == pytest.approx(0.25 * 7200 * 24)
    assert found.tokens_per_day == pytest.approx(0.25 * 7200 * 24 * 1500)
    assert found.api_usd_per_million == pytest.approx(4 / 3)
    with_power = break_even(PACE, HourlyCost(3.60, 7.20), api, prompt_tokens=1000, output_tokens=500)
    assert with_power.utilization == pytest.approx(0.5)  # 3.60 + 7.20 x = 14.40 x


def test_an_api_that_is_always_cheaper_has_no_break_even() -> None:
    for cost in (HourlyCost(15.0), HourlyCost(0.0, 20.0)):
        found = break_even(PACE, cost, ApiPrice(1.0, 2.0), prompt_tokens=1000, output_tokens=500)
        assert (found.utilization, found.requests_per_day, found.tokens_per_day) == (None, None, None)


@given(st.floats(0.01, 1), st.floats(0, 100), st.floats(0, 10))
def test_at_break_even_both_cost_the_same(utilization: float, fixed: float, working: float) -> None:
    api = ApiPrice(3.0, 15.0)
    cost = HourlyCost(fixed, working)
    found = break_even(PACE, cost, api, prompt_tokens=1000, output_tokens=500)
    if found.utilization:
        own = token_cost(PACE, cost, prompt_tokens=1000, output_tokens=500, utilization=found.utilization)
        assert own.blended_usd == pytest.approx(found.api_usd_per_million)
    assert cost.per_working_hour(utilization) >= cost.per_working_hour(1)


def test_impossible_money_is_refused() -> None:
    for utilization in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(QuestionError, match="utilization"):
            HourlyCost(1).per_working_hour(utilization)
    with pytest.raises(QuestionError, match="years"):
        owned(usd_per_card=1, years=0, power_w=1, usd_per_kwh=1, num_cards=1)
    with pytest.raises(QuestionError, match="below 0"):
        rented(-1, 1)


# Users


def asked(bound: LatencyBound, think_time_s: float = 0, most: int = 4096, engine_: Engine | None = None) -> int:
    found = users_within(
        GPT_OSS,
        engine_ or engine("H200"),
        bound,
        prompt_tokens=1024,
        output_tokens=256,
        think_time_s=think_time_s,
        most_concurrency=most,
    )
    return found.users


def test_users_are_those_in_flight_and_those_who_think() -> None:
    found = users_within(
        GPT_OSS, engine("H200"), LatencyBound(tpot_s=0.02), prompt_tokens=1024, output_tokens=256, think_time_s=30
    )
    assert found.limiter == "tpot"
    assert found.pace is not None
    assert found.pace == pace(GPT_OSS, engine("H200"), Load(1024, 256, found.concurrency))
    assert (found.pace.tpot_s or 1) <= 0.02
    over = pace(GPT_OSS, engine("H200"), Load(1024, 256, found.concurrency + 1))
    assert (over.tpot_s or 0) > 0.02
    assert found.users == int(found.concurrency + 30 * found.pace.requests_s)


def test_a_bound_that_one_request_misses_serves_nobody() -> None:
    found = users_within(
        GPT_OSS, engine("H200"), LatencyBound(ttft_s=1e-3), prompt_tokens=1024, output_tokens=256, think_time_s=30
    )
    assert (found.users, found.concurrency, found.pace, found.limiter) == (0, 0, None, "ttft")


def test_without_bounds_the_search_ends_where_it_is_told() -> None:
    assert asked(LatencyBound(), most=100) == 100


@given(st.floats(0.05, 5), st.floats(1, 4), st.floats(0, 120))
def test_a_looser_bound_or_more_thought_never_serves_fewer(ttft_s: float, factor: float, think_s: float) -> None:
    assert asked(LatencyBound(ttft_s * factor), think_s) >= asked(LatencyBound(ttft_s), think_s)
    assert asked(LatencyBound(ttft_s), think_s) >= asked(LatencyBound(ttft_s), think_s / 2)


def test_a_full_cache_limits_users_by_their_first_token() -> None:
    small = replace(engine("H200"), max_running=16)
    assert asked(LatencyBound(ttft_s=1.0), engine_=small) < asked(LatencyBound(ttft_s=1.0))


def test_a_negative_think_time_is_refused() -> None:
    with pytest.raises(QuestionError, match="think_time_s"):
        asked(LatencyBound(), think_time_s=-1)
