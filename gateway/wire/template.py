"""What the text events of one stream have in common, so that the next one is known by comparing bytes.

An engine writes all events of a stream from one mould: between a beginning and an end that stay the same stands the
text as a JSON string. An event that has both, and between them no quote and no line end, is text and nothing else.
"""

from typing import Final

from gateway.wire.dialect import Dialect

_MARKS: Final[dict[Dialect, tuple[bytes, ...]]] = {
    "chat": (b'"delta":{"content":"', b'"delta":{"reasoning":"', b'"delta":{"reasoning_content":"'),
    "completions": (b'"text":"',),
    "messages": (b'"delta":{"type":"text_delta","text":"', b'"delta":{"type":"thinking_delta","thinking":"'),
}


# as numbers: see `sse`
_QUOTE: Final = ord('"')
_LINE_END: Final = ord("\n")


class Template:
    """The beginning and the end of an event with text."""

    __slots__ = ("_before", "_behind", "end", "start")

    def __init__(self, start: bytes, end: bytes) -> None:
        self.start = start
        self.end = end
        self._before = len(start)
        self._behind = len(end)

    @property
    def size(self) -> int:
        """Of an event without its text, in bytes."""
        return self._before + self._behind

    def text_of(self, data: bytes, start: int, end: int) -> bytes | None:
        """The text, as JSON spells it, if `data[start:end]` is one more such event and has some; else None."""
        first, last = start + self._before, end - self._behind
        if data[start:first] != self.start or data[last:end] != self.end:
            return None
        text = data[first:last]
        return None if not text or _QUOTE in text or _LINE_END in text else text

    def event_of(self, text: bytes) -> bytes:
        """The event that says `text`."""
        return self.start + text + self.end


def learn(dialect: Dialect, event: bytes) -> Template | None:
    """The template of an event that is known to be text and nothing else; None where its text cannot be told apart."""
    for mark in _MARKS.get(dialect, ()):
        text = event.find(mark) + len(mark)
        if text < len(mark):
            continue
        behind = event.find(b'"', text)
        return None if b"\\" in event[text:behind] else Template(event[:text], event[behind:])
    return None
