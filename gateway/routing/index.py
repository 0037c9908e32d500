"""Which replica holds which blocks of which prompts, as far as one can tell from what it was sent.

One table for all replicas, a bit for each, makes a lookup one pass over the chain. Each replica has an LRU of its
blocks as its engine has one: of a chain the last block is the older, and what does not fit into its KV cache is
forgotten. Over that lies what an engine says itself (`found`, `dropped`): as long as it does, its word counts.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal, NamedTuple

Loss = Literal["evicted", "restarted"]
"""Why a replica no longer holds a block that it held."""

_MOST_BLOCKS = 20_000  # of 64 tokens at least: 1.3 million
_MOST_LOST = 20_000
_MOST_MASKS = 1000
_FEW_SLOTS = 8


class Run(NamedTuple):
    """Neighbouring blocks of a chain that were last used together, before this request."""

    end: int
    """Behind its last block, counted from the chain's start."""
    tick: int


class PrefixIndex:
    """Bounded: 20,000 blocks a replica (about 250 bytes each), and as many that its engine names, the last 20,000 lost
    ones."""

    def __init__(self) -> None:
        self._holders: dict[int, int] = {}
        """By block, a bit for each replica."""
        self._sizes: dict[int, int] = {}
        """By block, in units; not of those that are only said to be somewhere."""
        self._blocks: dict[int, OrderedDict[int, int]] = {}
        """By slot and block, when it was last used: ticks grow with each request."""
        self._units: dict[int, int] = {}
        self._fresh: dict[int, dict[int, int]] = {}
        """By slot, blocks that nobody has computed there yet, and how many requests are about to."""
        self._said: dict[int, dict[int, None]] = {}
        """By slot, the blocks that its engine says it holds: it holds them, whatever is forgotten of `_blocks`."""
        self._slots: dict[int, tuple[int, ...]] = {}
        self._lost: OrderedDict[int, Loss] = OrderedDict()

    def add(self) -> int:
        """A slot for one more replica."""
        slot = next(slot for slot in range(len(self._blocks) + 1) if slot not in self._blocks)
        self._blocks[slot] = OrderedDict()
        self._units[slot] = 0
        self._fresh[slot] = {}
        self._said[slot] = {}
        return slot

    def remove(self, slot: int) -> None:
        """The replica is gone."""
        self._doubt(slot, list(self._said[slot]), "restarted")
        self.forget(slot, "restarted")
        del self._blocks[slot], self._units[slot], self._fresh[slot], self._said[slot]

    def blocks(self, slot: int) -> int:
        """How many blocks the replica is believed to hold, by what it was sent."""
        return len(self._blocks[slot])

    def said(self, slot: int) -> int:
        """How many its engine says it holds."""
        return len(self._said[slot])

    def units(self, slot: int) -> int:
        """And their size."""
        return self._units[slot]

    def match(self, hashes: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
        """Who holds how many leading blocks: slots and a number of blocks, the shortest first; those that hold none are
        left out."""
        found: list[tuple[tuple[int, ...], int]] = []
        held = self._holders.get
        alive = held(hashes[0], 0) if hashes else 0
        at = 0  # all of `alive` hold this block and those before it
        while alive:
            at = _last_of(alive, held, hashes, at)
            rest = held(hashes[at + 1], 0) & alive if at + 1 < len(hashes) else 0
            found.append((self._slots_of(alive & ~rest), at + 1))
            at, alive = at + 1, rest
        return found

    def _slots_of(self, mask: int) -> tuple[int, ...]:
        """The slots of the bits in `mask`; a few masks are asked for again and again."""
        slots = self._slots.get(mask)
        if slots is None:
            if len(self._slots) >= _MOST_MASKS:
                self._slots.clear()
            slots = self._slots[mask] = tuple(slot for slot in range(mask.bit_length()) if mask >> slot & 1)
        return slots

    def last_used(self, slots: Sequence[int], value: int) -> int:
        """The latest tick of a block that all of these hold, told by eight of them at most; 0: only their engines say
        that they hold it."""
        return max(self._blocks[slot].get(value, 0) for slot in slots[:_FEW_SLOTS])

    def once(self, hashes: Sequence[int], start: int) -> tuple[int, Loss]:
        """How far behind `start` the chain goes on in blocks that were held once, and why they are not any more."""
        lost = self._lost
        reason: Loss = "evicted"
        end = start
        while end < len(hashes) and (found := lost.get(hashes[end])) is not None:
            reason = found
            end += 1
        return end, reason

    def touch(self, slot: int, hashes: Sequence[int], ends: Sequence[int], tick: int, capacity: int) -> tuple[Run, ...]:
        """The replica computes or uses these blocks now, and holds `capacity` units at most. Returns when it had last
        used those that it held, deepest first. `computed` or `forget_new` is to follow."""
        blocks, holders, sizes = self._blocks[slot], self._holders, self._sizes
        fresh = self._fresh[slot]
        bit = 1 << slot
        runs: list[Run] = []
        last_tick = -1
        added = 0
        for at in range(len(hashes) - 1, -1, -1):  # deepest first: it is the first to go
            value = hashes[at]
            known_tick = blocks.get(value)
            blocks[value] = tick
            if known_tick is not None:
                blocks.move_to_end(value)
                if known_tick != last_tick:
                    last_tick = known_tick
                    runs.append(Run(at + 1, known_tick))
                if value in fresh:
                    fresh[value] += 1
                continue
            fresh[value] = 1
            mask = holders.get(value)
            if mask is None:
                self._lost.pop(value, None)
                mask = 0
            holders[value] = mask | bit
            size = sizes.get(value)
            if size is None:
                size = sizes[value] = ends[at] - (ends[at - 1] if at else 0)
            added += size
        if added:
            self._make_room(slot, added, capacity)
        return tuple(runs)

    def _make_room(self, slot: int, added: int, capacity: int) -> None:
        self._units[slot] += added
        while self._units[slot] > capacity or len(self._blocks[slot]) > _MOST_BLOCKS:
            self._drop_oldest(slot, "evicted")

    def forget(self, slot: int, loss: Loss) -> None:
        """What it was sent is there no longer; what its engine says of its cache since is another matter."""
        while self._blocks[slot]:
            self._drop_oldest(slot, loss)

    def forget_older(self, slot: int, tick: int, loss: Loss) -> None:
        """Of what the replica last used at `tick` or before, nothing is there any more."""
        blocks = self._blocks[slot]
        while blocks and next(iter(blocks.values())) <= tick:
            self._drop_oldest(slot, loss)

    def computed(self, slot: int, hashes: Sequence[int]) -> None:
        """A request that touched these blocks has its first token: they are there, whatever becomes of it."""
        fresh = self._fresh[slot]
        if fresh:
            for value in hashes:
                fresh.pop(value, None)

    def forget_new(self, slot: int, hashes: Sequence[int]) -> None:
        """A request that touched these blocks has had no token: what only it was about to compute is not there."""
        blocks, fresh = self._blocks[slot], self._fresh[slot]
        for value in hashes:
            requests = fresh.get(value, 0)
            if requests > 1:
                fresh[value] = requests - 1
            elif requests:
                del blocks[value]
                self._let_go(slot, value, None, self._sizes[value])

    # What an engine says of its own cache
    def found(self, slot: int, hashes: Sequence[int]) -> None:
        """It holds these."""
        said, holders, bit = self._said[slot], self._holders, 1 << slot
        for value in hashes:
            mask = holders.get(value)
            if mask is None:
                self._lost.pop(value, None)
                mask = 0
            holders[value] = mask | bit
            said[value] = None
        if len(said) > _MOST_BLOCKS:
            self._doubt(slot, list(islice(said, len(said) - _MOST_BLOCKS)), "evicted")

    def dropped(self, slot: int, hashes: Sequence[int]) -> None:
        """It does not hold these; what nobody has computed there yet, and somebody is about to, stays."""
        blocks, fresh = self._blocks[slot], self._fresh[slot]
        self._doubt(slot, hashes, "evicted")
        for value in hashes:
            if value in blocks and value not in fresh:
                del blocks[value]
                self._let_go(slot, value, "evicted", self._sizes[value])

    def emptied(self, slot: int, tick: int) -> None:
        """It held nothing a moment ago; what was last used at `tick` or later is about to be computed, and stays."""
        self._doubt(slot, list(self._said[slot]), "restarted")
        self.forget_older(slot, tick - 1, "restarted")

    def unsaid(self, slot: int, hashes: Sequence[int]) -> None:
        """Nobody says any more whether it holds these: what was sent there is all that is known, as of any other."""
        self._doubt(slot, hashes, "evicted")

    def _doubt(self, slot: int, hashes: Sequence[int], loss: Loss) -> None:
        """Its engine's word on these counts no longer."""
        said, blocks = self._said[slot], self._blocks[slot]
        for value in hashes:
            if value in said:
                del said[value]
                if value not in blocks:
                    self._let_go(slot, value, loss, 0)

    def _drop_oldest(self, slot: int, loss: Loss) -> None:
        value, _ = self._blocks[slot].popitem(last=False)
        self._let_go(slot, value, loss, self._sizes[value])

    def _let_go(self, slot: int, value: int, loss: Loss | None, size: int) -> None:
        """One of two reasons to believe that it holds this block is gone: that it was sent there (one of `_blocks`, of
        this size), or that its engine says so (size 0). Without the other one it does not hold it; where nobody does,
        it is lost, unless it never was there (None)."""
        self._fresh[slot].pop(value, None)
        self._units[slot] -= size
        if value in self._said[slot]:
            return
        mask = self._holders[value] & ~(1 << slot)
        if mask:
            self._holders[value] = mask
            return
        del self._holders[value]
        self._sizes.pop(value, None)
        if loss is not None:
            self._lost[value] = loss
            if len(self._lost) > _MOST_LOST:
                self._lost.popitem(last=False)


def _last_of(mask: int, held: Callable[[int, int], int], hashes: Sequence[int], at: int) -> int:
    """The last block that all in `mask` hold, from `at` on, which they do. By bisection: whoever holds a block holds
    those before it, since the tail of a chain is the first to go."""
    low, high = at, len(hashes)
    step = high - low - 1  # first a look at the very last one
    while high - low > 1:
        middle = low + step
        if held(hashes[middle], 0) & mask == mask:
            low = middle
        else:
            high = middle
        step = (high - low) // 2
    return low
