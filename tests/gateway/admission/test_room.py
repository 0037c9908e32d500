"""What fits on a replica, by its three bounds, and where these come from."""

from dataclasses import dataclass

import pytest

from gateway.admission.room import NO_BOUND, Room, strictest, with_room
from gateway.config import Slo
from gateway.routing import CUTS, Chain, Route


@dataclass
class Replica:
    """One, as it is counted."""

    slot: int = 0
    in_flight: int = 0
    kv_tokens: int = 0
    output_tokens: int = 0
    queued_tokens: int = 0
    kv_capacity_tokens: int | None = None
    s_per_token: float = 0.001
    is_closed: bool = False
    most_in_flight: float = NO_BOUND
    kv_budget_tokens: float = NO_BOUND
    queued_budget_tokens: float = NO_BOUND


def fits(replica: Replica, prompt_tokens: int, output_tokens: int = 0, cached_tokens: int = 0) -> bool:
    route = Route(Chain((), CUTS, 0), prompt_tokens, output_tokens)
    route.cached_tokens = {replica.slot: cached_tokens}
    return with_room([replica], route) == [replica]


def test_a_request_fits_while_its_prompt_and_likely_output_do() -> None:
    replica = Replica(in_flight=3, kv_tokens=800, kv_budget_tokens=1000)
    assert fits(replica, 150, 50)
    assert not fits(replica, 150, 51)


def test_an_idle_replica_takes_whatever_comes() -> None:
    assert fits(Replica(kv_budget_tokens=1000), 5000)
    assert not fits(Replica(in_flight=1, kv_budget_tokens=1000), 5000)


def test_one_that_is_asleep_takes_nothing() -> None:
    replica = Replica()
    room = Room(replica)
    room.is_asleep = True
    room.bound(None)
    assert not fits(replica, 1)


def test_as_many_at_once_as_the_engine_runs() -> None:
    replica = Replica(in_flight=15)
    Room(replica, max_num_seqs=16).bound(None)
    assert fits(replica, 1)
    replica.in_flight = 16
    assert not fits(replica, 1)


def test_prompts_ahead_may_take_half_of_the_promised_time() -> None:
    replica = Replica(in_flight=1, queued_tokens=300, s_per_token=0.001)
    Room(replica).bound(Slo(ttft_s=1.0))
    assert fits(replica, 200)
    assert not fits(replica, 201)
    assert fits(replica, 1000, cached_tokens=800)  # what it has already takes no time
    replica.queued_tokens = 0  # its own prompt alone is nobody's wait
    assert fits(replica, 5000)


def test_the_budget_is_what_the_engine_has_less_a_twentieth() -> None:
    replica = Replica(kv_capacity_tokens=1000)
    Room(replica).bound(None)
    assert replica.kv_budget_tokens == pytest.approx(950)


def test_a_shared_prefix_that_is_kept_once_makes_room() -> None:
    replica = Replica(in_flight=10, kv_tokens=1000, output_tokens=200, kv_capacity_tokens=1000)
    room = Room(replica)
    for _ in range(50):
        room.saw_usage(0.45)  # 450 in use where 900 were expected: half of it is shared
    room.bound(None)
    assert replica.kv_budget_tokens == pytest.approx(1900, rel=0.01)
    assert room.used_tokens == 450


def test_a_nearly_empty_engine_says_nothing_of_sharing() -> None:
    replica = Replica(in_flight=1, kv_tokens=50, kv_capacity_tokens=1000)
    room = Room(replica)
    room.saw_usage(0.5)
    room.bound(None)
    assert replica.kv_budget_tokens == pytest.approx(950)


def test_an_slo_bounds_how_many_are_there_at_once() -> None:
    replica = Replica()
    room = Room(replica, max_num_seqs=64)
    for _ in range(20):
        room.learn(0.0, 10, None, 0.020)
    room.bound(Slo(tpot_s=0.025))
    assert replica.most_in_flight == 15
    room.bound(None)
    assert replica.most_in_flight == 64


def test_headroom_is_the_tightest_of_the_three() -> None:
    replica = Replica(in_flight=2, kv_tokens=400, kv_budget_tokens=1000, most_in_flight=10)
    room = Room(replica)
    assert room.headroom(tokens=100, prompt_tokens=50) == 6
    assert room.headroom(tokens=10, prompt_tokens=5) == 8
    replica.in_flight = 11
    assert room.headroom(tokens=10, prompt_tokens=5) == 0
    assert Room(Replica()).headroom(10, 5) == NO_BOUND


def test_the_strictest_of_several_slos_keeps_all_of_them() -> None:
    assert strictest([Slo(1.0, None), Slo(2.0, 0.05), Slo(None, 0.1)]) == Slo(1.0, 0.05)
    assert strictest([]) is None
