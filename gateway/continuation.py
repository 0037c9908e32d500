"""Takes a stream up again on another replica when its engine has died, so that the caller's stream goes on. No I/O.

The prompt and the answer so far are handed to the new replica's completions as one prompt of token ids. The prompt's
come from its own /tokenize; the answer's were in the stream, where the gateway had asked for them (`wire.token_ids`):
then a greedy answer in float32 is the undisturbed one. Elsewhere /tokenize gives those too: the text is still whole at
the seam, but one the model had made of unusual tokens may go on differently. Ids depend on no chat template (many trim
an answer's blanks, which would then come twice) and tell how many tokens were sent (an event may hold several). What
comes back is told in the caller's dialect, under the ids its stream began with.

Errors: CannotContinueError (`gateway.wire.remainder`) - this answer cannot be continued exactly, and why.
"""

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.wire import Call, Dialect, EventSplitter, event_data
from gateway.wire.continued import Ending, ending_events, text_events
from gateway.wire.partial import Partial
from gateway.wire.remainder import CannotContinueError, Remainder, remainder

_CONDENSE_BYTES = 64 * 1024
_MAX_TEXT_CHARS = 4 * 1024 * 1024
_MAX_BLANKS = 8
_TOKENIZE, _COMPLETIONS = "/tokenize", "/v1/completions"


class Trail:
    """What one caller has been sent. It costs an append a read; every 64 KiB, events are dropped for their text.

    A stream is fifty times its text, and thousands are open at once.
    """

    __slots__ = ("_partial", "_pieces", "size")

    def __init__(self, dialect: Dialect) -> None:
        self._partial = Partial(dialect)
        self._pieces: list[bytes] = []
        self.size = 0
        """Bytes of events held."""

    def keep(self, events: bytes) -> None:
        """Note whole events that the caller is sent."""
        self._pieces.append(events)
        self.size += len(events)
        if self.size > _CONDENSE_BYTES:
            self.partial()

    def partial(self) -> Partial:
        """The answer so far."""
        events = b"".join(self._pieces)
        self._pieces.clear()
        self.size = 0
        if self._partial.odd is None:  # what cannot be continued need not be kept
            self._partial.read(events)
        if sum(map(len, self._partial.text)) > _MAX_TEXT_CHARS:
            self._partial.odd = "too much of it has been sent"
        if self._partial.odd is not None:
            self._partial.text.clear()
            self._partial.token_ids = None
        return self._partial


@dataclass(frozen=True, slots=True)
class Ask:
    """The next request to the new replica; its answer is a stream only the last time."""

    path: str
    body: bytes
    is_stream: bool


class Continuation:
    """One answer being continued: `first`, `answered` for each plain answer, then `feed` the stream and `end` it."""

    __slots__ = ("_ending", "_left", "_partial", "_prompt", "_sent", "_splitter", "_texts", "broken_by")

    def __init__(self, call: Call, trail: Trail) -> None:
        """Raises CannotContinueError."""
        self._partial = partial = trail.partial()
        if partial.odd is not None:
            raise CannotContinueError(partial.odd)
        if not partial.head:
            raise CannotContinueError("nothing of it was sent")
        self._left: Remainder = remainder(call.endpoint.dialect, orjson.loads(call.body))
        self._prompt: list[int] | None = self._left.question.get("tokens")
        self._sent = [] if partial.token_ids is None else list(partial.token_ids)
        self._texts = [] if partial.token_ids is not None else _texts(self._left, partial)
        self._splitter = EventSplitter()
        self._ending: Ending | None = None
        self.broken_by: str | None = None
        """Why the new replica's stream is no continuation either."""

    def first(self) -> Ask | bytes:
        """The first request; or, when only the end is missing, the bytes that close the caller's stream."""
        if self._prompt is None:
            return _question(self._left.question)
        if self._texts:
            text = {"prompt": self._texts[0], "add_special_tokens": False}
            return _question({"model": self._left.question["model"], **text})
        return self._last(self._prompt)

    def answered(self, status: int, body: bytes) -> Ask | bytes:
        """Take the answer to a plain request; returns what follows, as `first` does. Raises CannotContinueError."""
        tokens = _tokens(status, body)
        if self._prompt is None:
            self._prompt = tokens
            stated = self._partial.prompt_tokens
            if stated is not None and stated != len(tokens):
                raise CannotContinueError(f"its prompt is {stated} tokens and is read as {len(tokens)}")
        elif self._texts.pop(0).isspace() and len(tokens) != 1 and len(self._sent) > 0:
            self._sent, self._texts = [], ["".join(self._partial.text)]  # a blank was no token by itself after all
        else:
            self._sent += tokens
        return self.first()

    def feed(self, data: bytes) -> bytes:
        """Bytes of the new replica's stream -> the bytes to send the caller now, possibly none."""
        sent = []
        for event in self._splitter.feed(data):
            found = event_data(event)
            if found is not None and found != b"[DONE]" and self.broken_by is None:
                sent.append(self._read(found))
        return b"".join(sent)

    def end(self) -> bytes:
        """The new replica's stream is complete: what closes the caller's. Empty, with `broken_by`, if it was not."""
        if self._ending is None:
            self.broken_by = self.broken_by or "the stream that continued it ended early"
        return b"" if self._ending is None or self.broken_by else ending_events(self._partial, self._ending)

    def _last(self, prompt: list[int]) -> Ask | bytes:
        limit = self._left.max_tokens
        left = None if limit is None else limit - len(self._sent)
        if self._partial.finish_reason or (left is not None and left <= 0):
            reason = self._partial.finish_reason or "length"
            self._ending = Ending(reason, self._partial.stop_reason, len(prompt), len(self._sent))
            return self.end()
        body = {
            **self._left.sampling,
            "prompt": [*prompt, *self._sent],
            "max_tokens": left,
            "min_tokens": max(0, self._left.min_tokens - len(self._sent)),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }
        return Ask(_COMPLETIONS, orjson.dumps(body), is_stream=True)

    def _read(self, data: bytes) -> bytes:
        """One event of a completion."""
        try:
            payload: dict[str, Any] = orjson.loads(data)
        except orjson.JSONDecodeError:
            payload = {"error": "the stream that continued it is not JSON"}
        if payload.get("error"):
            self.broken_by = str(payload["error"])
            return b""
        usage = payload.get("usage")
        if not payload.get("choices"):
            if self._ending is not None and usage:
                self._ending = self._summed(self._ending, usage)
            return b""
        choice = payload["choices"][0]
        if choice.get("finish_reason"):
            self._ending = Ending(choice["finish_reason"], choice.get("stop_reason"), 0, 0)
        text = choice.get("text")
        if not text:
            return b""
        self._partial.text.append(text)
        return text_events(self._partial, text, choice.get("token_ids"))

    def _summed(self, ending: Ending, usage: dict[str, int]) -> Ending:
        sent = len(self._sent)
        prompt_tokens, output_tokens = usage["prompt_tokens"] - sent, usage["completion_tokens"] + sent
        return Ending(ending.finish_reason, ending.stop_reason, prompt_tokens, output_tokens)


def _question(question: dict[str, Any]) -> Ask:
    return Ask(_TOKENIZE, orjson.dumps(question), is_stream=False)


def _texts(left: Remainder, partial: Partial) -> list[str]:
    """What to ask the tokens of, where they were not stated with the text.

    Blanks at the end go by themselves, each as it came: a tokenizer would join two line breaks into one token that
    nothing follows, though the model made them two because something does. Raises CannotContinueError.
    """
    text = "".join(partial.text)
    if left.sampling.get("ignore_eos"):
        raise CannotContinueError("with ignore_eos it may hold tokens that have no text")
    if "\ufffd" in text:
        raise CannotContinueError("its text holds bytes that are not a character")
    start = len(partial.text)
    while start and partial.text[start - 1].isspace():
        start -= 1
    blanks = partial.text[start:]
    if not 2 <= len(blanks) <= _MAX_BLANKS or start == 0:
        return [text] if text else []
    return ["".join(partial.text[:start]), *blanks]


def _tokens(status: int, body: bytes) -> list[int]:
    try:
        tokens = orjson.loads(body)["tokens"] if status == 200 else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        tokens = None
    if not isinstance(tokens, list):
        raise CannotContinueError(f"the other replica answered {status} when asked for its tokens")
    return tokens
