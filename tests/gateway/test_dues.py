"""What a request is charged with when it comes, and what of that it gets back when it is over."""

import pytest

from gateway.admission.rates import CallerAccount, CallerLimits
from gateway.dues import Dues
from gateway.errors import RefusedError
from gateway.wire import Usage
from tests.gateway.placing import route


def account(**limits: int) -> CallerAccount:
    return CallerAccount("alice", CallerLimits(**limits), 0.0)


def left(limited: CallerAccount) -> int:
    """Tokens; the clock stands still, so nothing is filled up."""
    (tokens,) = limited.allowances(0.0)
    return tokens.remaining


@pytest.mark.parametrize(
    ("usage", "is_tried", "expected"),
    [
        (Usage(prompt_tokens=250, output_tokens=50), True, 700),  # 250 + 50 were used
        (Usage(prompt_tokens=250), True, 750),  # an engine that says nothing of an output had none
        (Usage(), True, 600),  # it has not counted: the estimate stands
        (Usage(), False, 1000),  # nobody had it
    ],
)
def test_the_estimate_is_put_right_by_what_the_engine_counted(usage: Usage, is_tried: bool, expected: int) -> None:
    limited = account(tokens_per_minute=1000)
    dues = Dues(limited, lambda: 0.0)
    dues.enter()
    dues.charge(route(tokens=400))
    assert left(limited) == 600
    dues.leave(usage, is_tried=is_tried)
    assert left(limited) == expected
    assert limited.in_flight == 0


def test_one_too_many_is_not_counted_and_so_does_not_leave() -> None:
    limited = account(max_in_flight=1)
    Dues(limited, lambda: 0.0).enter()
    refused = Dues(limited, lambda: 0.0)
    with pytest.raises(RefusedError, match="max_in_flight"):
        refused.enter()
    refused.leave(Usage(), is_tried=False)
    assert limited.in_flight == 1


def test_what_it_cannot_be_charged_with_is_not_taken() -> None:
    limited = account(tokens_per_minute=1000)
    first, second = Dues(limited, lambda: 0.0), Dues(limited, lambda: 0.0)
    first.enter()
    first.charge(route(tokens=800))
    second.enter()
    with pytest.raises(RefusedError, match="tokens a minute"):
        second.charge(route(tokens=300))
    second.leave(Usage(), is_tried=False)
    assert left(limited) == 200
    assert limited.in_flight == 1
