"""Which replica takes a request. Pure policies: one plain function each, all with the signature of `Policy`."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Load(Protocol):
    """What a policy may know of a replica."""

    @property
    def work_tokens(self) -> int:
        """Estimated tokens of all requests in flight there."""

    @property
    def share(self) -> float:
        """In (0, 1]: how much of a peer's load it should get; below 1 after a start or a recovery."""

    @property
    def turn(self) -> float:
        """Grows by 1 / share with each request it is given: the lowest one has waited longest."""


L = TypeVar("L", bound=Load)
Policy = Callable[[Sequence[L]], L]


def least_work(candidates: Sequence[L]) -> L:
    """The replica with the least work in flight for its share; among equals the one whose turn it is. `candidates` is
    not empty."""
    best = candidates[0]
    least = best.work_tokens / best.share
    for replica in candidates:  # min() with a key takes three times as long, for every request
        work = replica.work_tokens / replica.share
        if work < least or (work == least and replica.turn < best.turn):
            best, least = replica, work
    return best
