"""Which replica takes a request. Pure policies: one plain function each, all with the signature of `Policy`.

`candidates` is never empty, and a policy changes nothing: `Router.pick` charges what it chose.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp2
from typing import Any, Final, Literal, TypeVar

from xxhash import xxh3_64_intdigest

from gateway.routing.load import Load
from gateway.routing.route import HOT, Route

L = TypeVar("L", bound=Load)
Policy = Callable[[Route, Sequence[L]], L]

_NEAR: Final = 0.1
_NEAR_S: Final = 0.002
_COPY: Final = 12
FADES_AFTER: Final = 100
_OVERLOAD: Final = 1.25
_OVERLOAD_TOKENS: Final = 2000


def round_robin(route: Route, candidates: Sequence[L]) -> L:
    """The one whose turn it is."""
    return min(candidates, key=lambda load: load.turn)


def least_work(route: Route, candidates: Sequence[L]) -> L:
    """The least work in flight for its share; among equals the one whose turn it is."""
    best = candidates[0]
    least = best.work_tokens / best.share
    for load in candidates:  # min() with a key takes three times as long, for every request
        work = load.work_tokens / load.share
        if work < least or (work == least and load.turn < best.turn):
            best, least = load, work
    return best


def prefix(route: Route, candidates: Sequence[L]) -> L:
    """The lowest cost in seconds,

        (ahead + own x (own_weight + copy) - (prompt - held by whoever holds most) x copy) tokens
        x seconds per token / share

    which is the expected wait for what is ahead and for the own uncached tokens, and what it does to others that these
    are computed here:

    - own_weight - 1: they push something out, and the less long ago that was used, the sooner it is asked for again;
    - copy, for those that another one holds: computed anew they delay all behind them, and take room twice. _COPY, but
      less by the square for what was used within the last HOT requests that came or went: all will need it, and the
      sooner it is in all of them, the better.

    Costs that differ by less than a tenth of the wait are the same: among those the least work, and then the turn.
    """
    prompt, held = route.prompt_tokens, route.cached_tokens.get
    if route.cached_tokens:
        copy = _COPY * min(route.used_ago / HOT, 1.0) ** 2
        anywhere = copy * (prompt - max(route.cached_tokens.values()))
        costs = [
            (load.ahead_tokens + (prompt - held(load.slot, 0)) * (load.own_weight + copy) - anywhere) * load.token_s
            for load in candidates
        ]
    else:
        costs = [(load.ahead_tokens + prompt * load.own_weight) * load.token_s for load in candidates]
    least = min(costs)
    best = candidates[costs.index(least)]
    wait_s = (best.ahead_tokens + prompt - held(best.slot, 0)) * best.token_s
    limit = least + _NEAR * wait_s + _NEAR_S
    near = [load for load, cost in zip(candidates, costs, strict=False) if cost <= limit]
    return least_work(route, near) if len(near) > 1 else best


def session(route: Route, candidates: Sequence[L]) -> L:
    """Always the same one for a session (highest random weight), the next one while that has far more work than the
    mean; without a session the least work."""
    if route.session is None:
        return least_work(route, candidates)
    key = route.session.to_bytes(8, "big")
    ranked = sorted(candidates, key=lambda load: xxh3_64_intdigest(key + load.name.encode()))
    most = _OVERLOAD * sum(load.work_tokens for load in candidates) / len(candidates) + _OVERLOAD_TOKENS
    for load in ranked:
        if load.work_tokens <= most * load.share:
            return load
    return least_work(route, candidates)


def latency(route: Route, candidates: Sequence[L]) -> L:
    """The shortest recent time to first token, for each request that waits there and this one. A replica of which
    nothing is known is tried first; of one that is not chosen, what is known is worth half after FADES_AFTER requests
    to others: a single slow answer does not keep it idle for ever."""
    now = max([load.tick for load in candidates])

    def wait_s(load: L) -> float:
        known_s = (load.ttft_s or 0.0) * exp2((load.tick - now) / FADES_AFTER)
        return known_s * (load.waiting + 1) / load.share

    return min(candidates, key=lambda load: (wait_s(load), load.turn))


PolicyName = Literal["prefix", "least_work", "round_robin", "session", "latency"]

POLICIES: Final[Mapping[PolicyName, Policy[Any]]] = {
    "prefix": prefix,
    "least_work": least_work,
    "round_robin": round_robin,
    "session": session,
    "latency": latency,
}
"""By the name they have in `berth.yaml`."""
