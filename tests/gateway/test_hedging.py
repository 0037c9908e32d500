"""When a second replica is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Hedge
from gateway.hedging import hedge_after_s, may_hedge


@pytest.mark.parametrize(("quantile", "expected"), [(0.5, 10.0), (0.95, 19.0), (1.0, 20.0)])
def test_the_quantile_of_twenty(quantile: float, expected: float) -> None:
    ttfts_s = [float(i) for i in range(20, 0, -1)]
    assert hedge_after_s(ttfts_s, Hedge(quantile=quantile)) == expected


def test_below_twenty_nobody_knows() -> None:
    assert hedge_after_s([1.0] * 19, Hedge()) is None


def test_not_sooner_than_the_least_wait() -> None:
    assert hedge_after_s([0.001] * 20, Hedge(min_s=0.1)) == 0.1


@given(st.lists(st.floats(0, 100), min_size=20, max_size=200), st.floats(0.5, 1.0))
def test_so_many_are_faster(ttfts_s: list[float], quantile: float) -> None:
    after_s = hedge_after_s(ttfts_s, Hedge(quantile=quantile, min_s=0.0))
    assert after_s is not None
    assert sum(ttft_s <= after_s for ttft_s in ttfts_s) >= quantile * len(ttfts_s) - 1e-9


def test_at_most_a_share_is_sent_twice() -> None:
    hedge, hedged = Hedge(share=0.05), 0
    for requests in range(1, 1001):
        hedged += may_hedge(hedged, requests, hedge)
    assert hedged == 50
