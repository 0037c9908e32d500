"""Which headers travel: to the engine, back to the caller, and the ids that every answer carries."""

import secrets
from collections.abc import Iterable

Header = tuple[bytes, bytes]
"""Name, in lower case, and value."""

_FORWARDED = {b"content-type", b"accept", b"traceparent", b"tracestate", b"anthropic-version", b"anthropic-beta"}
_NOT_RETURNED = {
    b"connection",
    b"keep-alive",
    b"transfer-encoding",
    b"trailer",
    b"upgrade",
    b"content-length",
    b"date",
    b"server",
    b"vary",
    b"x-request-id",
    b"request-id",
    b"x-berth-replica",
}
_COLLECTED = {b"cache-control", b"x-accel-buffering"}
_JSON = (b"content-type", b"application/json")


class RequestIds:
    """Fresh ids: the caller's own is never taken over, since engines answer a repeated id with an error."""

    def __init__(self) -> None:
        self._random = ""
        self._used = 0

    def new(self) -> str:
        """An id from 96 random bits, which are fetched for many at a time: each fetch is a system call."""
        if self._used == len(self._random):
            self._random, self._used = secrets.token_hex(12 * 256), 0
        self._used += 24
        return f"req_{self._random[self._used - 24 : self._used]}"


def request_id_headers(request_id: str) -> list[Header]:
    """Under the names that the two SDKs look for."""
    rid = request_id.encode()
    return [(b"x-request-id", rid), (b"request-id", rid)]


def lines(headers: Iterable[Header]) -> bytes:
    """Headers as they stand on the wire, each with its CRLF."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def forwarded(headers: Iterable[Header], request_id: str) -> bytes:
    """What the engine gets to see, as lines: never the caller's key, nor vLLM's own control headers."""
    kept = {name: value for name, value in (_JSON, *headers) if name in _FORWARDED}  # of several the last one
    return lines([*kept.items(), (b"x-request-id", request_id.encode())])


def returned(headers: Iterable[Header]) -> list[Header]:
    """What the caller gets to see of an engine's."""
    return [header for header in headers if header[0] not in _NOT_RETURNED]


def is_event_stream(headers: Iterable[Header]) -> bool:
    """Whether the engine really streams: asked for a stream, some answer with one JSON document all the same."""
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def of_stream(headers: Iterable[Header]) -> list[Header]:
    """The same for a stream: proxies in front must not collect it."""
    kept = [header for header in returned(headers) if header[0] not in _COLLECTED]
    return [*kept, (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
