"""Takes a stream up again on another replica when its engine has died, so that the caller's stream goes on. No I/O.

The prompt and the answer so far are handed to the new replica's completions as one prompt of token ids. The prompt's
come from its own /tokenize; the answer's are read back from the pieces of the text, a token each as a rule, or were in
the stream, where the caller had asked for them (`return_token_ids`). A greedy answer in float32 is then the undisturbed
one, except where a piece was several tokens. Ids depend on no chat template (many trim an answer's blanks, which would
then come twice) and tell how many tokens were sent. What comes back is told in the caller's dialect, under the ids its
stream began with.

Errors: CannotContinueError (`gateway.wire.remainder`) - this answer cannot be continued exactly, and why.
"""

import zlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from gateway.wire import Call, Dialect, EventSplitter, Template, event_data
from gateway.wire.continued import Ending, ending_events, text_events
from gateway.wire.partial import Partial
from gateway.wire.remainder import CannotContinueError, Remainder, remainder

_SQUEEZE_BYTES: Final = 64 * 1024
_MAX_SQUEEZED: Final = 64
"""4 MiB of events, twenty thousand tokens: reading them back takes a fifth of a second."""
_LONGEST_EVENT_BYTES: Final = 2**20  # longer ones are images: to squeeze 64 MiB would stop all streams for a second
MOST_TEXTS: Final = 20_000
"""So many go by before the fast lane must bring an event to `keep`, which finds that it is enough."""
_TOKENIZE: Final = "/tokenize"
_DETOKENIZE: Final = "/detokenize"
_COMPLETIONS: Final = "/v1/completions"


class _Texts(NamedTuple):
    """Events of one template, by their texts."""

    template: Template
    texts: list[bytes]

    @property
    def size(self) -> int:
        """Of all the events, in bytes."""
        return len(self.texts) * self.template.size + sum(map(len, self.texts))

    def events(self) -> bytes:
        """All of them."""
        return b"".join(map(self.template.event_of, self.texts))


class Trail:
    """What one caller has been sent, unread until its engine dies. Costs an append a read.

    Thousands of streams are open at once, and one of them is fifty times its text: of events from one template only the
    text is kept, all others are squeezed every 64 KiB to a fifteenth.
    """

    __slots__ = ("_dialect", "_is_too_long", "_loose_bytes", "_pieces", "_squeezed", "_template", "texts")

    def __init__(self, dialect: Dialect) -> None:
        self._dialect: Dialect = dialect
        self._pieces: list[bytes | _Texts] = []
        self._loose_bytes = 0
        self._squeezed: list[bytes] = []
        self._is_too_long = False
        self._template: Template | None = None
        self.texts: list[bytes] = []
        """Of the events sent since the last that were kept whole, one each: for the fast lane to append to."""

    def keep(self, events: bytes, template: Template | None = None) -> None:
        """Note whole events that the caller is sent, and the template of those whose texts will follow."""
        self._close()
        self._template = template
        if len(events) > _LONGEST_EVENT_BYTES:
            self._give_up()
            return
        self._pieces.append(events)
        self._loose_bytes += len(events)
        if self._loose_bytes > _SQUEEZE_BYTES:
            self._squeeze()

    def _close(self) -> None:
        """No more texts of this template."""
        if len(self.texts) >= MOST_TEXTS:
            self._give_up()
        elif self.texts and self._template is not None and not self._is_too_long:
            texts = _Texts(self._template, self.texts)  # nearly always nobody will ask for their events
            self._pieces.append(texts)
            self._loose_bytes += texts.size
            self.texts = []
        self.texts.clear()

    def _loose(self) -> bytes:
        return b"".join([piece if isinstance(piece, bytes) else piece.events() for piece in self._pieces])

    def _squeeze(self) -> None:
        if self._is_too_long or len(self._squeezed) >= _MAX_SQUEEZED:
            self._give_up()
            return
        self._squeezed.append(zlib.compress(self._loose(), 1))
        self._pieces.clear()
        self._loose_bytes = 0

    def _give_up(self) -> None:
        self._is_too_long = True
        self._squeezed.clear()
        self._pieces.clear()
        self._loose_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Memory it takes, about."""
        return self._loose_bytes + sum(map(len, self._squeezed)) + sum(map(len, self.texts))

    def partial(self) -> Partial:
        """The answer so far."""
        self._close()
        partial = Partial(self._dialect)
        if self._is_too_long:
            partial.odd = "too much of it has been sent"
        else:
            partial.read(b"".join([*map(zlib.decompress, self._squeezed), self._loose()]))
        return partial


@dataclass(frozen=True, slots=True)
class Ask:
    """The next request to the new replica; its answer is a stream only the last time."""

    path: str
    body: bytes
    is_stream: bool


_Asking = Generator[Ask, dict[str, Any], tuple[list[int], list[int]]]
"""Yields plain requests, takes their answers, returns token ids."""


class Continuation:
    """One answer being continued: `first`, `answered` for each plain answer, then `feed` the stream and `end` it."""

    __slots__ = (
        "_brought", "_ending", "_left", "_partial", "_preparing", "_prompt_tokens", "_sent", "_shows_ids", "_splitter",
        "broken_by",
    )  # fmt: skip

    def __init__(self, call: Call, trail: Trail) -> None:
        """Raises CannotContinueError."""
        self._partial = partial = trail.partial()
        if partial.odd is not None:
            raise CannotContinueError(partial.odd)
        if not partial.head:
            raise CannotContinueError("nothing of it was sent")
        payload = orjson.loads(call.body)
        self._left: Remainder = remainder(call.endpoint.dialect, payload)
        self._shows_ids = bool(payload.get("return_token_ids"))
        if partial.token_ids is None:
            _check_readable(self._left, "".join(partial.text))
        self._preparing = _preparing(self._left, partial)
        self._sent: list[int] = []
        self._prompt_tokens = self._brought = 0
        self._splitter = EventSplitter()
        self._ending: Ending | None = None
        self.broken_by: str | None = None
        """Why the new replica's stream is no continuation either."""

    @property
    def response_id(self) -> str | None:
        """Of a kept response: that under which the engine that began it may keep it."""
        response_id = self._partial.head.get("id")
        return response_id if self._partial.dialect == "responses" and isinstance(response_id, str) else None

    def first(self) -> Ask | bytes:
        """The first request; or, when only the end is missing, the bytes that close the caller's stream."""
        return self._step(None)

    def answered(self, status: int, body: bytes) -> Ask | bytes:
        """Take the answer to a plain request; returns what follows, as `first` does. Raises CannotContinueError."""
        try:
            answer = orjson.loads(body) if status == 200 else None
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise CannotContinueError(f"the other replica answered {status} when asked for tokens")
        return self._step(answer)

    def _step(self, answer: dict[str, Any] | None) -> Ask | bytes:
        try:
            return next(self._preparing) if answer is None else self._preparing.send(answer)
        except StopIteration as prepared:
            prompt, self._sent = prepared.value
            return self._last(prompt)

    def feed(self, data: bytes) -> bytes:
        """Bytes of the new replica's stream -> the bytes to send the caller now, possibly none."""
        sent = []
        for event in self._splitter.feed(data):
            found = event_data(event)
            if found is not None and found != b"[DONE]" and self.broken_by is None:
                sent.append(self._read(found))
        return b"".join(sent)

    @property
    def is_ended(self) -> bool:
        """Whether the new replica has said how the answer ends."""
        return self._ending is not None

    def end(self) -> bytes:
        """The new replica's stream is complete: what closes the caller's. Empty, with `broken_by`, if it was not."""
        if self._ending is None:
            self.broken_by = self.broken_by or "the stream that continued it ended early"
        return b"" if self._ending is None or self.broken_by else ending_events(self._partial, self._ending)

    def _last(self, prompt: list[int]) -> Ask | bytes:
        self._prompt_tokens, limit = len(prompt), self._left.max_tokens
        left = None if limit is None else limit - len(self._sent)
        if self._partial.finish_reason or (left is not None and left <= 0):
            reason, tokens = self._partial.finish_reason, len(self._sent)
            if reason:  # the token that ended it, which has no text
                tokens += len(self._partial.silent_ids)
            self._ending = Ending(reason or "length", self._partial.stop_reason, len(prompt), tokens)
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
        text, ids = choice.get("text"), choice.get("token_ids")
        self._brought += len(ids) if ids else bool(text)
        if choice.get("finish_reason"):  # its tokens as far as they were seen, in case that no usage follows
            tokens = len(self._sent) + self._brought
            self._ending = Ending(choice["finish_reason"], choice.get("stop_reason"), self._prompt_tokens, tokens)
        if not text:
            return b""
        self._partial.text.append(text)
        return text_events(self._partial, text, ids if self._shows_ids else None)

    def _summed(self, ending: Ending, usage: dict[str, int]) -> Ending:
        sent = len(self._sent)
        prompt_tokens, output_tokens = usage["prompt_tokens"] - sent, usage["completion_tokens"] + sent
        return Ending(ending.finish_reason, ending.stop_reason, prompt_tokens, output_tokens)


def _check_readable(left: Remainder, text: str) -> None:
    """Raises CannotContinueError where text alone does not tell which tokens it was."""
    if left.sampling.get("ignore_eos"):
        raise CannotContinueError("with ignore_eos it may hold tokens that have no text")
    if "\ufffd" in text:
        raise CannotContinueError("its text holds bytes that are not a character")


def _preparing(left: Remainder, partial: Partial) -> _Asking:
    """The token ids of the prompt and of the answer so far."""
    prompt, mark = left.question.get("tokens"), ""
    if prompt is None:
        answer = yield Ask(_TOKENIZE, orjson.dumps({**left.question, "return_token_strs": True}), is_stream=False)
        prompt, strings = _ids(answer), answer.get("token_strs")
        mark = strings[0] if isinstance(strings, list) and strings and isinstance(strings[0], str) else ""
    if partial.prompt_tokens is not None and partial.prompt_tokens != len(prompt):
        raise CannotContinueError(f"its prompt is {partial.prompt_tokens} tokens and is read as {len(prompt)}")
    sent = partial.token_ids
    if sent is None:
        sent = yield from _reading(left.question["model"], partial.text, mark, prompt[0] if prompt else 0)
    return prompt, list(sent)


def _reading(model: object, pieces: list[str], mark: str, mark_id: int) -> Generator[Ask, dict[str, Any], list[int]]:
    """The tokens of a text of which only the pieces are known, each of them a token as a rule.

    A tokenizer given the whole would join what the model had kept apart. So the pieces are put to it with a token
    between them that joins with nothing: the first of the prompt, which nearly every chat template makes a special one.
    If they do not read as the text afterwards, it was none, and the whole text is asked for.
    """
    text = "".join(pieces)
    if not text:
        return []
    plain = {"model": model, "add_special_tokens": False}
    if mark and len(pieces) > 1:
        tokens = _ids((yield Ask(_TOKENIZE, orjson.dumps({**plain, "prompt": mark.join(pieces)}), is_stream=False)))
        if tokens.count(mark_id) == len(pieces) - 1:
            tokens = [token for token in tokens if token != mark_id]
            again = yield Ask(_DETOKENIZE, orjson.dumps({"model": model, "tokens": tokens}), is_stream=False)
            if again.get("prompt") == text:
                return tokens
    return _ids((yield Ask(_TOKENIZE, orjson.dumps({**plain, "prompt": text}), is_stream=False)))


def _ids(answer: dict[str, Any]) -> list[int]:
    tokens = answer.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
        raise CannotContinueError("the other replica answered without tokens when asked for them")
    return tokens
