"""Which rule a request falls under, and which side of a split."""

from collections import Counter

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.headers import Header
from gateway.rules import Asked, Rule, When, chosen, first_rule, fits
from gateway.wire import ENDPOINTS, Call, parse_call


def _asked(model: str = "chat", caller: str = "alice", headers: tuple[Header, ...] = (), /, **members: object) -> Asked:
    call = parse_call(ENDPOINTS["/v1/chat/completions"], orjson.dumps({"model": model, **members}))
    assert isinstance(call, Call)
    return Asked(call, caller, None, headers)


GOLD: Header = (b"x-tier", b"gold-1")


@pytest.mark.parametrize(
    ("when", "asked", "does"),
    [
        (When(), _asked(), True),
        (When(model="chat"), _asked("chat"), True),
        (When(model="chat"), _asked("chat-2"), False),
        (When(model="chat*"), _asked("chat-2"), True),
        (When(model="Chat"), _asked("chat"), False),
        (When(model="org/[m]"), _asked("org/[m]"), True),  # exact before glob
        (When(caller="team-?"), _asked("m", "team-a"), True),
        (When(caller="team-?"), _asked("m", "team-ab"), False),
        (When(headers=(("x-tier", "gold*"),)), _asked("m", "a", (GOLD,)), True),
        (When(headers=(("x-tier", "gold*"),)), _asked("m", "a", ((b"x-tier", b"tin"), GOLD)), True),
        (When(headers=(("x-tier", "gold"),)), _asked("m", "a", (GOLD,)), False),
        (When(headers=(("x-tier", "*"),)), _asked(), False),  # it has to be there
        (When(metadata=(("tier", "gold*"),)), _asked(metadata={"tier": "gold-1"}), True),
        (When(metadata=(("tier", "3"),)), _asked(metadata={"tier": 3}), True),
        (When(metadata=(("beta", "true"),)), _asked(metadata={"beta": True}), True),
        (When(metadata=(("tier", "*"),)), _asked(metadata={"other": "x"}), False),
        (When(metadata=(("tier", "*"),)), _asked(metadata=["tier"]), False),
        (When(metadata=(("tier", "*"),)), _asked(), False),
        (When(model="chat", caller="bob"), _asked("chat", "alice"), False),  # all of them
    ],
)
def test_conditions(when: When, asked: Asked, does: bool) -> None:
    assert fits(when, asked) is does


def test_a_prompt_is_a_quarter_of_its_bytes_long() -> None:
    asked = _asked("m", text="x" * 400)  # {"model":"m","text":"xxx..."} has 423 bytes
    assert (len(asked.call.body), asked.prompt_tokens) == (423, 105)
    assert fits(When(over_tokens=104), asked)
    assert not fits(When(over_tokens=105), asked)
    assert fits(When(under_tokens=106), asked)
    assert not fits(When(under_tokens=105), asked)
    assert fits(When(over_tokens=104, under_tokens=106), asked)


def test_the_first_that_fits_wins() -> None:
    long, gold = Rule(When(over_tokens=1000)), Rule(When(caller="gold"))
    rest = Rule(name="chat", split=(("v1", 1.0),))
    rules = (long, gold, rest)
    assert first_rule(rules, _asked("chat", "gold", text="x" * 5000)) is long
    assert first_rule(rules, _asked("chat", "gold")) is gold
    assert first_rule(rules, _asked("chat", "alice")) is rest
    assert first_rule(rules, _asked("other", "alice")) is None


def test_a_body_is_not_read_for_what_its_head_says() -> None:
    call = Call(ENDPOINTS["/v1/chat/completions"], "m", False, b"not JSON at all")
    assert fits(When(model="m", caller="a*", headers=(("x-tier", "*"),)), Asked(call, "ab", None, (GOLD,)))


def test_one_conversation_has_one_key_and_others_have_others() -> None:
    hi: dict[str, object] = {"role": "user", "content": "hi"}
    more: list[object] = [hi, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "and?"}]
    first, later = _asked(messages=[hi]).conversation, _asked(messages=more).conversation
    assert first is not None
    assert first == later
    assert first != _asked("chat", "bob", messages=[hi]).conversation
    assert first != _asked(messages=[hi], user="u").conversation
    assert _asked(messages=[hi], user="u").conversation == _asked(messages=more[1:], user="u").conversation
    assert _asked(prompt="hi").conversation is None


# The sides of a split
def test_each_side_gets_its_share() -> None:
    weights = [("v1", 90.0), ("v2", 10.0)]
    counts = Counter(chosen(str(key).encode(), weights) for key in range(10_000))
    assert 880 <= counts["v2"] <= 1120  # 1000 expected, a standard deviation is 30


def test_a_side_without_weight_gets_nothing() -> None:
    assert {chosen(str(key).encode(), [("v1", 0.0), ("v2", 0.01)]) for key in range(200)} == {"v2"}


WEIGHTS = st.dictionaries(st.text(min_size=1, max_size=5), st.floats(0.001, 1000), min_size=2, max_size=5)


@given(st.binary(max_size=20), WEIGHTS, st.data())
def test_only_those_of_a_side_that_goes_move(key: bytes, weights: dict[str, float], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(weights)))
    before = chosen(key, list(weights.items()))
    after = chosen(key, [(model, 0.0 if model == gone else weight) for model, weight in weights.items()])
    assert after != gone
    assert before in (after, gone)


@given(st.binary(max_size=20), WEIGHTS, st.data())
def test_only_to_a_side_that_gets_more_any_move(key: bytes, weights: dict[str, float], data: st.DataObject) -> None:
    more = data.draw(st.sampled_from(sorted(weights)))
    before = chosen(key, list(weights.items()))
    after = chosen(key, [(model, weight * 2 if model == more else weight) for model, weight in weights.items()])
    assert after in (before, more)
