"""What replicas held once, and nobody holds any more."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Literal

from gateway.routing.runs import common

Loss = Literal["evicted", "restarted"]
"""Why a replica no longer holds a block that it held."""

_MOST_BLOCKS = 20_000  # of 64 tokens at least: 1.3 million. Not Final: tests make it small, compiled or not


class Lost:
    """Bounded: the last 20,000 blocks, of 300 bytes at most."""

    __slots__ = ("_blocks", "runs")

    def __init__(self) -> None:
        self.runs: OrderedDict[int, tuple[tuple[int, ...], Loss]] = OrderedDict()
        """Neighbouring blocks of a chain that were lost together, by the first of them."""
        self._blocks = 0

    def __iter__(self) -> Iterator[int]:
        return (value for hashes, _ in self.runs.values() for value in hashes)

    def __len__(self) -> int:
        return self._blocks

    def add(self, hashes: tuple[int, ...], loss: Loss) -> None:
        """These neighbours are lost."""
        runs, first = self.runs, hashes[0]
        if first in runs:
            self._pop(first)
        runs[first] = hashes, loss
        self._blocks += len(hashes)
        while self._blocks > _MOST_BLOCKS:
            _, (oldest, _) = runs.popitem(last=False)
            self._blocks -= len(oldest)

    def _pop(self, first: int) -> tuple[tuple[int, ...], Loss]:
        found = self.runs.pop(first)
        self._blocks -= len(found[0])
        return found

    def once(self, hashes: tuple[int, ...], start: int) -> tuple[int, Loss]:
        """How far behind `start` the chain goes on in blocks that are lost, and why the last of them is."""
        runs = self.runs
        reason: Loss = "evicted"
        end, count = start, len(hashes)
        while end < count and (found := runs.get(hashes[end])) is not None:
            own, reason = found
            end += common(own, hashes, end)
        return end, reason

    def found(self, hashes: tuple[int, ...], start: int) -> None:
        """The chain is held from `start` on; what is lost of other chains stays so."""
        runs = self.runs
        at, count = start, len(hashes)
        while at < count and hashes[at] in runs:
            own, loss = self._pop(hashes[at])
            same = common(own, hashes, at)
            at += same
            if same < len(own):
                self.add(own[same:], loss)

    def apart(self) -> None:
        """Every block for itself from now on, so that each can be `drop`ped; they are added so from now on."""
        every, self.runs = list(self.runs.values()), OrderedDict()
        self.runs.update((value, ((value,), loss)) for hashes, loss in every for value in hashes)

    def drop(self, value: int) -> None:
        """A block that is held again, whatever of its chain is."""
        if value in self.runs:
            self._pop(value)
