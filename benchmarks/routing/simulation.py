"""The fleet under its requests, one event after the other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

from benchmarks.routing.cards import Card
from benchmarks.routing.demand import Demand, Request
from benchmarks.routing.engine import Engine, Job


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas of one engine, and what befalls them."""

    card: Card
    replicas: int
    slow: int = 0
    """So many of them, the first ones, run at half speed."""
    restarts: Sequence[tuple[float, int]] = ()
    """When which of them loses its KV cache, without a word to anybody."""


@dataclass(slots=True)
class Clock:
    """Simulated time."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True, slots=True)
class Scene:
    """What a balancer is made for. Only oracles look into the engines; others see what engines publish."""

    engines: Sequence[Engine]
    clock: Clock
    output_tokens: int
    """What answer is likely."""
    block_tokens: int
    seed: int


class Balancer(Protocol):
    """Places requests, and is told what becomes of them."""

    def place(self, job: Job) -> int:
        """Which replica takes it; called when the request comes, `job.ticket` is its own."""

    def first_token(self, job: Job) -> None:
        """The replica's first token is there."""

    def finished(self, job: Job) -> None:
        """The answer is over, and `job.cached_tokens` in it."""


MakeBalancer = Callable[[Scene], Balancer]


@dataclass(slots=True)
class Outcome:
    """One run, a row for each request."""

    ttft_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    work_s: list[float] = field(default_factory=list)
    """By replica, how long it computed for what it was given."""


def simulate(demand: Demand, fleet: Fleet, make: MakeBalancer, seed: int) -> Outcome:
    """Play all requests until the last one is answered."""
    engines = [Engine(fleet.card, demand.block_tokens, 2.0 if at < fleet.slow else 1.0) for at in range(fleet.replicas)]
    clock = Clock()
    balancer = make(Scene(engines, clock, demand.output_tokens, demand.block_tokens, seed))
    return _Run(demand.requests, fleet, engines, clock, balancer).play()


class _Run:
    def __init__(
        self, requests: Sequence[Request], fleet: Fleet, engines: Sequence[Engine], clock: Clock, balancer: Balancer
    ) -> None:
        self._engines = engines
        self._clock = clock
        self._balancer = balancer
        self._outcome = Outcome(work_s=[0.0] * len(engines))
        self._count = 0
        self._events: list[tuple[float, int, Request | int]] = []
        for at_s, engine in fleet.restarts:
            self._push(at_s, -1 - engine)
        for request in requests:
            self._push(request.at_s, request)

    def play(self) -> Outcome:
        events, engines, clock = self._events, self._engines, self._clock
        while events:
            now_s, _, event = heappop(events)
            clock.now_s = now_s
            if not isinstance(event, int):
                self._arrive(event, now_s)
            elif event < 0:
                engines[-1 - event].restart()
            elif engines[event].end_s == now_s:  # else its steps were cut short, or prolonged by a new plan
                engine = engines[event]
                engine.end(self._first_token, self._finished)
                engine.begin(now_s)
                if engine.end_s < math.inf:
                    self._push(engine.end_s, event)
        return self._outcome

    def _push(self, at_s: float, event: Request | int) -> None:
        self._count += 1
        heappush(self._events, (at_s, self._count, event))

    def _arrive(self, request: Request, now_s: float) -> None:
        self._count += 1
        job = Job(request, now_s, self._count)
        job.engine = at = self._balancer.place(job)
        engine = self._engines[at]
        before_s = engine.end_s
        engine.arrive(job, now_s)
        if engine.end_s != before_s:
            self._push(engine.end_s, at)

    def _first_token(self, job: Job) -> None:
        outcome = self._outcome
        outcome.ttft_s.append(self._clock.now_s - job.arrived_s)
        outcome.prompt_tokens += job.request.prompt_tokens
        outcome.cached_tokens += job.cached_tokens
        self._balancer.first_token(job)

    def _finished(self, job: Job) -> None:
        now_s, request = self._clock.now_s, job.request
        outcome, engine = self._outcome, self._engines[job.engine]
        outcome.e2e_s.append(now_s - job.arrived_s)
        outcome.work_s[job.engine] += work_s(engine.card, request, job.cached_tokens)
        self._balancer.finished(job)
        if request.then is not None:
            self._push(now_s + request.then.at_s, request.then)


def work_s(card: Card, request: Request, cached_tokens: int) -> float:
    """What a request costs an engine at full speed, but for its share of the fixed cost of steps."""
    context = request.prompt_tokens + request.output_tokens / 2
    decode_s = request.output_tokens * (card.sequence_s + card.context_s * context)
    return card.prefill_s(request.prompt_tokens - cached_tokens, cached_tokens) + decode_s
