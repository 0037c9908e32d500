import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.schedule import constant, poisson
from tests.benchmarks.making import patiently

rates = st.floats(min_value=0.01, max_value=1e4)


def test_constant_arrivals_are_evenly_spaced() -> None:
    assert constant(4.0, 5) == (0.0, 0.25, 0.5, 0.75, 1.0)


@patiently
@given(rates, st.integers(1, 200), st.integers())
def test_poisson_arrivals_start_at_zero_and_never_go_back(rate: float, requests: int, seed: int) -> None:
    arrivals = poisson(rate, requests, seed)
    assert len(arrivals) == requests
    assert arrivals[0] == 0.0
    assert list(arrivals) == sorted(arrivals)
    assert arrivals == poisson(rate, requests, seed)


def test_poisson_has_the_mean_and_the_spread_of_its_rate() -> None:
    arrivals = poisson(8.0, 20_001, seed=3)
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(1 / 8, rel=0.03)
    assert variance**0.5 == pytest.approx(mean, rel=0.05)  # exponential: as spread out as it is long


def test_another_seed_is_another_schedule() -> None:
    assert poisson(1.0, 10, seed=1) != poisson(1.0, 10, seed=2)
