"""How many requests at once keep a promised time per token: the line, its spread, and how far it is believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.pace import Pace, fitted


def test_nothing_is_known_of_a_new_engine_so_it_starts_with_eight() -> None:
    assert Pace().most(0.05) == 8


def test_a_line_is_found_and_read_backwards() -> None:
    pace = Pace()
    for n in (2, 4, 8, 16):
        for _ in range(10):
            pace.learn(0.0, n, 0.010 + 0.002 * n)
    fit = pace.fit
    assert fit is not None
    assert fit.tpot_s(8) == pytest.approx(0.026, rel=0.1)
    # the prior pulls the slope a little: 0.010 + 0.002 n = 0.040 at n = 15
    assert 13 <= pace.most(0.040) <= 17


def test_one_answer_in_ten_that_is_far_off_does_not_move_the_line_but_the_spread() -> None:
    clean = fitted([(n, 0.010 + 0.002 * n) for n in (2, 4, 8, 16) for _ in range(10)])
    dirty = fitted([(n, (0.010 + 0.002 * n) * (5 if i == 0 else 1)) for n in (2, 4, 8, 16) for i in range(11)])
    assert dirty.a_s + dirty.b_s * 8 == pytest.approx(clean.a_s + clean.b_s * 8, rel=0.15)
    assert fitted([(4, 0.02)] * 18 + [(4, 0.03)] * 2).spread == pytest.approx(1.5)


def test_from_answers_of_one_concurrency_half_of_the_time_is_taken_to_grow_with_it() -> None:
    fit = fitted([(10, 0.020)] * 20)
    assert fit.a_s == pytest.approx(0.010)
    assert fit.b_s == pytest.approx(0.001)
    assert fit.most(0.025) == 15
    assert fit.most(0.090) == 20  # 80 by the line, which is not believed beyond twice of what was seen


def test_what_an_engine_did_a_quarter_of_a_minute_ago_does_not_count_any_more() -> None:
    pace = Pace()
    for at_s in range(40):
        pace.learn(at_s / 10, 10, 0.080)
    assert pace.most(0.025) == 1
    for at_s in range(12):
        pace.learn(20.0 + at_s / 10, 10, 0.020)
    assert pace.most(0.025) == 15


def test_too_slow_alone_is_still_one_at_a_time() -> None:
    assert fitted([(1, 1.0)] * 5).most(0.05) == 1


def test_another_process_is_another_engine() -> None:
    pace = Pace()
    for _ in range(10):
        pace.learn(0.0, 8, 0.5)
    assert pace.most(0.05) == 1
    pace.forget()
    assert pace.most(0.05) == 8


@given(st.lists(st.tuples(st.floats(1, 500), st.floats(1e-4, 10)), min_size=4, max_size=64), st.floats(1e-3, 10))
def test_whatever_was_measured_the_bound_is_sane(samples: list[tuple[float, float]], slo_s: float) -> None:
    fit = fitted(samples)
    assert fit.b_s >= 0
    assert fit.a_s >= -1e-9
    assert fit.spread >= 1
    assert 1 <= fit.most(slo_s) <= max(8, 2 * max(n for n, _ in samples))
    assert fit.most(slo_s) <= fit.most(slo_s * 2)
