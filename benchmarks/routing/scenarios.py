"""What a fleet goes through: a trace, played so fast that the fleet is busy, and what is done to it."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.errors import ConfigError
from benchmarks.routing.cards import Card
from benchmarks.routing.demand import Demand, Request
from benchmarks.routing.oracles import hit_rate
from benchmarks.routing.sessions import sessions
from benchmarks.routing.simulation import Fleet, work_s
from benchmarks.routing.traces import TRACE_BLOCK_TOKENS, Trace

Name = Literal["trace", "hot prefix", "slow replica", "restart", "burst", "sessions"]

_FASTEST = 4.0
"""Played faster than this, users would come back before they have their answers: more copies of them instead."""
_KV_SHARE = 0.9
_HOT_TOKENS = 8192
_HOT_TAIL_TOKENS = 600
_HOT_SHARE = 0.5
_BURST = 100
_HIT_BY = 8
"""One replica of so many is slow, or restarts."""
_SHARED_IDS = 1 << 60
_COPY_IDS = 1 << 50


@dataclass(frozen=True, slots=True)
class Pace:
    """How the trace is played."""

    utilisation: float = 0.8
    """Of what the fleet can do with one KV cache as large as all of them."""
    speed: float | None = None
    """So many times as fast as recorded, in one copy; None: told by the utilisation."""
    most_requests: int = 12_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of tables: who asks what, and of whom."""

    name: Name
    demand: Demand
    fleet: Fleet


Change = Callable[[Sequence[Request], random.Random], Sequence[Request]]


def build(name: Name, trace: Trace, card: Card, replicas: int, pace: Pace, seed: int) -> Scenario:
    """The scenario, the same for the same seed.

    Raises:
        ConfigError: no request of the trace fits into the card's KV cache.
    """
    rng = random.Random(f"{name} {seed}")  # noqa: S311  (reproducible)
    fleet = Fleet(card, replicas)
    if name == "sessions":
        found = sessions(rng, pace.most_requests // 2)
        rate = pace.utilisation * replicas * rate_of_one(found.every, found.block_tokens, card, replicas)
        return Scenario(name, found.at_rate(rate, rng), fleet)
    change: Change = _with_hot_prefix if name == "hot prefix" else _unchanged
    demand = _played(trace, change, card, replicas, pace, rng)
    middle_s = demand.requests[-1].at_s / 2
    few = max(1, replicas // _HIT_BY)
    if name == "burst":
        demand = replace(demand, requests=_with_burst(demand, middle_s))
    elif name == "slow replica":
        fleet = replace(fleet, slow=few)
    elif name == "restart":
        fleet = replace(fleet, restarts=tuple((middle_s, at) for at in range(few)))
    return Scenario(name, demand, fleet)


def rate_of_one(requests: Sequence[Request], block_tokens: int, card: Card, replicas: int, share: int = 1) -> float:
    """Requests per second that one replica can do at most: prompts and decodes fill its time, or answers under way its
    KV cache. `share`: of the fleet's cache, these requests have one part of so many."""
    hits = hit_rate(requests, block_tokens, replicas * card.kv_capacity_tokens // share)
    count = len(requests)
    prefill_s = sum(card.prefill_s(request.prompt_tokens, 0) for request in requests) / count * (1 - hits)
    decode_s = sum(work_s(card, request, request.prompt_tokens) for request in requests) / count
    output = sum(request.output_tokens for request in requests) / count
    held = sum(request.prompt_tokens + request.output_tokens for request in requests) / count

    def is_feasible(rate: float) -> bool:
        idle = 1 - rate * (prefill_s + decode_s)
        return idle > 0 and rate * output * card.step_s / idle * held <= _KV_SHARE * card.kv_capacity_tokens

    low, high = 0.0, 1 / (prefill_s + decode_s)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_feasible(middle) else (low, middle)
    return low


def _played(trace: Trace, change: Change, card: Card, replicas: int, pace: Pace, rng: random.Random) -> Demand:
    fitting = _fitting(trace, card)
    speed, copies = pace.speed or 1.0, 1
    window_s, window = _window(trace, fitting, pace.most_requests)
    for _ in range(0 if pace.speed else 4):  # a smaller window, for more copies, has a rate of its own
        like = change(window, random.Random(0))  # noqa: S311  (reproducible)
        most = replicas * rate_of_one(like, TRACE_BLOCK_TOKENS, card, replicas, copies)
        factor = pace.utilisation * most / (len(window) / window_s)
        copies = max(1, math.ceil(factor / _FASTEST))
        speed = factor / copies
        window_s, window = _window(trace, fitting, pace.most_requests // copies)
    found: list[Request] = []
    for copy in range(copies):
        later_s = copy * window_s / copies
        found += [_copied(request, copy, later_s, window_s, trace.step_s, speed, rng) for request in window]
    found.sort(key=lambda request: request.at_s)
    note = f"{copies} x {window_s:.0f} s of {trace.name} at {speed:.2f} times its speed"
    if copies > 1:
        note += ", each copy with prompts of its own and from another moment on"
    if trace.step_s:
        note += f", arrivals spread over its steps of {trace.step_s:.0f} s"
    if len(fitting) < len(trace.requests):
        note += f", without {len(trace.requests) - len(fitting)} that no KV cache holds"
    return Demand(change(found, rng), TRACE_BLOCK_TOKENS, note)


def _window(trace: Trace, requests: Sequence[Request], count: int) -> tuple[float, Sequence[Request]]:
    """The trace's beginning, of so many requests at most but one at least, and how long it is."""
    count = max(count, 1)
    if count >= len(requests):
        return max(trace.span_s, 1.0), requests
    end_s = requests[count].at_s
    return max(end_s, 1.0), [request for request in requests[:count] if request.at_s < end_s] or requests[:1]


def _fitting(trace: Trace, card: Card) -> list[Request]:
    most = card.kv_capacity_tokens - TRACE_BLOCK_TOKENS
    fitting = [request for request in trace.requests if request.prompt_tokens + request.output_tokens <= most]
    if not fitting:
        raise ConfigError(f"{trace.name}: no request fits into {most} tokens of KV cache; choose another --card")
    return fitting


def _copied(
    request: Request, copy: int, later_s: float, window_s: float, step_s: float, speed: float, rng: random.Random
) -> Request:
    """Another user with a like prompt, at another moment: what comes in a burst comes in one copy at a time."""
    at_s = (request.at_s + later_s) % window_s + rng.random() * step_s
    blocks = tuple(value + copy * _COPY_IDS for value in request.blocks) if copy else request.blocks
    return Request(at_s / speed, request.prompt_tokens, request.output_tokens, blocks)


def _unchanged(requests: Sequence[Request], rng: random.Random) -> Sequence[Request]:
    return requests


def _with_hot_prefix(requests: Sequence[Request], rng: random.Random) -> Sequence[Request]:
    """Half of the prompts are replaced by the same 8,192 tokens and 600 of their own."""
    hot = tuple(_SHARED_IDS + at for at in range(_HOT_TOKENS // TRACE_BLOCK_TOKENS))
    return [
        replace(request, prompt_tokens=_HOT_TOKENS + _HOT_TAIL_TOKENS, blocks=(*hot, 2 * _SHARED_IDS + at))
        if rng.random() < _HOT_SHARE
        else request
        for at, request in enumerate(requests)
    ]


def _with_burst(demand: Demand, at_s: float) -> Sequence[Request]:
    """A hundred equal prompts of 8,192 tokens that nobody has seen before, at one instant."""
    chain = tuple(_SHARED_IDS + at for at in range(_HOT_TOKENS // TRACE_BLOCK_TOKENS))
    burst = [Request(at_s, _HOT_TOKENS, demand.output_tokens, chain)] * _BURST
    return sorted([*demand.requests, *burst], key=lambda request: request.at_s)


WHAT: Mapping[Name, str] = {
    "trace": "the trace as it is",
    "hot prefix": f"half of the prompts are the same {_HOT_TOKENS:,} tokens and {_HOT_TAIL_TOKENS} of their own",
    "slow replica": f"the trace; one replica in {_HIT_BY} at half speed",
    "restart": f"the trace; one replica in {_HIT_BY} loses its KV cache at half time, the router is not told",
    "burst": f"the trace; {_BURST} equal, new prompts of {_HOT_TOKENS:,} tokens at half time",
    "sessions": "no trace: conversations of some six turns behind one of 20 system prompts, with time to think",
}
