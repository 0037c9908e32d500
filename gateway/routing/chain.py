"""A prompt as a chain of block hashes: equal hashes are equal prefixes."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

_STEP_BYTES: Final = 256  # about 64 tokens
_STEPS: Final = 8
_COARSEST_BYTES: Final = 8192
_LONGEST_BYTES: Final = 64 * 2**20


class Chain(NamedTuple):
    """Hash i stands for everything up to `ends[i]`, the seed included. Units are bytes in the gateway, tokens in the
    simulator."""

    hashes: tuple[int, ...]
    ends: Sequence[int]
    """Where each block ends, in units; may be longer than `hashes`."""
    size: int
    """The whole prompt, in units; what is behind the last block has no hash."""


def _cuts() -> tuple[int, ...]:
    """Block ends at fixed places, so that a longer prompt has the blocks of a shorter one that it begins with.

    256 bytes each up to 4 KiB, then eight to each doubling, at most 8 KiB each: 32k tokens are 56 blocks, not 512, and
    a match is found at least seven eighths long.
    """
    cuts, at, step = [], 0, _STEP_BYTES
    while at < _LONGEST_BYTES:
        at += step
        cuts.append(at)
        if at == 2 * _STEPS * step and step < _COARSEST_BYTES:
            step *= 2
    return tuple(cuts)


CUTS: Final = _cuts()


def chain_of(seed: int, text: bytes) -> Chain:
    """The chain of `text` behind what `seed` stands for (an unsigned 64-bit hash of model, tools, salt, ...)."""
    hashes = []
    start, value = 0, seed
    blocks = memoryview(text) if len(text) > _COARSEST_BYTES else text  # to copy a few bytes is faster than a view
    for end in islice(CUTS, bisect_right(CUTS, len(text))):
        value = xxh3_64_intdigest(blocks[start:end], value)
        hashes.append(value)
        start = end
    return Chain(tuple(hashes), CUTS, len(text))


def of_model(chain: Chain, model: str) -> Chain:
    """The same text for another model, in whose cache nothing is the same."""
    mark = xxh3_64_intdigest(model.encode("utf-8", "surrogatepass"))
    return chain._replace(hashes=tuple([(value + mark) % 2**64 for value in chain.hashes]))
