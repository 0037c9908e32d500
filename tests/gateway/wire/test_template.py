"""Text events known by what they share with the one before."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import Dialect, Template, learn, read_event
from tests.gateway.harness import golden_events


def event_of(text: str, finish: str | None = None) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    return b"data: " + orjson.dumps({"id": "x", "choices": [choice]}) + b"\n\n"


def template_of(text: str) -> Template:
    found = learn("chat", event_of(text))
    assert found is not None
    return found


@given(first=st.from_regex(r"[a-z ]+", fullmatch=True), text=st.text())
def test_what_fits_is_text_and_nothing_else(first: str, text: str) -> None:
    event = event_of(text)
    is_plain = bool(text) and not set(orjson.dumps(text)[1:-1]) & set(b'"\n')
    found = template_of(first).text_of(event, 0, len(event))
    assert found == (orjson.dumps(text)[1:-1] if is_plain else None)
    assert found is None or template_of(first).event_of(found) == event
    assert not is_plain or read_event("chat", event).token == "text"


@given(first=st.from_regex(r"[a-z ]+", fullmatch=True), event=st.binary(max_size=200))
def test_no_other_bytes_fit(first: str, event: bytes) -> None:
    assert template_of(first).text_of(event, 0, len(event)) is None


@pytest.mark.parametrize("event", [event_of("end", "stop"), event_of(""), event_of("a") + event_of("b"), b""])
def test_another_kind_of_event_does_not_fit(event: bytes) -> None:
    assert template_of("word").text_of(event, 0, len(event)) is None


def test_text_that_looks_like_the_end_of_its_event_does_not_hide_another_end() -> None:
    event = event_of('"}}]}\n\n', "stop")
    assert template_of("word").text_of(event, 0, len(event)) is None


def test_only_the_named_part_is_looked_at() -> None:
    event = event_of(" tok")
    framed = b"%x\r\n%b\r\n" % (len(event), event)
    start = framed.index(b"\n") + 1
    assert template_of("word").text_of(framed, start, len(framed) - 2) == b" tok"
    assert template_of("word").text_of(framed, 0, len(framed)) is None
    assert template_of("word").text_of(framed, start, len(framed)) is None


def test_nothing_is_learnt_from_text_with_an_escape_or_from_other_events() -> None:
    assert learn("chat", event_of('say "hi"')) is None
    assert learn("chat", b"data: [DONE]\n\n") is None
    assert learn("embeddings", event_of("word")) is None


@pytest.mark.parametrize("dialect", ["chat", "completions", "messages"])
def test_most_events_of_a_real_stream_fit_the_first_of_them(dialect: Dialect) -> None:
    events = [event for event in golden_events(dialect) if read_event(dialect, event).token == "text"]
    template = learn(dialect, events[0])
    assert template is not None
    fitting = [event for event in events if template.text_of(event, 0, len(event))]
    assert len(fitting) >= len(events) - 1
    assert not any(
        template.text_of(event, 0, len(event))
        for event in golden_events(dialect)
        if read_event(dialect, event).token is None
    )
