"""Reads a stream as it passes: first and last token, usage, errors. Changes nothing but the usage nobody asked for.

Text, which is nearly all of a stream, is known by its bytes; only the other events are parsed as JSON.
"""

from collections.abc import Callable, Iterator

from gateway.continuation import MOST_TEXTS, Trail
from gateway.wire import (
    Dialect,
    EventSplitter,
    Fault,
    Sign,
    Template,
    Usage,
    count_plain_tokens,
    learn,
    own_error_event,
    read_event,
    read_event_fault,
)


class Meter:
    """Fed every piece of one streamed answer, in order; gives back what to forward.

    Only whole events are forwarded, so that an error event can follow wherever the engine breaks; joined, they are the
    engine's own bytes, except for its error, which is put as the dialect puts it. With `strip_usage` the usage event
    that the gateway itself asked for is left out.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        strip_usage: bool,
        clock: Callable[[], float],
        request_id: str = "",
        trail: Trail | None = None,
    ) -> None:
        self._dialect = dialect
        self._strip_usage = strip_usage
        self._clock = clock
        self._request_id = request_id
        self._splitter = EventSplitter()
        self._template: Template | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self.token_events = 0
        self.usage = Usage()
        self.fault: Fault | None = None
        """What the engine gave as its error, and (`error_event`) the event with it as the dialect puts it: it is not
        forwarded, since the stream may yet go on elsewhere. Nothing behind it is looked at."""
        self.error_event = b""
        self.is_complete = False
        """Whether the event that ends a whole stream has come."""
        self.trail = trail

    def feed(self, data: bytes) -> bytes:
        """Note what `data` brings; returns the bytes to send to the client now, possibly none."""
        if self.fault is not None:
            return b""
        now_s = self._clock()
        if not self._splitter.held and data.endswith(b"\n\n"):
            events = data.count(b"\n\n")
            if events == count_plain_tokens(self._dialect, data):  # nearly every read: text, and nothing to take out
                self._note_tokens(events, now_s)
                if events == 1:
                    self._template = learn(self._dialect, data)
                if self.trail is not None:
                    self.trail.keep(data, self._template)
                return data
        whole = b"".join(self._read(now_s, self._splitter.feed(data)))
        if whole and self.trail is not None:
            self.trail.keep(whole, self._template)
        return whole

    def _read(self, now_s: float, events: list[bytes]) -> Iterator[bytes]:
        for event in events:
            if count_plain_tokens(self._dialect, event) == 1:
                self._note_tokens(1, now_s)
                yield event
                continue
            sign = read_event(self._dialect, event)
            if sign.error is not None:
                self.fault = read_event_fault(event)
                self.error_event = own_error_event(self._dialect, event, self._request_id)
                return
            self._note(sign, now_s)
            if not (self._strip_usage and sign.only_usage):
                yield event

    def passes(self, data: bytes, start: int, end: int) -> bool:
        """Whether `data[start:end]`, what one chunk brought, is one event with text and nothing else; if so, noted."""
        template = self._template
        if template is None or self._splitter.held:
            return False
        text = template.text_of(data, start, end)
        if text is None:
            return False
        if self.trail is not None:
            if len(self.trail.texts) >= MOST_TEXTS:
                return False
            self.trail.texts.append(text)
        self.token_events += 1
        self.last_token_s = self._clock()  # never the first: the template was learnt from that
        return True

    @property
    def held_bytes(self) -> int:
        """How much of an event has come so far that has not ended."""
        return len(self._splitter.held)

    def begin_again(self) -> None:
        """Another replica takes the stream up behind the last whole event."""
        self._splitter.held.clear()
        self._template = None
        self.fault = None

    def rest(self) -> bytes:
        """What was held back when the stream ended in the middle of an event; b"" the second time."""
        held = self._splitter.tail
        self._splitter.held.clear()
        sign = read_event(self._dialect, held)
        if sign.end and sign.error is None:
            self.is_complete = True  # some servers leave out the last blank line
        return held

    @property
    def usage_or_least(self) -> Usage:
        """The engine's count; of a stream that broke off before stating it, one token for each event with any."""
        if self.usage.output_tokens is not None or not self.token_events:
            return self.usage
        return self.usage._replace(output_tokens=self.token_events)

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first, by the engine's count; None when there was no second token."""
        n = self.usage.output_tokens
        if self.first_token_s is None or self.last_token_s is None or n is None or n < 2:
            return None
        if self.token_events < 2:
            return None  # all tokens came at one moment: there is no interval to divide
        return (self.last_token_s - self.first_token_s) / (n - 1)

    def _note_tokens(self, events: int, now_s: float) -> None:
        self.token_events += events
        self.last_token_s = now_s
        if self.first_token_s is None:
            self.first_token_s = now_s

    def _note(self, sign: Sign, now_s: float) -> None:
        if sign.token is not None:
            self._note_tokens(1, now_s)
        if sign.end:
            self.is_complete = True
        if sign.usage is not None:
            self.usage = _merged(self.usage, sign.usage)


def _merged(old: Usage, new: Usage) -> Usage:
    """Anthropic splits usage over two events: the later count wins, a missing one keeps what was known."""
    return Usage(
        prompt_tokens=old.prompt_tokens if new.prompt_tokens is None else new.prompt_tokens,
        output_tokens=old.output_tokens if new.output_tokens is None else new.output_tokens,
        cached_tokens=old.cached_tokens if new.cached_tokens is None else new.cached_tokens,
    )
