"""A slope with its band, and what is called flat."""

import random

import pytest

from benchmarks.trend import trend


def test_a_straight_line_by_hand() -> None:
    found = trend(list(range(20)), [5.0 + 2.0 * i for i in range(20)])
    assert found.slope == pytest.approx(2.0)
    assert found.band == pytest.approx(0.0, abs=1e-9)
    assert (found.span_s, found.level) == (19, 24.0)


def test_noise_widens_the_band_until_it_holds_the_true_slope() -> None:
    misses = 0
    for seed in range(200):
        dice = random.Random(seed)
        found = trend(list(range(100)), [50 + 0.01 * i + dice.gauss(0, 0.5) for i in range(100)])
        misses += abs(found.slope - 0.01) > found.band
    assert 2 <= misses <= 22  # one in twenty, as a 95 % band promises


def test_flat_is_judged_at_the_upper_end_of_the_band() -> None:
    times = [float(i) for i in range(100)]
    assert trend(times, [60.0] * 100).is_flat(0.02)
    assert not trend(times, [60.0 + 0.05 * i for i in range(100)]).is_flat(0.02)  # 5 of 60 in all
    noisy = [60.0 + 5 * (-1) ** (i // 10) for i in range(100)]
    assert not trend(times, noisy).is_flat(0.02)  # too noisy to say so


def test_too_few_samples_are_no_trend() -> None:
    with pytest.raises(ValueError, match="10 samples"):
        trend([0.0] * 9, [1.0] * 9)
