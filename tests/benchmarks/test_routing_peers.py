"""What other routers' rules say, in cases small enough to follow; and the oracles."""

import pytest

from benchmarks.routing.cards import Card
from benchmarks.routing.demand import Request
from benchmarks.routing.engine import Engine, Job
from benchmarks.routing.oracles import Clairvoyant, hit_rate
from benchmarks.routing.ours import ours
from benchmarks.routing.peers import CacheAware, Dynamo, LlmD, LlmDAffinity, PowerOfTwo, Smg
from benchmarks.routing.simulation import Balancer, Clock, Scene
from gateway.routing import POLICIES

CARD = Card("round numbers", 0.01, 0.001, 0.0, 0.0, 0.0, 100_000, "this test")


def scene(replicas: int = 2) -> Scene:
    return Scene([Engine(CARD, 10) for _ in range(replicas)], Clock(), 20, 10, seed=1)


def asked(number: int, *blocks: int) -> Job:
    return Job(Request(0.0, 10 * len(blocks), 1, blocks), 0.0, number)


def place(balancer: Balancer, job: Job) -> int:
    job.engine = balancer.place(job)
    return job.engine


@pytest.mark.parametrize("make", [CacheAware, Smg, LlmD, LlmDAffinity, Clairvoyant, ours(POLICIES["prefix"])])
def test_all_that_know_prefixes_send_the_same_prompt_to_the_same_replica(make: type[CacheAware]) -> None:
    balancer = make(scene())
    found = set()
    for number in range(3):
        job = asked(number, *range(1, 400))
        found.add(place(balancer, job))
        balancer.first_token(job)
    assert len(found) == 1


def test_sglang_sends_a_miss_to_the_smallest_tree_even_where_the_queue_is_longest() -> None:
    balancer = CacheAware(scene())
    assert place(balancer, asked(1, 1, 2, 3, 4)) == 0
    assert [place(balancer, asked(number, 10 * number)) for number in (2, 3, 4)] == [1, 1, 1]


def test_smg_sends_a_miss_to_the_fewest_in_flight() -> None:
    balancer = Smg(scene())
    assert place(balancer, asked(1, 1, 2, 3, 4)) == 0
    assert [place(balancer, asked(number, 10 * number)) for number in (2, 3, 4)] == [1, 0, 1]


def test_cache_aware_leaves_affinity_when_counts_are_more_than_64_apart() -> None:
    balancer = CacheAware(scene())
    found = [place(balancer, asked(number, 1, 2, 3)) for number in range(67)]
    assert found == [0] * 65 + [1, 1]  # 65 against 0 is more than 64 apart; then both have it, and 1 had it last


def test_smg_spills_one_request_above_the_mean_by_half_and_64() -> None:
    balancer = Smg(scene(4))
    found = [place(balancer, asked(number, 1, 2, 3)) for number in range(88)]
    assert found[:86] == [0] * 86  # 86 / 4 is 21.5: at 86, 64.5 above the mean, the next one goes elsewhere
    assert found[86] == 1


def test_llm_d_weighs_prefix_3_queue_2_cache_2() -> None:
    here = scene()
    balancer = LlmD(here)
    first = place(balancer, asked(1, 1, 2, 3, 4))
    here.clock.now_s = 1.0
    for number in range(3):
        here.engines[first].waiting.append(asked(100 + number, 1))
    assert place(balancer, asked(2, 1, 2, 3, 4)) == first  # 3 + 0 + 2 against 0 + 2 + 2
    assert place(balancer, asked(3, 1, 2, 30, 40)) != first  # 1.5 + 0 + 2 against the same


def test_llm_ds_filter_lets_only_holders_compete() -> None:
    here = scene()
    balancer = LlmDAffinity(here)
    first = place(balancer, asked(1, 1, 2, 3, 4, 5))
    here.clock.now_s = 1.0
    here.engines[first].blocks.used = here.engines[first].blocks.capacity
    here.engines[first].waiting.append(asked(100, 1))
    assert place(balancer, asked(2, 1, 2, 3, 4, 50)) == first  # 0.8 of it; 2.4 + 0 + 0 would lose against 0 + 2 + 2


def test_dynamo_counts_blocks_to_compute_and_blocks_in_flight() -> None:
    balancer = Dynamo(scene())
    assert place(balancer, asked(1, 1, 2, 3)) == 0
    assert place(balancer, asked(2, 9)) == 1  # 4 + 2 + 4 + 2 against 2 + 2
    assert place(balancer, asked(3, 9)) == 1  # as many here as there: 12 against 2 + 2 + 2 + 2


def test_power_of_two_takes_the_shorter_queue() -> None:
    balancer = PowerOfTwo(scene())
    found = [place(balancer, asked(number, number)) for number in range(10)]
    assert found.count(0) == found.count(1) == 5


def test_the_endless_cache_has_every_prefix_that_was_asked_before() -> None:
    requests = [Request(0.0, 35, 1, (1, 2, 3)), Request(1.0, 45, 1, (1, 2, 3, 9)), Request(2.0, 20, 1, (1, 2))]
    assert hit_rate(requests, 10) == pytest.approx((0 + 30 + 10) / 100)  # of an equal prompt not the last block


def test_a_cache_with_room_for_one_prompt_has_only_the_latest() -> None:
    one, other = Request(0.0, 35, 1, (1, 2, 3)), Request(1.0, 35, 1, (7, 8, 9))
    assert hit_rate([one, other, one], 10) == pytest.approx(30 / 105)
    assert hit_rate([one, other, one], 10, capacity_tokens=40) == 0.0


def test_the_clairvoyant_waits_for_a_prefix_only_while_that_is_shorter() -> None:
    balancer = Clairvoyant(scene())
    prefix = tuple(range(1, 41))
    for number, blocks in enumerate(((1, 2), prefix, (*prefix, 90))):
        place(balancer, asked(number, *blocks))
    long = asked(9, *prefix, *range(200, 400))
    # 20 tokens wait at the first, 400 and 10 at the second: 2,400 - 400 of its own there are less than 2,400 - 20 here
    assert place(balancer, long) == 1
    assert place(balancer, asked(10, 500)) == 0
