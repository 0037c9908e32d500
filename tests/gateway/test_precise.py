"""Blocks of two tokens; texts a, ab, abc, ... are numbered by their last letter."""

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.routing.precise import EngineCache, PreciseIndex, block_keys

PROMPT = (10, 11, 20, 21, 30, 31, 40)
TEXTS = (1001, 1002, 1003)
COUNTS = (2, 5, 6)
"""So one block each: 2 // 2, 5 // 2 - 1, 6 // 2 - 2."""
HERE, THERE = 0, 1


class Believed:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, tuple[int, ...]]] = []

    def found(self, slot: int, texts: Sequence[int]) -> None:
        self.lines.append(("found", slot, tuple(texts)))

    def lost(self, slot: int, texts: Sequence[int]) -> None:
        self.lines.append(("lost", slot, tuple(texts)))

    def cleared(self, slot: int) -> None:
        self.lines.append(("cleared", slot, ()))

    def unsure(self, slot: int, texts: Sequence[int]) -> None:
        self.lines.append(("unsure", slot, tuple(texts)))


def store(
    cache: EngineCache, names: Sequence[int], tokens: Sequence[int], parent: int | None = None, lora: str | None = None
) -> None:
    extras = [(lora,) if lora else ()] * len(names)
    cache.stored(names, parent, tokens, 2, extras, lora, 0)


def two_engines(most_blocks: int = 100, most_linked: int = 100) -> tuple[PreciseIndex, EngineCache, EngineCache]:
    """Both empty, and known to be."""
    index = PreciseIndex(Believed(), most_blocks, most_linked)
    (here,), (there,) = index.add(HERE), index.add(THERE)
    here.cleared()
    there.cleared()
    told(index)
    return index, here, there


def told(index: PreciseIndex) -> list[tuple[str, int, tuple[int, ...]]]:
    """And forget it."""
    believer = index._believer
    assert isinstance(believer, Believed)
    lines, believer.lines = believer.lines, []
    return lines


def held(index: PreciseIndex, slot: int = HERE) -> list[bool | None]:
    return [index.holds(slot, text) for text in TEXTS]


def test_a_text_is_held_while_its_block_is() -> None:
    index, here, _ = two_engines()
    assert held(index) == [None, None, None]  # nobody has linked them
    store(here, [71, 72, 73], PROMPT[:6])
    assert index.link(HERE, TEXTS, COUNTS, PROMPT) == 3
    assert held(index) == [True, True, True]
    here.removed([73], 0)
    assert held(index) == [True, True, False]
    store(here, [73], PROMPT[4:6], parent=72)
    assert held(index) == [True, True, True]
    here.cleared()
    assert held(index) == [False, False, False]


def test_what_changes_is_told() -> None:
    index, here, _ = two_engines()
    store(here, [71, 72, 73], PROMPT[:6])
    index.link(HERE, TEXTS, COUNTS, PROMPT)
    assert told(index) == [("found", HERE, TEXTS), ("lost", THERE, TEXTS)]
    here.removed([73], 0)
    store(here, [73], PROMPT[4:6], parent=72)
    here.cleared()
    assert told(index) == [("lost", HERE, (1003,)), ("found", HERE, (1003,)), ("cleared", HERE, ())]


def test_what_is_not_known_any_more_is_told() -> None:
    index, here, _ = two_engines()
    store(here, [71, 72], PROMPT[:4])
    index.link(HERE, TEXTS, COUNTS, PROMPT)
    told(index)
    here.forgotten()
    assert told(index) == [("unsure", HERE, TEXTS[:2])]
    assert held(index) == [None, None, None]


def test_a_text_that_is_no_longer_linked_is_not_told_of_again() -> None:
    index, here, _ = two_engines(most_linked=3)
    store(here, [71, 72, 73], PROMPT[:6])
    index.link(HERE, TEXTS, COUNTS, PROMPT)
    told(index)
    store(here, [81], (50, 51))
    index.link(HERE, (2001,), (2,), (50, 51))
    assert [line for line in told(index) if line[0] == "unsure"] == [
        ("unsure", slot, (1003,)) for slot in (HERE, THERE)
    ]
    here.removed([73], 0)
    assert told(index) == []


def test_engines_name_the_same_block_differently() -> None:
    index, here, there = two_engines()
    store(here, [71, 72, 73], PROMPT[:6])
    store(there, [91, 92], PROMPT[:4])
    index.link(HERE, TEXTS, COUNTS, PROMPT)
    assert held(index, THERE) == [True, True, False]
    store(there, [93], PROMPT[4:6], parent=92)
    assert told(index)[-1] == ("found", THERE, (1003,))


def test_only_what_the_engine_says_it_holds_is_linked() -> None:
    """Else the tokens were others than those it computed."""
    index, here, _ = two_engines()
    assert index.link(HERE, TEXTS, COUNTS, PROMPT) == 0  # nothing of any block's size is known
    store(here, [71, 72], PROMPT[:4])
    assert index.link(HERE, TEXTS, COUNTS, PROMPT) == 2
    assert index.link(HERE, (2001,), (6,), (10, 11, 20, 21, 99, 99)) == 0
    assert held(index) == [True, True, None]


def test_a_text_with_no_block_of_its_own_has_that_of_the_one_before() -> None:
    index, here, _ = two_engines()
    store(here, [71, 72], PROMPT[:4])
    assert index.link(HERE, (1, 2, 3, 4), (1, 2, 3, 4), PROMPT) == 3  # the first is not even one block
    assert [index.holds(HERE, text) for text in (1, 2, 3, 4)] == [None, True, True, True]
    here.removed([72], 0)
    assert [index.holds(HERE, text) for text in (1, 2, 3, 4)] == [None, True, True, False]


def test_texts_that_end_within_the_first_block_are_held_with_the_first_that_has_one() -> None:
    """A chain is followed from its first text on: without them nobody would get to those that are held."""
    index, here, _ = two_engines()
    store(here, [71, 72], PROMPT[:4])
    assert index.link(HERE, (1, 2, 3), (1, 1, 4), PROMPT) == 1
    assert told(index) == [("found", HERE, (1, 2, 3)), ("lost", THERE, (3,))]
    here.cleared()
    store(here, [71, 72], PROMPT[:4])
    assert told(index)[-1] == ("found", HERE, (1, 2, 3))


def test_a_text_whose_place_is_not_known_is_left_out_and_its_blocks_count_for_the_next() -> None:
    index, here, _ = two_engines()
    store(here, [71, 72, 73], PROMPT[:6])
    assert index.link(HERE, TEXTS, (2, None, 6), PROMPT) == 2
    assert held(index) == [True, None, True]
    here.removed([72], 0)
    assert held(index) == [True, None, False]


@pytest.mark.parametrize(("at", "parent"), [(0, None), (1, 71), (2, 72)])
def test_a_text_of_several_blocks_needs_all_of_them(at: int, parent: int | None) -> None:
    index, here, _ = two_engines()
    store(here, [71, 72, 73], PROMPT[:6])
    index.link(HERE, (5,), (6,), PROMPT)
    here.removed([71 + at], 0)
    assert index.holds(HERE, 5) is False
    store(here, [71 + at], PROMPT[2 * at : 2 * at + 2], parent)
    assert index.holds(HERE, 5) is True


@pytest.mark.parametrize(("lora", "salt", "linked"), [("sql", "s", 3), ("sql", None, 0), (None, "s", 0), ("x", "s", 0)])
def test_adapter_and_salt_are_part_of_a_block(lora: str | None, salt: str | None, linked: int) -> None:
    """As vLLM has it: the adapter of each block, the salt of the first."""
    index, here, _ = two_engines()
    here.stored([71, 72, 73], None, PROMPT[:6], 2, [("sql", "s"), ("sql",), ("sql",)], "sql", 0)
    assert index.link(HERE, TEXTS, COUNTS, PROMPT, lora=lora, salt=salt) == linked


def test_an_engine_that_was_not_heard_from_its_start_may_hold_more() -> None:
    index, here, there = two_engines()
    store(here, [71, 72, 73], PROMPT[:6])
    index.link(HERE, TEXTS, COUNTS, PROMPT)
    there.forgotten()
    assert held(index, THERE) == [None, None, None]
    store(there, [91], PROMPT[:2])
    assert held(index, THERE) == [True, None, None]
    there.cleared()
    assert held(index, THERE) == [False, False, False]


@pytest.mark.parametrize(
    "odd",
    [
        ([95], 94, PROMPT[2:4], 2),  # behind a block that nobody told of
        ([95], 91, PROMPT[2:3], 1),  # of another size
        ([95], 91, PROMPT[2:6], 2),  # some of its blocks are not named
    ],
)
def test_a_block_that_cannot_be_placed_is_one_more_than_is_known(
    odd: tuple[list[int], int, Sequence[int], int],
) -> None:
    index, here, there = two_engines()
    store(here, [71, 72, 73], PROMPT[:6])
    index.link(HERE, TEXTS, COUNTS, PROMPT)
    store(there, [91], PROMPT[:2])
    names, parent, tokens, block_tokens = odd
    there.stored(names, parent, tokens, block_tokens, [()], None, 0)
    assert held(index, THERE) == [True, None, None]


def test_nothing_is_said_of_an_engine_with_several_kinds_of_blocks() -> None:
    index, here, there = two_engines()
    store(here, [71, 72, 73], PROMPT[:6])
    index.link(HERE, TEXTS, COUNTS, PROMPT)
    store(there, [91], PROMPT[:2])
    there.stored([91], None, PROMPT[:2], 2, [()], None, 1)
    there.cleared()
    store(there, [91], PROMPT[:2])
    assert held(index, THERE) == [None, None, None]
    assert there.blocks == 0


def test_of_several_ranks_each_must_hold_it() -> None:
    """Nobody knows which of them a request will get to."""
    index = PreciseIndex(Believed())
    first, second = index.add(HERE, ranks=2)
    first.cleared()
    second.cleared()
    store(second, [71, 72, 73], PROMPT[:6])
    assert index.link(HERE, TEXTS, COUNTS, PROMPT) == 3  # one of them has computed it
    assert held(index) == [False, False, False]
    store(first, [81, 82], PROMPT[:4])
    assert held(index) == [True, True, False]


def test_an_engine_that_is_gone_holds_nothing_and_its_number_is_free() -> None:
    index, here, _ = two_engines()
    store(here, [71, 72, 73], PROMPT[:6])
    index.link(HERE, TEXTS, COUNTS, PROMPT)
    index.remove(HERE)
    assert held(index) == [None, None, None]
    (again,) = index.add(HERE)
    again.cleared()
    assert held(index) == [False, False, False]


def test_more_blocks_than_an_engine_can_have_are_not_kept() -> None:
    _, here, _ = two_engines(most_blocks=2)
    store(here, [71, 72, 73], PROMPT[:6])
    assert here.blocks == 2
    assert not here.is_complete


def test_of_more_texts_than_are_kept_the_deepest_goes_first() -> None:
    index, here, _ = two_engines(most_linked=2)
    store(here, [71, 72, 73], PROMPT[:6])
    index.link(HERE, TEXTS, COUNTS, PROMPT)
    assert held(index) == [True, True, None]
    assert index._links.size == 2


def test_of_many_chains_the_one_not_linked_for_longest_goes_first() -> None:
    index, here, _ = two_engines(most_linked=2)
    store(here, [71], (1, 1))
    store(here, [72], (2, 2))
    store(here, [73], (3, 3))
    for text in (1, 2, 1, 3):
        assert index.link(HERE, (text,), (2,), (text, text)) == 1
    assert [index.is_linked(text) for text in (1, 2, 3)] == [True, False, True]


class EnginesMachine(RuleBasedStateMachine):
    """Two engines that compute prompts over four tokens and evict blocks, last ones first or not; what is claimed is
    compared with the sets of prefixes that they hold."""

    @initialize()
    def start(self) -> None:
        self.index, here, there = two_engines(most_linked=12)
        self.caches = (here, there)
        self.holding: tuple[dict[tuple[int, ...], int], ...] = ({}, {})
        self.prompts: list[tuple[int, ...]] = []
        self.names = 0

    @rule(slot=st.integers(0, 1), tokens=st.lists(st.integers(0, 1), min_size=2, max_size=8).map(tuple))
    def compute(self, slot: int, tokens: tuple[int, ...]) -> None:
        holding, parent = self.holding[slot], None
        prefixes = [tokens[:end] for end in range(2, len(tokens) + 1, 2)]
        for prefix in prefixes:
            if prefix not in holding:
                self.names += 1
                holding[prefix] = self.names
                store(self.caches[slot], [self.names], prefix[-2:], parent)
            parent = holding[prefix]
        texts = [hash(prefix) for prefix in prefixes]
        assert self.index.link(slot, texts, [len(prefix) for prefix in prefixes], tokens) == len(texts)
        self.prompts += prefixes

    @rule(slot=st.integers(0, 1), which=st.integers(0, 9))
    def evict(self, slot: int, which: int) -> None:
        holding = self.holding[slot]
        leaves = [one for one in holding if not any(other[: len(one)] == one != other for other in holding)]
        if leaves:
            self.caches[slot].removed([holding.pop(leaves[which % len(leaves)])], 0)

    @rule(slot=st.integers(0, 1))
    def clear(self, slot: int) -> None:
        self.holding[slot].clear()
        self.caches[slot].cleared()

    @invariant()
    def only_what_is_there_is_claimed(self) -> None:
        for slot in (0, 1):
            for prefix in self.prompts:
                claimed = self.index.holds(slot, hash(prefix))
                assert claimed is None or claimed == (prefix in self.holding[slot])

    @invariant()
    def nothing_is_kept_of_what_is_gone(self) -> None:
        blocks = [cache.blocks for cache in self.caches]
        assert blocks == [len(holding) for holding in self.holding]
        assert len(self.index._holders) <= sum(blocks)
        assert self.index._links.size <= 12


TestEngines = EnginesMachine.TestCase
TestEngines.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_a_key_says_all_that_comes_before_it() -> None:
    plain = block_keys(0, (1, 2, 1, 2), 2, [(), ()], None)
    salted = block_keys(0, (1, 2, 1, 2), 2, [("salt",), ()], None)
    adapted = block_keys(0, (1, 2, 1, 2), 2, [(), ()], "sql")
    other = block_keys(0, (2, 1, 1, 2), 2, [(), ()], None)
    assert len({*plain, *salted, *adapted, *other}) == 8
    assert block_keys(plain[0], (1, 2), 2, [()], None) == plain[1:]
