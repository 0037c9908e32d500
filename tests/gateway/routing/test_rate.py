"""Seconds per uncached token, learnt from first tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.rate import PrefillRate


def test_nothing_is_believed_before_the_eighth() -> None:
    rate = PrefillRate(0.5)
    assert [rate.learn(1000, 1.0) for _ in range(8)] == [False] * 7 + [True]
    assert rate.s_per_token == pytest.approx(0.001)


def test_then_it_moves_at_every_eighth() -> None:
    rate = PrefillRate(0.5)
    assert [rate.learn(1000, 1.0) for _ in range(24)] == ([False] * 7 + [True]) * 3


def test_it_is_the_ninetieth_percentile() -> None:
    """Of rates 100, 200, ... 2400 tokens/s the one at place int(0.9 x 23) = 20, from 0: 2100."""
    rate = PrefillRate(0.5)
    for i in range(24):
        rate.learn(100 * (i + 1), 1.0)
    assert rate.s_per_token == pytest.approx(1 / 2100)


def test_most_answers_are_slow_for_other_reasons() -> None:
    rate = PrefillRate(0.5)
    for i in range(64):
        rate.learn(1000, 1.0 if i % 5 == 0 else 20.0)
    assert rate.s_per_token == pytest.approx(0.001)


def test_only_the_last_64_count() -> None:
    rate = PrefillRate(0.5)
    for elapsed_s in (1.0, 4.0):
        for _ in range(64):
            rate.learn(1000, elapsed_s)
    assert rate.s_per_token == pytest.approx(0.004)


@pytest.mark.parametrize(("work_tokens", "elapsed_s"), [(31, 1.0), (-500, 1.0), (1000, 0.0), (1000, -1.0)])
def test_what_says_nothing(work_tokens: int, elapsed_s: float) -> None:
    rate = PrefillRate(0.5)
    assert not any(rate.learn(work_tokens, elapsed_s) for _ in range(100))
    assert rate.s_per_token == 0.5


@given(st.lists(st.tuples(st.integers(-10, 10**9), st.floats(-1, 1e6)), max_size=200))
def test_it_is_always_a_time(samples: list[tuple[int, float]]) -> None:
    rate = PrefillRate(0.5)
    for work_tokens, elapsed_s in samples:
        rate.learn(work_tokens, elapsed_s)
        assert rate.s_per_token > 0
