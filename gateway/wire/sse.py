"""Server-sent events on the wire: split a byte stream into events without changing a byte of it.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation. Of the three line
endings the standard allows, a bare CR is not handled: no engine or SDK of this field writes it.
"""

from gateway.wire.dialect import Dialect

_MAX_SEPARATOR = 4  # len(b"\r\n\r\n")


def keep_alive(dialect: Dialect) -> bytes:
    """A sign of life that every SDK passes over; nothing for what is never streamed as events of ours."""
    if dialect == "messages":
        return b'event: ping\ndata: {"type": "ping"}\n\n'
    return b": keep-alive\n\n" if dialect in ("chat", "completions", "responses") else b""


class EventSplitter:
    """Cuts a byte stream, fed in any pieces, into whole events; each keeps the blank line that ends it.

    Joining everything `feed` returned and `tail` gives back exactly what was fed.
    """

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = b""
        """Bytes of an event that has not ended yet."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events completed by `data`, in order (none, one or many)."""
        if not self.tail and data.endswith(b"\n\n") and data.find(b"\n\n") == len(data) - 2 and b"\r" not in data:
            return [data]  # what an engine does: one event a write
        scan_from = max(0, len(self.tail) - _MAX_SEPARATOR)  # a separator may lie across two pieces
        data = self.tail + data
        events = []
        start = 0
        while (end := _end_of_event(data, max(start, scan_from))) != -1:
            events.append(data[start:end])
            start = end
        self.tail = data[start:]
        return events


def _end_of_event(data: bytes, start: int) -> int:
    """Index just past the first blank line at or after `start`, or -1."""
    lf = data.find(b"\n\n", start)
    crlf = data.find(b"\r\n\r\n", start)
    if crlf != -1 and (lf == -1 or crlf < lf):
        return crlf + 4
    return -1 if lf == -1 else lf + 2


def event_data(event: bytes) -> bytes | None:
    """The payload of one event: its `data:` lines joined by newlines; None for a comment or a bare `event:`."""
    if event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2 and b"\r" not in event:
        return event[6:-2]  # the one-line frame every OpenAI stream uses
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
