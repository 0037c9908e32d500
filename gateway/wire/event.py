"""What one streamed event, or one whole answer, tells: a token, usage, an error, the end.

A role, an empty delta, usage, a ping or a comment is never a token. Field names as vLLM 0.32 sends them, with the
older `reasoning_content` beside `reasoning`.
"""

import re
from typing import Any, Final, Literal, NamedTuple

import orjson

from gateway.wire.dialect import Dialect
from gateway.wire.sse import event_data

TokenKind = Literal["text", "reasoning", "tool"]


class Usage(NamedTuple):  # made for every request: a frozen dataclass would take three times as long
    """Token counts as the engine states them; None where it does not say."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


class Sign(NamedTuple):
    """What one event means. `token` is set when it carries generated text of that kind."""

    token: TokenKind | None = None
    usage: Usage | None = None
    error: str | None = None
    error_status: int | None = None
    """The HTTP status the engine would have answered with, had the stream not begun; None where it does not say."""
    end: bool = False
    only_usage: bool = False
    """The extra event of `stream_options.include_usage`: usage and no choice."""


_NOTHING: Final = Sign()
_RESPONSES_TOKENS: Final[dict[str, TokenKind]] = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "text",
    "response.reasoning_text.delta": "reasoning",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool",
    "response.mcp_call_arguments.delta": "tool",
}
_MESSAGES_TOKENS: Final[dict[str, tuple[str, TokenKind]]] = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "reasoning"),
    "input_json_delta": ("partial_json", "tool"),
}

_LONG: Final[frozenset[Dialect]] = frozenset({"embeddings", "pooling"})
_END: Final = 1000
_COUNTED: Final = b'"usage":{'
_USAGE: Final = re.compile(rb'"(?:usage|billed_units)"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
"""The object that counts tokens; Cohere's API has another name for it."""

_PLAIN: Final[dict[Dialect, tuple[bytes, bytes]]] = {
    "chat": (b'"delta":{"content":"', b'"delta":{"content":""'),
    "completions": (b'"text":"', b'"text":""'),
    "responses": (b'"type":"response.output_text.delta"', b'"delta":""'),
    "messages": (b'"delta":{"type":"text_delta","text":"', b'"delta":{"type":"text_delta","text":""'),
    "audio": (b'"delta":{"content":"', b'"delta":{"content":""'),
}
"""What only an event with text has, as engines write it, and the same without text. A quote inside a JSON string is
escaped, so neither can be part of the text itself."""


def count_plain_tokens(dialect: Dialect, events: bytes) -> int:
    """How many of these whole events are text and nothing else, by their bytes; 0 where only `read_event` can tell.

    When it equals the number of events, each of them is Sign(token="text").
    """
    mark, empty = _PLAIN.get(dialect, (b"", b""))
    # find(), not `in`: see `sse`
    if not mark or events.find(_COUNTED) >= 0 or events.find(b'"error"') >= 0 or events.find(empty) >= 0:
        return 0
    return events.count(mark)


def read_event(dialect: Dialect, event: bytes) -> Sign:
    """Read one SSE event (with or without its blank line). What is not understood is an empty Sign, never an error."""
    data = event_data(event)
    if data is None:
        return _NOTHING
    if data == b"[DONE]":
        return Sign(end=True)
    try:
        payload = orjson.loads(data)
    except orjson.JSONDecodeError:
        return _NOTHING
    if not isinstance(payload, dict):
        return _NOTHING
    if dialect == "messages":
        return _read_messages(payload)
    if dialect == "responses":
        return _read_responses(payload)
    if dialect == "audio" and "choices" not in payload:
        return _read_transcript(payload)
    return _read_chat(payload)


def read_answer(dialect: Dialect, body: bytes) -> Usage:
    """The usage of an unstreamed answer; all None when it states none."""
    try:
        payload = orjson.loads(_usage_alone(body) if dialect in _LONG else _usage_at_the_end(body))
    except orjson.JSONDecodeError:
        return Usage()
    if not isinstance(payload, dict):
        return Usage()
    if dialect == "messages" and isinstance(payload.get("input_tokens"), int):  # count_tokens
        return Usage(prompt_tokens=payload["input_tokens"], output_tokens=0)
    read = _messages_usage if dialect == "messages" else _usage
    return read(payload.get("usage")) or Usage()


def _usage_at_the_end(body: bytes) -> bytes:
    """Of an answer only what counts, which stands behind its text; all of it where the bytes do not tell. A quote
    inside a string is escaped, so that text cannot be taken for it."""
    start = body.rfind(_COUNTED)
    if start < 0:
        return body
    end = body.find(b"}", start) + 1
    while end and body.count(b"{", start, end) > body.count(b"}", start, end):
        end = body.find(b"}", end) + 1
    return b"{%b}" % body[start:end] if end else body


def _usage_alone(body: bytes) -> bytes:
    """Of a document that is mostly numbers, only what counts; all of it where the bytes do not tell."""
    found = _USAGE.search(body, max(0, len(body) - _END)) or _USAGE.search(body, 0, _END)
    return b'{"usage":%b}' % found[1] if found else body


def _read_transcript(payload: dict[str, Any]) -> Sign:
    """OpenAI's own events of a transcription; vLLM sends chat chunks instead."""
    kind = payload.get("type")
    if kind == "transcript.text.delta":
        return Sign(token="text" if payload.get("delta") else None)
    if kind == "transcript.text.done":
        return Sign(usage=_usage(payload.get("usage")), end=True)
    return _error_sign(payload["error"]) if payload.get("error") else _NOTHING


def _read_chat(payload: dict[str, Any]) -> Sign:
    if payload.get("error"):
        return _error_sign(payload["error"])
    usage = _usage(payload.get("usage"))
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices:
        return Sign(usage=usage, only_usage=usage is not None)
    for choice in choices:
        kind = _chat_token(choice) if isinstance(choice, dict) else None
        if kind:
            return Sign(token=kind, usage=usage)
    return Sign(usage=usage)


def _chat_token(choice: dict[str, Any]) -> TokenKind | None:
    if choice.get("text"):
        return "text"
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return None
    if delta.get("content") or delta.get("refusal"):
        return "text"
    if delta.get("reasoning") or delta.get("reasoning_content"):
        return "reasoning"
    return "tool" if delta.get("tool_calls") else None


def _read_responses(payload: dict[str, Any]) -> Sign:
    kind = payload.get("type")
    token = _RESPONSES_TOKENS.get(str(kind))
    if token:
        return Sign(token=token if payload.get("delta") else None)
    response = payload.get("response")
    if kind in ("response.completed", "response.incomplete") and isinstance(response, dict):
        return Sign(usage=_usage(response.get("usage")), end=True)
    if kind == "response.failed" and isinstance(response, dict):
        return Sign(usage=_usage(response.get("usage")), error=_error_text(response.get("error")), end=True)
    if kind == "error" or (payload.get("error") and kind is None):
        return _error_sign(payload.get("error") or payload)
    return _NOTHING


def _read_messages(payload: dict[str, Any]) -> Sign:
    kind = payload.get("type")
    delta = payload.get("delta")
    if kind == "content_block_delta" and isinstance(delta, dict):
        field, token = _MESSAGES_TOKENS.get(str(delta.get("type")), ("", None))
        return Sign(token=token if delta.get(field) else None)
    if kind == "message_start" and isinstance(payload.get("message"), dict):
        return Sign(usage=_messages_usage(payload["message"].get("usage")))
    if kind == "message_delta":
        return Sign(usage=_messages_usage(payload.get("usage")))
    if kind == "message_stop":
        return Sign(end=True)
    if kind == "error" or payload.get("error"):
        return _error_sign(payload.get("error"))
    return _NOTHING


def _usage(raw: object) -> Usage | None:
    """OpenAI's `prompt_tokens`/`completion_tokens`, or the `input_tokens`/`output_tokens` of its Responses API."""
    if not isinstance(raw, dict):
        return None
    prompt, output, cached = raw.get("prompt_tokens"), raw.get("completion_tokens"), None
    if prompt is None and output is None:
        prompt, output = raw.get("input_tokens"), raw.get("output_tokens")
    details = raw.get("prompt_tokens_details") or raw.get("input_tokens_details")
    if details and isinstance(details, dict):
        cached = _count(details.get("cached_tokens"))
    return Usage(prompt if type(prompt) is int else None, output if type(output) is int else None, cached)


def _messages_usage(raw: object) -> Usage | None:
    """Anthropic's `input_tokens` leaves out what was read from or written to the cache; our prompt tokens are the sum.

    Source: https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching#tracking-cache-performance.
    """
    if not isinstance(raw, dict):
        return None
    new, cached = _count(raw.get("input_tokens")), _count(raw.get("cache_read_input_tokens"))
    written = _count(raw.get("cache_creation_input_tokens"))
    return Usage(
        prompt_tokens=None if new is None else new + (cached or 0) + (written or 0),
        output_tokens=_count(raw.get("output_tokens")),
        cached_tokens=cached,
    )


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _error_sign(error: object) -> Sign:
    code = _count(error.get("code")) if isinstance(error, dict) else None
    return Sign(error=_error_text(error), error_status=code if code in range(400, 600) else None, end=True)


def _error_text(error: object) -> str:
    text = error.get("message") if isinstance(error, dict) else error
    return str(text or "the engine reported an error without a message")
