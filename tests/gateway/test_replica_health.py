"""Replicas and their pool: who is in, who is tried when nobody is, and that no trial is ever lost."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prometheus_client import CollectorRegistry, generate_latest

from gateway.breaker import BreakerConfig, FailureKind
from gateway.config import Health, Hedge, Remote, Step, Timeouts
from gateway.errors import RefusedError
from gateway.health_metrics import ReplicaHealth
from gateway.replica import ModelCard, Pool, Replica, State
from gateway.retry_budget import RetryBudgetConfig
from gateway.routing import Pick
from gateway.routing.policies import least_work
from gateway.upstream import Upstream
from tests.gateway.placing import placed, route
from tests.gateway.test_breaker import Clock

BREAKER = BreakerConfig(jitter=0.0, slow_start_s=10.0)


def _pool(clock: Clock, replicas: int = 2, **changes: object) -> Pool:
    health = Health(breaker=BREAKER, **changes)  # type: ignore[arg-type]  # the fields' own names
    pool = Pool(Upstream(Timeouts()), health=health, clock=clock)
    for i in range(replicas):
        pool.add(Replica(f"r{i}", f"http://r{i}", (ModelCard("m"),), state="ready"))
    return pool


def _names(pool: Pool) -> list[str]:
    return [replica.name for replica in pool.candidates("m")]


def _break(replica: Replica, kind: FailureKind = "error", times: int = 5) -> None:
    for _ in range(times):
        replica.failed(kind)


# Out and in again
def test_one_with_an_open_breaker_is_left_out_and_comes_back_for_trials() -> None:
    clock = Clock()
    pool = _pool(clock)
    first = pool.replicas[0]
    _break(first)
    assert (_names(pool), first.state) == (["r1"], "ready")
    clock.now_s += 5
    assert _names(pool) == ["r0", "r1"]
    trials = [placed(first, 1) for _ in range(BREAKER.trials)]
    assert _names(pool) == ["r1"]
    trials.pop().release()  # the client left: the trial is free again
    assert _names(pool) == ["r0", "r1"]
    first.succeeded(0.1)
    assert (first.breaker.state, first.share) == ("closed", 0.1)
    for trial in trials:
        trial.release()
    assert first.breaker.trials == 0


def test_a_failed_trial_shuts_it_out_again() -> None:
    clock = Clock()
    pool = _pool(clock)
    first = pool.replicas[0]
    _break(first)
    clock.now_s += 5
    assert _names(pool) == ["r0", "r1"]
    trial = placed(first, 1)
    trial.release()
    first.failed("error")
    assert _names(pool) == ["r1"]
    clock.now_s += 9.9
    assert _names(pool) == ["r1"]
    clock.now_s += 0.1
    assert _names(pool) == ["r0", "r1"]


@pytest.mark.parametrize("kind", ["connect", "broken"])
def test_one_broken_connection_is_enough_until_a_probe_says_otherwise(kind: FailureKind) -> None:
    pool = _pool(Clock())
    first = pool.replicas[0]
    first.failed(kind)
    assert (_names(pool), first.state, first.breaker.state) == (["r1"], "unhealthy", "closed")
    first.state = "ready"  # the probe
    assert (_names(pool), first.share) == (["r0", "r1"], 1.0)


def test_a_good_probe_does_not_overrule_the_breaker() -> None:
    pool = _pool(Clock())
    first = pool.replicas[0]
    for _ in range(5):
        first.failed("broken")
        first.state = "ready"  # its /health is fine every time
    assert _names(pool) == ["r1"]


def test_a_new_process_starts_with_a_clean_record_and_slowly() -> None:
    clock = Clock()
    pool = _pool(clock)
    first = pool.replicas[0]
    _break(first, "broken")
    first.state = "unhealthy"  # probes agree: nobody is there
    first.state = "ready"
    assert _names(pool) == ["r0", "r1"]
    assert (first.breaker.state, first.share) == ("closed", 0.1)
    clock.now_s += 5
    pool.candidates("m")
    assert first.share == 0.5
    clock.now_s += 5
    pool.candidates("m")
    assert first.share == 1.0


def test_a_full_or_refusing_engine_is_not_held_back() -> None:
    pool = _pool(Clock())
    for _ in range(100):
        placed(pool.replicas[0], 10).release()  # answered 503 or 400: nothing is said of it
    assert _names(pool) == ["r0", "r1"]


# Nobody left
def test_when_all_are_out_all_that_may_be_there_are_tried() -> None:
    pool = _pool(Clock(), 4)
    broken, suspect, dead, draining = pool.replicas
    _break(broken)
    assert not pool.is_panicking("m")
    suspect.failed("connect")
    dead.state, draining.state = "unhealthy", "draining"
    assert _names(pool) == ["r0", "r1"]
    assert pool.is_panicking("m")
    assert pool.unready_models() == []


def test_the_only_replica_is_never_shut_out_by_its_requests() -> None:
    pool = _pool(Clock(), 1)
    _break(pool.replicas[0], times=50)
    assert _names(pool) == ["r0"]
    placed(pool.replicas[0], 1)
    pool.replicas[0].succeeded(0.1)
    assert pool.replicas[0].breaker.state == "closed"
    assert not pool.is_panicking("m")


def test_when_probes_found_nobody_there_is_a_refusal() -> None:
    pool = _pool(Clock(), 1)
    pool.replicas[0].failed("connect")
    pool.replicas[0].state = "unhealthy"
    with pytest.raises(RefusedError) as refused:
        pool.candidates("m")
    assert (refused.value.fault.status, refused.value.fault.code) == (503, "not_ready")
    assert not pool.is_panicking("m")


# Compared with its peers
def test_the_slow_one_of_four_is_taken_out() -> None:
    pool = _pool(Clock(), 4)
    for replica, ttft_s in zip(pool.replicas, (0.2, 0.3, 5.0, 0.2), strict=True):
        for _ in range(20):
            replica.succeeded(ttft_s)
    pool.sweep()
    assert _names(pool) == ["r0", "r1", "r3"]
    assert pool.replicas[2].breaker.ejections == {"outlier_ttft": 1}


def test_one_that_fails_a_quarter_of_the_time_among_those_that_never_do() -> None:
    pool = _pool(Clock(), 3)
    for replica in pool.replicas:
        for i in range(20):
            if replica.name == "r1" and i % 4 == 3:
                replica.failed("error")
            else:
                replica.succeeded(None)
    pool.sweep()
    assert _names(pool) == ["r0", "r2"]
    assert pool.replicas[1].breaker.ejections == {"outlier_errors": 1}


# Who gets the next request
def test_a_starting_replica_takes_its_share_of_the_work() -> None:
    clock = Clock()
    pool = _pool(clock)
    pool.replicas[0].state = "starting"
    pool.replicas[0].state = "ready"
    clock.now_s += 2.5  # share 0.25
    for _ in range(100):
        placed(least_work(route(), pool.candidates("m")), 1000)
    assert [replica.picks for replica in pool.replicas] == [20, 80]


def test_one_that_comes_back_does_not_catch_up_on_the_turns_it_missed() -> None:
    pool = _pool(Clock())
    pool.replicas[0].state = "unhealthy"
    for _ in range(100):
        placed(least_work(route(), pool.candidates("m")), 0).release()
    pool.replicas[0].state = "ready"
    for _ in range(11):
        placed(least_work(route(), pool.candidates("m")), 0).release()
    assert pool.replicas[0].picks == 1  # share 0.1


# Retries
@pytest.mark.parametrize(("kind", "needed"), [("broken", 1), ("error", 5)])  # to take it out
def test_what_was_in_flight_on_a_replica_that_went_away_may_be_sent_again(kind: FailureKind, needed: int) -> None:
    pool = _pool(Clock(), retry_budget=RetryBudgetConfig(burst=needed - 1, floor_per_s=0))
    places = [placed(pool.replicas[0], 1) for _ in range(30)]
    allowed = 0
    for place in places:  # as the relay does it
        pool.replicas[0].failed(kind)
        place.release()
        allowed += pool.retry_budget.take()
    assert allowed == 30
    assert not pool.retry_budget.take()


# Elsewhere
def test_a_remote_is_a_stand_in_and_nothing_else() -> None:
    clock = Clock()
    pool = _pool(clock, 1)
    remote = Replica("far", "https://far.example/v1", api_key="k", state="ready", kind="remote")
    pool.add(remote)
    assert _names(pool) == ["r0"]
    assert pool.replicas == (pool.replicas[0],)
    assert [card.name for card in pool.cards()] == ["m"]


def test_a_remote_is_in_until_its_breaker_opens() -> None:
    clock = Clock()
    pool = _pool(clock, 1)
    remote = Replica("far", "https://far.example/v1", api_key="k", state="ready", kind="remote")
    pool.add(remote)
    step = Step("far", Remote("far", "https://far.example/v1", "m"))
    assert pool.stand_ins(step) == (remote,)
    _break(remote, "connect", 4)
    assert pool.stand_ins(step) == (remote,)  # there is no probe that would bring it back
    _break(remote, "connect", 1)
    assert pool.stand_ins(step) == ()
    clock.now_s += 5
    assert pool.stand_ins(step) == (remote,)


def test_another_model_stands_in_when_it_has_a_replica_that_is_in() -> None:
    pool = _pool(Clock(), 1)
    pool.add(Replica("o", "http://o", (ModelCard("other"),), state="ready"))
    assert [replica.name for replica in pool.stand_ins(Step("other"))] == ["o"]
    pool.replicas[1].failed("connect")
    assert pool.stand_ins(Step("other")) == ()
    assert pool.stand_ins(Step("unknown")) == ()


def test_hedging_waits_for_the_recent_first_tokens_of_all_replicas_of_the_model() -> None:
    pool = _pool(Clock())
    for i in range(1, 101):
        pool.replicas[i % 2].succeeded(i / 100)
    assert pool.hedge_after_s("m", Hedge(quantile=0.9)) == 0.9
    pool.replicas[0].succeeded(99.0)
    assert pool.hedge_after_s("m", Hedge(quantile=0.9)) == 0.9  # until the next sweep
    pool.sweep()
    assert pool.hedge_after_s("m", Hedge(quantile=0.9)) == 0.91


# Shown
def test_what_prometheus_is_told() -> None:
    pool = _pool(Clock())
    _break(pool.replicas[0])
    registry = CollectorRegistry()
    registry.register(ReplicaHealth(pool))
    page = generate_latest(registry).decode()
    assert 'berth_replica_breaker_state{replica="r0",state="open"} 1.0' in page
    assert 'berth_replica_breaker_state{replica="r0",state="closed"} 0.0' in page
    assert 'berth_replica_share{replica="r0"} 0.1' in page
    assert 'berth_replica_share{replica="r1"} 1.0' in page
    assert 'berth_replica_ejections_total{reason="consecutive",replica="r0"} 1.0' in page


# All of it
class Fleet(RuleBasedStateMachine):
    """Requests come, end in any way and in any order, while time goes by and processes come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.pool = _pool(self.clock, 3)
        self.places: list[Pick[Replica]] = []

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule(place=st.integers(0, 2), state=st.sampled_from(["starting", "ready", "unhealthy", "draining"]))
    def change(self, place: int, state: State) -> None:
        self.pool.replicas[place].state = state

    @rule()
    def probes(self) -> None:
        self.pool.refresh()
        self.pool.sweep()

    @rule()
    def request(self) -> None:
        self.pool.retry_budget.requested()
        there = [r for r in self.pool.replicas if r.state == "ready" or r.is_suspect]
        if not there:
            with pytest.raises(RefusedError):
                self.pool.candidates("m")
            return
        candidates = self.pool.candidates("m")
        assert set(candidates) == set([r for r in there if r.is_in] or there)
        self.places.append(placed(least_work(route(), candidates), 10))

    @precondition(lambda self: self.places)
    @rule(
        data=st.data(), end=st.sampled_from(["ok", "gone", "full", "error", "broken", "connect"]), ttft=st.floats(0, 9)
    )
    def finish(self, data: st.DataObject, end: str, ttft: float) -> None:
        place = self.places.pop(data.draw(st.integers(0, len(self.places) - 1)))
        if end == "ok":
            place.load.succeeded(ttft)
        place.release()
        if end in ("error", "broken", "connect"):
            place.load.failed(end)  # type: ignore[arg-type]  # narrowed by the test above
            self.pool.retry_budget.take()

    @invariant()
    def nothing_leaks(self) -> None:
        for replica in self.pool.replicas:
            mine = [place for place in self.places if place.load is replica]
            assert replica.in_flight == len(mine)
            assert replica.breaker.trials == sum(place.is_trial for place in mine)
            assert 0 < replica.share <= 1
            assert replica.is_in == replica.may_be_in
        assert self.pool.retry_budget.balance >= 0

    def teardown(self) -> None:
        for place in self.places:
            place.release()
        assert all(replica.breaker.trials == replica.in_flight == 0 for replica in self.pool.replicas)


Fleet.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestFleet = Fleet.TestCase


@given(st.lists(st.lists(st.floats(0, 100) | st.none(), min_size=0, max_size=40), min_size=1, max_size=6))
def test_a_sweep_never_takes_out_all(answers: list[list[float | None]]) -> None:
    pool = _pool(Clock(), len(answers))
    for replica, ttfts in zip(pool.replicas, answers, strict=True):
        for ttft_s in itertools.islice(itertools.cycle(ttfts), 40 if ttfts else 0):
            replica.succeeded(ttft_s) if ttft_s is not None else replica.failed("error")
    own = sum(not replica.is_in for replica in pool.replicas)
    pool.sweep()
    out = sum(not replica.is_in for replica in pool.replicas)
    assert out == own or out <= len(answers) // 2
