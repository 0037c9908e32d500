"""Which replica is believed to hold what: a letter is a block of 100 units."""

import pytest

from gateway.routing.index import PrefixIndex
from tests.gateway.routing.prompts import ends, hashes

PLENTY = 1_000_000


def touched(index: PrefixIndex, slot: int, text: str, tick: int, capacity: int = PLENTY) -> list[tuple[int, int]]:
    """A request for `text` comes and has its first token at once."""
    before = index.touch(slot, hashes(text), ends(text), tick, capacity)
    index.computed(slot, hashes(text))
    return before


def held(index: PrefixIndex, slot: int, text: str) -> int:
    """How many leading blocks of `text` it holds."""
    return {slot: depth for slots, depth in index.match(hashes(text))[0] for slot in slots}.get(slot, 0)


def test_each_replica_with_its_own_share_of_the_prefix() -> None:
    index = PrefixIndex()
    zero, one, two = index.add(), index.add(), index.add()
    touched(index, zero, "ab", 1)
    touched(index, one, "abcd", 2)
    touched(index, two, "x", 3)
    assert index.match(hashes("abce"))[0] == [((zero,), 2), ((one,), 3)]


def test_equals_are_named_together() -> None:
    index = PrefixIndex()
    zero, one = index.add(), index.add()
    touched(index, zero, "abc", 1)
    touched(index, one, "abc", 2)
    assert index.match(hashes("abcd"))[0] == [((zero, one), 3)]


def test_nobody_and_nothing() -> None:
    index = PrefixIndex()
    touched(index, index.add(), "abc", 1)
    assert index.match(hashes("xbc"))[0] == []
    assert index.match(())[0] == []


def test_a_prefix_ends_where_a_block_is_missing_though_later_ones_are_there() -> None:
    index = PrefixIndex()
    zero, one = index.add(), index.add()
    touched(index, one, "abc", 2)
    a, _, c = hashes("abc")
    index.found(zero, (a, c))
    assert index.match(hashes("abc")) == ([((zero,), 1), ((one,), 3)], 2)


def test_of_a_chain_the_last_block_goes_first() -> None:
    index = PrefixIndex()
    slot = index.add()
    touched(index, slot, "abc", 1, capacity=300)
    touched(index, slot, "x", 2, capacity=300)
    assert held(index, slot, "abc") == 2
    assert held(index, slot, "x") == 1
    assert index.blocks(slot) == 3
    assert index.units(slot) == 300


def test_what_was_used_longest_ago_goes_first() -> None:
    index = PrefixIndex()
    slot = index.add()
    touched(index, slot, "ab", 1, capacity=400)
    touched(index, slot, "xy", 2, capacity=400)
    touched(index, slot, "ab", 3, capacity=400)
    touched(index, slot, "m", 4, capacity=400)
    assert (held(index, slot, "ab"), held(index, slot, "xy"), held(index, slot, "m")) == (2, 1, 1)


def test_a_prompt_longer_than_the_cache_keeps_its_beginning() -> None:
    index = PrefixIndex()
    slot = index.add()
    touched(index, slot, "abcdef", 1, capacity=250)
    assert held(index, slot, "abcdef") == 2


def test_a_smaller_cache_than_before_takes_effect_at_the_next_request() -> None:
    index = PrefixIndex()
    slot = index.add()
    touched(index, slot, "abcdef", 1, capacity=600)
    touched(index, slot, "x", 2, capacity=300)
    assert index.units(slot) == 300
    assert held(index, slot, "abcdef") == 2


def test_a_block_that_another_one_holds_too_is_not_lost() -> None:
    index = PrefixIndex()
    zero, one = index.add(), index.add()
    touched(index, zero, "ab", 1)
    touched(index, one, "ab", 2)
    index.forget(zero, "restarted")
    assert index.once(hashes("ab"), 0) == (0, "evicted")
    assert held(index, one, "ab") == 2
    index.forget(one, "restarted")
    assert index.once(hashes("ab"), 0) == (2, "restarted")


def test_lost_is_told_with_the_reason_and_from_where_the_chain_is_held() -> None:
    index = PrefixIndex()
    slot = index.add()
    touched(index, slot, "abcd", 1, capacity=200)
    assert held(index, slot, "abcdx") == 2
    assert index.once(hashes("abcdx"), 2) == (4, "evicted")


def test_what_is_held_again_is_no_longer_lost() -> None:
    index = PrefixIndex()
    slot = index.add()
    touched(index, slot, "ab", 1)
    index.forget(slot, "restarted")
    touched(index, slot, "a", 2)
    assert index.once(hashes("ab"), 0) == (0, "evicted")
    assert index.once(hashes("ab"), 1) == (2, "restarted")


def test_when_it_had_last_used_what_it_holds() -> None:
    index = PrefixIndex()
    slot = index.add()
    assert touched(index, slot, "abcd", 1) == []
    assert touched(index, slot, "ab", 2) == [(2, 1)]
    assert touched(index, slot, "abcde", 3) == [(2, 2), (4, 1)]


def test_forget_older_takes_what_was_used_up_to_then() -> None:
    index = PrefixIndex()
    slot = index.add()
    touched(index, slot, "abc", 1)
    touched(index, slot, "xy", 2)
    touched(index, slot, "a", 3)
    index.forget_older(slot, 1, "evicted")
    assert (held(index, slot, "abc"), held(index, slot, "xy")) == (1, 2)
    index.forget_older(slot, 2, "restarted")
    assert (held(index, slot, "abc"), held(index, slot, "xy")) == (1, 0)
    assert index.once(hashes("xy"), 0) == (2, "restarted")


def test_a_request_without_a_token_leaves_nothing() -> None:
    index = PrefixIndex()
    slot = index.add()
    index.touch(slot, hashes("abc"), ends("abc"), 1, PLENTY)
    index.forget_new(slot, hashes("abc"), 1)
    assert index.match(hashes("abc"))[0] == []
    assert (index.blocks(slot), index.units(slot)) == (0, 0)
    assert index.once(hashes("abc"), 0) == (0, "evicted")


def test_a_request_without_a_token_takes_nothing_along_that_was_there_before() -> None:
    index = PrefixIndex()
    slot = index.add()
    touched(index, slot, "ab", 1)
    index.touch(slot, hashes("abcd"), ends("abcd"), 2, PLENTY)
    index.forget_new(slot, hashes("abcd"), 2)
    assert held(index, slot, "abcd") == 2


@pytest.mark.parametrize("first_lost", [0, 1])
def test_what_two_are_about_to_compute_is_gone_when_both_are(first_lost: int) -> None:
    index = PrefixIndex()
    slot = index.add()
    texts = {0: "abc", 1: "abx"}
    for tick, text in texts.items():
        index.touch(slot, hashes(text), ends(text), tick, PLENTY)
    index.forget_new(slot, hashes(texts[first_lost]), first_lost)
    assert held(index, slot, texts[first_lost]) == 2
    assert held(index, slot, texts[1 - first_lost]) == 3
    index.forget_new(slot, hashes(texts[1 - first_lost]), 1 - first_lost)
    assert index.blocks(slot) == 0


def test_what_one_of_two_has_computed_stays() -> None:
    index = PrefixIndex()
    slot = index.add()
    for tick, text in enumerate(["abc", "abx"]):
        index.touch(slot, hashes(text), ends(text), tick, PLENTY)
    index.computed(slot, hashes("abx"))
    index.forget_new(slot, hashes("abc"), 0)
    assert held(index, slot, "abc") == 2
    assert held(index, slot, "abx") == 3


def test_the_slot_of_one_that_is_gone_is_free_and_empty() -> None:
    index = PrefixIndex()
    slots = [index.add() for _ in range(3)]
    touched(index, slots[1], "ab", 1)
    index.remove(slots[1])
    assert index.match(hashes("ab"))[0] == []
    assert index.once(hashes("ab"), 0) == (2, "restarted")
    assert index.add() == slots[1]
    assert held(index, slots[1], "ab") == 0


def test_no_more_than_so_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.routing.sent._MOST_BLOCKS", 10)
    monkeypatch.setattr("gateway.routing.lost._MOST_BLOCKS", 4)
    index = PrefixIndex()
    slot = index.add()
    for tick in range(100):
        touched(index, slot, f"{tick % 10}abc{tick}", tick)
        assert index.blocks(slot) <= 10
        assert len(index._lost) == len(list(index._lost)) <= 4


def test_64_replicas_that_hold_all_sorts_of_things() -> None:
    index = PrefixIndex()
    slots = [index.add() for _ in range(64)]
    for slot in slots:
        touched(index, slot, "abcdefgh"[: slot % 8 + 1], slot)
    assert index.match(hashes("abcdefgh"))[0] == [(tuple(range(d - 1, 64, 8)), d) for d in range(1, 9)]


def test_small_answers_are_held_together_and_so_bounded_in_number() -> None:
    index = PrefixIndex()
    slot = index.add()
    for tick, rest in enumerate([200, 300, 1, 0, 499], start=1):  # up to 500 of a million are one
        index.left(slot, (), (), tick, 1_000_000, rest=rest)
    assert list(index._caches[slot].rests) == [(2, 500), (5, 500)]
    for tick in range(6, 30_000):
        index.left(slot, (), (), tick, 1_000_000, rest=100)
    assert index._caches[slot].rests_units in range(999_500, 1_000_001)
    assert len(index._caches[slot].rests) <= 4001


def test_a_cache_with_a_tenth_free_loses_nothing_next() -> None:
    index = PrefixIndex()
    slot = index.add()
    index.left(slot, hashes("abcdefgh"), ends("abcdefgh"), 1, 1000, rest=99)
    assert index.oldest(slot, 1000) == 0
    index.left(slot, (), (), 2, 1000, rest=1)
    assert index.oldest(slot, 1000) == 1
