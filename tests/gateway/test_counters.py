"""Whatever is counted while it runs is given back: a state machine over admission and replicas, and the policy."""

import asyncio
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.admission.door import Admission, Ticket
from gateway.config import Timeouts
from gateway.errors import RefusedError
from gateway.probes import probe, probing
from gateway.replica import ModelCard, Pool, Replica, State
from gateway.routing import Pick
from gateway.routing.policies import least_work
from gateway.upstream import Upstream
from tests.gateway.placing import placed, route

LIMIT = 5
MODELS = ("a", "b")


class Counters(RuleBasedStateMachine):
    """Requests come, are placed, and leave in any order, while replicas change their state beneath them."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(LIMIT)
        self.pool = Pool(Upstream(Timeouts()))
        self.tickets: list[Ticket] = []
        self.settled: list[Ticket] = []
        self.placed: list[Pick[Replica]] = []
        self.released: list[Pick[Replica]] = []
        self.picks = 0

    @rule(model=st.sampled_from(MODELS), state=st.sampled_from(["starting", "ready"]))
    def add(self, model: str, state: State) -> None:
        name = f"r{len(self.pool.replicas)}"
        self.pool.add(Replica(name, "http://x", (ModelCard(model),), state=state))

    @precondition(lambda self: self.pool.replicas)
    @rule(data=st.data(), state=st.sampled_from(["starting", "ready", "unhealthy", "draining"]))
    def change(self, data: st.DataObject, state: State) -> None:
        data.draw(st.sampled_from(self.pool.replicas)).state = state

    @precondition(lambda self: self.pool.replicas)
    @rule(data=st.data())
    def suspect(self, data: st.DataObject) -> None:
        replica = data.draw(st.sampled_from(self.pool.replicas))
        before = replica.state
        replica.suspect()
        assert replica.state == ("unhealthy" if before == "ready" else before)

    @rule()
    def admit(self) -> None:
        if len(self.tickets) < LIMIT and not self.admission.is_draining:
            self.tickets.append(self.admission.admit())
            return
        with pytest.raises(RefusedError) as refused:
            self.admission.admit()
        assert (refused.value.fault.status, refused.value.fault.retry_after_s) == (503, 1)

    @rule(draining=st.booleans())
    def drain(self, draining: bool) -> None:
        self.admission.is_draining = draining

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        ticket = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        ticket.settle()
        self.settled.append(ticket)

    @precondition(lambda self: self.settled)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.settled)).settle()

    @rule(model=st.sampled_from((*MODELS, "unknown")), tokens=st.integers(0, 10_000))
    def place(self, model: str, tokens: int) -> None:
        serving = [replica for replica in self.pool.replicas if replica.serves(model)]
        ready = [replica for replica in serving if replica.state == "ready"]
        ready = ready or [replica for replica in serving if replica.is_suspect]
        if not ready:
            with pytest.raises(RefusedError) as refused:
                self.pool.candidates(model)
            assert refused.value.fault.status == (503 if serving else 404)
            return
        candidates = self.pool.candidates(model)
        assert candidates == tuple(ready)
        replica = least_work(route(), candidates)
        assert replica.work_tokens / replica.share == min(c.work_tokens / c.share for c in candidates)
        self.placed.append(placed(replica, tokens))
        self.picks += 1

    @precondition(lambda self: self.placed)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        place = self.placed.pop(data.draw(st.integers(0, len(self.placed) - 1)))
        place.release()
        self.released.append(place)

    @precondition(lambda self: self.released)
    @rule(data=st.data())
    def leave_again(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.released)).release()

    @invariant()
    def counters_say_what_is_there(self) -> None:
        assert self.admission.in_flight == len(self.tickets)
        assert sum(replica.picks for replica in self.pool.replicas) == self.picks
        for replica in self.pool.replicas:
            mine = [place.uncached_tokens for place in self.placed if place.load is replica]
            assert (replica.in_flight, replica.work_tokens) == (len(mine), sum(mine))

    def teardown(self) -> None:
        for ticket in self.tickets:
            ticket.settle()
        for place in self.placed:
            place.release()
        assert self.admission.in_flight == 0
        assert all(replica.in_flight == replica.work_tokens == 0 for replica in self.pool.replicas)


Counters.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCounters = Counters.TestCase


# The policy
def _replica(work_tokens: int, turn: int, share: float = 1.0) -> Replica:
    replica = Replica(f"{work_tokens}/{turn}", "http://x")
    replica.work_tokens, replica.turn = work_tokens, turn
    replica.use_share(share)
    return replica


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([(0, 0)], 0),
        ([(10, 0), (5, 9)], 1),
        ([(5, 2), (5, 1)], 1),
        ([(5, 1), (5, 1)], 0),
        ([(300, 0), (0, 50), (299, 0)], 1),
    ],
)
def test_least_work(loads: list[tuple[int, int]], chosen: int) -> None:
    replicas = [_replica(*load) for load in loads]
    assert least_work(route(), replicas) is replicas[chosen]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_least_work_is_never_beaten(loads: list[tuple[int, int]]) -> None:
    chosen = least_work(route(), [_replica(*load) for load in loads])
    assert (chosen.work_tokens, chosen.turn) == min(loads)


@given(st.integers(2, 5), st.integers(1, 40))
def test_equal_requests_one_after_the_other_go_round(replicas: int, requests: int) -> None:
    pool = [_replica(0, 0) for _ in range(replicas)]
    for _ in range(requests):
        placed(least_work(route(), pool), 100).release()
    assert max(r.picks for r in pool) - min(r.picks for r in pool) <= 1


# Health
class _Answers(Upstream):
    """What an engine's /health and /v1/models say."""

    def __init__(self, health: int, models: int, body: bytes = b"{}") -> None:
        super().__init__(Timeouts())
        self._answers = {"/health": (health, b""), "/v1/models": (models, body)}

    async def get(self, url: str, path: str, api_key: str | None, timeout_s: float) -> tuple[int, bytes]:
        return self._answers[path]


@pytest.mark.parametrize(("missed", "state"), [(1, "ready"), (2, "ready"), (3, "unhealthy")])
async def test_a_silent_engine_is_given_three_probes(missed: int, state: State) -> None:
    replica, upstream = Replica("r", "http://x", (ModelCard("a"),), state="ready"), _Answers(503, 503)
    Pool(upstream, [replica])
    for _ in range(missed):
        await probe(replica, upstream, 1.0)
    assert replica.state == state


async def test_probing_goes_on_after_a_probe_that_failed_in_an_unforeseen_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(Upstream):
        asked = 0

        async def get(self, url: str, path: str, api_key: str | None, timeout_s: float) -> tuple[int, bytes]:
            self.asked += 1
            if self.asked == 1:
                raise ZeroDivisionError("unforeseen")
            return 200, b"{}"

    replica = Replica("r", "http://x", (ModelCard("a"),))
    upstream = Odd(Timeouts())
    pool = Pool(upstream, [replica])
    async with probing(pool, upstream, 0.001, lambda: 1.0), asyncio.timeout(20):
        while replica.state != "ready":  # noqa: ASYNC110  (the state has no event to wait for)
            await asyncio.sleep(0.001)
    assert "unforeseen" in caplog.text


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"data":null}', b'{"data":[1]}', b'{"data":[{}]}', b'{"data":[["id"]]}']
)
async def test_a_model_list_that_cannot_be_read_leaves_the_replica_waiting(body: bytes) -> None:
    replica, upstream = Replica("r", "http://x"), _Answers(200, 200, body)
    pool = Pool(upstream, [replica])
    await probe(replica, upstream, 1.0)
    assert replica.state == "starting"
    assert pool.unready_models() == ["(unknown)"]


@pytest.mark.parametrize(
    ("url", "health", "models", "trouble"),
    [
        ("http://x", 404, 200, "http://x/health answers 404"),
        ("http://x/v1", 404, 200, "http://x/v1/health answers 404: an engine is named without /v1"),
        (
            "http://x",
            200,
            401,
            "http://x/v1/models answers 401: it wants another key (api_key_env, --upstream-api-key)",
        ),
        ("http://x", 200, 500, "http://x/v1/models answers 500"),
        ("http://x", 200, 200, "http://x/v1/models answers 200, and names no model"),
    ],
)
async def test_why_an_engine_started_elsewhere_is_not_ready_is_said_once(
    url: str, health: int, models: int, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    replica, upstream = Replica("r", url), _Answers(health, models)
    Pool(upstream, [replica])
    for _ in range(10):
        await probe(replica, upstream, 1.0)
    assert (replica.state, replica.trouble) == ("starting", trouble)
    assert caplog.messages == [f"r is not ready: {trouble}"]
    await probe(replica, _Answers(200, 200, b'{"data":[{"id":"m"}]}'), 1.0)
    assert (replica.state, replica.trouble) == ("ready", None)


_BASE: Final = b'{"data":[{"id":"m"}]}'
_LOADED: Final = b'{"data":[{"id":"m"},{"id":"sql","parent":"m"}]}'


@pytest.mark.parametrize("cards", [(), (ModelCard("m", 4096),)], ids=["started elsewhere", "of ours"])
async def test_adapters_are_seen_while_an_engine_runs(cards: tuple[ModelCard, ...]) -> None:
    replica = Replica("r", "http://x", cards)
    pool = Pool(_Answers(200, 200), [replica])
    await probe(replica, _Answers(200, 200, _BASE), 1.0)
    assert [card.name for card in replica.models] == ["m"]
    for _ in range(10):
        await probe(replica, _Answers(200, 200, _LOADED), 1.0)
    assert [card.name for card in replica.models] == ["m", "sql"]
    assert (replica.is_adapter("m"), replica.is_adapter("sql")) == (False, True)
    assert pool.candidates("sql") == (replica,)
    for models in (500, 200):  # what cannot be read says nothing
        for _ in range(10):
            await probe(replica, _Answers(200, models), 1.0)
        assert [card.name for card in replica.models] == ["m", "sql"]
    for _ in range(10):
        await probe(replica, _Answers(200, 200, _BASE), 1.0)
    assert replica.models == (cards or (ModelCard("m"),))


async def test_the_model_of_an_engine_of_ours_has_the_name_it_was_given() -> None:
    replica = Replica("r", "http://x", (ModelCard("public", 4096),))
    Pool(_Answers(200, 200), [replica])
    await probe(replica, _Answers(200, 200, _LOADED), 1.0)
    assert replica.models == (ModelCard("public", 4096), ModelCard("sql", is_adapter=True))


async def test_an_engine_of_ours_that_starts_is_not_complained_of(caplog: pytest.LogCaptureFixture) -> None:
    async with Upstream(Timeouts(connect_s=1.0)) as upstream:
        ours = Replica("ours", "unix:/nowhere.sock", (ModelCard("m"),), predicted_kv_tokens=1000)
        other = Replica("other", "unix:/nowhere.sock")
        Pool(upstream, [ours, other])
        for replica in (ours, other):
            await probe(replica, upstream, 1.0)
    assert ours.trouble == other.trouble == "cannot connect to unix:/nowhere.sock: No such file or directory"
    assert caplog.messages == [f"other is not ready: {other.trouble}"]
