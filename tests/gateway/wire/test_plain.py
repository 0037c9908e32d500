"""The scan by bytes says nothing that reading the JSON would not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import Dialect, EventSplitter, Sign, count_plain_tokens, read_event
from tests.fake_engine import chat_chunk, event
from tests.gateway.harness import GOLDEN, STREAMING, golden, golden_events


@pytest.mark.parametrize("dialect", STREAMING)
def test_of_recorded_streams_text_is_known_by_its_bytes_and_nothing_else_is(dialect: Dialect) -> None:
    events = golden_events(dialect)
    signs = [read_event(dialect, e) for e in events]
    plain = [s.token == "text" and s.usage is None and s.error is None for s in signs]
    assert [count_plain_tokens(dialect, e) == 1 for e in events] == plain
    assert sum(plain) >= 3


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.sse")))
def test_of_every_kind_of_stream_only_text_is_known_by_its_bytes(name: str) -> None:
    dialect: Any = name.partition("_")[0]
    for one in EventSplitter().feed(golden(name)):
        if count_plain_tokens(dialect, one):
            assert read_event(dialect, one) == Sign(token="text")


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_whatever_the_text_is(texts: list[str]) -> None:
    events = [chat_chunk({"content": text}) for text in texts]
    if count_plain_tokens("chat", b"".join(events)) == len(events):
        assert [read_event("chat", e).token for e in events] == ["text"] * len(events)


@pytest.mark.parametrize(
    "text", ['"delta":{"content":"x"}', '"usage":{', '"error"', "\n\ndata: {}\n\n", '\\"delta":{"content":"'], ids=repr
)
def test_text_that_looks_like_the_wire(text: str) -> None:
    assert count_plain_tokens("chat", chat_chunk({"content": text})) == 1


@pytest.mark.parametrize(
    "odd",
    [
        event({"choices": [{"delta": {"content": "x"}}], "usage": {"completion_tokens": 1}}),
        event({"choices": [{"delta": {"content": "x"}}], "error": {"message": "dead"}}),
        event({"choices": [{"delta": {"content": ""}}]}),
        event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
        b"data: [DONE]\n\n",
        b": ping\n\n",
    ],
)
def test_anything_else_is_left_to_the_json(odd: bytes) -> None:
    assert count_plain_tokens("chat", odd) == 0
