"""Server-sent events on the wire: split a byte stream into events without changing a byte of it.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation. Of the three line
endings the standard allows, a bare CR is not handled: no engine or SDK of this field writes it.
"""

from typing import Final

from gateway.wire.dialect import Dialect

_LF: Final = b"\n\n"
_CRLF: Final = b"\r\n\r\n"
_CR: Final = ord("\r")  # for a `bytes` to look for with `in`, CPython makes an exception first, and drops it
_MOST_OF_SEPARATOR: Final = len(_CRLF) - 1


def keep_alive(dialect: Dialect) -> bytes:
    """A sign of life that every SDK passes over; nothing for what is never streamed as events of ours."""
    if dialect == "messages":
        return b'event: ping\ndata: {"type": "ping"}\n\n'
    return b": keep-alive\n\n" if dialect in ("chat", "completions", "responses") else b""


class EventSplitter:
    """Cuts a byte stream, fed in any pieces, into whole events; each keeps the blank line that ends it.

    Joining everything `feed` returned and what is `held` gives back exactly what was fed.
    """

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = bytearray()
        """Bytes of an event that has not ended yet. Grown in place: an event in a thousand pieces is copied once."""

    @property
    def tail(self) -> bytes:
        """The same, as bytes."""
        return bytes(self.held)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events completed by `data`, in order (none, one or many)."""
        if not self.held:
            if data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2 and _CR not in data:
                return [data]  # what an engine does: one event a write
            return self._cut(data)
        seam = bytes(self.held[-_MOST_OF_SEPARATOR:])  # a separator may lie across two pieces
        end = _end_of_event(seam + data)
        if end == -1:
            self.held.extend(data)
            return []
        end -= len(seam)
        self.held.extend(data[:end])
        first = bytes(self.held)
        self.held.clear()
        return [first, *self._cut(data[end:])]

    def _cut(self, data: bytes) -> list[bytes]:
        """All whole events of `data`; the rest is held. Each byte is looked at once for either separator."""
        events = []
        start = 0
        lf, crlf = data.find(_LF), data.find(_CRLF)
        while lf != -1 or crlf != -1:
            end = crlf + len(_CRLF) if crlf != -1 and (lf == -1 or crlf < lf) else lf + len(_LF)
            events.append(data[start:end])
            start = end
            if -1 < lf < start:
                lf = data.find(_LF, start)
            if -1 < crlf < start:
                crlf = data.find(_CRLF, start)
        self.held.extend(data[start:])
        return events


def _end_of_event(data: bytes) -> int:
    """Index just past the first blank line, or -1."""
    lf, crlf = data.find(_LF), data.find(_CRLF)
    if crlf != -1 and (lf == -1 or crlf < lf):
        return crlf + len(_CRLF)
    return -1 if lf == -1 else lf + len(_LF)


def event_data(event: bytes) -> bytes | None:
    """The payload of one event: its `data:` lines joined by newlines; None for a comment or a bare `event:`."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2 and _CR not in event:
        return event[6:-2]  # the one-line frame every OpenAI stream uses
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
