"""The events that take a broken stream up again: a completion's text, in the dialect and under the ids begun with."""

from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.wire.partial import Partial


@dataclass(frozen=True, slots=True)
class Ending:
    """How the answer ended, and its tokens in all: those sent before it broke and those after."""

    finish_reason: str
    stop_reason: int | str | None
    prompt_tokens: int
    output_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI's chat and completions state it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "completion_tokens": self.output_tokens,
        }


def text_events(partial: Partial, text: str, token_ids: list[int] | None) -> bytes:
    """The next piece of text (not empty), after whatever must precede the first one and has not been sent."""
    return _WRITERS[partial.dialect][0](partial, text, token_ids)


def ending_events(partial: Partial, ending: Ending) -> bytes:
    """What closes the answer and has not been sent yet."""
    return _WRITERS[partial.dialect][1](partial, ending)


def _openai_choice(partial: Partial, text: str, token_ids: list[int] | None, ending: Ending | None) -> bytes:
    choice: dict[str, Any] = {"index": 0}
    choice |= {"text": text} if partial.dialect == "completions" else {"delta": {"content": text}}
    choice |= {"logprobs": None, "finish_reason": None if ending is None else ending.finish_reason}
    if ending is not None:
        choice["stop_reason"] = ending.stop_reason
    choice["token_ids"] = token_ids
    return _data({**partial.head, "choices": [choice]})


def _openai_text(partial: Partial, text: str, token_ids: list[int] | None) -> bytes:
    return _openai_choice(partial, text, token_ids, None)


def _openai_ending(partial: Partial, ending: Ending) -> bytes:
    events = [] if partial.finish_reason else [_openai_choice(partial, "", None, ending)]
    if "usage" not in partial.told:
        events.append(_data({**partial.head, "choices": [], "usage": ending.usage}))
    if not partial.is_over:
        events.append(b"data: [DONE]\n\n")
    return b"".join(events)


def _messages_text(partial: Partial, text: str, _: list[int] | None) -> bytes:
    opening = _once(partial, {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0})
    delta = {"type": "text_delta", "text": text}
    return opening + _event({"type": "content_block_delta", "delta": delta, "index": 0})


def _messages_ending(partial: Partial, ending: Ending) -> bytes:
    stopped_by = ending.stop_reason if isinstance(ending.stop_reason, str) else None
    reason = "stop_sequence" if stopped_by else {"length": "max_tokens"}.get(ending.finish_reason, "end_turn")
    closing: list[dict[str, Any]] = [
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": stopped_by},
            "usage": {"input_tokens": ending.prompt_tokens, "output_tokens": ending.output_tokens},
        },
        {"type": "message_stop"},
    ]
    if "content_block_start" in partial.told:
        closing.insert(0, {"type": "content_block_stop", "index": 0})
    return b"".join(_once(partial, payload) for payload in closing)


def _responses_text(partial: Partial, text: str, _: list[int] | None) -> bytes:
    opening = _responses_opening(partial)
    where = {"content_index": 0, "item_id": partial.item["id"], "output_index": 0}
    return opening + _numbered(partial, {**where, "type": "response.output_text.delta", "delta": text, "logprobs": []})


def _responses_opening(partial: Partial) -> bytes:
    if not partial.item:
        item_id = "msg_" + str(partial.head.get("id")).removeprefix("resp_")
        message = {"type": "message", "role": "assistant"}
        partial.item = {"id": item_id, "content": [], "status": "in_progress", **message}
    where = {"content_index": 0, "item_id": partial.item["id"], "output_index": 0}
    part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    item = _once(partial, {"type": "response.output_item.added", "output_index": 0, "item": partial.item})
    return item + _once(partial, {**where, "type": "response.content_part.added", "part": part})


def _responses_ending(partial: Partial, ending: Ending) -> bytes:
    opening = _responses_opening(partial)
    text = "".join(partial.text)
    where = {"content_index": 0, "item_id": partial.item["id"], "output_index": 0}
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    item = {**partial.item, "content": [part], "status": "completed"}
    is_cut = ending.finish_reason == "length"
    response = {
        **partial.head,
        "output": [item],
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "usage": {
            "input_tokens": ending.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": ending.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": ending.prompt_tokens + ending.output_tokens,
        },
    }
    closing = (
        {**where, "type": "response.output_text.done", "text": text, "logprobs": []},
        {**where, "type": "response.content_part.done", "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    )
    return opening + b"".join(_once(partial, payload) for payload in closing)


def _once(partial: Partial, payload: dict[str, Any]) -> bytes:
    """An event of a kind that comes once, unless it has come."""
    kind = payload["type"]
    if kind in partial.told:
        return b""
    partial.told.add(kind)
    return _numbered(partial, payload) if partial.dialect == "responses" else _event(payload)


def _numbered(partial: Partial, payload: dict[str, Any]) -> bytes:
    partial.sequence_number += 1
    return _event({**payload, "sequence_number": partial.sequence_number})


def _event(payload: dict[str, Any]) -> bytes:
    return b"event: %b\n%b" % (payload["type"].encode(), _data(payload))


def _data(payload: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


_WRITERS: Final = {
    "chat": (_openai_text, _openai_ending),
    "completions": (_openai_text, _openai_ending),
    "messages": (_messages_text, _messages_ending),
    "responses": (_responses_text, _responses_ending),
}
