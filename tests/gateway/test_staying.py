"""When a request stays with the replica that holds its prefix, and when not. 8,000 tokens a second everywhere."""

from itertools import count

import pytest

from gateway.routing import POLICIES, Chain, Load, Route, Router

PREFIX = POLICIES["prefix"]
FRESH = count(10_000)


def ready(replicas: int = 2) -> tuple[Router[Load], list[Load]]:
    loads = [Load(f"replica-{at}", 1_000_000) for at in range(replicas)]
    router: Router[Load] = Router(PREFIX)
    for load in loads:
        router.add(load)
    return router, loads


def asked(known: int, own: int) -> Route:
    """`known` tokens that all such prompts begin with, and `own` ones, in blocks of 1,000."""
    hashes = list(range(known // 1000)) + [next(FRESH) for _ in range(own // 1000)]
    return Route(Chain(tuple(hashes), tuple(range(1000, known + own + 1, 1000)), known + own), known + own, 0)


def held_by(router: Router[Load], load: Load, tokens: int, requests_ago: int) -> None:
    """The replica has answered a prompt of so many tokens, and the fleet others since."""
    for route in (asked(tokens, 0), *(asked(0, 1000) for _ in range(requests_ago - 1))):
        router.look(route)
        pick = router.place(route, load)
        pick.first_token(0.1)
        pick.release()


@pytest.mark.parametrize(("ahead", "stays"), [(94_000, True), (95_000, False)])
def test_a_known_prefix_is_worth_a_wait_of_twelve_times_its_own_computation(ahead: int, stays: bool) -> None:
    router, (holder, other) = ready()
    held_by(router, holder, 8000, requests_ago=9)
    holder.ahead_tokens = ahead
    # 10,000 + 12 x 8,000 tokens there against 1.1 x (ahead + 2,000) + 16 here
    assert router.pick(asked(8000, 2000), [holder, other]).load is (holder if stays else other)


@pytest.mark.parametrize(("ahead", "stays"), [(22_000, True), (23_000, False)])
def test_and_a_quarter_of_it_is_worth_a_quarter(ahead: int, stays: bool) -> None:
    router, (holder, other) = ready()
    held_by(router, holder, 2000, requests_ago=9)
    holder.ahead_tokens = ahead
    # 10,000 + 12 x 2,000 tokens there against 1.1 x (ahead + 8,000) + 16 here
    assert router.pick(asked(2000, 8000), [holder, other]).load is (holder if stays else other)


@pytest.mark.parametrize(("ahead", "stays"), [(8_400, True), (8_500, False)])
def test_a_prefix_that_everybody_asks_for_spreads_as_soon_as_that_is_hardly_slower(ahead: int, stays: bool) -> None:
    router, (holder, other) = ready()
    held_by(router, holder, 8000, requests_ago=1)
    holder.ahead_tokens = ahead
    # 10,000 + 12 / 64 x 8,000 tokens there against 1.1 x (ahead + 2,000) + 16 here
    assert router.pick(asked(8000, 2000), [holder, other]).load is (holder if stays else other)


def test_of_several_holders_the_one_with_the_shortest_wait() -> None:
    router, loads = ready(3)
    for load in loads[:2]:
        held_by(router, load, 8000, requests_ago=9)
    loads[0].ahead_tokens = 9000
    loads[1].ahead_tokens = 6000
    assert router.pick(asked(8000, 2000), loads).load is loads[1]


def test_what_requests_hold_of_the_kv_cache_counts_a_thirty_second() -> None:
    load = Load("replica")
    load.take(10_000, 32_000, 640)
    assert load.ahead_tokens == 10_000 + 640 / 2 + 32_640 / 32
    load.prefilled(10_000, 1.0)
    assert load.ahead_tokens == 640 / 2 + 32_640 / 32
    load.give_back(10_000, 32_000, 640, is_trial=False)
    assert load.ahead_tokens == 0


def test_and_an_eighth_more_where_the_kv_cache_is_full() -> None:
    """Half of it is held: a sixteenth more of 32,000; all of it, and twice of it: an eighth of what is held."""
    load = Load("replica", kv_capacity_tokens=64_000)
    load.take(0, 32_000, 0)
    assert load.ahead_tokens == 32_000 / 32 + 32_000 / 16
    load.take(0, 32_000, 0)
    assert load.ahead_tokens == 64_000 / 32 + 64_000 / 8
    load.take(0, 64_000, 0)
    assert load.ahead_tokens == 128_000 / 32 + 128_000 / 8
    for tokens in (32_000, 32_000, 64_000):
        load.prefilled(0, None)
        load.give_back(0, tokens, 0, is_trial=False)
    assert load.ahead_tokens == 0


def test_what_several_hold_is_held_once() -> None:
    """Of 8,000 tokens of a cache for 64,000 that were used only now, 2,000 are the request's own."""
    router, (holder, _) = ready()
    holder.kv_capacity_tokens = 64_000
    for requests_ago, held in ((1, 2_000), (9, 10_000)):
        held_by(router, holder, 8000, requests_ago=requests_ago)
        pick = router.pick(asked(8000, 2000), [holder])
        assert (holder.kv_tokens, holder.shared_tokens) == (10_000, 10_000 - held)
        assert holder.ahead_tokens == pick.uncached_tokens + 10_000 / 32 + 10_000 / 8 * held / 64_000
        pick.release()
        assert (holder.kv_tokens, holder.shared_tokens, holder.ahead_tokens) == (0, 0, 0)
