"""Prompts whose blocks are letters, 100 units each: 'abc' and 'abx' have two blocks in common."""

from xxhash import xxh3_64_intdigest

from gateway.routing import Chain, Route

BLOCK = 100


def block(text: str) -> int:
    """The hash of the last letter of `text` behind all that are before it."""
    return xxh3_64_intdigest(text.encode())


def hashes(text: str) -> tuple[int, ...]:
    """One for each letter."""
    return tuple(block(text[: i + 1]) for i in range(len(text)))


def ends(text: str) -> range:
    """Where each letter's block ends."""
    return range(BLOCK, BLOCK * len(text) + 1, BLOCK)


def prompt(text: str, tail: int = 0) -> Chain:
    """A block for each letter, and `tail` units behind them that fill none."""
    return Chain(hashes(text), ends(text), BLOCK * len(text) + tail)


def route(text: str, tail: int = 0, output_tokens: int = 0, session: int | None = None) -> Route:
    """A request with such a prompt; a unit is a token."""
    chain = prompt(text, tail)
    return Route(chain, chain.size, output_tokens, session)
