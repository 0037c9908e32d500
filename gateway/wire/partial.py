"""What the caller of a broken stream has been told: its own events read back, once, when the stream has broken."""

from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.wire.dialect import Dialect
from gateway.wire.sse import EventSplitter, event_data

_PASSED_OVER: Final = frozenset({"ping", "response.in_progress"})


@dataclass(slots=True)
class Partial:
    """An answer as far as it got. Only an answer of one text is read in full; `odd` names anything else."""

    dialect: Dialect
    head: dict[str, Any] = field(default_factory=dict)
    """What every event repeats: `id`, `created`, `model` of the first one; of Anthropic's and of responses the message
    or response object itself."""
    text: list[str] = field(default_factory=list)
    """Piece by piece, as it came."""
    token_ids: list[int] | None = field(default_factory=list)
    """Of exactly this text; None where an event did not state them."""
    told: set[str] = field(default_factory=set)
    """Kinds of events sent that come once: role, usage and the openings and closings of messages and responses."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_tokens: int | None = None
    item: dict[str, Any] = field(default_factory=dict)
    """The output item of a response."""
    sequence_number: int = -1
    odd: str | None = None
    is_over: bool = False
    silent_ids: list[int] = field(default_factory=list)
    """Of tokens that no text has come of yet: half a character, or one that is never shown."""

    def read(self, events: bytes) -> None:
        """Take in whole events; what is not understood makes the answer odd, never an error."""
        for event in EventSplitter().feed(events):
            data = event_data(event)
            if data is None:
                continue
            if data == b"[DONE]":
                self.is_over = True
                continue
            try:
                payload = orjson.loads(data)
            except orjson.JSONDecodeError:
                payload = None
            if not isinstance(payload, dict):
                self.odd = "it holds an event that is not a JSON object"
            elif payload.get("error"):
                self.odd = "it holds an error"
            else:
                try:
                    _READERS[self.dialect](self, payload)
                except (AttributeError, KeyError, TypeError, IndexError):
                    self.odd = "it holds an event of an unknown shape"

    def take_ids(self, ids: list[int] | None, *, has_text: bool) -> None:
        """The tokens of one event."""
        self.silent_ids += ids or []
        if not has_text:
            return
        if not ids or self.token_ids is None:
            self.token_ids = None
        else:
            self.token_ids += self.silent_ids
        self.silent_ids = []


def _read_openai(partial: Partial, payload: dict[str, Any]) -> None:
    if not partial.head:
        partial.head = {name: payload.get(name) for name in ("id", "object", "created", "model")}
    choices = payload.get("choices")
    if not choices:
        partial.told.add("usage")
        return
    choice = choices[0]
    if len(choices) > 1 or choice.get("index"):
        partial.odd = "it has several choices"
    if choice.get("logprobs"):
        partial.odd = "it holds log probabilities"
    delta = choice.get("delta") or {"content": choice.get("text")}
    _read_delta(partial, delta)
    prompt_ids = payload.get("prompt_token_ids") or choice.get("prompt_token_ids")
    if prompt_ids:
        partial.prompt_tokens = len(prompt_ids)
    partial.take_ids(choice.get("token_ids"), has_text=bool(delta.get("content")))
    if choice.get("finish_reason"):
        partial.finish_reason = choice["finish_reason"]
        partial.stop_reason = choice.get("stop_reason")


def _read_delta(partial: Partial, delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if not value:
            continue
        if name == "content":
            partial.text.append(value)
        elif name != "role":
            partial.odd = f"it holds {name}"


def _read_messages(partial: Partial, payload: dict[str, Any]) -> None:
    kind = str(payload.get("type"))
    partial.token_ids = None
    delta = payload.get("delta") or {}
    if kind == "content_block_delta":
        if delta.get("type") == "text_delta":  # any other comes in a block that is odd already
            partial.text.append(str(delta.get("text") or ""))
        return
    _tell_once(partial, kind, _MESSAGES_KNOWN)
    if kind == "message_start":
        partial.head = payload.get("message") or {}
        partial.prompt_tokens = _prompt_tokens(partial.head.get("usage") or {})
    elif kind == "content_block_start":
        block = (payload.get("content_block") or {}).get("type")
        if block != "text":
            partial.odd = f"it holds a block of {block}"
    elif kind == "message_delta":
        partial.finish_reason = delta.get("stop_reason") or "end_turn"
    elif kind == "message_stop":
        partial.is_over = True


def _tell_once(partial: Partial, kind: str, known: frozenset[str]) -> None:
    if kind in _PASSED_OVER:
        return
    if kind in partial.told:
        partial.odd = "it has several parts"
    elif kind not in known:
        partial.odd = f"it holds an event of type {kind}"
    partial.told.add(kind)


def _prompt_tokens(usage: dict[str, Any]) -> int | None:
    """Anthropic counts what came from the cache apart."""
    counts = [usage.get(f"{name}input_tokens") for name in ("", "cache_read_", "cache_creation_")]
    return sum(count for count in counts if isinstance(count, int)) or None


def _read_responses(partial: Partial, payload: dict[str, Any]) -> None:
    kind = str(payload.get("type"))
    partial.token_ids = None
    number = payload.get("sequence_number")
    partial.sequence_number = number if isinstance(number, int) else partial.sequence_number + 1
    if kind == "response.output_text.delta":
        partial.text.append(str(payload.get("delta") or ""))
        return
    _tell_once(partial, kind, _RESPONSES_KNOWN)
    if kind == "response.created":
        partial.head = payload.get("response") or {}
    elif kind == "response.output_item.added":
        partial.item = payload.get("item") or {}
        if partial.item.get("type") != "message":
            partial.odd = f"it holds an item of {partial.item.get('type')}"
    elif kind in _RESPONSES_ENDS:
        partial.is_over = True


_MESSAGES_KNOWN: Final = frozenset(
    {"message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"}
)
_RESPONSES_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_RESPONSES_KNOWN: Final = _RESPONSES_ENDS | {
    "response.created",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
}
_READERS: Final = {
    "chat": _read_openai,
    "completions": _read_openai,
    "messages": _read_messages,
    "responses": _read_responses,
}
