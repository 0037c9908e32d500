"""One request as routing sees it."""

from typing import Final

from gateway.routing.chain import Chain

HOT: Final = 8
"""A prefix used again within so many requests that come or go is everybody's: several in flight have it at a time."""
NO_HITS: Final[dict[int, int]] = {}


class Route:
    """`prompt_tokens` and `output_tokens` are estimates. `Router.look` fills in where its prefix is."""

    __slots__ = (
        "cached_tokens", "chain", "most_blocks", "output_tokens", "prompt_tokens", "session", "tokens_per_unit",
        "used_ago",
    )  # fmt: skip

    def __init__(
        self,
        chain: Chain,
        prompt_tokens: int,
        output_tokens: int,
        session: int | None = None,
        tokens_per_unit: float = 1.0,
    ) -> None:
        self.chain = chain
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.session = session
        """A hash of what all requests of one conversation or user have in common; below 2**64."""
        self.tokens_per_unit = tokens_per_unit
        self.cached_tokens = NO_HITS
        """By a load's slot, how much of the prompt it holds, in tokens: never the last one, which is always computed.
        Slots that hold nothing are not in it."""
        self.most_blocks: int | None = None
        """So many leading blocks of the chain are held by the one that holds most; of several looks the fewest, since
        what the request itself has left somewhere was not there for it to find."""
        self.used_ago = 0
        """Requests that came or went since the last one that had all the blocks of the chain that anybody holds."""

    def tokens_of(self, blocks: int) -> int:
        """So many leading blocks of the chain, without the prompt's last token."""
        if not blocks:
            return 0
        return min(int(self.chain.ends[blocks - 1] * self.tokens_per_unit), max(self.prompt_tokens - 1, 0))
