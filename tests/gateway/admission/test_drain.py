"""How fast a line moves is measured while there is one."""

import pytest

from gateway.admission.drain import Drain


def test_nothing_is_said_before_four_were_served_and_a_second_has_passed() -> None:
    drain = Drain()
    drain.opened(0.0)
    for i in range(3):
        drain.served(100, 0.5 + i)
    assert drain.wait_s(1000, 3.0) is None
    drain.served(100, 3.0)
    assert drain.wait_s(1000, 3.0) is not None


def test_a_thousand_tokens_at_a_hundred_a_second_take_ten() -> None:
    drain = Drain()
    drain.opened(0.0)
    for i in range(1, 101):
        drain.served(100, float(i))
    assert drain.wait_s(1000, 100.0) == pytest.approx(10.0, rel=0.06)


def test_time_without_a_line_does_not_count() -> None:
    drain = Drain()
    drain.opened(0.0)
    for i in range(1, 101):
        drain.served(100, float(i))
    drain.closed(100.0)
    before_s = drain.wait_s(1000, 100.0)
    assert drain.wait_s(1000, 5000.0) == before_s
    drain.opened(5000.0)
    assert drain.wait_s(1000, 5000.0) == before_s


def test_a_line_that_stands_still_is_said_to_take_longer_and_longer() -> None:
    drain = Drain()
    drain.opened(0.0)
    for i in range(1, 11):
        drain.served(100, float(i))
    waits = [drain.wait_s(100, now_s) for now_s in (10.0, 20.0, 40.0)]
    assert waits[0] is not None
    assert waits[1] is not None
    assert waits[2] is not None
    assert waits[0] < waits[1] < waits[2]


def test_between_two_batches_of_long_answers_a_line_is_not_taken_for_a_dead_one() -> None:
    drain = Drain()
    drain.opened(0.0)
    for batch in range(1, 9):  # sixteen at once every fifteen seconds, and nobody in between: 107 tokens a second
        for _ in range(16):
            drain.served(100, batch * 15.0)
    wait_s = drain.wait_s(1600, 8 * 15.0 + 14.9)
    assert wait_s is not None
    assert 15.0 < wait_s < 20.0
