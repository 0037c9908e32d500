"""What engines say themselves that they hold, block by block, over what is believed of them by what they were sent."""

from collections.abc import Callable, Iterable, Sequence

from gateway.routing.runs import Found, Run, common


class Words:
    """Made for the first engine that speaks; costs the others nothing."""

    __slots__ = ("_places", "_said", "holders")

    def __init__(self, runs: Iterable[Run]) -> None:
        self.holders: dict[int, int] = {}
        """By block, a bit for each replica whose engine says that it holds it."""
        self._said: dict[int, dict[int, None]] = {}
        """By slot, the blocks that its engine says it holds, the latest last."""
        self._places: dict[int, Run] = {}
        """By block, the run it is in."""
        for run in runs:
            self.place(run)

    def said(self, slot: int) -> dict[int, None]:
        """What the engine at `slot` says it holds, the latest last."""
        return self._said.get(slot, {})

    def say(self, slot: int, value: int) -> None:
        """It holds this."""
        self.holders[value] = self.holders.get(value, 0) | 1 << slot
        self._said.setdefault(slot, {})[value] = None

    def unsay(self, slot: int, value: int) -> bool:
        """Its word on this counts no longer; whether it was said, and nobody holds it without."""
        said = self._said.get(slot)
        if said is None or value not in said:
            return False
        del said[value]
        left = self.holders[value] & ~(1 << slot)
        if left:
            self.holders[value] = left
            return False
        del self.holders[value]
        return value not in self._places

    def place(self, run: Run) -> None:
        """These blocks are in it now."""
        self._places.update(dict.fromkeys(run.hashes, run))

    def misplace(self, hashes: Iterable[int]) -> None:
        """These are in none."""
        for value in hashes:
            self._places.pop(value, None)

    def place_of(self, value: int) -> Run | None:
        """The run that it is in."""
        return self._places.get(value)

    def next_place(self, hashes: Sequence[int], start: int) -> int:
        """The next block behind `start` that is in a run, or the chain's end: behind what an engine has dropped, some
        may be."""
        return next((at for at in range(start + 1, len(hashes)) if hashes[at] in self._places), len(hashes))

    def match(self, hashes: tuple[int, ...], slots_of: Callable[[int], tuple[int, ...]]) -> tuple[Found, int]:
        """Who holds how many leading blocks, for one reason or the other: as `Sent.match`, block by block."""
        found: Found = []
        said = self.holders.get
        alive, at, sent, end = -1, 0, 0, 0  # all of `alive` hold the chain up to `at`; up to `end`, `sent` were sent it
        for value in hashes:
            if at == end:
                sent, end = self._sent(hashes, at)
            stay = alive & (sent | said(value, 0))
            if stay != alive and at:
                found.append((slots_of(alive & ~stay), at))
            alive = stay
            if not alive:
                break
            at += 1
        if alive and at:
            found.append((slots_of(alive), at))
        deepest = self._places.get(hashes[at - 1]) if at else None
        return found, deepest.tick if deepest else 0

    def _sent(self, hashes: tuple[int, ...], at: int) -> tuple[int, int]:
        """Who was sent the block at `at`, and up to where the same are."""
        run = self._places.get(hashes[at])
        if run is None:
            return 0, at + 1
        if run.start == at and run.part is None:
            return run.full, at + common(run.hashes, hashes, at)
        mask = run.full
        for slot, blocks in run.part.items() if run.part else ():
            if run.start + blocks > at:
                mask |= 1 << slot
        return mask, at + 1
