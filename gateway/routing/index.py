"""Which replica holds which blocks of which prompts, as far as one can tell.

Over what is believed of each by what it was sent (`sent.Sent`) lies what its engine says itself (`found`, `dropped`):
as long as it does, its word counts.
"""

from collections.abc import Sequence
from itertools import islice

from gateway.routing.lost import Loss
from gateway.routing.runs import Cache, Run
from gateway.routing.sent import Sent
from gateway.routing.words import Words

_MOST_BLOCKS = 20_000  # of 64 tokens at least: 1.3 million. Not Final: tests make it small, compiled or not


class PrefixIndex(Sent):
    """Bounded: as `Sent`, and 20,000 blocks that each engine names."""

    def remove(self, slot: int) -> None:
        """The replica is gone."""
        self._doubt(slot, self._said(slot), "restarted")
        super().remove(slot)

    def said(self, slot: int) -> int:
        """How many its engine says it holds."""
        return len(self._said(slot))

    # What an engine says of its own cache
    def found(self, slot: int, hashes: Sequence[int]) -> None:
        """It holds these."""
        words = self._heard()
        for value in hashes:
            words.say(slot, value)
            self._lost.drop(value)
        said = words.said(slot)
        if len(said) > _MOST_BLOCKS:
            self._doubt(slot, list(islice(said, len(said) - _MOST_BLOCKS)), "evicted")

    def dropped(self, slot: int, hashes: Sequence[int]) -> None:
        """It does not hold these; what nobody has computed there yet, and somebody is about to, stays."""
        words, cache = self._heard(), self._caches[slot]
        self._doubt(slot, hashes, "evicted")
        for value in hashes:
            run = words.place_of(value)
            if run is not None and run in cache.used and run not in cache.fresh:
                self._drop_from(cache, run, run.hashes.index(value))

    def _drop_from(self, cache: Cache, run: Run, at: int) -> None:
        """The block at `at` of a run is gone, and with it what was last used when it was, and lies behind it."""
        while (deepest := cache.order[cache.used[run]]) is not run:
            self._drop(cache, deepest, "evicted")
        if not at:
            self._drop(cache, run, "evicted")
        elif at < run.held(cache.slot):
            self._trim(cache, run, at, "evicted")

    def emptied(self, slot: int, tick: int) -> None:
        """It held nothing a moment ago; what was last used at `tick` or later is about to be computed, and stays."""
        self._doubt(slot, self._said(slot), "restarted")
        self.forget_older(slot, tick - 1, "restarted")

    def unsaid(self, slot: int, hashes: Sequence[int]) -> None:
        """Nobody says any more whether it holds these: what was sent there is all that is known, as of any other."""
        self._doubt(slot, hashes, "evicted")

    def _heard(self) -> Words:
        """An engine speaks: from now on every block may have a fate of its own."""
        if self._words is None:
            self._words = Words(self._runs.values())
            self._lost.apart()
        return self._words

    def _said(self, slot: int) -> list[int]:
        return list(self._words.said(slot)) if self._words else []

    def _doubt(self, slot: int, hashes: Sequence[int], loss: Loss) -> None:
        """Its engine's word on these counts no longer."""
        for value in hashes:
            if self._words is not None and self._words.unsay(slot, value):
                self._lost.add((value,), loss)
