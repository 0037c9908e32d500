"""How requests name their conversation, and in which order the names count."""

import pytest

from gateway.headers import read_head
from gateway.session import opening, session_key
from gateway.wire import ENDPOINTS, Call, Dialect, parse_call
from gateway.wire.session import session_hint

ALL: dict[str, object] = {
    "session_id": "a",
    "prompt_cache_key": "b",
    "conversation": "c",
    "metadata": {"session_id": "d", "user_id": "f"},
    "user": "e",
}


def test_the_narrowest_name_counts() -> None:
    left = dict(ALL)
    found = []
    for gone in ("session_id", "prompt_cache_key", "conversation"):
        found.append(session_hint(left))
        del left[gone]
    found.append(session_hint(left))
    left["metadata"] = {"user_id": "f"}
    found.append(session_hint(left))
    del left["user"]
    found.append(session_hint(left))
    assert found == ["a", "b", "c", "d", "e", "f"]


def test_a_conversation_may_be_an_object() -> None:
    assert session_hint({"conversation": {"id": "conv_1"}}) == "conv_1"


@pytest.mark.parametrize(
    "payload",
    [{}, {"session_id": ""}, {"session_id": 7}, {"metadata": "x"}, {"metadata": {"user_id": None}}, {"user": ["x"]}],
)
def test_what_is_no_name_is_passed_over(payload: dict[str, object]) -> None:
    assert session_hint(payload) is None


def test_a_call_carries_it() -> None:
    call = parse_call(ENDPOINTS["/v1/chat/completions"], b'{"model":"m","stream":true,"user":"u","cache_salt":"s"}')
    assert isinstance(call, Call)
    assert (call.session, call.cache_salt, call.strip_usage) == ("u", "s", True)


@pytest.mark.parametrize(
    ("headers", "session"),
    [
        ([], None),
        ([(b"x-session-id", b"")], None),
        ([(b"x-conversation-id", b"c")], b"c"),
        ([(b"x-conversation-id", b"c"), (b"x-session-id", b"s")], b"s"),
        ([(b"x-session-id", b"s"), (b"x-conversation-id", b"c")], b"s"),
    ],
)
def test_headers(headers: list[tuple[bytes, bytes]], session: bytes | None) -> None:
    head = read_head(headers)
    assert head.session == session
    assert b"session" not in head.forwarded


def test_a_key_is_the_callers_own_and_a_header_wins() -> None:
    assert session_key(None, None, "alice") is None
    assert session_key(None, "1", "alice") == session_key(b"1", "2", "alice") == session_key(b"1", None, "alice")
    assert session_key(None, "1", "alice") != session_key(None, "1", "bob")
    assert 0 <= (session_key(None, "1", "alice") or 0) < 2**64


HI = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("dialect", "payload", "text"),
    [
        ("chat", {"messages": [{"role": "system", "content": "s"}, HI, {"role": "user", "content": "more"}]}, "hi"),
        ("messages", {"system": "s", "messages": [HI]}, "hi"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "hi"),
        ("responses", {"input": "hi"}, "hi"),
        ("responses", {"input": [HI]}, "hi"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ("chat", {"messages": [{"role": "assistant", "content": "x"}]}, None),
        ("chat", {"messages": [1, None]}, None),
        ("chat", {"messages": {"role": "user"}}, None),
        ("completions", {"prompt": "hi"}, None),  # what follows need not begin with it
        ("embeddings", {"input": "hi"}, None),
    ],
)
def test_opening(dialect: Dialect, payload: dict[str, object], text: str | None) -> None:
    assert opening(dialect, payload) == text


def test_an_opening_stays_while_the_conversation_grows_and_cache_marks_move() -> None:
    marked = {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}
    first = {"messages": [{"role": "user", "content": [marked]}]}
    later = {"messages": [HI, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "and?"}]}
    assert opening("messages", first) == opening("messages", later)
