"""The breaker, definition by definition; the clock is a number that the test moves."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker import Breaker, BreakerConfig, failure_kind, open_time_s
from gateway.errors import AnswerError, BrokenError, ConnectError, UpstreamError
from gateway.window import Window
from gateway.wire import Fault

CONFIG = BreakerConfig(jitter=0.0)


@dataclass
class Clock:
    """Stands still until it is moved."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(CONFIG, clock, lambda: 0.0)


def _fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failed()


def _half_open(breaker: Breaker, clock: Clock) -> None:
    _fail(breaker, CONFIG.consecutive_failures)
    clock.now_s += CONFIG.open_s
    breaker.advance()
    assert breaker.state == "half_open"


# What counts
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectError("x"), "connect"),
        (BrokenError("x"), "broken"),
        *((AnswerError(Fault(status, "x")), "error") for status in (500, 502, 504)),
        *((AnswerError(Fault(status, "x")), None) for status in (400, 401, 404, 422, 429, 503, 529)),
    ],
)
def test_what_is_held_against_a_replica(error: UpstreamError, kind: str | None) -> None:
    assert failure_kind(error) == kind


# Closed to open
def test_it_opens_at_the_fifth_failure_in_a_row(breaker: Breaker) -> None:
    _fail(breaker, 4)
    assert breaker.lets_through
    breaker.failed()
    assert breaker.state == "open"
    assert not breaker.lets_through
    assert breaker.ejections == {"consecutive": 1}


def test_a_success_ends_the_row(breaker: Breaker) -> None:
    _fail(breaker, 4)
    breaker.succeeded(None)
    _fail(breaker, 4)
    assert breaker.state == "closed"


def test_it_opens_at_half_of_twenty(breaker: Breaker) -> None:
    for _ in range(9):
        breaker.succeeded(None)
        breaker.failed()
    assert breaker.state == "closed"  # 9 of 18: too few to say
    breaker.succeeded(None)
    breaker.failed()
    assert breaker.ejections == {"error_rate": 1}


def test_an_error_rate_is_of_the_window_only(breaker: Breaker, clock: Clock) -> None:
    for _ in range(9):
        breaker.succeeded(None)
        breaker.failed()
    clock.now_s += CONFIG.window_s
    breaker.succeeded(None)
    breaker.failed()
    assert breaker.state == "closed"
    assert breaker.error_rate() is None


# Open to half open
def test_it_is_half_open_after_its_time(breaker: Breaker, clock: Clock) -> None:
    _fail(breaker, 5)
    assert breaker.changes_at_s() == clock.now_s + 5
    clock.now_s += 4.9
    breaker.advance()
    assert not breaker.lets_through
    clock.now_s += 0.1
    breaker.advance()
    assert breaker.state == "half_open"


@pytest.mark.parametrize(("times", "seconds"), [(1, 5), (2, 10), (3, 20), (4, 40), (5, 80), (6, 120), (99, 120)])
def test_the_time_doubles_up_to_two_minutes(times: int, seconds: float) -> None:
    assert open_time_s(CONFIG, times, luck=0.5) == seconds


@given(times=st.integers(1, 10_000), luck=st.floats(0, 1, exclude_max=True), jitter=st.floats(0, 0.9))
def test_the_time_is_bounded(times: int, luck: float, jitter: float) -> None:
    config = BreakerConfig(jitter=jitter)
    assert config.open_s * (1 - jitter) <= open_time_s(config, times, luck) <= config.open_max_s


def test_luck_takes_up_to_a_fifth_off() -> None:
    assert open_time_s(BreakerConfig(), 1, luck=0.0) == 5.0
    assert open_time_s(BreakerConfig(), 1, luck=0.5) == 4.5


def test_a_failure_while_open_is_old_news(breaker: Breaker) -> None:
    _fail(breaker, 5)
    until_s = breaker.changes_at_s()
    _fail(breaker, 100)
    assert (breaker.changes_at_s(), breaker.ejections) == (until_s, {"consecutive": 1})


# Half open
def test_so_many_trials_at_a_time(breaker: Breaker, clock: Clock) -> None:
    _half_open(breaker, clock)
    allowed = 0
    while breaker.lets_through:
        breaker.trials += 1
        allowed += 1
    assert allowed == CONFIG.trials


def test_the_success_of_a_trial_closes(breaker: Breaker, clock: Clock) -> None:
    _half_open(breaker, clock)
    breaker.trials = 1
    breaker.succeeded(0.1)
    assert breaker.state == "closed"


def test_a_straggler_from_before_does_not_close(breaker: Breaker, clock: Clock) -> None:
    _fail(breaker, 5)
    breaker.succeeded(0.1)
    assert breaker.state == "open"


def test_a_trial_in_panic_closes_at_once(breaker: Breaker) -> None:
    _fail(breaker, 5)
    breaker.trials = 1
    breaker.succeeded(0.1)
    assert breaker.state == "closed"


def test_the_failure_of_a_trial_opens_for_twice_as_long(breaker: Breaker, clock: Clock) -> None:
    _half_open(breaker, clock)
    breaker.failed()
    assert breaker.changes_at_s() == clock.now_s + 10
    assert breaker.ejections == {"consecutive": 1, "trial": 1}


@pytest.mark.parametrize(("well_for_s", "seconds"), [(119, 10), (120, 5)])
def test_having_been_well_for_long_enough_the_doubling_starts_anew(
    breaker: Breaker, clock: Clock, well_for_s: float, seconds: float
) -> None:
    _half_open(breaker, clock)
    breaker.trials = 1
    breaker.succeeded(None)
    clock.now_s += well_for_s
    _fail(breaker, 5)
    assert breaker.changes_at_s() == clock.now_s + seconds


def test_after_closing_the_past_is_forgotten(breaker: Breaker, clock: Clock) -> None:
    _half_open(breaker, clock)
    breaker.trials = 1
    breaker.succeeded(None)
    assert breaker.error_rate() is None
    _fail(breaker, 4)
    assert breaker.state == "closed"


# Share
@pytest.mark.parametrize(
    ("after_s", "share"), [(0, 0.1), (0.5, 0.1), (1, 0.1), (2.5, 0.25), (9, 0.9), (10, 1), (99, 1)]
)
def test_it_starts_slowly(breaker: Breaker, clock: Clock, after_s: float, share: float) -> None:
    breaker.restarted()
    clock.now_s += after_s
    assert breaker.share() == pytest.approx(share)


def test_what_was_never_restarted_has_its_whole_share(breaker: Breaker) -> None:
    assert breaker.share() == 1
    assert breaker.changes_at_s() == float("inf")


def test_while_it_is_not_closed_it_has_the_least_share(breaker: Breaker, clock: Clock) -> None:
    _fail(breaker, 5)
    assert breaker.share() == 0.1
    clock.now_s += 5
    breaker.advance()
    assert breaker.share() == 0.1


def test_without_slow_start_all_is_there_at_once(clock: Clock) -> None:
    breaker = Breaker(BreakerConfig(slow_start_s=0), clock)
    breaker.restarted()
    assert breaker.share() == 1


def test_a_restart_closes_it(breaker: Breaker) -> None:
    _fail(breaker, 5)
    breaker.restarted()
    assert breaker.state == "closed"
    assert breaker.lets_through


# Time to first token
def test_the_median_needs_enough_of_them(breaker: Breaker) -> None:
    for i in range(19):
        breaker.succeeded(float(i))
    assert breaker.ttft_s() is None
    breaker.was_late(60.0)
    assert breaker.ttft_s() == 9.5  # of 0 .. 18 and 60


def test_old_times_are_dropped(breaker: Breaker, clock: Clock) -> None:
    for _ in range(20):
        breaker.succeeded(9.0)
    clock.now_s += CONFIG.window_s + 1
    assert breaker.ttft_s() is None
    assert breaker.recent_ttfts() == []


# All of it
@given(
    st.lists(st.tuples(st.sampled_from(["succeeded", "failed", "advance", "eject", "restarted"]), st.floats(0, 200)))
)
def test_whatever_happens(events: list[tuple[str, float]]) -> None:
    clock = Clock()
    breaker = Breaker(BreakerConfig(), clock)
    for event, pause_s in events:
        clock.now_s += pause_s
        breaker.trials = int(breaker.state != "closed")
        arguments: tuple[object, ...] = {"succeeded": (0.1,), "eject": ("outlier_ttft",)}.get(event, ())
        getattr(breaker, event)(*arguments)
        assert 0 < breaker.share() <= 1
        assert breaker.lets_through == (breaker.state == "closed" or (breaker.state == "half_open"))
        if breaker.state == "open":
            assert breaker.changes_at_s() <= clock.now_s + BreakerConfig().open_max_s


@given(st.lists(st.floats(0, 20), max_size=200), st.floats(0.1, 30))
def test_a_window_never_counts_more_than_came_in_one_and_a_half_spans(pauses_s: list[float], span_s: float) -> None:
    window, now_s, came = Window(span_s), 1000.0, []
    for pause_s in pauses_s:
        now_s += pause_s
        window.add(now_s)
        came.append(now_s)
        last_half = sum(now_s - at < span_s / 2 * 0.999 for at in came)
        assert 0 <= window.total(now_s) <= sum(now_s - at <= span_s * 1.001 for at in came)
        assert window.total(now_s) >= min(1, last_half)
