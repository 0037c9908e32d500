"""Which replica takes a request. Pure policies: one plain function each, all with the signature of `Policy`."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Load(Protocol):
    """What a policy may know of a replica."""

    @property
    def work_tokens(self) -> int:
        """Estimated tokens of all requests in flight there."""

    @property
    def picks(self) -> int:
        """How many requests it has been given so far."""


L = TypeVar("L", bound=Load)
Policy = Callable[[Sequence[L]], L]


def least_work(candidates: Sequence[L]) -> L:
    """The replica with the least work in flight; among equals the one picked least often. `candidates` is not empty."""
    return min(candidates, key=lambda replica: (replica.work_tokens, replica.picks))
