"""A head that is, byte for byte, what it was the last time, but for the length of its body: it needs no parser."""

from typing import Final

_LENGTH: Final = b"\r\ncontent-length:"
_ENCODING: Final = b"\r\ntransfer-encoding"
_END: Final = b"\r\n\r\n"
_MOST_DIGITS: Final = 9


class Repeated:
    """A head that a parser has read."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        """All of it up to the digits of the length."""
        self._after = after
        """And what follows on them."""

    def body_at(self, data: bytes) -> int:
        """Where the body begins if `data` is this head with a length and the whole body of that length, and nothing
        else; 0 where only a parser can tell."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return 0
        at = len(before)
        end = data.find(b"\r", at, at + _MOST_DIGITS + 1)
        digits = data[at:end] if end > at else b""
        if not digits.isdigit() or not data.startswith(after, end):
            return 0
        start = end + len(after)
        return start if len(data) - start == int(digits) else 0


def repeated(data: bytes) -> Repeated | None:
    """The head of a message that a parser has accepted and that is all of `data`; None where it has no length, or more
    than one, or says in another way as well where its body ends."""
    end = data.find(_END)
    if end < 0:
        return None
    start = end + len(_END)
    names = data[:start].lower()
    at = names.find(_LENGTH)
    if at < 0 or names.find(_LENGTH, at + 1) >= 0 or names.find(_ENCODING) >= 0:
        return None
    at += len(_LENGTH)
    if data.startswith(b" ", at):
        at += 1
    found = Repeated(data[:at], data[data.find(b"\r", at) : start])
    return found if found.body_at(data) == start else None
