"""Which headers travel: to the engine, back to the caller, and the ids that every answer carries."""

import secrets
from collections.abc import Iterable
from typing import Final, Literal

Header = tuple[bytes, bytes]
"""Name, in lower case, and value."""
Role = Literal["forwarded", "bearer", "api-key", "expect", "upgrade", "priority", "session", "origin"]

_ROLES: Final[dict[bytes, Role]] = {
    **dict.fromkeys((b"content-type", b"accept", b"traceparent", b"tracestate"), "forwarded"),
    **dict.fromkeys((b"anthropic-version", b"anthropic-beta"), "forwarded"),
    b"authorization": "bearer",
    b"x-api-key": "api-key",
    b"expect": "expect",
    b"upgrade": "upgrade",
    b"x-berth-priority": "priority",
    b"origin": "origin",
    **dict.fromkeys((b"x-session-id", b"x-conversation-id"), "session"),
}
_NOT_RETURNED: Final = {
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
    b"x-berth-predicted-cached-tokens",
    b"x-berth-cached-tokens",
    b"access-control-allow-origin",
    b"access-control-allow-credentials",
    b"access-control-expose-headers",
}
_NOT_RETURNED_OF_STREAM: Final = _NOT_RETURNED | {b"cache-control", b"x-accel-buffering"}
_UNCOLLECTED: Final = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"  # by proxies in front
_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream"
_OWN: Final = b"x-request-id: %b\r\nrequest-id: %b\r\n"
_OWN_PLACED: Final = _OWN + b"x-berth-replica: %b\r\nx-berth-predicted-cached-tokens: %d\r\n"

JSON: Final = b"content-type: application/json\r\n"
"""Of the gateway's own answers."""
STREAM: Final = b"content-type: text/event-stream; charset=utf-8\r\n" + _UNCOLLECTED
"""Of a stream that is opened before its engine has said a word."""


class Head:
    """What the gateway wants to know of a request's headers, found in one look at them."""

    __slots__ = (
        "caller",
        "expects_100",
        "forwarded",
        "key",
        "known_by",
        "offers_upgrade",
        "origin",
        "priority",
        "session",
    )

    def __init__(
        self,
        key: bytes | None,
        forwarded: bytes,
        *,
        expects_100: bool,
        offers_upgrade: bool,
        priority: bytes | None,
        session: bytes | None,
        origin: bytes | None,
    ) -> None:
        self.key = key
        """The caller's API key."""
        self.forwarded = forwarded
        """The lines that the engine gets to see: never the caller's key, nor vLLM's own control headers."""
        self.expects_100 = expects_100
        self.offers_upgrade = offers_upgrade
        self.priority = priority
        """How urgent it is, as the caller says; no more than its key allows."""
        self.session = session
        """How the caller names the conversation, by x-session-id before x-conversation-id."""
        self.origin = origin
        """Of which web page it is, as a browser says."""
        self.caller = ""
        """Whose key that is, once somebody has found out."""
        self.known_by: object = None
        """The keyring that was asked."""


class Heads:
    """Of one connection: a client repeats its headers from request to request, all but the length of the body."""

    __slots__ = ("_head", "_headers")

    def __init__(self) -> None:
        self._headers: list[Header] = []
        self._head = read_head(())

    def read(self, headers: list[Header]) -> Head:
        """As `read_head`; the same head for the same headers as the last time."""
        if headers != self._headers:
            self._headers, self._head = headers, read_head(headers)
        return self._head


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


def read_head(headers: Iterable[Header]) -> Head:  # noqa: C901  (one loop over all roles: two would cost the double)
    """Either key header on every route: OpenAI's SDK and Anthropic's 2.x send Bearer, older Anthropic ones x-api-key.

    Of a forwarded header that comes several times the last one counts, of keys the Bearer before the other.
    """
    bearer = api_key = priority = session = origin = None
    kept = {b"content-type": _JSON}
    expects_100 = offers_upgrade = False
    for name, value in headers:
        role = _ROLES.get(name)
        if role is None:
            continue
        if role == "forwarded":
            kept[name] = value
        elif role == "bearer":
            if bearer is None and value[:7].lower() == b"bearer ":
                bearer = value[7:].strip()
        elif role == "api-key":
            api_key = value.strip()
        elif role == "expect":
            expects_100 = value.lower() == b"100-continue"
        elif role == "priority":
            priority = value.strip().lower()
        elif role == "session":
            if session is None or name == b"x-session-id":
                session = value or None
        elif role == "origin":
            origin = value
        else:
            offers_upgrade = True
    key = api_key if bearer is None else bearer
    return Head(
        key,
        lines(kept.items()),
        expects_100=expects_100,
        offers_upgrade=offers_upgrade,
        priority=priority,
        session=session,
        origin=origin,
    )


def request_id_headers(request_id: str) -> list[Header]:
    """Under the names that the two SDKs look for."""
    rid = request_id.encode()
    return [(b"x-request-id", rid), (b"request-id", rid)]


def own(request_id: str, replica: str | None, predicted_tokens: int) -> bytes:
    """What every answer carries, as lines: the request id under both SDKs' names, and who answered, if anybody did."""
    rid = request_id.encode()
    if replica is None:
        return _OWN % (rid, rid)
    return _OWN_PLACED % (rid, rid, replica.encode(), predicted_tokens)


def lines(headers: Iterable[Header]) -> bytes:
    """Headers as they stand on the wire, each with its CRLF."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def returned(headers: Iterable[Header]) -> bytes:
    """What the caller gets to see of an engine's, as lines."""
    return b"".join([b"%b: %b\r\n" % header for header in headers if header[0] not in _NOT_RETURNED])


def returned_of_stream(headers: Iterable[Header]) -> bytes:
    """The same for a stream."""
    kept = [b"%b: %b\r\n" % header for header in headers if header[0] not in _NOT_RETURNED_OF_STREAM]
    return b"".join(kept) + _UNCOLLECTED


def is_event_stream(headers: Iterable[Header]) -> bool:
    """Whether the engine really streams: asked for a stream, some answer with one JSON document all the same."""
    for name, value in headers:  # noqa: SIM110  (asked for every stream: a generator costs as much as all of it)
        if name == b"content-type" and value[: len(_EVENTS)].lower() == _EVENTS:
            return True
    return False
