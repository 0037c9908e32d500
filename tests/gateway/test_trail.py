"""What is read back of a stream is what its caller was sent, however its bytes came and however they went out."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.continuation import Trail
from gateway.meter import Meter
from gateway.wire import Dialect
from gateway.wire.partial import Partial

texts = st.text('ab \n\t"\\{}[]:,é漢🙂', min_size=1, max_size=6)
said = st.lists(st.tuples(st.integers(0, 1), texts, st.booleans()), min_size=1, max_size=12)
"""Pieces of text: of which block, and whether the engine spells it in ASCII."""


def event_of(dialect: Dialect, block: int, text: str, is_ascii: bool) -> bytes:
    """As an engine writes it; chat and completions have another template for each `block` too."""
    head: dict[str, Any] = {"id": f"c{block}", "object": "o", "created": 1, "model": "m"}
    payload: dict[str, Any]
    if dialect == "chat":
        payload = {**head, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    elif dialect == "completions":
        payload = {**head, "choices": [{"index": 0, "text": text, "finish_reason": None}]}
    elif dialect == "messages":
        delta = {"type": "text_delta", "text": text}
        payload = {"type": "content_block_delta", "delta": delta, "index": block}
    else:
        payload = {"type": "response.output_text.delta", "item_id": f"i{block}", "delta": text}
    data = json.dumps(payload, separators=(",", ":"), ensure_ascii=is_ascii)
    name = f"event: {payload['type']}\n" if dialect in ("messages", "responses") else ""
    return f"{name}data: {data}\n\n".encode()


@given(
    dialect=st.sampled_from(["chat", "completions", "messages", "responses"]),
    said=said,
    cuts=st.data(),
    strips=st.booleans(),
)
def test_what_is_read_back_is_what_was_sent(
    dialect: Dialect, said: list[tuple[int, str, bool]], cuts: st.DataObject, strips: bool
) -> None:
    events = [event_of(dialect, *one) for one in said]
    usage = b'data: {"id":"c0","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    if dialect in ("chat", "completions") and cuts.draw(st.booleans(), label="usage within"):
        events.insert(cuts.draw(st.integers(0, len(events)), label="where"), usage)
    stream = b"".join(events)
    ends = {sum(map(len, events[:n])) for n in range(len(events) + 1)}
    places = st.sampled_from(sorted(ends)) | st.integers(0, len(stream))
    cut = sorted({0, len(stream), *cuts.draw(st.lists(places, max_size=20), label="reads end at")})
    trail = Trail(dialect)
    meter = Meter(dialect, strip_usage=strips, clock=lambda: 0.0, trail=trail)
    sent = b""
    for start, end in pairwise(cut):
        chunk = b"%x\r\n%b\r\n" % (end - start, stream[start:end])
        at = chunk.index(b"\n") + 1
        passes = meter.passes(chunk, at, len(chunk) - 2)
        sent += stream[start:end] if passes else meter.feed(stream[start:end])
    expected = Partial(dialect)
    expected.read(sent)
    assert trail.partial() == expected
    assert "".join(expected.text) == "".join(text for _, text, _ in said)
    assert trail.partial() == expected  # reading it takes nothing away
    assert sent == (stream.replace(usage, b"") if strips else stream)


def test_text_of_one_template_takes_the_place_of_its_text_alone() -> None:
    trail = Trail("messages")
    meter = Meter("messages", strip_usage=False, clock=lambda: 0.0, trail=trail)
    first, more = event_of("messages", 0, "a", True), event_of("messages", 0, "bc", True)
    assert meter.feed(first) == first
    assert meter.passes(more, 0, len(more))
    assert trail.texts == [b"bc"]
    assert not meter.passes(event_of("messages", 1, "d", True), 0, len(event_of("messages", 1, "d", True)))
    assert not meter.passes(more + more, 0, 2 * len(more))
    assert trail.texts == [b"bc"]
