"""What an index holds, block by block, and whether it agrees with itself."""

from gateway.routing.index import PrefixIndex
from gateway.routing.runs import Run


def contents(index: PrefixIndex, slot: int) -> dict[int, int]:
    """Blocks that a replica is believed to hold by what it was sent, and when it last used them: the first to go is the
    first."""
    cache = index._caches[slot]
    found: dict[int, int] = {}
    runs = 0
    for tick, deepest in cache.order.items():
        run: Run | None = deepest
        while run and cache.used.get(run) == tick:
            for value in reversed(run.hashes[: run.held(slot)]):
                assert value not in found
                found[value] = tick
            runs += 1
            run = run.above
    assert runs == len(cache.used)  # nothing is left that would never go
    return found


def fresh(index: PrefixIndex, slot: int) -> dict[int, int]:
    """Blocks that nobody has computed there yet, and how many requests are about to."""
    cache = index._caches[slot]
    return {
        value: requests
        for run, (_, requests) in cache.fresh.items()
        for value in run.hashes[: run.held(slot)]
    }  # fmt: skip


def check(index: PrefixIndex) -> None:
    """What holds at any moment, whatever is in it."""
    every: dict[int, int] = {}
    for first, run in index._runs.items():
        assert run.hashes[0] == first
        assert run.full
        assert run.size == run.units(0, len(run.hashes))
        assert run.part is None or run.part
        for slot, blocks in (run.part or {}).items():
            assert 0 < blocks < len(run.hashes)
            assert not run.full >> slot & 1
        for at, value in enumerate(run.hashes):
            assert value not in every
            every[value] = run.full | sum(1 << slot for slot, blocks in (run.part or {}).items() if at < blocks)
    for slot, cache in index._caches.items():
        held = contents(index, slot)
        assert cache.blocks == len(held)
        assert held.keys() == {value for value, mask in every.items() if mask >> slot & 1}
        assert list(held.values()) == sorted(held.values())
        assert cache.fresh.keys() <= cache.used.keys()
        assert cache.units == sum(run.units(0, run.held(slot)) for run in cache.used)
    words = index._words
    if words is None:
        assert len(index._lost) == len(list(index._lost))
        return
    assert words._places.keys() == every.keys()
    assert not every.keys() & set(index._lost)
    assert not words.holders.keys() & set(index._lost)
    assert all(words.holders.values())
