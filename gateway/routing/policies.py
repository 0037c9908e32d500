"""Which replica takes a request. Pure policies: one plain function each, all with the signature of `Policy`.

`candidates` is never empty, and a policy changes nothing: `Router.pick` charges what it chose.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp2
from typing import Any, Literal, TypeVar

from xxhash import xxh3_64_intdigest

from gateway.routing.load import Load
from gateway.routing.route import Route

L = TypeVar("L", bound=Load)
Policy = Callable[[Route, Sequence[L]], L]

_NEAR = 1.1
_NEAR_S = 0.002
_STAY = 6
_GOOD_SHARE = 0.5
_MOST = 0.9
FADES_AFTER = 100
_OVERLOAD = 1.25
_OVERLOAD_TOKENS = 2000


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
    """The shortest expected wait,

        (queued + own uncached + OUTPUT_WEIGHT x likely output in flight + KV_WEIGHT x KV cache in flight) tokens
        x seconds per token / share

    but for half a prompt or more that is in a KV cache: its holder may take longer by STAY times what that part would
    take to compute. Computed anew it would delay all behind it, and push out what others come back for. A part that is
    asked for so often that every replica will need it is not waited for: the sooner it is in all of them, the better.
    Waits that differ by less than a tenth are the same: among those the least work, and then the turn.
    """
    prompt, held = route.prompt_tokens, route.cached_tokens
    if held:
        waits = [(load.ahead_tokens + prompt - held.get(load.slot, 0)) * load.token_s for load in candidates]
    else:
        waits = [(load.ahead_tokens + prompt) * load.token_s for load in candidates]
    limit_s = min(waits) * _NEAR + _NEAR_S
    if route.used_ago > len(candidates):
        holders = _holders(route, candidates, waits, limit_s)
        if len(holders) == 1:
            return holders[0][1]
        if holders:
            waits = [wait_s for wait_s, _ in holders]
            return _least([load for _, load in holders], waits, min(waits) * _NEAR + _NEAR_S)
    return _least(candidates, waits, limit_s)


def _least(loads: Sequence[L], waits: Sequence[float], limit_s: float) -> L:
    """`least_work` of those that take no longer than `limit_s`, which one of them does."""
    best, least = None, 0.0
    for load, wait_s in zip(loads, waits, strict=False):
        if wait_s <= limit_s:
            work = load.work_tokens / load.share
            if best is None or work < least or (work == least and load.turn < best.turn):
                best, least = load, work
    return best or loads[0]


def _holders(route: Route, candidates: Sequence[L], waits: Sequence[float], limit_s: float) -> list[tuple[float, L]]:
    """Those that hold nearly the most, half of the prompt at least, and do not take too long; with their waits."""
    held = route.cached_tokens.get
    good = _GOOD_SHARE * route.prompt_tokens
    if max(route.cached_tokens.values(), default=0) < good:
        return []
    found = [
        (tokens, wait_s, load)
        for load, wait_s in zip(candidates, waits, strict=False)
        if (tokens := held(load.slot, 0)) >= good and wait_s - _STAY * tokens * load.token_s <= limit_s
    ]
    if not found:
        return []
    enough = _MOST * max([tokens for tokens, _, _ in found])
    return [(wait_s, load) for tokens, wait_s, load in found if tokens >= enough]


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

POLICIES: Mapping[PolicyName, Policy[Any]] = {
    "prefix": prefix,
    "least_work": least_work,
    "round_robin": round_robin,
    "session": session,
    "latency": latency,
}
"""By the name they have in `berth.yaml`."""
