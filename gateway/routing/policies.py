"""Which replica takes a request. Pure policies: one plain function each, all with the signature of `Policy`.

`candidates` is never empty, and a policy changes nothing: `Router.pick` charges what it chose.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from xxhash import xxh3_64_intdigest

from gateway.routing.load import Load
from gateway.routing.route import Route

L = TypeVar("L", bound=Load)
Policy = Callable[[Route, Sequence[L]], L]

_NEAR = 1.1
_NEAR_S = 0.002
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
    """The shortest expected wait:

        (queued + own uncached + OUTPUT_WEIGHT x likely output in flight) tokens x seconds per token / share

    A hit makes the own part small, so a request goes where its prefix is, until those ahead of it there would take
    longer than computing the prefix anew elsewhere; then it goes there, and the prefix is in two places. Waits that
    differ by less than a tenth are the same: among those the least work, and then the turn.
    """
    prompt, held = route.prompt_tokens, route.cached_tokens.get
    waits = [(load.ahead_tokens + prompt - held(load.slot, 0)) * load.token_s for load in candidates]
    limit = min(waits) * _NEAR + _NEAR_S
    near = [load for load, wait in zip(candidates, waits, strict=False) if wait <= limit]
    return near[0] if len(near) == 1 else least_work(route, near)


def session(route: Route, candidates: Sequence[L]) -> L:
    """Always the same one for a session (highest random weight), the next one while that has far more work than the
    mean; without a session the least work."""
    if route.session is None:
        return least_work(route, candidates)
    key = route.session.to_bytes(8, "big")
    ranked = sorted(candidates, key=lambda load: xxh3_64_intdigest(key + load.name.encode()))
    most = _OVERLOAD * sum(load.work_tokens for load in candidates) / len(candidates) + _OVERLOAD_TOKENS
    for load in ranked:
        if load.work_tokens <= most:
            return load
    return least_work(route, candidates)


def latency(route: Route, candidates: Sequence[L]) -> L:
    """The shortest recent time to first token, for each request that waits there and this one. A replica of which
    nothing is known is tried first."""
    return min(candidates, key=lambda load: ((load.ttft_s or 0.0) * (load.waiting + 1) / load.share, load.turn))


PolicyName = Literal["prefix", "least_work", "round_robin", "session", "latency"]

POLICIES: Mapping[PolicyName, Policy[Any]] = {
    "prefix": prefix,
    "least_work": least_work,
    "round_robin": round_robin,
    "session": session,
    "latency": latency,
}
"""By the name they have in `berth.yaml`."""
