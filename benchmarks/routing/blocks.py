"""One engine's KV cache, as vLLM keeps it: whole blocks by their hash, the least recently freed one evicted first."""

from collections import OrderedDict
from collections.abc import Sequence


class Blocks:
    """`capacity` blocks. Those that a request holds cannot be evicted; those that it gives back stay until their room
    is needed, the end of its prompt before the beginning."""

    __slots__ = ("_fresh", "capacity", "held", "idle", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: dict[int, int] = {}
        """How many requests hold each block."""
        self.idle: OrderedDict[int, None] = OrderedDict()
        """Blocks that nobody holds, least recently freed first."""
        self.used = 0
        """Blocks that are held."""
        self._fresh = 0

    def match(self, chain: Sequence[int]) -> int:
        """Leading blocks of the chain that are here."""
        held, idle = self.held, self.idle
        depth = 0
        for value in chain:
            if value not in held and value not in idle:
                break
            depth += 1
        return depth

    def take(self, chain: Sequence[int], more: int, most_hits: int) -> tuple[int, list[int]] | None:
        """Hold the chain and `more` blocks behind it; how many of the chain were here (`most_hits` at most) and what is
        held. None, and nothing changes, where there is no room."""
        held, idle = self.held, self.idle
        hits = min(self.match(chain), most_hits)
        woken = sum(1 for value in chain[:hits] if value not in held)
        new = len(chain) + more - hits
        if new + woken > self.capacity - self.used:
            return None
        for value in chain[:hits]:
            if value in held:
                held[value] += 1
            else:
                del idle[value]
                held[value] = 1
        mine = list(chain)
        for value in chain[hits:]:
            if value in held:  # computed again beside the one that is here, of which only one is kept
                held[value] += 1
            else:
                idle.pop(value, None)
                held[value] = 1
        for _ in range(more):
            mine.append(self._next())
            held[mine[-1]] = 1
        self.used = len(held)
        while self.used + len(idle) > self.capacity:
            idle.popitem(last=False)
        return hits, mine

    def give_back(self, mine: Sequence[int]) -> None:
        """They may be evicted, the last one first."""
        held, idle = self.held, self.idle
        for value in reversed(mine):
            count = held[value] - 1
            if count:
                held[value] = count
            else:
                del held[value]
                idle[value] = None
        self.used = len(held)

    def rename(self, mine: list[int], start: int, names: Sequence[int]) -> None:
        """The blocks from `start` on have become these."""
        for at, name in enumerate(names, start):
            if at >= len(mine) or name in self.held:
                continue
            self.idle.pop(name, None)
            del self.held[mine[at]]
            self.held[name] = 1
            mine[at] = name
        self.used = len(self.held)

    def wipe(self) -> dict[int, int]:
        """Nobody finds anything any more. What is held stays with those who hold it, under other ids: new by old."""
        self.idle.clear()
        renamed = {value: self._next() for value in self.held}
        self.held = {renamed[value]: count for value, count in self.held.items()}
        return renamed

    def _next(self) -> int:
        """An id that no chain has."""
        self._fresh += 1
        return -self._fresh << 40
