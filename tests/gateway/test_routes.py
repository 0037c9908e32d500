"""Requests that rules lead to another model, end to end: what engines get, what callers see, what is counted."""

import random
from collections.abc import Iterator
from contextlib import ExitStack

import orjson
import pytest

from gateway.app import Gateway
from gateway.canary import RollbackConfig
from gateway.config import Chain, GatewayConfig, Step
from gateway.identity import hash_key
from gateway.replica import ModelCard, Replica
from gateway.rules import Rule, When
from gateway.wire import Dialect
from tests.fake_engine import FakeEngine, Script, chat_stream, json_answer, running
from tests.gateway.forms import content_type, form
from tests.gateway.harness import (
    CONFIG,
    PATHS,
    STREAMING,
    Door,
    HandClock,
    body_for,
    door_before,
    free_port,
    golden,
    opened,
    stream_of,
    wait_until,
)

CHAT = PATHS["chat"]
BROKEN = json_answer({"error": {"message": "boom"}}, 500)
TO_NEW = Rule(name="chat", split=(("new", 1.0),))
HALVES = Rule(name="chat", split=(("fake", 50.0), ("new", 50.0)))


@pytest.fixture
def new() -> Iterator[FakeEngine]:
    """An engine with another model."""
    with running(FakeEngine(models=("new",), max_model_len=1000)) as engine:
        yield engine


def _models(engine: FakeEngine) -> list[str]:
    return [orjson.loads(seen.body)["model"] for seen in engine.seen]


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_name_of_its_own_leads_to_a_model(
    fake: FakeEngine, new: FakeEngine, stack: ExitStack, dialect: Dialect
) -> None:
    door = stack.enter_context(door_before(fake, new, rules=(TO_NEW,)))
    new.enqueue(stream_of(dialect))
    asked = body_for(dialect, stream=True, model="chat")
    answer = door.post(PATHS[dialect], asked)
    assert (answer.status_code, answer.content) == (200, golden(dialect))
    assert orjson.loads(new.seen[0].body) == {**asked, "model": "new"}
    wait_until(lambda: door.is_at_rest)
    assert door.total("berth_requests_total", model="new", outcome="ok") == 1


def test_the_rest_of_the_body_stays_byte_for_byte(new: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(new, rules=(TO_NEW,)))
    new.enqueue(json_answer({}))
    door.post(CHAT, content=b'{ "model" : "chat", "seed": 12345678901234567890123 , "model":"chat"}')
    assert new.seen[0].body == b'{ "model" :"new", "seed": 12345678901234567890123 , "model":"new"}'


def test_a_form_too(new: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(new, rules=(TO_NEW,)))
    new.enqueue(json_answer({"text": "hi"}))
    sent = form({"model": "chat", "language": "en"})
    answer = door.post("/v1/audio/transcriptions", content=sent, content_type=content_type(sent))
    assert answer.json() == {"text": "hi"}
    assert new.seen[0].body == sent.replace(b"\r\n\r\nchat\r\n", b"\r\n\r\nnew\r\n")


def test_conditions_on_caller_header_and_size(fake: FakeEngine, new: FakeEngine, stack: ExitStack) -> None:
    rules = (
        Rule(When(model="fake", headers=(("x-tier", "gold"),)), (("new", 1.0),)),
        Rule(When(model="fake", caller="alice", over_tokens=100), (("new", 1.0),)),
    )
    door = stack.enter_context(door_before(fake, new, rules=rules, keys=(hash_key("alice", "a"), hash_key("bob", "b"))))
    fake.default = new.default = json_answer({})
    long = {**body_for("chat"), "user": "x" * 500}

    def who(body: dict[str, object], key: str, tier: str = "none") -> str:
        return door.post(CHAT, body, authorization=f"Bearer {key}", x_tier=tier).headers["x-berth-replica"]

    assert who(body_for("chat"), "a") == "e0"
    assert who(long, "a") == "e1"
    assert who(long, "b") == "e0"
    assert who(body_for("chat"), "b", "gold") == "e1"


def test_names_are_listed_with_the_longest_request_they_take(
    fake: FakeEngine, new: FakeEngine, stack: ExitStack
) -> None:
    rules = (Rule(When(under_tokens=10), (("new", 1.0),), name="chat"), HALVES, Rule(When(), (("fake", 1.0),), "fake"))
    door = stack.enter_context(door_before(fake, new, rules=rules))
    cards = {card["id"]: card["max_model_len"] for card in door.get("/v1/models").json()["data"]}
    assert cards == {"fake": 4096, "new": 1000, "chat": 1000}  # the halves take what both do
    assert door.get("/v1/models/chat").json()["max_model_len"] == 1000
    assert [row["id"] for row in door.get("/v1/models", anthropic_version="2026-10-21").json()["data"]][-1] == "chat"
    assert "available: fake, new, chat" in door.post(CHAT, body_for("chat", model="x")).json()["error"]["message"]


def test_nothing_of_the_rules_shows_in_a_refusal(fake: FakeEngine, stack: ExitStack) -> None:
    away = FakeEngine(url=f"http://127.0.0.1:{free_port()}", models=("secret",))
    rules = (
        Rule(When(caller="anonymous"), (("secret", 1.0),), name="chat"),
        Rule(When(caller="vip-*"), (("fake", 1.0),), name="vip"),
    )
    gateway = Gateway(GatewayConfig(probe_interval_s=0.05, rules=rules))
    gateway.add(Replica("e0", fake.url))
    gateway.add(Replica("e1", away.url, (ModelCard("secret"),)))
    door = stack.enter_context(opened(gateway))
    wait_until(lambda: gateway.pool.replicas[0].state == "ready")
    refused = door.post(CHAT, body_for("chat", model="chat"))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.json()["error"]["message"] == "no replica of 'chat' is ready"
    # a name whose conditions do not hold is a name that nobody serves
    vip, unknown = (door.post(CHAT, body_for("chat", model=name)) for name in ("vip", "vap"))
    assert vip.status_code == unknown.status_code == 404
    assert vip.json()["error"]["message"].replace("'vip'", "'vap'") == unknown.json()["error"]["message"]
    assert unknown.json()["error"]["message"].endswith("available: fake, secret")
    assert [card["id"] for card in door.get("/v1/models").json()["data"]] == ["fake", "secret", "chat"]


def test_a_models_own_chain_is_followed(fake: FakeEngine, new: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, new, rules=(TO_NEW,), chains={"new": Chain((Step("fake"),))}))
    new.enqueue(BROKEN)
    answer = door.post(CHAT, body_for("chat", stream=True, model="chat"))
    assert (answer.status_code, _models(new), _models(fake)) == (200, ["new"], ["fake"])


def test_what_goes_on_from_a_kept_response_stays_with_the_model_that_made_it(
    fake: FakeEngine, new: FakeEngine, stack: ExitStack
) -> None:
    gold = Rule(When(headers=(("x-tier", "gold"),)), (("new", 1.0),), name="chat")
    door = stack.enter_context(door_before(fake, new, rules=(gold, Rule(name="chat", split=(("fake", 1.0),)))))
    fake.default = new.default = json_answer({"id": "resp_1", "object": "response", "output": []})
    made = door.post(PATHS["responses"], body_for("responses", model="chat"), x_tier="gold")
    assert made.headers["x-berth-replica"] == "e1"
    next_one = {**body_for("responses", model="chat"), "previous_response_id": "resp_1"}
    assert door.post(PATHS["responses"], next_one).headers["x-berth-replica"] == "e1"
    assert _models(new) == ["new", "new"]
    assert door.get("/v1/responses/resp_1").status_code != 404


# Splits
def _asked(door: Door, **members: object) -> str:
    answer = door.post(CHAT, {**body_for("chat", stream=True, model="chat"), **members})
    assert answer.status_code == 200
    return answer.headers["x-berth-replica"]


def test_a_conversation_stays_with_one_side_and_conversations_are_spread(
    fake: FakeEngine, new: FakeEngine, stack: ExitStack
) -> None:
    door = stack.enter_context(door_before(fake, new, rules=(HALVES,)))
    sides = {str(i): {_asked(door, user=str(i)) for _ in range(2)} for i in range(16)}
    assert all(len(side) == 1 for side in sides.values())
    assert {next(iter(side)) for side in sides.values()} == {"e0", "e1"}
    assert len({_asked(door) for _ in range(8)}) == 1  # without a name it is known by its first words


def test_one_that_is_not_sticky_is_spread_whoever_asks(fake: FakeEngine, new: FakeEngine, stack: ExitStack) -> None:
    gateway = Gateway(
        GatewayConfig(probe_interval_s=0.05, rules=(Rule(name="chat", split=HALVES.split, sticky=False),)),
        luck=random.Random(7),
    )
    gateway.add(Replica("e0", fake.url))
    gateway.add(Replica("e1", new.url))
    door = stack.enter_context(opened(gateway))
    door.wait_ready()
    assert {_asked(door, user="one") for _ in range(16)} == {"e0", "e1"}


def test_a_side_where_nobody_is_there_gets_nothing(fake: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, rules=(HALVES,)))
    assert {_asked(door, user=str(i)) for i in range(8)} == {"e0"}


def test_tokens_are_counted_by_the_stable_side(fake: FakeEngine, new: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, new, rules=(HALVES,)))
    fake.default = json_answer({"count": 1})
    replicas = {
        door.post("/tokenize", {"model": "chat", "prompt": str(i)}).headers["x-berth-replica"] for i in range(8)
    }
    assert replicas == {"e0"}


def _judged(stack: ExitStack, clock: HandClock, *engines: FakeEngine) -> Door:
    config = RollbackConfig(window_s=1000, min_requests=4)
    rule = Rule(name="chat", split=(("fake", 60.0), ("new", 40.0)), rollback=config)
    return stack.enter_context(door_before(*engines, config=CONFIG, clock=clock, rules=(rule,), retries=0))


def _fill(door: Door, clock: HandClock) -> list[int]:
    statuses = []
    for i in range(24):
        statuses.append(door.post(CHAT, body_for("chat", stream=True, model="chat") | {"user": str(i)}).status_code)
        wait_until(lambda: door.is_at_rest)
        clock.now_s += 1
    return statuses


def test_a_canary_that_fails_is_taken_back(fake: FakeEngine, new: FakeEngine, stack: ExitStack) -> None:
    clock = HandClock()
    door = _judged(stack, clock, fake, new)
    new.default = BROKEN
    assert door.total("berth_split_weight", model="new") == 40
    assert _fill(door, clock).count(500) == 4  # so many are needed to know
    assert len(new.seen) == 4
    assert (door.total("berth_split_weight", model="new"), door.total("berth_split_weight", model="fake")) == (0, 60)
    assert door.total("berth_split_rollbacks_total", route="chat", model="new", reason="errors") == 1
    stable, canary = door.get("/status").json()["routes"]
    assert (stable["model"], stable["is_stable"], stable["weight"], stable["taken_back"]) == ("fake", True, 60, None)
    assert (canary["route"], canary["weight"], canary["taken_back"]) == ("chat", 0, "errors")
    assert (canary["requests"], canary["error_rate"]) == (4, 1.0)


def test_an_answer_from_a_stand_in_is_a_failure_of_the_canary(
    fake: FakeEngine, new: FakeEngine, stack: ExitStack
) -> None:
    clock = HandClock()
    config = RollbackConfig(window_s=1000, min_requests=4)
    rule = Rule(name="chat", split=(("fake", 60.0), ("new", 40.0)), rollback=config)
    chains = {"new": Chain((Step("fake"),))}
    door = stack.enter_context(door_before(fake, new, clock=clock, rules=(rule,), retries=0, chains=chains))
    new.default = BROKEN
    assert set(_fill(door, clock)) == {200}
    assert (len(new.seen), door.total("berth_split_weight", model="new")) == (4, 0)


def test_a_callers_own_mistakes_are_not(fake: FakeEngine, new: FakeEngine, stack: ExitStack) -> None:
    clock = HandClock()
    door = _judged(stack, clock, fake, new)
    new.default = json_answer({"error": {"message": "temperature must be non-negative"}}, 400)
    assert 400 in _fill(door, clock)
    assert door.total("berth_split_weight", model="new") == 40


def test_a_reload_that_leaves_a_rule_as_it_is_brings_no_bad_canary_back(
    fake: FakeEngine, new: FakeEngine, stack: ExitStack
) -> None:
    clock = HandClock()
    door = _judged(stack, clock, fake, new)
    new.default = BROKEN
    _fill(door, clock)
    config = door.gateway.config
    (rule,) = config.rules
    door.gateway.reconfigure(GatewayConfig(rules=(TO_NEW, rule), retries=0))
    assert door.total("berth_split_weight", model="new") == 0
    changed = Rule(name="chat", split=(("fake", 90.0), ("new", 10.0)), rollback=rule.rollback)
    door.gateway.reconfigure(GatewayConfig(rules=(changed,), retries=0))
    assert door.total("berth_split_weight", model="new") == 10


# Sessions
def test_the_session_policy_is_told_the_session(fake: FakeEngine, second: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, second, routing="session"))

    def who(session: str) -> str:
        return door.post(CHAT, body_for("chat", stream=True), x_session_id=session).headers["x-berth-replica"]

    sides = {session: {who(session) for _ in range(3)} for session in "abcdefghij"}
    assert all(len(replicas) == 1 for replicas in sides.values())
    assert len({next(iter(replicas)) for replicas in sides.values()}) == 2


# Isolated callers
def test_an_engine_gets_its_callers_salt(fake: FakeEngine, stack: ExitStack) -> None:
    keys = (hash_key("alice", "a"), hash_key("bob", "b"))
    door = stack.enter_context(door_before(fake, keys=keys, isolated=frozenset({"alice", "bob"})))
    fake.default = Script(chunks=chat_stream().chunks)
    for key in ("a", "a", "b"):
        door.post(CHAT, body_for("chat", stream=True), authorization=f"Bearer {key}")
    one, again, other = (orjson.loads(seen.body)["cache_salt"] for seen in fake.seen)
    assert one == again != other
    assert one not in door.get("/status", authorization="Bearer a").text
