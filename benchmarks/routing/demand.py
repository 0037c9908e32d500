"""What a fleet is asked: prompts as chains of KV cache blocks, and when they come."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `blocks` are the prompt's whole blocks: an id stands for everything up to the end of its block, so
    that equal ids are equal prefixes."""

    at_s: float
    """When it comes; of one that follows another, how long after that one's end."""
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    answer: tuple[int, ...] = ()
    """Ids of the blocks that the answer completes, where a later prompt can have them; else nobody asks for them."""
    session: int | None = None
    then: "Request | None" = None
    """What the same user asks once this is answered."""


_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True)
class Demand:
    """The first requests of all users, by time."""

    requests: Sequence[Request]
    block_tokens: int
    note: str
    """How it was made, for people."""

    @property
    def output_tokens(self) -> int:
        """Mean answer, which is what a router may expect of one."""
        every = self.every
        return round(sum(request.output_tokens for request in every) / max(len(every), 1))

    @property
    def every(self) -> Sequence[Request]:
        """All requests in the order in which they come, if each answer takes five seconds."""
        found: list[tuple[float, int, Request]] = []
        for first in self.requests:
            at_s = 0.0
            at: Request | None = first
            while at is not None:
                at_s += at.at_s + (_ANSWER_S if at is not first else 0.0)
                found.append((at_s, len(found), at))
                at = at.then
        return [request for _, _, request in sorted(found)]
