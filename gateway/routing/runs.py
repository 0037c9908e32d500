"""Neighbouring blocks of prompts, held as one, and what one replica holds of them."""

from collections import OrderedDict, deque
from collections.abc import Sequence

Found = list[tuple[tuple[int, ...], int]]
"""Slots, and how many leading blocks of a chain they hold."""


class Run:
    """Blocks of a chain that somebody holds, the first one at `start`; where chains part, runs end.

    A block's hash stands for all that is before it too. So the run behind this one is found by the hash that the chain
    has next, and where the last hashes are equal, all before them are.
    """

    __slots__ = ("above", "ends", "full", "hashes", "part", "size", "start", "tick")

    def __init__(
        self, hashes: tuple[int, ...], start: int, ends: Sequence[int], full: int, above: "Run | None", tick: int
    ) -> None:
        self.hashes = hashes
        self.start = start
        self.ends = ends
        """Where the chain's blocks end, in units."""
        self.size = ends[start + len(hashes) - 1] - (ends[start - 1] if start else 0)
        """Of all blocks, in units."""
        self.full = full
        """A bit for each replica that holds all of it: one at least."""
        self.part: dict[int, int] | None = None
        """By slot, how many leading blocks others hold: fewer than all."""
        self.above = above
        """The run that the chain comes from."""
        self.tick = tick
        """When it was last used, wherever that was."""

    @property
    def is_loose(self) -> bool:
        """Whether what was before it is not there any more."""
        above = self.above
        return above is not None and (not above.full or above.start + len(above.hashes) != self.start)

    def held(self, slot: int) -> int:
        """How many of its blocks the replica at `slot` holds, which holds some."""
        return self.part.get(slot, len(self.hashes)) if self.part else len(self.hashes)

    def hold(self, slot: int, blocks: int) -> None:
        """It holds so many leading ones."""
        if blocks == len(self.hashes):
            self.full |= 1 << slot
        elif self.part is None:
            self.part = {slot: blocks}
        else:
            self.part[slot] = blocks

    def leave(self, slot: int) -> None:
        """It holds none, if it did not hold all."""
        if self.part is not None:
            self.part.pop(slot, None)
            self.part = self.part or None

    def shorten(self) -> tuple[int, ...]:
        """Nobody holds all of it: it ends where the one stops that holds most. Returns what is behind that."""
        part = self.part or {}
        gone = self.cut(max(part.values()))
        self.part = None
        for slot, blocks in part.items():
            self.hold(slot, blocks)
        return gone

    def cut(self, length: int) -> tuple[int, ...]:
        """It ends there. Returns what is behind that."""
        gone, self.hashes = self.hashes[length:], self.hashes[:length]
        self.size = self.units(0, length)
        return gone

    def units(self, first: int, end: int) -> int:
        """The size of its blocks from `first` on and before `end`, counted from its own first one."""
        ends, start = self.ends, self.start
        return ends[start + end - 1] - (ends[start + first - 1] if start + first else 0)

    def stops(self, mask: int, length: int) -> list[tuple[int, int]]:
        """Those of `mask` that hold fewer than its first `length` blocks: masks by number, the shortest first."""
        found = {0: mask & ~self.full}
        for slot, blocks in sorted((self.part or {}).items(), key=lambda item: item[1]):
            bit = mask & 1 << slot
            found[0] &= ~bit
            if blocks < length:
                found[blocks] = found.get(blocks, 0) | bit
        return [item for item in found.items() if item[1]]


class Cache:
    """What one replica is believed to hold, by what it was sent: of each prompt a beginning."""

    __slots__ = ("bit", "blocks", "fresh", "order", "rests", "rests_units", "slot", "units", "used")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.bit = 1 << slot
        self.blocks = self.units = self.rests_units = 0
        self.used: dict[Run, int] = {}
        """When each run was last used: ticks grow with each request."""
        self.order: OrderedDict[int, Run] = OrderedDict()
        """By tick, the deepest run of those last used then: they lie behind each other on one chain, and this one is
        the first of them to go."""
        self.fresh: dict[Run, tuple[int, int]] = {}
        """Runs that nobody has computed there yet: since which tick, and how many requests are about to."""
        self.rests: deque[tuple[int, int]] = deque()
        """By tick, the units of what else requests have left when they went: nobody asks for it, and it takes room
        until it is the oldest."""

    def use(self, run: Run, tick: int) -> int | None:
        """All of it, now; `order` is told by the caller, once for the deepest run. Returns when it had last used it;
        None: it is to be computed first."""
        known = self.used.get(run)
        self.used[run] = tick
        if known is None:
            run.full |= self.bit
            self.fresh[run] = tick, 1
            self.blocks += len(run.hashes)
            self.units += run.size
            return None
        if self.order[known] is run:
            del self.order[known]
        if run in self.fresh:
            since, requests = self.fresh[run]
            self.fresh[run] = since, requests + 1
        return known

    def leave(self, tick: int, units: int, little: float) -> None:
        """A request has left so much that nobody asks for; with the one before it where both together are `little`."""
        self.rests_units += units
        if self.rests and self.rests[-1][1] + units <= little:
            units += self.rests.pop()[1]
        self.rests.append((tick, units))

    def lose_rest(self) -> None:
        """The oldest of that is gone."""
        self.rests_units -= self.rests.popleft()[1]

    def copy(self, run: Run, head: Run) -> None:
        """`head` was a part of `run`."""
        self.used[head] = self.used[run]
        if run in self.fresh:
            self.fresh[head] = self.fresh[run]

    def leave_for(self, run: Run, head: Run) -> None:
        """Of a run that was cut in two only the head is held."""
        tick = self.used.pop(run)
        self.fresh.pop(run, None)
        if self.order[tick] is run:
            self.order[tick] = head


def common(own: Sequence[int], hashes: Sequence[int], at: int) -> int:
    """How many of `own`, the first of which is `hashes[at]`, are there."""
    low, high = 1, min(len(own), len(hashes) - at)
    if own[high - 1] == hashes[at + high - 1]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if own[middle - 1] == hashes[at + middle - 1]:
            low = middle
        else:
            high = middle
    return low
