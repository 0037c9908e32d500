"""W3C trace context: whose trace a request belongs to, and which span of ours the engine's is a child of.

https://www.w3.org/TR/trace-context/ : a malformed `traceparent` counts as none, and takes its `tracestate` with it.
"""

import re
import secrets
from collections.abc import Iterable
from typing import NamedTuple

from gateway.headers import Header

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16
_SAMPLED = 1
_SPAN_DIGITS, _TRACE_DIGITS = 16, 32
_DIGITS_AT_ONCE = 16 * 512
_RATIO_DIGITS = 14  # of a trace id, the 56 bits that are random at the latest reading of the standard


class Parent(NamedTuple):
    """The caller's span, as its `traceparent` names it."""

    trace_id: str
    span_id: str
    is_sampled: bool


class Trace(NamedTuple):
    """The span of one request: its place in a trace, known from the start so that the engine can be told."""

    trace_id: str
    span_id: str
    parent_id: str | None
    is_sampled: bool

    @property
    def header(self) -> Header:
        """What the engine gets: our span as its parent."""
        return b"traceparent", f"00-{self.trace_id}-{self.span_id}-{self.is_sampled:02x}".encode()

    def carried(self, headers: Iterable[Header]) -> list[Header]:
        """The caller's headers with our span in place of its own; the state of a trace we did not join is dropped."""
        dropped = (b"traceparent",) if self.parent_id else (b"traceparent", b"tracestate")
        return [*(header for header in headers if header[0] not in dropped), self.header]


def parse_traceparent(value: bytes) -> Parent | None:
    """The span a `traceparent` names; None when it is malformed. Of a later version what this one has is read."""
    found = _PARENT.fullmatch(value.strip())
    if found is None:
        return None
    version, trace_id, span_id, flags = (group.decode() for group in found.groups()[:4])
    if version == "ff" or (version == "00" and found[5] is not None):
        return None
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


def parent_of(headers: Iterable[Header]) -> Parent | None:
    """The span that the headers of a request name; two of them name none."""
    values = [value for name, value in headers if name == b"traceparent"]
    return parse_traceparent(values[0]) if len(values) == 1 else None


class Tracing:
    """Gives each request its span. `sample_ratio` of the traces begun here are kept; others as their caller says."""

    def __init__(self, sample_ratio: float = 1.0) -> None:
        self._threshold = round(sample_ratio * 16**_RATIO_DIGITS)
        self._digits = ""
        self._used = 0

    def begin(self, headers: Iterable[Header]) -> Trace:
        """The span of a request with these headers."""
        parent = parent_of(headers)
        span_id = self._fresh(_SPAN_DIGITS)
        if parent is not None:
            return Trace(parent.trace_id, span_id, parent.span_id, parent.is_sampled)
        trace_id = self._fresh(_TRACE_DIGITS)
        return Trace(trace_id, span_id, None, int(trace_id[-_RATIO_DIGITS:], 16) < self._threshold)

    def _fresh(self, digits: int) -> str:
        """Random hexadecimal digits, not all zero, fetched for many at a time: each fetch is a system call."""
        if self._used + digits > len(self._digits):
            self._digits, self._used = secrets.token_hex(_DIGITS_AT_ONCE // 2), 0
        self._used += digits
        fresh = self._digits[self._used - digits : self._used]
        return fresh if fresh.strip("0") else self._fresh(digits)
