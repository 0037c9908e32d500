"""Which replica is the odd one out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.outliers import OutlierConfig, Standing, ejections, outliers


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0, 0.1], []),  # any error is infinitely far from none: the margin decides
        ([0.0, 0.0, 0.3], [2]),
        ([0.3, 0.3, 0.3], []),  # all alike
        ([0.0, 0.9, 0.0, 0.5, 0.0], [1, 3]),  # the worst first
        ([None, 0.9, None], []),  # nobody to compare it with
        ([], []),
        ([0.0, 0.2, 0.4, 0.6, 0.8], []),  # a wide field has no outlier: MAD 0.2, so 5 sigma is 1.5
    ],
)
def test_far_above_the_median(values: list[float | None], expected: list[int]) -> None:
    assert outliers(values, deviations=5.0, margin=0.2) == expected


@pytest.mark.parametrize(
    ("ttfts_s", "expected"),
    [
        ([0.1, 0.1, 0.9], []),  # nine times, but not a second
        ([2.0, 2.0, 5.0], []),  # three seconds, but not three times
        ([1.0, 1.0, 3.1], [2]),
    ],
)
def test_a_time_must_be_both_a_multiple_and_a_second_away(ttfts_s: list[float | None], expected: list[int]) -> None:
    assert outliers(ttfts_s, deviations=5.0, margin=1.0, ratio=3.0) == expected


def _standings(*values: float | None, ttft: bool = False, out: int = 0) -> list[Standing]:
    return [Standing(i < out, None if ttft else v, v if ttft else None) for i, v in enumerate(values)]


def test_the_reason_is_told() -> None:
    assert ejections(_standings(0, 0, 0, 0.9), OutlierConfig()) == [(3, "outlier_errors")]
    assert ejections(_standings(0.2, 0.2, 0.2, 9, ttft=True), OutlierConfig()) == [(3, "outlier_ttft")]


def test_of_two_neither_is_the_odd_one() -> None:
    assert ejections(_standings(0.0, 0.9), OutlierConfig()) == []


def test_at_most_half_are_out_and_those_that_are_out_already_count() -> None:
    config = OutlierConfig()
    six, seven = (6, "outlier_errors"), (7, "outlier_errors")
    assert ejections(_standings(1, 1, 0, 0, 0, 0, 0.9, 0.8, out=2), config) == [six, seven]
    assert ejections(_standings(1, 1, 1, 0, 0, 0, 0.9, 0.8, out=3), config) == [six]
    assert ejections(_standings(1, 1, 0, 0, 0, 0.9, out=3), config) == []


@given(
    st.lists(
        st.builds(Standing, st.booleans(), st.none() | st.floats(0, 1), st.none() | st.floats(0, 100)), min_size=1
    ),
    st.integers(0, 100),
)
def test_never_all_never_twice_never_more_than_allowed(standings: list[Standing], percent: int) -> None:
    chosen = [place for place, _ in ejections(standings, OutlierConfig(max_ejection_percent=percent, min_peers=1))]
    out = sum(standing.is_out for standing in standings)
    assert len(set(chosen)) == len(chosen)
    assert not any(standings[place].is_out for place in chosen)
    if chosen:
        assert len(chosen) + out <= len(standings) * percent / 100
        assert len(chosen) + out < len(standings)
