import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.meter import Meter
from gateway.wire import DIALECTS, Dialect, EventSplitter, Sign, Usage, own_error_event, read_answer, read_event
from tests.gateway.harness import GOLDEN, STREAMING, golden, golden_events

CHAT: Dialect = "chat"


def _event(payload: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(payload)}\n\n".encode()


def _delta(delta: Any) -> bytes:
    return _event({"choices": [{"index": 0, "delta": delta}]})


def _metered(name: str, dialect: Dialect) -> Meter:
    meter = Meter(dialect, strip_usage=False, clock=lambda: 0.0)
    meter.feed(golden(name))
    return meter


@pytest.mark.parametrize(
    ("name", "dialect", "tokens", "usage"),
    [
        ("chat", "chat", 5, Usage(37, 5, 0)),
        ("completions", "completions", 4, Usage(5, 4, 0)),
        ("responses", "responses", 4, Usage(37, 4, 0)),
        ("messages", "messages", 4, Usage(37, 4, 0)),
        # vLLM counts 241 prompt tokens here, 128 of them from its prefix cache; Anthropic's input_tokens is the rest
        ("messages_cached", "messages", 3, Usage(241, 3, 128)),
        # 40 tokens were made for one short tool call: the parser held most of them back; a schema ends with one unseen
        ("chat_tools", "chat", 4, Usage(37, 40, 0)),
        ("messages_tools", "messages", 3, Usage(37, 40, 0)),
        ("responses_tools", "responses", 3, Usage(37, 40, 0)),
        ("chat_reasoning", "chat", 4, Usage(37, 4, 0)),
        ("messages_thinking", "messages", 6, Usage(37, 6, 0)),
        ("responses_reasoning", "responses", 6, Usage(37, 6, 0)),
        ("chat_logprobs", "chat", 4, Usage(37, 4, 0)),
        ("completions_logprobs", "completions", 3, Usage(5, 3, 0)),
        ("chat_n2", "chat", 6, Usage(37, 6, 0)),
        ("chat_token_ids", "chat", 3, Usage(37, 3, 0)),
        ("chat_schema", "chat", 21, Usage(37, 22, 0)),
        ("responses_schema", "responses", 10, Usage(37, 11, 0)),
    ],
)
def test_a_real_stream_is_counted_as_the_engine_counts_it(
    name: str, dialect: Dialect, tokens: int, usage: Usage
) -> None:
    meter = _metered(name, dialect)
    assert meter.token_events == tokens
    assert meter.usage == usage
    assert meter.fault is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("chat_tools", "tool"),
        ("messages_tools", "tool"),
        ("responses_tools", "tool"),
        ("chat_reasoning", "reasoning"),
        ("messages_thinking", "reasoning"),
        ("responses_reasoning", "reasoning"),
        ("chat_logprobs", "text"),
        ("chat_schema", "text"),
        ("completions_logprobs", "text"),
        ("responses_schema", "text"),
    ],
)
def test_what_the_tokens_of_a_real_stream_are(name: str, kind: str) -> None:
    dialect: Any = name.partition("_")[0]
    assert {read_event(dialect, event).token for event in EventSplitter().feed(golden(name))} == {None, kind}


@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDEN.glob("*.sse") if not p.stem.endswith("_died")))
@given(cuts=st.lists(st.integers(0, 7000), max_size=12))
def test_a_real_stream_passes_byte_for_byte_however_it_is_cut(name: str, cuts: list[int]) -> None:
    dialect: Any = name.partition("_")[0]
    stream = golden(name)
    meter = Meter(dialect, strip_usage=False, clock=lambda: 0.0)
    edges = [0, *sorted(cuts), len(stream)]
    out = b"".join(meter.feed(stream[a:b]) for a, b in itertools.pairwise(edges))
    assert out + meter.rest() == stream


@pytest.mark.parametrize("name", ["chat_died", "completions_died", "messages_died"])
@given(cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_of_a_stream_that_an_engine_gave_up_only_its_error_is_rewritten(name: str, cuts: list[int]) -> None:
    dialect: Any = name.partition("_")[0]
    stream = golden(name)
    (error,) = [event for event in EventSplitter().feed(stream) if b'"error"' in event]
    meter = Meter(dialect, strip_usage=False, clock=lambda: 0.0, request_id="req_1")
    edges = [0, *sorted(cuts), len(stream)]
    out = b"".join(meter.feed(stream[a:b]) for a, b in itertools.pairwise(edges))
    assert out == stream[: stream.index(error)]
    assert meter.error_event == own_error_event(dialect, error, "req_1")
    assert meter.fault is not None
    assert meter.fault.status == 500


@pytest.mark.parametrize("dialect", STREAMING)
def test_only_the_last_event_of_a_real_stream_is_its_end(dialect: Dialect) -> None:
    ends = [read_event(dialect, event).end for event in golden_events(dialect)]
    assert ends == [False] * (len(ends) - 1) + [True]


def test_the_usage_event_of_a_real_chat_stream_is_only_usage() -> None:
    signs = [read_event(CHAT, event) for event in golden_events(CHAT)]
    assert [sign.only_usage for sign in signs] == [False] * 6 + [True, False]


@pytest.mark.parametrize(
    "event",
    [
        _delta({"role": "assistant", "content": ""}),
        _delta({"role": "assistant"}),
        _delta({"content": ""}),
        _delta({"content": None}),
        _delta({"tool_calls": []}),
        _delta({}),
        _delta(None),
        _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
        _event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}),
        _event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}),
        b": ping\n\n",
        b"event: ping\n\n",
        b"data: [DONE]\n\n",
    ],
)
def test_never_a_token_in_chat_or_completions(event: bytes) -> None:
    assert read_event(CHAT, event).token is None
    assert read_event("completions", event).token is None


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (_delta({"content": " Paris"}), "text"),
        (_delta({"content": " "}), "text"),
        (_delta({"role": "assistant", "content": "at once"}), "text"),
        (_delta({"refusal": "no"}), "text"),
        (_delta({"reasoning": "hm"}), "reasoning"),
        (_delta({"reasoning_content": "hm"}), "reasoning"),
        (_delta({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}), "tool"),
        (_event({"choices": [{"index": 0, "text": "x"}]}), "text"),
        (_event({"choices": [{"index": 0, "delta": {}}, {"index": 1, "delta": {"content": "x"}}]}), "text"),
    ],
)
def test_tokens_in_chat_and_completions(event: bytes, kind: str) -> None:
    assert read_event(CHAT, event).token == kind


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"type": "response.output_text.delta", "delta": "x"}, "text"),
        ({"type": "response.refusal.delta", "delta": "x"}, "text"),
        ({"type": "response.reasoning_text.delta", "delta": "x"}, "reasoning"),
        ({"type": "response.reasoning_summary_text.delta", "delta": "x"}, "reasoning"),
        ({"type": "response.function_call_arguments.delta", "delta": "{"}, "tool"),
        ({"type": "response.output_text.delta", "delta": ""}, None),
        ({"type": "response.output_text.done", "text": "all of it"}, None),
        ({"type": "response.created", "response": {"usage": None}}, None),
        ({"type": "response.in_progress"}, None),
        ({"type": "response.content_part.added"}, None),
    ],
)
def test_tokens_in_responses(payload: dict[str, Any], kind: str | None) -> None:
    assert read_event("responses", _event(payload, payload["type"])).token == kind


@pytest.mark.parametrize(
    ("delta", "kind"),
    [
        ({"type": "text_delta", "text": "x"}, "text"),
        ({"type": "thinking_delta", "thinking": "x"}, "reasoning"),
        ({"type": "input_json_delta", "partial_json": "{"}, "tool"),
        ({"type": "text_delta", "text": ""}, None),
        ({"type": "input_json_delta", "partial_json": ""}, None),
        ({"type": "signature_delta", "signature": "x"}, None),
    ],
)
def test_tokens_in_messages(delta: dict[str, Any], kind: str | None) -> None:
    payload = {"type": "content_block_delta", "index": 0, "delta": delta}
    assert read_event("messages", _event(payload, "content_block_delta")).token == kind


@pytest.mark.parametrize("kind", ["message_start", "content_block_start", "ping", "content_block_stop", "message_stop"])
def test_frames_around_the_text_of_messages_are_not_tokens(kind: str) -> None:
    assert read_event("messages", _event({"type": kind}, kind)).token is None


def test_usage_is_merged_over_message_start_and_message_delta_as_anthropic_sends_it() -> None:
    meter = Meter("messages", strip_usage=False, clock=lambda: 0.0)
    usage = {"input_tokens": 10, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 5, "output_tokens": 1}
    meter.feed(_event({"type": "message_start", "message": {"usage": usage}}))
    meter.feed(_event({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9}}))
    assert meter.usage == Usage(prompt_tokens=35, output_tokens=9, cached_tokens=20)


@pytest.mark.parametrize(
    ("dialect", "body", "usage"),
    [
        ("chat", {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}, Usage(3, 2)),
        (
            "chat",
            {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}},
            Usage(3, 2, 1),
        ),
        ("chat", {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": None}}, Usage(3, 2)),
        (
            "responses",
            {"usage": {"input_tokens": 3, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 1}}},
            Usage(3, 2, 1),
        ),
        ("messages", {"usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 4}}, Usage(7, 2, 4)),
        ("messages", {"input_tokens": 11}, Usage(11, 0)),
        ("embeddings", {"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}}, Usage(3)),
        ("pooling", {"id": "r", "usage": {"prompt_tokens": 5, "total_tokens": 5}, "results": [{"index": 0}]}, Usage(5)),
        ("pooling", {"data": [], "usage": {"prompt_tokens": 14, "completion_tokens": 2}}, Usage(14, 2)),
        ("embeddings", {"embeddings": {}, "meta": {"billed_units": {"input_tokens": 4}}}, Usage(4)),
        (
            "embeddings",
            {"data": [[0.5] * 999], "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}},
            Usage(3, None, 2),
        ),
        ("embeddings", {"data": [0.5] * 999, "usage": {"prompt_tokens": 3}, "more": [0.5] * 999}, Usage(3)),
        ("pooling", {"usage": {"prompt_tokens": 3}, "results": ['"usage":{"prompt_tokens":9}' * 99]}, Usage(3)),
        ("pooling", {"results": []}, Usage()),
        ("audio", {"text": "hi", "usage": {"type": "duration", "seconds": 3}}, Usage()),
        ("chat", {"usage": None}, Usage()),
        ("chat", {"usage": {"prompt_tokens": "three", "completion_tokens": True}}, Usage()),
        ("chat", {}, Usage()),
        ("chat", [], Usage()),
    ],
)
def test_usage_of_an_unstreamed_answer(dialect: Dialect, body: Any, usage: Usage) -> None:
    assert read_answer(dialect, json.dumps(body).encode()) == usage


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_that_is_not_json_has_no_usage(dialect: Dialect) -> None:
    assert read_answer(dialect, b"<html>") == Usage()
    assert read_answer(dialect, b"\x00\xff" * 5000) == Usage()  # vectors, with encoding_format=bytes


@pytest.mark.parametrize(
    ("payload", "sign"),
    [
        ({"choices": [{"delta": {"content": "x"}}]}, Sign(token="text")),
        ({"choices": [], "usage": {"prompt_tokens": 1}}, Sign(usage=Usage(1), only_usage=True)),
        ({"type": "transcript.text.delta", "delta": "x"}, Sign(token="text")),
        ({"type": "transcript.text.delta", "delta": ""}, Sign()),
        (
            {"type": "transcript.text.done", "usage": {"input_tokens": 3, "output_tokens": 1}},
            Sign(usage=Usage(3, 1), end=True),
        ),
        ({"error": {"message": "boom", "code": 500}}, Sign(error="boom", error_status=500, end=True)),
    ],
)
def test_events_of_a_transcription(payload: dict[str, Any], sign: Sign) -> None:
    """Chat chunks from vLLM, events of their own from OpenAI."""
    assert read_event("audio", _event(payload)) == sign


@pytest.mark.parametrize(
    ("dialect", "payload", "message", "status"),
    [
        ("chat", {"error": {"message": "boom", "type": "InternalServerError", "code": 500}}, "boom", 500),
        ("chat", {"error": {"message": "too long", "code": 400}}, "too long", 400),
        ("chat", {"error": {"message": "boom", "code": "oops"}}, "boom", None),
        ("chat", {"error": "boom"}, "boom", None),
        ("completions", {"error": {"message": "boom"}}, "boom", None),
        ("responses", {"type": "error", "message": "boom", "code": None}, "boom", None),
        ("responses", {"type": "response.failed", "response": {"error": {"message": "boom"}}}, "boom", None),
        ("messages", {"type": "error", "error": {"type": "api_error", "message": "boom"}}, "boom", None),
        ("messages", {"error": {"message": "boom", "code": 500}}, "boom", 500),
    ],
)
def test_errors_inside_a_stream(dialect: Dialect, payload: Any, message: str, status: int | None) -> None:
    sign = read_event(dialect, _event(payload))
    assert (sign.error, sign.error_status, sign.end) == (message, status, True)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_error_field_that_is_null_is_no_error(dialect: Dialect) -> None:
    assert read_event(dialect, _event({"error": None, "choices": []})).error is None


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "data", [b"not json", b"[]", b"null", b"1", b'"x"', b"{}", b'{"choices":{}}', b'{"choices":[1]}']
)
def test_what_is_not_understood_is_an_empty_sign(dialect: Dialect, data: bytes) -> None:
    assert read_event(dialect, b"data: " + data + b"\n\n") == Sign()


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 600) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "error", "choices", "delta", "usage", "response", "message", "content", "code", "text"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(st.sampled_from(DIALECTS), _json)
def test_no_json_whatever_makes_reading_fail(dialect: Dialect, payload: Any) -> None:
    read_event(dialect, _event(payload))
    read_answer(dialect, json.dumps(payload).encode())
