"""Whose cached prefixes a request may use."""

import hmac
from hashlib import sha256

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache_salt import SALTED, Salts
from gateway.config import Remote, Step
from gateway.fallback import adapted
from gateway.identity import hash_key
from gateway.wire import ENDPOINTS, Call, parse_call
from tests.gateway.harness import PATHS, STREAMING, body_for
from tests.gateway.wire.calls import parts

KEYS = (hash_key("alice", "key-a"), hash_key("bob", "key-b"), hash_key("alice", "key-a2"))
SALTS = Salts(KEYS, {"alice", "bob"})
CHAT = PATHS["chat"]


def _call(path: str = CHAT, /, **members: object) -> Call:
    call = parse_call(ENDPOINTS[path], orjson.dumps({"model": "m", **members}))
    assert isinstance(call, Call)
    return call


def _salt(call: Call) -> object:
    return orjson.loads(call.body).get("cache_salt")


def test_it_is_made_of_the_callers_first_key() -> None:
    by_hand = hmac.new(sha256(b"key-a").digest(), b"berth cache salt", sha256).hexdigest()
    call = SALTS.salted(_call(), "alice")
    assert (_salt(call), call.cache_salt) == (by_hand, by_hand)
    assert orjson.loads(call.body) == {"model": "m", "cache_salt": by_hand}
    again = Salts((KEYS[0],), {"alice"}).salted(_call(), "alice")  # after a restart, without the other keys
    assert parts(again) == parts(call)


def test_a_callers_own_salt_is_mixed_in() -> None:
    by_hand = hmac.new(sha256(b"key-b").digest(), b"berth cache salt\0tenant 7", sha256).hexdigest()
    call = SALTS.salted(_call(cache_salt="tenant 7"), "bob")
    assert (_salt(call), call.cache_salt) == (by_hand, by_hand)


def test_nobody_takes_anothers() -> None:
    alices = SALTS.salted(_call(), "alice").cache_salt
    assert SALTS.salted(_call(cache_salt=alices), "bob").cache_salt != alices


OWN = st.none() | st.text(max_size=20)


@given(OWN, OWN)
def test_two_callers_never_share_and_a_caller_does_with_the_same_own_salt(one: str | None, other: str | None) -> None:
    def of(caller: str, own: str | None) -> str | None:
        return SALTS.salted(_call() if own is None else _call(cache_salt=own), caller).cache_salt

    assert of("alice", one) != of("bob", other)
    assert (of("alice", one) == of("alice", other)) == (one == other)


@given(st.text(max_size=300))
def test_an_engine_takes_what_comes_of_it(own: str) -> None:
    salt = SALTS.salted(_call(cache_salt=own), "bob").cache_salt or ""
    assert 1 <= len(salt) <= 128
    assert not set(salt) & set("@/\\\0")


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","cache_salt":"theirs"}',
        b'{"model":"m","cache\\u005fsalt":"theirs"}',
        b'{"cache_salt":"a","model":"m","cache_salt":"theirs"}',
        b'{"model":"m","cache_salt":null}',
        b'{"model":"m","cache_salt":""}',
    ],
)
def test_however_it_is_spelt_none_of_theirs_is_left(body: bytes) -> None:
    call = parse_call(ENDPOINTS[CHAT], body)
    assert isinstance(call, Call)
    salted = SALTS.salted(call, "bob")
    pairs = orjson.loads(salted.body)
    assert pairs == {"model": "m", "cache_salt": salted.cache_salt}
    assert b"theirs" not in salted.body


def test_what_is_no_text_is_refused() -> None:
    refused = parse_call(ENDPOINTS[CHAT], b'{"model":"m","cache_salt":["x"]}')
    assert not isinstance(refused, Call)
    assert (refused.status, refused.param) == (400, "cache_salt")


def test_who_is_not_isolated_sends_what_it_sends() -> None:
    call = _call(cache_salt="mine")
    assert Salts(KEYS, {"bob"}).salted(call, "alice") is call
    assert Salts().salted(call, "anonymous") is call


@pytest.mark.parametrize("path", sorted(set(ENDPOINTS) - SALTED))
def test_where_an_engine_takes_none_none_is_added(path: str) -> None:
    call = Call(ENDPOINTS[path], "m", False, b'{"model":"m"}')
    assert SALTS.salted(call, "alice") is call


@pytest.mark.parametrize("path", sorted(SALTED))
def test_where_it_takes_one_the_rest_stays_as_it_was(path: str) -> None:
    call = SALTS.salted(_call(path, n=1), "alice")
    assert call.body.removeprefix(b'{"cache_salt":"%b",' % (call.cache_salt or "").encode()) == b'"model":"m","n":1}'


@pytest.mark.parametrize("dialect", STREAMING)
def test_no_provider_gets_to_see_it(dialect: str) -> None:
    path = next(path for name, path in PATHS.items() if name == dialect)
    call = SALTS.salted(_call(path, **{**body_for("chat", stream=True), "model": "m"}), "alice")
    remote = Remote("far", "https://far.example/v1", "far-large", speaks=frozenset(STREAMING))
    sent = adapted(call, Step("far", remote))
    assert sent is not None
    assert _salt(sent) is None


def test_prompts_of_two_callers_are_two_prefixes_to_the_router() -> None:
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi " * 2000}]})

    def hashes(caller: str, text: bytes = body) -> tuple[int, ...]:
        call = parse_call(ENDPOINTS[CHAT], text, SALTS.seed(caller))
        assert isinstance(call, Call)
        return call.chain.hashes

    assert hashes("alice") == hashes("alice") != ()
    assert not set(hashes("alice")) & set(hashes("bob"))
    assert hashes("carol") == hashes("dave")  # not isolated
    assert hashes("alice", b"\xef\xbb\xbf" + body) == hashes("alice")
