"""Conversations: each prompt is all that was said before, and one message more."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.routing.demand import Demand, Request

_BLOCK_TOKENS = 128
_SYSTEMS = 20
_SYSTEM_BLOCKS = 12
_LONGEST = 40
_STREAM_IDS = 1 << 20


@dataclass(frozen=True, slots=True)
class Sessions:
    """Conversations without a time to begin yet."""

    firsts: Sequence[Request]
    block_tokens: int = _BLOCK_TOKENS

    @property
    def every(self) -> Sequence[Request]:
        """All requests, spread as they would be with all conversations side by side."""
        rng = random.Random(0)  # noqa: S311  (reproducible)
        return Demand(self._begun(1.0, rng), self.block_tokens, "").every

    def at_rate(self, rate: float, rng: random.Random) -> Demand:
        """So many requests per second in the mean (the first conversations find an empty house)."""
        begun = self._begun(rate * len(self.firsts) / len(self.every), rng)
        return Demand(
            begun, self.block_tokens, f"{len(begun)} conversations, {rate:.1f} requests/s once all is under way"
        )

    def _begun(self, rate: float, rng: random.Random) -> Sequence[Request]:
        at_s, found = 0.0, []
        for first in self.firsts:
            at_s += rng.expovariate(rate)
            found.append(replace(first, at_s=at_s))
        return found


def sessions(rng: random.Random, requests: int) -> Sessions:
    """About so many requests: 6 turns in the mean, messages of 120 tokens (median; the first 800), answers of 250,
    15 s in the mean to read and to write."""
    firsts: list[Request] = []
    while requests > 0:
        turns = min(_LONGEST, 1 + int(rng.expovariate(1 / 5.5)))
        firsts.append(_session(rng, len(firsts) + 1, turns))
        requests -= turns
    return Sessions(firsts)


def _session(rng: random.Random, number: int, turns: int) -> Request:
    system = rng.randrange(_SYSTEMS) * _SYSTEM_BLOCKS

    def upto(tokens: int) -> tuple[int, ...]:
        return tuple(
            system + at if at < _SYSTEM_BLOCKS else number * _STREAM_IDS + at for at in range(tokens // _BLOCK_TOKENS)
        )

    said = _SYSTEM_BLOCKS * _BLOCK_TOKENS
    asked: list[Request] = []
    for turn in range(turns):
        prompt = said + _tokens(rng, 120 if turn else 800)
        output = _tokens(rng, 250)
        said = prompt + output
        think_s = rng.expovariate(1 / 15) if turn else 0.0
        blocks = upto(prompt)
        asked.append(Request(think_s, prompt, output, blocks, upto(said)[len(blocks) :], number))
    at: Request | None = None
    for request in reversed(asked):
        at = replace(request, then=at)
    assert at is not None  # noqa: S101  (there is at least one turn)
    return at


def _tokens(rng: random.Random, median: int) -> int:
    return max(8, min(8000, round(median * math.exp(rng.gauss(0, 0.8)))))
