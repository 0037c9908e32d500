"""Which engine holds which texts, exactly: made of what engines say of their KV blocks, and of token ids.

Engines name blocks each in their own way, but say of each stored block what it holds. So a block is known here by a key
made of its tokens and of the key before it, which is the same for all engines. A text (`Chain.hashes[i]`: everything up
to there) is *linked* to the keys of the blocks that lie between the text before it and its own end; it is held by an
engine while all of them are. No I/O.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

from xxhash import xxh3_64_intdigest

EngineHash = int | bytes
Extra = tuple[object, ...]

_ROOT = 0
_MOST_BLOCKS = 200_000
_MOST_LINKED = 250_000


class Believer(Protocol):
    """Whoever believes something of each engine's cache, and is put right. A slot is an engine's number."""

    def found(self, slot: int, texts: Sequence[int]) -> None:
        """It holds these now."""

    def lost(self, slot: int, texts: Sequence[int]) -> None:
        """It does not hold these."""

    def cleared(self, slot: int) -> None:
        """It held nothing a moment ago, whatever was believed; what has come since is `found` next."""

    def unsure(self, slot: int, texts: Sequence[int]) -> None:
        """It held these, and nothing will be told when it does not any more."""


def block_keys(
    before: int, token_ids: Sequence[int], block_tokens: int, extras: Sequence[Extra], lora: str | None
) -> list[int]:
    """The keys of blocks of these tokens, one for each of `extras`, the first behind `before` (0: at the start)."""
    raw = memoryview(array("q", token_ids)).cast("B")
    step = 8 * block_tokens
    keys = []
    key = before
    for at, extra in enumerate(extras):
        key = xxh3_64_intdigest(raw[at * step : (at + 1) * step], key)
        if extra or lora:
            key = xxh3_64_intdigest(repr((extra, lora)).encode(), key)
        keys.append(key)
    return keys


class TextLinks:
    """Text -> keys of its blocks, and back. Bounded by keys; of a chain the last text is the first to go."""

    def __init__(self, most_keys: int) -> None:
        self._most_keys = most_keys
        self._keys: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        self._texts: dict[int, tuple[int, ...]] = {}
        self.size = 0
        """In keys, those that stand for several texts counted for each."""

    def keys(self, text: int) -> tuple[int, ...] | None:
        """None: not linked."""
        return self._keys.get(text)

    def texts(self, keys: Iterable[int]) -> list[int]:
        """All texts that have one of these, once."""
        found = self._texts
        return list(dict.fromkeys(text for key in keys for text in found.get(key, ())))

    def link(self, text: int, keys: tuple[int, ...]) -> bool:
        """Whether that is new."""
        if self._keys.get(text) == keys:
            self._keys.move_to_end(text)
            return False
        self.drop(text)
        self._keys[text] = keys
        self.size += len(keys)
        for key in keys:
            self._texts[key] = (*self._texts.get(key, ()), text)
        return True

    def surplus(self) -> int | None:
        """The text to drop next, while there is more than there may be."""
        return next(iter(self._keys)) if self.size > self._most_keys else None

    def drop(self, text: int) -> None:
        """Forget it."""
        keys = self._keys.pop(text, ())
        self.size -= len(keys)
        for key in keys:
            left = tuple(other for other in self._texts[key] if other != text)
            if left:
                self._texts[key] = left
            else:
                del self._texts[key]


class EngineCache:
    """What one rank of an engine holds, as it says itself (it is the sink of its KV events)."""

    __slots__ = ("_bit", "_index", "_names", "_slot", "block_tokens", "is_complete", "is_mixed")

    def __init__(self, index: "PreciseIndex", slot: int, bit: int) -> None:
        self._index = index
        self._slot = slot
        self._bit = bit
        self._names: OrderedDict[EngineHash, int] = OrderedDict()
        self.block_tokens: int | None = None
        """None until it has stored one."""
        self.is_complete = False
        """Whether what is not known here is not there."""
        self.is_mixed = False
        """Its layers keep several kinds of blocks, and what can be found again depends on all of them: nothing is said
        of such an engine."""

    @property
    def bit(self) -> int:
        """Of this rank among all ranks of all engines."""
        return self._bit

    @property
    def blocks(self) -> int:
        """How many it is known to hold."""
        return len(self._names)

    def stored(
        self,
        hashes: Sequence[EngineHash],
        parent: EngineHash | None,
        token_ids: Sequence[int],
        block_tokens: int,
        extras: Sequence[Extra],
        lora: str | None,
        group: int,
    ) -> None:
        """These can be found now, each behind the one before it."""
        if group:
            self._mixes()
        if self.is_mixed:
            return
        self.block_tokens = self.block_tokens or block_tokens
        key = _ROOT if parent is None else self._names.get(parent)
        is_whole = block_tokens == self.block_tokens and len(token_ids) == block_tokens * len(hashes)
        if key is None or not is_whole:  # what it stands behind, or which tokens it has, is not known
            self.is_complete = False
            return
        keys = block_keys(key, token_ids, block_tokens, extras, lora)
        self._names.update(zip(hashes, keys, strict=True))
        self._index.gained(self._slot, self._bit, keys)
        self._shrink()

    def _shrink(self) -> None:
        """Never so many, unless removals are not told: then what is known is not worth keeping."""
        extra = len(self._names) - self._index.most_blocks
        if extra > 0:
            self.is_complete = False
            self._index.gave_up(self._slot, self._bit, [self._names.popitem(last=False)[1] for _ in range(extra)])

    def removed(self, hashes: Sequence[EngineHash], group: int) -> None:
        """These cannot be found any more. An engine may have computed a block twice and have one of them still; that is
        not counted on."""
        names = self._names
        gone = [key for name in hashes if (key := names.pop(name, None)) is not None]
        self._index.gave_up(self._slot, self._bit, gone)

    def cleared(self) -> None:
        """It is empty, and will say all that comes."""
        self._index.unsaid(self._bit, self._names.values())
        self._names = OrderedDict()
        self.is_complete = not self.is_mixed
        self._index.emptied(self._slot)

    def forgotten(self) -> None:
        """Nobody knows what it holds; what was believed besides is left alone."""
        names, self._names = self._names, OrderedDict()
        self.is_complete = False
        self._index.went_silent(self._slot, self._bit, list(names.values()))

    def _mixes(self) -> None:
        self.is_mixed = True
        self.forgotten()


class PreciseIndex:
    """All engines' caches and the texts linked to their blocks.

    Bounded: 200,000 blocks a rank (some 280 bytes each), 250,000 linked keys (some 300 bytes each). A text belongs to
    one model and is linked by blocks of one size, which all engines of that model have.
    """

    def __init__(self, believer: Believer, most_blocks: int = _MOST_BLOCKS, most_linked: int = _MOST_LINKED) -> None:
        self._believer = believer
        self.most_blocks = most_blocks
        self._links = TextLinks(most_linked)
        self._leaders: dict[int, tuple[int, ...]] = {}
        """By a linked text, those before it that end within the first block: they are held with it."""
        self._holders: dict[int, int] = {}
        """By key, a bit for each rank."""
        self._caches: dict[int, tuple[EngineCache, ...]] = {}
        self._all: dict[int, int] = {}
        """By slot, the bits of its ranks."""
        self._used = 0

    def add(self, slot: int, ranks: int = 1) -> tuple[EngineCache, ...]:
        """One more engine; what each of its ranks holds is to be told to these."""
        caches = tuple(EngineCache(self, slot, self._free_bit()) for _ in range(ranks))
        self._caches[slot] = caches
        self._all[slot] = sum(cache.bit for cache in caches)
        return caches

    def _free_bit(self) -> int:
        bit = ~self._used & (self._used + 1)
        self._used |= bit
        return bit

    def remove(self, slot: int) -> None:
        """It is gone; its caches must not be told anything any more."""
        for cache in self._caches.pop(slot, ()):
            cache.forgotten()
        self._used &= ~self._all.pop(slot, 0)

    def caches(self, slot: int) -> tuple[EngineCache, ...]:
        """Of an engine's ranks; empty when it is not known here."""
        return self._caches.get(slot, ())

    def is_linked(self, text: int) -> bool:
        """Whether anything is known of it."""
        return self._links.keys(text) is not None

    def holds(self, slot: int, text: int) -> bool | None:
        """Whether every rank of the engine holds what is between the text before this one and its end, rounded down to
        whole blocks. None: that is not known."""
        keys, every, caches = self._links.keys(text), self._all.get(slot), self._caches.get(slot, ())
        if keys is None or every is None:
            return None
        if self._has(keys, every):
            return True
        return False if all(cache.is_complete for cache in caches) else None

    def _has(self, keys: Sequence[int], bits: int) -> bool:
        holders = self._holders
        return all(holders.get(key, 0) & bits == bits for key in keys)

    def link(
        self,
        slot: int,
        texts: Sequence[int],
        counts: Sequence[int | None],
        token_ids: Sequence[int],
        lora: str | None = None,
        salt: str | None = None,
    ) -> int:
        """The engine at `slot` has computed a prompt of these tokens, `counts[i]` of which are sure to be the same for
        all prompts that begin with `texts[i]` (None: not known). Links the texts whose blocks it says it holds, which
        proves the tokens right; returns how many.
        """
        sizes = (cache.block_tokens for cache in self._caches.get(slot, ()))
        block_tokens = next((size for size in sizes if size is not None), None)
        if block_tokens is None:
            return 0
        deepest = min(max((count or 0 for count in counts), default=0), len(token_ids)) // block_tokens
        keys = block_keys(_ROOT, token_ids, block_tokens, _extras(deepest, lora, salt), lora)
        linked: list[tuple[int, tuple[int, ...]]] = []
        start = 0
        for text, count in zip(texts, counts, strict=False):
            end = (count or 0) // block_tokens
            if not 0 < end <= len(keys):
                continue
            own = tuple(keys[start:end]) or (keys[end - 1],)  # none of its own: held while the last one before is
            if not any(self._has(own, rank.bit) for rank in self._caches[slot]):
                break
            linked.append((text, own))
            start = max(start, end)
        if linked:
            self._lead(
                linked[0][0], [text for text, count in zip(texts, counts, strict=False) if count in range(block_tokens)]
            )
        # the last ones first: they are the first to be forgotten
        self._tell([text for text, own in reversed(linked) if self._links.link(text, own)])
        self._shed()
        return len(linked)

    def _lead(self, text: int, leaders: Sequence[int]) -> None:
        if leaders:
            self._leaders[text] = tuple(leaders)

    def _shed(self) -> None:
        """Down to as many links as there may be."""
        while (text := self._links.surplus()) is not None:
            self._links.drop(text)
            self._leaders.pop(text, None)
            for slot in self._caches:
                self._believer.unsure(slot, (text,))

    def _tell(self, texts: Sequence[int]) -> None:
        """What is known of each engine and these texts, now that they are linked."""
        for slot in self._caches if texts else ():
            known = [(text, self.holds(slot, text)) for text in reversed(texts)]
            if found := [text for text, held in known if held]:
                self._believer.found(slot, self._led(found))
            if lost := [text for text, held in known if held is False]:
                self._believer.lost(slot, lost)
            if unsure := [text for text, held in known if held is None]:
                self._believer.unsure(slot, unsure)

    def _led(self, texts: list[int]) -> list[int]:
        """With those that are held while these are."""
        return [*(leader for text in texts for leader in self._leaders.get(text, ())), *texts]

    # Called by the caches
    def gained(self, slot: int, bit: int, keys: Sequence[int]) -> None:
        """A rank holds these now."""
        holders = self._holders
        for key in keys:
            holders[key] = holders.get(key, 0) | bit
        every = self._all[slot]
        texts = [text for text in self._links.texts(keys) if self._has(self._links.keys(text) or (), every)]
        if texts:
            self._believer.found(slot, self._led(texts))

    def gave_up(self, slot: int, bit: int, keys: Sequence[int]) -> None:
        """A rank does not hold these any more."""
        self.unsaid(bit, keys)
        texts = self._links.texts(keys)
        if texts:
            self._believer.lost(slot, texts)

    def emptied(self, slot: int) -> None:
        """A rank holds nothing."""
        self._believer.cleared(slot)

    def went_silent(self, slot: int, bit: int, keys: Sequence[int]) -> None:
        """Nobody knows whether a rank still holds these."""
        self.unsaid(bit, keys)
        texts = self._links.texts(keys)
        if texts:
            self._believer.unsure(slot, texts)

    def unsaid(self, bit: int, keys: Iterable[int]) -> None:
        """What was said of these holds no longer."""
        holders = self._holders
        for key in keys:
            left = holders.get(key, 0) & ~bit
            if left:
                holders[key] = left
            else:
                holders.pop(key, None)


def _extras(blocks: int, lora: str | None, salt: str | None) -> list[Extra]:
    """As vLLM has it, an adapter is part of every block, a salt of the first."""
    every = (lora,) if lora else ()
    first = (*every, salt) if salt else every
    return [first, *[every] * (blocks - 1)] if blocks else []
