"""A simulated engine with round numbers: 10 ms a step, 1 ms a prompt token, 100 tokens a step, blocks of 10."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.routing.blocks import Blocks
from benchmarks.routing.cards import Card
from benchmarks.routing.demand import Demand, Request
from benchmarks.routing.engine import Job
from benchmarks.routing.simulation import Fleet, Outcome, Scene, simulate
from tests.benchmarks.making import patiently

CARD = Card("round numbers", 0.01, 0.001, 0.0, 0.0, 0.0, 1000, "this test", max_num_batched_tokens=100, max_num_seqs=2)


class _First:
    """Everything to the first replica."""

    def __init__(self, scene: Scene) -> None:
        pass

    def place(self, job: Job) -> int:
        return 0

    def first_token(self, job: Job) -> None:
        pass

    def finished(self, job: Job) -> None:
        pass


def run(requests: Sequence[Request], card: Card = CARD, fleet: Fleet | None = None) -> Outcome:
    return simulate(Demand(requests, 10, ""), fleet or Fleet(card, 1), _First, 1)


def prompt(at_s: float, tokens: int, output: int, first_block: int) -> Request:
    return Request(at_s, tokens, output, tuple(range(first_block, first_block + tokens // 10)))


def test_a_prompt_takes_its_steps_and_each_further_token_one_more() -> None:
    found = run([prompt(0.0, 50, 3, 1)])
    assert found.ttft_s == pytest.approx([0.010 + 0.050])
    assert found.e2e_s == pytest.approx([0.060 + 2 * 0.010])


def test_a_long_prompt_is_computed_in_chunks() -> None:
    assert run([prompt(0.0, 150, 1, 1)]).ttft_s == pytest.approx([(0.010 + 0.100) + (0.010 + 0.050)])


def test_a_request_joins_at_the_end_of_the_step_that_runs_and_lengthens_the_next_one() -> None:
    found = run([prompt(0.0, 50, 101, 1), prompt(0.065, 50, 1, 100)])
    assert found.ttft_s == pytest.approx([0.060, 0.070 - 0.065 + 0.060])
    assert max(found.e2e_s) == pytest.approx(0.060 + 99 * 0.010 + 0.060)


def test_max_num_seqs_makes_the_third_wait_for_the_first_to_end() -> None:
    found = run([prompt(0.0, 10, 11, 1), prompt(0.0, 10, 31, 20), prompt(0.0, 10, 1, 40)])
    first_ends_s = (0.010 + 0.010) + (0.010 + 0.010) + 9 * 0.010  # the second came after the first step had begun
    assert found.ttft_s[2] == pytest.approx(first_ends_s + 0.020)


def test_a_full_kv_cache_makes_the_next_wait_although_there_is_a_place() -> None:
    found = run([prompt(0.0, 600, 10, 1), prompt(0.5, 500, 1, 100)])
    first_ends_s = 6 * (0.010 + 0.100) + 9 * 0.010
    assert found.ttft_s[1] == pytest.approx(first_ends_s - 0.5 + 5 * 0.110)


def test_a_cached_prefix_is_not_computed_again_but_for_the_last_block_of_an_equal_prompt() -> None:
    found = run([prompt(0.0, 50, 1, 1), prompt(1.0, 50, 1, 1)])
    assert found.cached_tokens == 40
    assert found.ttft_s == pytest.approx([0.060, 0.010 + 0.010])


def test_an_answer_stays_for_the_turn_that_quotes_it() -> None:
    second = Request(2.0, 80, 1, (1, 2, 3, 4, 5, 6, 7, 8))
    found = run([Request(0.0, 50, 20, (1, 2, 3, 4, 5), answer=(6, 7), then=second)])
    assert found.cached_tokens == 70


def test_a_restart_forgets_what_is_idle_and_what_is_held() -> None:
    idle, held, again = (
        prompt(0.0, 50, 1, 1),
        prompt(1.0, 50, 101, 100),
        [prompt(3.0, 50, 1, 1), prompt(3.0, 50, 1, 100)],
    )
    assert run([idle, held, *again]).cached_tokens == 40 + 40
    assert run([idle, held, *again], fleet=Fleet(CARD, 1, restarts=((1.5, 0),))).cached_tokens == 0


def test_a_slow_replica_takes_twice_as_long() -> None:
    found = run([prompt(0.0, 50, 3, 1)], fleet=Fleet(CARD, 1, slow=1))
    assert found.e2e_s == pytest.approx([2 * 0.080])


def test_decodes_read_their_growing_contexts() -> None:
    card = Card("contexts", 0.01, 0.001, 0.0, 0.002, 1e-4, 1000, "this test")
    found = run([prompt(0.0, 50, 4, 1)], card)  # contexts of 51, 52 and 53 tokens
    assert found.e2e_s == pytest.approx([0.060 + 3 * 0.012 + (51 + 52 + 53) * 1e-4])


def test_blocks_evict_the_end_of_the_oldest_prompt_first() -> None:
    cache = Blocks(5)
    for chain in ((1, 2, 3), (7, 8)):
        found = cache.take(chain, 0, 99)
        assert found is not None
        cache.give_back(found[1])
    assert cache.take((9,), 0, 99) is not None
    assert (cache.match((1, 2, 3)), cache.match((7, 8))) == (2, 2)


def test_blocks_that_are_held_are_not_evicted() -> None:
    cache = Blocks(3)
    assert cache.take((1, 2), 0, 99) == (0, [1, 2])
    assert cache.take((8, 9), 0, 99) is None
    assert cache.match((1, 2)) == 2


@patiently
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6), st.integers(0, 3), st.booleans()), max_size=60))
def test_blocks_never_hold_more_than_there_are_and_none_is_lost(calls: list[tuple[int, int, int, bool]]) -> None:
    cache, held = Blocks(12), []
    for family, length, more, gives_back in calls:
        found = cache.take(tuple(range(family * 10, family * 10 + length)), more, length - 1)
        if found is not None:
            held.append(found[1])
        if gives_back and held:
            cache.give_back(held.pop(0))
        assert cache.used == len(cache.held) <= 12
        assert len(cache.held) + len(cache.idle) <= 12
        assert not cache.held.keys() & cache.idle.keys()
    for mine in held:
        cache.give_back(mine)
    assert not cache.held
