"""A caller's own limits: what is counted, what is given back, and what it is told."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.admission.rates import Accounts, CallerAccount, CallerLimits
from gateway.wire.limits import Allowance


def account(**limits: int) -> CallerAccount:
    return CallerAccount("ann", CallerLimits(**limits), now_s=0.0)


def test_so_many_requests_a_minute_and_then_one_each_sixtieth() -> None:
    ann = account(requests_per_minute=3)
    assert [ann.enter(0.0) for _ in range(3)] == [None, None, None]
    fault = ann.enter(0.0)
    assert fault is not None
    assert (fault.status, fault.code, fault.retry_after_s) == (429, "rate_limit_exceeded", 20)
    assert fault.message == "'ann' is over its limit of 3 requests a minute; try again in 20 s"
    assert ann.enter(19.0) is not None
    assert ann.enter(20.0) is None


def test_so_many_at_once() -> None:
    ann = account(max_in_flight=2)
    assert [ann.enter(0.0), ann.enter(0.0)] == [None, None]
    fault = ann.enter(0.0)
    assert fault is not None
    assert fault.message == "'ann' has 2 requests in flight, its limit is 2 (max_in_flight)"
    ann.leave(0, 0, 1.0)
    assert ann.enter(1.0) is None


def test_tokens_are_taken_by_estimate_and_put_right_by_the_engines_count() -> None:
    ann = account(tokens_per_minute=600)
    assert ann.enter(0.0) is None
    assert ann.charge(500, 0.0) is None
    fault = ann.charge(200, 0.0)  # 100 are left; 100 more take 10 s
    assert fault is not None
    assert fault.retry_after_s == 10
    ann.leave(500, 50, 0.0)  # 450 come back
    assert ann.allowances(0.0) == [Allowance("tokens", 600, 550, 5.0)]


def test_a_request_larger_than_the_minute_comes_in_when_that_is_full_and_leaves_a_debt() -> None:
    ann = account(tokens_per_minute=60)
    assert ann.charge(180, 0.0) is None
    assert ann.allowances(0.0) == [Allowance("tokens", 60, 0, 180.0)]
    fault = ann.charge(1, 0.0)
    assert fault is not None
    assert fault.retry_after_s == 121


def test_what_is_refused_is_not_counted() -> None:
    ann = account(requests_per_minute=1, max_in_flight=5)
    ann.enter(0.0)
    ann.enter(0.0)
    assert ann.in_flight == 1
    assert ann.allowances(30.0) == [Allowance("requests", 1, 0, 30.0)]


def test_a_reload_changes_the_limits_and_keeps_the_counts() -> None:
    accounts = Accounts({"ann": CallerLimits(requests_per_minute=10)}, 0.0)
    ann = accounts.of("ann")
    assert ann is not None
    for _ in range(4):
        ann.enter(0.0)
    accounts.use({"ann": CallerLimits(requests_per_minute=5), "bob": CallerLimits(max_in_flight=1)}, 0.0)
    assert accounts.of("ann") is ann
    assert ann.allowances(0.0) == [Allowance("requests", 5, 1, 48.0)]
    accounts.use({}, 0.0)
    assert accounts.of("ann") is None


class AnyUse(RuleBasedStateMachine):
    """Requests come and end in any order, with any count of tokens: nothing is lost and nothing gained."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.ann = account(requests_per_minute=60, tokens_per_minute=6000, max_in_flight=4)
        self.there: list[int] = []
        self.used = 0

    @rule(seconds=st.integers(0, 30))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(tokens=st.integers(0, 8000))
    def come(self, tokens: int) -> None:
        if self.ann.enter(self.now_s) is not None:
            return
        if self.ann.charge(tokens, self.now_s) is None:
            self.there.append(tokens)
        else:
            self.ann.leave(0, 0, self.now_s)

    @precondition(lambda self: self.there)
    @rule(used=st.integers(0, 8000))
    def end(self, used: int) -> None:
        self.ann.leave(self.there.pop(0), used, self.now_s)

    @invariant()
    def counts(self) -> None:
        assert self.ann.in_flight == len(self.there) <= 4
        for has in self.ann.allowances(self.now_s):
            assert 0 <= has.remaining <= has.limit
            assert has.reset_s >= 0


TestAnyUse = AnyUse.TestCase
