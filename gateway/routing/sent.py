"""Which replica holds which blocks of which prompts, by what it was sent.

One table for all replicas, by runs of blocks (`runs.Run`) with a bit for each replica: a lookup takes one step for each
run that the chain goes through, and a prompt that nobody has seen is one run, however long. Each replica has an LRU as
its engine has one: of a chain the last block is the older, and what does not fit into its KV cache is forgotten.
"""

import sys
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from gateway.routing.lost import Loss, Lost
from gateway.routing.runs import Cache, Found, Run, common
from gateway.routing.words import Words

_MOST_BLOCKS = 20_000  # of 64 tokens at least: 1.3 million. Not Final: tests make it small, compiled or not
_MOST_MASKS: Final = 1000
_LITTLE: Final = 0.001  # of a KV cache
_LITTLE_REST: Final = 0.0005  # of it too: two neighbours are more than that, so at most 4,001 rests are held
_FULL: Final = 0.9


class Sent:
    """Bounded: 20,000 blocks and 4,000 answers a replica, and the last 20,000 lost ones; a run takes some 300 bytes,
    and a block 50 more.

    Hashes are chained: equal ones are equal prefixes, so a block has the same place in each chain that has it.
    """

    def __init__(self) -> None:
        self._runs: dict[int, Run] = {}
        """By their first block."""
        self._caches: dict[int, Cache] = {}
        self._slots: dict[int, tuple[int, ...]] = {}
        self._lost = Lost()
        self.once = self._lost.once
        """`Lost.once`, without a call in between."""
        self._words: Words | None = None
        """None until an engine speaks."""

    def add(self) -> int:
        """A slot for one more replica."""
        slot = next(slot for slot in range(len(self._caches) + 1) if slot not in self._caches)
        self._caches[slot] = Cache(slot)
        return slot

    def remove(self, slot: int) -> None:
        """The replica is gone."""
        self.forget(slot, "restarted")
        del self._caches[slot]

    def blocks(self, slot: int) -> int:
        """How many blocks the replica is believed to hold, by what it was sent."""
        return self._caches[slot].blocks

    def units(self, slot: int) -> int:
        """And their size."""
        return self._caches[slot].units

    # Who holds what
    def match(self, hashes: tuple[int, ...]) -> tuple[Found, int]:
        """Who holds how many leading blocks: slots and a number of blocks, the shortest first; those that hold none are
        left out. And when the last block that anybody holds was last used: the latest tick; 0 where
        nobody was sent it, and an engine says that it holds it."""
        if self._words is not None:
            return self._words.match(hashes, self._slots_of)
        found: Found = []
        run = self._runs.get(hashes[0]) if hashes else None
        above, tick = None, 0
        alive, at, count = -1, 0, len(hashes)  # all of `alive` hold the chain up to `at`
        while run is not None and run.above is above:
            own = run.hashes
            end = at + len(own)
            is_whole = end <= count and hashes[end - 1] == own[-1]
            if not is_whole:
                end = at + common(own, hashes, at)
            stay = alive & run.full
            if stay != alive:
                stay = self._stop(found, run, alive, at, end)
            if stay or found[-1][1] > at:
                tick = run.tick
            alive, at, above = stay, end, run
            run = self._runs.get(hashes[at]) if alive and is_whole and at < count else None
        if alive and at:
            found.append((self._slots_of(alive), at))
        return found, tick

    def _stop(self, found: Found, run: Run, alive: int, at: int, end: int) -> int:
        """Name those of `alive` that hold the chain up to `at` and not up to `end`, which lies in `run` or at its end;
        returns the others."""
        if run.part is None:
            stay = alive & run.full
            if at:
                found.append((self._slots_of(alive & ~stay), at))
            return stay
        for blocks, mask in run.stops(alive, end - at):
            alive &= ~mask
            if mask and at + blocks:
                found.append((self._slots_of(mask), at + blocks))
        return alive

    def _slots_of(self, mask: int) -> tuple[int, ...]:
        """The slots of the bits in `mask`; a few masks are asked for again and again."""
        slots = self._slots.get(mask)
        if slots is None:
            if len(self._slots) >= _MOST_MASKS:
                self._slots.clear()
            slots = self._slots[mask] = tuple(slot for slot in range(mask.bit_length()) if mask >> slot & 1)
        return slots

    # What a replica is sent
    def touch(
        self, slot: int, hashes: tuple[int, ...], ends: Sequence[int], tick: int, capacity: int
    ) -> list[tuple[int, int]]:
        """The replica computes or uses these blocks now, and holds `capacity` units at most. Returns when it had last
        used those that it held: up to which block at which tick, the latest first. `computed` or `forget_new` is to
        follow."""
        cache = self._caches[slot]
        before = self._use(cache, hashes, ends, tick, is_there=False)
        if cache.units + cache.rests_units > capacity or cache.blocks > _MOST_BLOCKS:
            self._make_room(cache, capacity)
        return before

    def left(
        self, slot: int, hashes: tuple[int, ...], ends: Sequence[int], tick: int, capacity: int, rest: int
    ) -> None:
        """A request that had these blocks computed or found them goes: until now nobody could push them out, and now
        they are the newest. It leaves `rest` units more: its answer, and what of its prompt is in no block."""
        cache = self._caches[slot]
        self._use(cache, hashes, ends, tick, is_there=True)
        if rest > 0:
            cache.leave(tick, rest, capacity * _LITTLE_REST)
        self._make_room(cache, capacity)

    def _use(
        self, cache: Cache, hashes: tuple[int, ...], ends: Sequence[int], tick: int, *, is_there: bool
    ) -> list[tuple[int, int]]:
        """All of these blocks, at `tick`; where they are not there yet, some are to be computed. Returns when they were
        last used, as `touch` does."""
        runs, fresh = self._runs, cache.fresh
        before: list[tuple[int, int]] = []
        above, at, count = None, 0, len(hashes)
        while at < count:
            run = runs.get(hashes[at])
            if run is None:
                run = self._new(cache, hashes, at, ends, tick, above)
                at += len(run.hashes)
            elif run.above is above or self._adopt(run, above, at):
                end = at + len(run.hashes)
                if run.part is not None or end > count or hashes[end - 1] != run.hashes[-1]:
                    run = self._fit(run, cache.slot, hashes, at)
                at += len(run.hashes)
                known = cache.use(run, tick)
                if known is not None:
                    before.append((at, known))
                run.tick = tick
            else:
                break
            if is_there and run in fresh:
                del fresh[run]
            above = run
        if above is not None:
            cache.order[tick] = above
        return before

    def oldest(self, slot: int, capacity: int) -> int:
        """When the replica last used what it would lose first; 0 while there is room for more."""
        cache = self._caches[slot]
        if cache.units + cache.rests_units < _FULL * capacity:
            return 0
        return next(iter(cache.order), 0)

    def _new(
        self, cache: Cache, hashes: tuple[int, ...], at: int, ends: Sequence[int], tick: int, above: Run | None
    ) -> Run:
        """What nobody holds of a chain from `at` on, in one run."""
        own = self._unheld(hashes, at)
        run = self._runs[own[0]] = Run(own, at, ends, cache.bit, above, tick)
        if self._words is not None:
            self._words.place(run)
        cache.used[run] = tick
        cache.fresh[run] = tick, 1
        cache.blocks += len(own)
        cache.units += run.size
        return run

    def _unheld(self, hashes: tuple[int, ...], at: int) -> tuple[int, ...]:
        lost, words = self._lost, self._words
        if words is None:
            if hashes[at] in lost.runs:
                lost.found(hashes, at)
            return hashes[at:]
        own = hashes[at : words.next_place(hashes, at)]
        for value in own:
            lost.drop(value)
        return own

    def _adopt(self, run: Run, above: Run | None, at: int) -> bool:
        """Whether a run that was found behind `above`, where it was not put, belongs there: it does where an engine has
        dropped what was before it. Else two blocks have the same hash, for which somebody may have taken pains: the
        chain ends there, and nobody else's is touched."""
        if self._words is None or run.start != at or not run.is_loose:
            return False
        run.above = above
        return True

    def _fit(self, run: Run, slot: int, hashes: tuple[int, ...], at: int) -> Run:
        """What of a run lies on this chain; where the replica holds a part of it, no more than that."""
        blocks = common(run.hashes, hashes, at)
        if run.part:
            blocks = min(blocks, run.held(slot))
        return self._split(run, blocks) if blocks < len(run.hashes) else run

    def _split(self, run: Run, at: int) -> Run:
        """In two, in all caches: the head, which is new, and the run as its tail. Returns the head."""
        hashes, bits = run.hashes, run.full
        head = self._runs[hashes[0]] = Run(hashes[:at], run.start, run.ends, bits, run.above, run.tick)
        self._runs.setdefault(hashes[at], run)  # never another one's
        for slot in self._slots_of(bits):
            self._caches[slot].copy(run, head)
        run.hashes, run.above = hashes[at:], head
        run.start += at
        run.size -= head.size
        part, run.part = run.part, None
        for slot, blocks in (part or {}).items():
            cache = self._caches[slot]
            cache.copy(run, head)
            head.hold(slot, min(blocks, at))
            if blocks > at:
                run.hold(slot, blocks - at)
            else:
                cache.leave_for(run, head)
        if self._words is not None:
            self._words.place(head)
        return head

    def _make_room(self, cache: Cache, capacity: int) -> None:
        """Let go of what was used longest ago, the tail first, block by block as engines do; a run that is next to
        nothing goes at once."""
        order, used = cache.order, cache.used
        little = capacity * _LITTLE
        rests = cache.rests
        while (over := cache.units + cache.rests_units - capacity) > 0 or cache.blocks > _MOST_BLOCKS:
            if rests and (not order or rests[0][0] <= next(iter(order))):
                cache.lose_rest()
                continue
            tick, run = order.popitem(last=False)
            size = run.size if run.part is None else run.units(0, run.held(cache.slot))
            keep = 0 if size <= over or size <= little else self._spared(cache, run, over)
            if keep:
                self._trim(cache, run, keep, "evicted")
                left: Run | None = run
            else:
                self._leave(cache, run, "evicted")
                left = run.above
            if left is not None and used.get(left) == tick:
                order[tick] = left
                order.move_to_end(tick, last=False)

    def _spared(self, cache: Cache, run: Run, over: int) -> int:
        """How many blocks of the oldest run may stay."""
        begin, ends = run.start, run.ends
        end = begin + run.held(cache.slot)
        keep = bisect_right(ends, ends[end - 1] - max(over, 0), begin, end)
        return max(min(keep, end - max(cache.blocks - _MOST_BLOCKS, 0)) - begin, 0)

    def _drop(self, cache: Cache, run: Run, loss: Loss | None) -> None:
        """The replica holds nothing of a run, of those last used then the deepest. None: it never did."""
        order, tick, above = cache.order, cache.used[run], run.above
        if above is not None and cache.used.get(above) == tick:
            order[tick] = above
        else:
            del order[tick]
        self._leave(cache, run, loss)

    def _leave(self, cache: Cache, run: Run, loss: Loss | None) -> None:
        """It holds nothing of a run; `order` knows already."""
        del cache.used[run]
        if run in cache.fresh:
            del cache.fresh[run]
        if run.part is None:
            cache.blocks -= len(run.hashes)
            cache.units -= run.size
        else:
            held = run.held(cache.slot)
            cache.blocks -= held
            cache.units -= run.units(0, held)
            run.leave(cache.slot)
        run.full &= ~cache.bit
        if not run.full:
            first = run.hashes[0]
            if run.part is None and self._runs.get(first) is run:
                del self._runs[first]
            self._let_go(run.shorten() if run.part else run.hashes, loss)

    def _trim(self, cache: Cache, run: Run, keep: int, loss: Loss) -> None:
        """It holds only the first `keep` blocks of it, fewer than before."""
        held = run.held(cache.slot)
        cache.blocks -= held - keep
        if run.full == cache.bit and run.part is None:
            gone = run.cut(keep)
            cache.units -= run.units(keep, held)
            self._let_go(gone, loss)
            return
        cache.units -= run.units(keep, held)
        run.full &= ~cache.bit
        run.hold(cache.slot, keep)
        if not run.full:
            self._let_go(run.shorten(), loss)

    def _let_go(self, hashes: tuple[int, ...], loss: Loss | None) -> None:
        """Nobody was sent these, as far as it is known still."""
        words = self._words
        if words is None:
            if loss is not None:
                self._lost.add(hashes, loss)
            return
        words.misplace(hashes)
        for value in hashes:
            if loss is not None and value not in words.holders:
                self._lost.add((value,), loss)

    def forget(self, slot: int, loss: Loss) -> None:
        """What it was sent is there no longer; what its engine says of its cache since is another matter."""
        self.forget_older(slot, sys.maxsize, loss)

    def forget_older(self, slot: int, tick: int, loss: Loss) -> None:
        """Of what the replica last used at `tick` or before, nothing is there any more."""
        cache = self._caches[slot]
        while cache.rests and cache.rests[0][0] <= tick:
            cache.lose_rest()
        while cache.order and (oldest := next(iter(cache.order))) <= tick:
            self._drop(cache, cache.order[oldest], loss)

    def computed(self, slot: int, hashes: tuple[int, ...]) -> None:
        """A request that touched these blocks has its first token: they are there, whatever becomes of it."""
        fresh = self._caches[slot].fresh
        if fresh:
            for run in self._path(hashes):
                fresh.pop(run, None)

    def forget_new(self, slot: int, hashes: tuple[int, ...], tick: int) -> None:
        """A request that touched these blocks at `tick` has had no token: what only it was about to compute is not
        there, unless something behind it stays (an engine has dropped it from under a request that still waits)."""
        cache, stays = self._caches[slot], False
        for run in reversed(self._path(hashes)):
            since, requests = cache.fresh.get(run, (tick + 1, 0))
            if since > tick:
                stays = stays or run in cache.used  # it was there, or is so anew
            elif requests > 1:
                stays = True
                cache.fresh[run] = since, requests - 1
            elif not stays:
                self._drop(cache, run, None)

    def _path(self, hashes: tuple[int, ...]) -> list[Run]:
        """The runs that the chain consists of, as far as they are held by anybody; whole ones only."""
        path: list[Run] = []
        above, at, count = None, 0, len(hashes)
        while at < count and (run := self._runs.get(hashes[at])) is not None and run.above is above:
            at += len(run.hashes)
            if at > count or run.hashes[-1] != hashes[at - 1]:
                break
            path.append(run)
            above = run
        return path
