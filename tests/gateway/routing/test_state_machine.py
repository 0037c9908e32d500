"""Requests, engines and a router between them in any order that hypothesis thinks of: nothing is lost or left behind.

The engines are models with a true LRU of blocks that evicts and can be wiped without a word; what they answer is what
the router learns from. After each step every count must agree with a bystander's.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.routing import POLICIES, Load, Pick, Route, Router
from tests.gateway.routing.contents import check, contents, fresh
from tests.gateway.routing.prompts import BLOCK, prompt

MOST_REPLICAS = 5
BLOCK_TOKENS = 10
TEXTS = st.sampled_from(["", "a", "ab", "abc", "abcd", "abcdefgh", "abx", "abxy", "kl", "klmnopqr", "zz"])


@dataclass
class _Engine:
    """One replica as it is: which blocks its cache holds, the one used longest ago first."""

    load: Load
    blocks: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """With their sizes; what requests leave that nobody asks for is below 0."""
    left: int = 0

    def cached(self, route: Route) -> int:
        """Tokens of the prompt that it finds, never the last."""
        found = 0
        for value in route.chain.hashes:
            if value not in self.blocks:
                break
            found += BLOCK
        found = min(found, max(route.prompt_tokens - 1, 0))
        return found - found % BLOCK_TOKENS

    def compute(self, route: Route) -> None:
        """The prompt goes into its cache."""
        for value in reversed(route.chain.hashes):
            self.blocks[value] = BLOCK
            self.blocks.move_to_end(value)
        while sum(self.blocks.values()) > (self.load.kv_capacity_tokens or 10**9):
            self.blocks.popitem(last=False)

    def answer(self, route: Route) -> None:
        """The request goes: its answer and the prompt's tail are freed before its blocks are."""
        self.left += 1
        self.blocks[-self.left] = route.prompt_tokens - BLOCK * len(route.chain.hashes) + route.output_tokens
        self.compute(route)


@dataclass
class _Request:
    """One that is in flight, on one replica or (a hedge) on two."""

    route: Route
    picks: list[Pick[Load]]
    cached_tokens: dict[int, int]
    """By place in `picks`: what its engine found, once it has looked."""


class Routing(RuleBasedStateMachine):
    """The world."""

    def __init__(self) -> None:
        super().__init__()
        self.router: Router[Load] = Router(POLICIES["prefix"])
        self.engines: list[_Engine] = []
        self.gone: list[_Engine] = []
        self.remote = Load("remote")
        self.requests: list[_Request] = []
        self.next_name = 0

    # Replicas
    @initialize(
        policy=st.sampled_from(["prefix"] * 4 + ["least_work", "round_robin", "session", "latency"]),
        capacities=st.lists(st.sampled_from([None, 0, 300, 1000, 5000]), min_size=1, max_size=3),
        texts=st.lists(TEXTS, min_size=2, max_size=5),
    )
    def begin(self, policy: Any, capacities: list[int | None], texts: list[str]) -> None:
        self.router.policy = POLICIES[policy]
        for capacity in capacities:
            self._join(capacity, 1.0)
        for text in texts:
            self.serve(text)

    def _join(self, capacity: int | None, share: float) -> None:
        load = Load(f"r{self.next_name}", capacity)
        load.block_tokens = BLOCK_TOKENS
        load.use_share(share)
        self.next_name += 1
        self.router.add(load)
        self.engines.append(_Engine(load))

    @rule(
        data=st.data(),
        what=st.sampled_from(["wiped", "wiped", "restarted", "joins", "leaves", "share", "capacity"]),
        capacity=st.sampled_from([None, 300, 1000, 5000]),
        share=st.sampled_from([0.1, 0.5, 1.0]),
    )
    def something_happens(self, data: st.DataObject, what: str, capacity: int | None, share: float) -> None:
        engine = data.draw(st.sampled_from(self.engines))
        if what in ("wiped", "restarted"):
            engine.blocks.clear()
        if what == "restarted":
            self.router.restarted(engine.load)
            assert self.router.index.blocks(engine.load.slot) == 0
        elif what == "joins" and len(self.engines) < MOST_REPLICAS:
            self._join(capacity, share)
        elif what == "leaves" and len(self.engines) > 1:
            self.engines.remove(engine)
            self.gone.append(engine)
            self.router.remove(engine.load)
        elif what == "share":
            engine.load.use_share(share)
        elif what == "capacity":
            engine.load.kv_capacity_tokens = capacity

    # Requests
    @rule(
        text=TEXTS,
        tail=st.sampled_from([0, 1, 50]),
        output=st.integers(0, 500),
        ratio=st.sampled_from([1.0, 0.5, 2.0]),
        session=st.none() | st.integers(0, 3),
        to_remote=st.sampled_from([False] * 9 + [True]),
    )
    def send(self, text: str, tail: int, output: int, ratio: float, session: int | None, to_remote: bool) -> None:
        chain = prompt(text, tail)
        route = Route(chain, int(chain.size * ratio), output, session, ratio)
        loads = [self.remote] if to_remote else [engine.load for engine in self.engines]
        pick = self.router.pick(route, loads)
        assert any(pick.load is load for load in loads)
        self.requests.append(_Request(route, [pick], {}))

    @rule(text=TEXTS)
    def serve(self, text: str) -> None:
        """One comes and goes while nobody else moves; most do."""
        chain = prompt(text, 1)
        pick = self.router.pick(Route(chain, chain.size, 100), [engine.load for engine in self.engines])
        request = _Request(pick.route, [pick], {})
        self.requests.append(request)
        self._compute(request, 0)
        pick.first_token(0.1)
        self._end(request, "all", 1.0, 1)

    @rule()
    def send_elsewhere_too(self) -> None:
        """The newest one, if it is not yet."""
        if not self.requests or len(self.requests[-1].picks) > 1:
            return
        request = self.requests[-1]
        others = [engine.load for engine in self.engines if engine.load is not request.picks[0].load]
        if others:
            event("hedged")
            request.picks.append(self.router.pick(request.route, others))

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), times=st.integers(1, 2), elapsed_s=st.floats(0, 10), whole=st.booleans())
    def first_token(self, data: st.DataObject, times: int, elapsed_s: float, whole: bool) -> None:
        request = data.draw(st.sampled_from(self.requests))
        place = data.draw(st.sampled_from(range(len(request.picks))))
        pick = request.picks[place]
        self._compute(request, place)
        for _ in range(times):
            if whole:
                pick.computed()
            else:
                pick.first_token(elapsed_s)

    def _compute(self, request: _Request, place: int) -> None:
        if place in request.cached_tokens:
            return
        request.cached_tokens[place] = 0
        for engine in (*self.engines, *self.gone):
            if engine.load is request.picks[place].load:
                request.cached_tokens[place] = engine.cached(request.route)
                engine.compute(request.route)

    @precondition(lambda self: self.requests)
    @rule(
        data=st.data(),
        says=st.sampled_from(["all", "no cache", "nothing"]),
        density=st.sampled_from([1.0, 0.5, 1.5]),
        times=st.integers(1, 2),
    )
    def end(self, data: st.DataObject, says: str, density: float, times: int) -> None:
        """Answered, or lost, wherever it was: the one that answers is the first with a token."""
        self._end(data.draw(st.sampled_from(self.requests)), says, density, times)

    def _end(self, request: _Request, says: str, density: float, times: int) -> None:
        self.requests.remove(request)
        winner = min(request.cached_tokens, default=None)
        for place, pick in enumerate(request.picks):
            if place == winner and says != "nothing":
                prompt_tokens = int(request.route.prompt_tokens * density)
                cached = int(request.cached_tokens[place] * density * request.route.tokens_per_unit)
                fates = pick.settle(prompt_tokens, cached if says == "all" else None)
                assert sum(fates.values()) in (0, prompt_tokens)
                assert all(tokens > 0 for tokens in fates.values())
                for fate in fates:
                    event(fate)
                assert pick.settle(prompt_tokens, cached) == {}
            for _ in range(times):
                pick.release()

    # What holds at any moment
    def _open(self) -> Iterator[Pick[Load]]:
        return (pick for request in self.requests for pick in request.picks)

    @invariant()
    def every_charge_is_somebody_s(self) -> None:
        for load in [self.remote, *(engine.load for engine in (*self.engines, *self.gone))]:
            here = [pick for pick in self._open() if pick.load is load]
            waiting = [pick for pick in here if pick.is_waiting]
            outputs = sum(pick.route.output_tokens for pick in here)
            assert load.in_flight == len(here)
            assert load.waiting == len(waiting)
            assert load.queued_tokens == sum(pick.uncached_tokens for pick in waiting)
            assert load.output_tokens == outputs
            assert load.work_tokens == sum(pick.uncached_tokens for pick in here) + outputs
            assert load.kv_tokens == sum(pick.route.prompt_tokens for pick in here) + outputs
            of_kv = (
                load.ahead_tokens - load.queued_tokens - outputs / 2
            )  # more the fuller it was when one last came or went
            assert load.kv_tokens / 32 - 1e-6 <= of_kv <= load.kv_tokens * 5 / 32 + 1e-6
            assert load.in_flight or load.ahead_tokens == 0
            assert load.s_per_token > 0

    @invariant()
    def no_more_is_expected_than_there_is(self) -> None:
        for pick in self._open():
            assert 0 <= pick.predicted_tokens <= max(pick.route.prompt_tokens - 1, 0)
            assert pick.predicted_tokens % BLOCK_TOKENS == 0

    @invariant()
    def the_index_agrees_with_itself(self) -> None:
        index = self.router.index
        check(index)
        slots = {engine.load.slot for engine in self.engines}
        assert set(index._caches) == set(self.router._pending) == slots
        assert all(index.units(slot) == BLOCK * index.blocks(slot) for slot in slots)

    @invariant()
    def a_token_counts_once_to_three_times(self) -> None:
        weights = {engine.load.slot: engine.load.own_weight for engine in self.engines}
        assert self.router._oldest.keys() == weights.keys()
        assert self.router._first == min(self.router._oldest.values())
        assert all(1 <= weight < 3 for weight in weights.values())

    @invariant()
    def what_nobody_has_computed_is_somebody_s(self) -> None:
        """Blocks without a first token belong to requests that still wait there, or are forgotten."""
        for engine in self.engines:
            slot = engine.load.slot
            waiting = [pick for pick in self._open() if pick.load is engine.load and pick.is_waiting]
            assert set(self.router._pending[slot]) <= {pick._tick for pick in waiting}
            theirs = {value for pick in waiting for value in pick.route.chain.hashes}
            assert set(fresh(self.router.index, slot)) <= theirs

    @invariant()
    def a_prefix_has_no_gaps(self) -> None:
        """A block is held where the one before it is: else it would never be found again."""
        for engine in self.engines:
            held = contents(self.router.index, engine.load.slot)
            for pick in self._open():
                found = [value in held for value in pick.route.chain.hashes]
                assert found == sorted(found, reverse=True)

    def teardown(self) -> None:
        for request in list(self.requests):
            for pick in request.picks:
                pick.release()
        self.requests.clear()
        self.every_charge_is_somebody_s()
        self.the_index_agrees_with_itself()
        self.what_nobody_has_computed_is_somebody_s()
        for engine in self.engines:
            assert not self.router._pending[engine.load.slot]
            assert not fresh(self.router.index, engine.load.slot)


TestRouting = Routing.TestCase
TestRouting.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@given(
    capacities=st.lists(st.integers(0, 20).map(lambda blocks: blocks * BLOCK), min_size=1, max_size=3),
    texts=st.lists(st.tuples(TEXTS | st.text("abk", max_size=6), st.sampled_from([0, 1, 150, 700])), max_size=40),
)
def test_one_after_the_other_the_index_is_what_the_caches_are(
    capacities: list[int], texts: list[tuple[str, int]]
) -> None:
    """No wipe, nothing at the same time, answers as expected: every prediction is exact, whatever was evicted."""
    router: Router[Load] = Router(POLICIES["prefix"])
    engines = [_Engine(Load(f"r{i}", capacity)) for i, capacity in enumerate(capacities) if capacity]
    for engine in engines:
        engine.load.block_tokens = BLOCK_TOKENS
        router.add(engine.load)
    for text, output_tokens in texts if engines else []:
        chain = prompt(text, 1)
        pick = router.pick(Route(chain, chain.size, output_tokens), [engine.load for engine in engines])
        engine = next(engine for engine in engines if engine.load is pick.load)
        found = engine.cached(pick.route)
        assert pick.predicted_tokens == found
        engine.compute(pick.route)
        pick.first_token(0.1)
        assert set(pick.settle(chain.size, found)) <= {"hit", "no_reuse", "routed_elsewhere", "evicted"}
        pick.release()
        engine.answer(pick.route)
        assert [value for value in engine.blocks if value > 0] == list(contents(router.index, pick.load.slot))
