"""Runs of blocks are blocks: the index holds what a plain LRU of single blocks for each replica does."""

from collections import OrderedDict
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.routing.index import PrefixIndex
from gateway.routing.lost import Loss
from tests.gateway.routing.contents import check, contents, fresh
from tests.gateway.routing.prompts import BLOCK, hashes

ENDS = range(BLOCK, 100 * BLOCK, BLOCK)
SLOTS = st.integers(0, 2)
TEXTS = st.text("ab", min_size=1, max_size=8)


@dataclass
class _Cache:
    """One replica, block by block."""

    blocks: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """When each was last used, the first to go first."""
    waiting: dict[int, set[int]] = field(default_factory=dict)
    """By block that nobody has computed yet, the requests that are about to, by their ticks."""
    rests: dict[int, int] = field(default_factory=dict)
    """Among the blocks, under names of their own: the size of what requests have left that nobody asks for."""

    @property
    def units(self) -> int:
        return BLOCK * (len(self.blocks) - len(self.rests)) + sum(self.rests.values())

    @property
    def named(self) -> dict[int, int]:
        """Without the rests."""
        return {value: tick for value, tick in self.blocks.items() if value not in self.rests}

    def touch(self, text: str, tick: int, capacity: int) -> set[tuple[int, int]]:
        """Returns the ticks of those that are held, by their place."""
        chain = hashes(text)
        before = {(at, self.blocks[value]) for at, value in enumerate(chain) if value in self.blocks}
        for value in reversed(chain):
            if value not in self.blocks:
                self.waiting[value] = set()
            if value in self.waiting:
                self.waiting[value].add(tick)
            self.blocks[value] = tick
            self.blocks.move_to_end(value)
        self.make_room(capacity)
        return before

    def left(self, text: str, tick: int, capacity: int, rest: int) -> None:
        """All of it is the newest, the rest before the prompt."""
        self.touch(text, tick, capacity)
        self.computed(text)
        self.blocks[-tick], self.rests[-tick] = tick, rest
        for value in [value for value in reversed(hashes(text)) if value in self.blocks]:
            self.blocks.move_to_end(value)
        self.make_room(capacity)

    def make_room(self, capacity: int) -> None:
        while self.units > capacity:
            self.drop(next(iter(self.blocks)))

    def drop(self, value: int) -> None:
        del self.blocks[value]
        self.waiting.pop(value, None)
        self.rests.pop(value, None)

    def forget_older(self, tick: int) -> None:
        for value in [value for value, used in self.blocks.items() if used <= tick]:
            self.drop(value)

    def forget_new(self, text: str, tick: int) -> None:
        for value in hashes(text):
            if tick in self.waiting.get(value, ()):
                self.waiting[value].remove(tick)
                if not self.waiting[value]:
                    self.drop(value)

    def computed(self, text: str) -> None:
        for value in hashes(text):
            self.waiting.pop(value, None)


class Model(RuleBasedStateMachine):
    """Three replicas; each request is to be computed or lost."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.caches = [_Cache() for _ in range(3)]
        self.slots = [self.index.add() for _ in self.caches]
        self.ticks = 0
        self.open: list[tuple[int, str, int]] = []
        self.last: dict[int, int] = {}
        """Blocks that somebody held, and when one last used them."""
        self.is_lost_told = True
        """Until a request is lost: what only it was about to compute was never there."""

    @rule(slot=SLOTS, text=TEXTS, blocks=st.sampled_from([1, 3, 6, 12, 40]), is_open=st.booleans())
    def touch(self, slot: int, text: str, blocks: int, is_open: bool) -> None:
        self.ticks += 1
        before = self.caches[slot].touch(text, self.ticks, blocks * BLOCK)
        found = self.index.touch(slot, hashes(text), ENDS, self.ticks, blocks * BLOCK)
        starts = [0, *(end for end, _ in found)]
        assert {(at, tick) for start, (end, tick) in zip(starts, found, strict=False) for at in range(start, end)} == (
            before
        )
        self.last.update(dict.fromkeys(hashes(text), self.ticks))
        self.open.append((slot, text, self.ticks))
        if not is_open:
            self._end(len(self.open) - 1, is_lost=False)

    @precondition(lambda self: self.open)
    @rule(at=st.integers(0, 100), is_lost=st.booleans())
    def end(self, at: int, is_lost: bool) -> None:
        self._end(at % len(self.open), is_lost)

    def _end(self, at: int, is_lost: bool) -> None:
        slot, text, tick = self.open.pop(at)
        if is_lost:
            self.is_lost_told = False
            self.caches[slot].forget_new(text, tick)
            self.index.forget_new(slot, hashes(text), tick)
        else:
            self.caches[slot].computed(text)
            self.index.computed(slot, hashes(text))

    @precondition(lambda self: self.open)
    @rule(at=st.integers(0, 100), blocks=st.sampled_from([1, 3, 6, 12, 40]), rest=st.sampled_from([0, 1, 99, 250, 900]))
    def leave(self, at: int, blocks: int, rest: int) -> None:
        slot, text, _ = self.open.pop(at % len(self.open))
        self.ticks += 1
        cache, capacity = self.caches[slot], blocks * BLOCK
        cache.left(text, self.ticks, capacity, rest)
        self.index.left(slot, hashes(text), ENDS, self.ticks, capacity, rest)
        self.last.update(dict.fromkeys(hashes(text), self.ticks))
        oldest = next(iter(cache.named.values()), 0) if cache.units >= 0.9 * capacity else 0
        assert self.index.oldest(slot, capacity) == oldest

    @rule(slot=SLOTS, ago=st.integers(0, 20), loss=st.sampled_from(["evicted", "restarted"]))
    def forget_older(self, slot: int, ago: int, loss: Loss) -> None:
        self.caches[slot].forget_older(self.ticks - ago)
        self.index.forget_older(slot, self.ticks - ago, loss)

    @rule(slot=SLOTS)
    def comes_anew(self, slot: int) -> None:
        self.caches[slot] = _Cache()
        self.open = [request for request in self.open if request[0] != slot]
        self.index.remove(slot)
        assert self.index.add() == slot

    @invariant()
    def the_same_blocks_in_the_same_order(self) -> None:
        check(self.index)
        for slot, cache in enumerate(self.caches):
            assert list(contents(self.index, slot).items()) == list(cache.named.items())
            assert fresh(self.index, slot) == {value: len(waiting) for value, waiting in cache.waiting.items()}
            assert self.index.units(slot) == BLOCK * len(cache.named)
            assert self.index._caches[slot].rests_units == sum(cache.rests.values())

    @rule(text=TEXTS)
    def match(self, text: str) -> None:
        chain = hashes(text)
        depths: dict[int, list[int]] = {}
        for slot, cache in enumerate(self.caches):
            held = [value in cache.blocks for value in chain]
            assert held == sorted(held, reverse=True)
            if any(held):
                depths.setdefault(sum(held), []).append(slot)
        found, tick = self.index.match(chain)
        assert found == [(tuple(depths[depth]), depth) for depth in sorted(depths)]
        deepest = max(depths, default=0)
        assert tick == (self.last[chain[deepest - 1]] if deepest else 0)
        self._check_once(chain, deepest)

    def _check_once(self, chain: tuple[int, ...], deepest: int) -> None:
        end, _ = self.index.once(chain, deepest)
        known = [value in self.last for value in (*chain, 0)]
        assert end <= max(deepest, known.index(False))
        if self.is_lost_told:
            assert end == known.index(False)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.lists(st.integers(0, 4), min_size=1, max_size=6).map(tuple), st.integers(0, 10)
        ),
        max_size=30,
    ),
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.dictionaries(st.integers(1, 30), st.tuples(st.booleans(), st.integers(0, 4))),
)
def test_whoever_makes_hashes_collide_breaks_nothing(
    touches: list[tuple[int, tuple[int, ...], int]], lost: list[bool], words: dict[int, tuple[bool, int]]
) -> None:
    """Hashes that are not chained: what is held may be wrong, but it is bounded, and goes in its turn."""
    index = PrefixIndex()
    slots = [index.add(), index.add()]
    for tick, ((slot, chain, blocks), is_lost) in enumerate(zip(touches, lost, strict=False), 1):
        if tick in words:
            is_held, value = words[tick]
            (index.found if is_held else index.dropped)(slot, (value,))
        index.match(chain)
        index.once(chain, 0)
        index.touch(slot, chain, ENDS, tick, blocks * BLOCK)
        assert index.units(slot) <= blocks * BLOCK
        if is_lost:
            index.forget_new(slot, chain, tick)
        else:
            index.computed(slot, chain)
        for cache in index._caches.values():
            assert cache.blocks == sum(run.held(cache.slot) for run in cache.used)
    for slot in slots:
        index.forget(slot, "evicted")
        assert (index.blocks(slot), index.units(slot)) == (0, 0)
        assert not index._caches[slot].used
    assert not index._runs


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
