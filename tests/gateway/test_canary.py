"""When a canary is taken back, and when it is not."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.canary import RollbackConfig, Split, Standing, verdict
from tests.gateway.harness import HandClock

CONFIG = RollbackConfig(
    window_s=100,
    min_requests=10,
    error_factor=2,
    error_margin=0.05,
    ttft_factor=1.5,
    ttft_margin_s=0.1,
    ttft_quantile=0.9,
)
QUIET = (0.2,) * 10


def _standing(requests: int, errors: int = 0, ttfts_s: tuple[float, ...] = ()) -> Standing:
    return Standing(requests, errors, ttfts_s)


# The rule
def test_errors_are_worse_by_factor_and_by_margin() -> None:
    stable = _standing(100, 10)  # 10 %: the limit is max(20 %, 15 %)
    assert verdict(_standing(100, 20), stable, CONFIG) is None
    assert verdict(_standing(100, 21), stable, CONFIG) == "errors"
    spotless = _standing(100, 0)  # the limit is max(0 %, 5 %)
    assert verdict(_standing(100, 5), spotless, CONFIG) is None
    assert verdict(_standing(100, 6), spotless, CONFIG) == "errors"


def test_first_tokens_are_later_by_factor_and_by_margin() -> None:
    # of ten the ninth counts; 0.2 s: the limit is max(0.3, 0.3)
    assert verdict(_standing(10, 0, (0.1,) * 8 + (0.3, 9.0)), _standing(10, 0, QUIET), CONFIG) is None
    assert verdict(_standing(10, 0, (0.1,) * 8 + (0.31, 0.31)), _standing(10, 0, QUIET), CONFIG) == "ttft"
    # 0.02 s: the limit is max(0.03, 0.12)
    fast = _standing(10, 0, (0.02,) * 10)
    assert verdict(_standing(10, 0, (0.12,) * 10), fast, CONFIG) is None
    assert verdict(_standing(10, 0, (0.13,) * 10), fast, CONFIG) == "ttft"


def test_the_median_can_be_what_counts() -> None:
    config = RollbackConfig(min_requests=4, ttft_quantile=0.5)
    usual = _standing(4, 0, (0.2,) * 4)
    assert verdict(_standing(4, 0, (0.2, 0.2, 9.0, 9.0)), usual, config) is None  # of four the second
    assert verdict(_standing(4, 0, (0.2, 0.9, 9.0, 9.0)), usual, config) == "ttft"


def test_below_the_least_number_on_either_side_nothing_is_known() -> None:
    assert verdict(_standing(9, 9), _standing(100), CONFIG) is None
    assert verdict(_standing(100, 100), _standing(9), CONFIG) is None
    assert verdict(_standing(10, 10), _standing(10), CONFIG) == "errors"
    slow = (9.0,) * 10
    assert verdict(_standing(10, 0, slow[:9]), _standing(10, 0, QUIET), CONFIG) is None
    assert verdict(_standing(10, 0, slow), _standing(10, 0, QUIET[:9]), CONFIG) is None


STANDINGS = st.builds(
    lambda ttfts, errors, more: Standing(len(ttfts) + errors + more, errors, tuple(ttfts)),
    st.lists(st.floats(0, 1000), max_size=40),
    st.integers(0, 40),
    st.integers(0, 40),
)


@given(STANDINGS)
def test_who_is_as_good_as_the_other_stays(standing: Standing) -> None:
    assert verdict(standing, standing, CONFIG) is None


@given(STANDINGS, STANDINGS)
def test_never_on_too_few(canary: Standing, stable: Standing) -> None:
    if min(canary.requests, stable.requests) < CONFIG.min_requests:
        assert verdict(canary, stable, CONFIG) is None


# A split over time
def _split(clock: HandClock, config: RollbackConfig | None = CONFIG) -> Split:
    return Split({"v1": 95.0, "v2": 5.0}, config, clock)


def _fed(split: Split, model: str, times: int, *, is_error: bool = False) -> list[str]:
    backs = [split.ended(model, is_error=is_error, ttft_s=None) for _ in range(times)]
    return [back.model for found in backs for back in found]


def _made_bad(split: Split, clock: HandClock) -> list[str]:
    taken = _fed(split, "v1", 20) + _fed(split, "v2", 20, is_error=True)
    clock.now_s += 1
    return taken + _fed(split, "v1", 1)


def test_the_largest_weight_is_stable_and_of_equals_the_first() -> None:
    assert _split(HandClock()).stable == "v1"
    assert Split({"a": 1, "b": 5, "c": 5}, None, HandClock()).stable == "b"


def test_a_bad_canary_is_taken_back_once_and_for_good() -> None:
    clock = HandClock()
    split = _split(clock)
    assert split.weights() == [("v1", 95.0), ("v2", 5.0)]
    assert _made_bad(split, clock) == ["v2"]
    assert split.weights() == [("v1", 95.0), ("v2", 0.0)]
    assert split.rolled_back("v2") == ("v2", clock.now_s, "errors")
    clock.now_s += 1e6
    assert _fed(split, "v1", 50) == []
    assert split.weights() == [("v1", 95.0), ("v2", 0.0)]
    assert split.rollbacks == {("v2", "errors"): 1}


def test_or_tried_again_with_nothing_held_against_it() -> None:
    clock = HandClock()
    split = _split(clock, RollbackConfig(window_s=100, min_requests=10, retry_after_s=30))
    _made_bad(split, clock)
    clock.now_s += 29.9
    assert split.weights()[1] == ("v2", 0.0)
    clock.now_s += 0.2
    assert split.weights()[1] == ("v2", 5.0)
    assert (split.standing("v2").requests, split.rolled_back("v2")) == (0, None)
    assert _fed(split, "v1", 1) == []
    assert _made_bad(split, clock) == ["v2"]
    assert split.rollbacks == {("v2", "errors"): 2}


def test_what_is_older_than_the_window_is_forgotten() -> None:
    clock = HandClock()
    split = _split(clock)
    _fed(split, "v2", 20, is_error=True)
    clock.now_s += 100.1
    _fed(split, "v1", 20)
    clock.now_s += 1
    assert _fed(split, "v1", 1) == []
    assert split.standing("v2").requests == 0


def test_the_stable_side_is_never_taken_back() -> None:
    clock = HandClock()
    split = _split(clock)
    _fed(split, "v1", 50, is_error=True)
    _fed(split, "v2", 50)
    clock.now_s += 1
    assert _fed(split, "v1", 1, is_error=True) == []
    assert split.weights()[0] == ("v1", 95.0)


def test_without_rollback_weights_stay() -> None:
    clock = HandClock()
    split = _split(clock, None)
    assert _made_bad(split, clock) == []
    assert split.weights()[1] == ("v2", 5.0)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["v1", "v2", "v3"]), st.booleans(), st.none() | st.floats(0, 60), st.floats(0, 20)),
    max_size=200,
)


@given(EVENTS, st.none() | st.floats(1, 50))
def test_whatever_happens_somebody_answers(
    events: list[tuple[str, bool, float | None, float]], retry_after_s: float | None
) -> None:
    clock = HandClock()
    given_weights = {"v1": 90.0, "v2": 5.0, "v3": 5.0}
    split = Split(given_weights, RollbackConfig(window_s=60, min_requests=3, retry_after_s=retry_after_s), clock)
    for model, is_error, ttft_s, passed_s in events:
        clock.now_s += passed_s
        for back in split.ended(model, is_error=is_error, ttft_s=ttft_s):
            assert back.model != "v1"
        weights = dict(split.weights())
        assert weights["v1"] == 90.0
        assert all(weight in (0.0, given_weights[name]) for name, weight in weights.items())
        assert all((weights[name] == 0.0) == (split.rolled_back(name) is not None) for name in weights)


def test_memory_is_bounded() -> None:
    split = _split(HandClock())
    _fed(split, "v1", 5000)
    assert split.standing("v1").requests == 2000
