"""What the parser of a client's connection calls: data-plane requests become turns, all others go on to uvicorn.

A part of `gateway.lane.LaneProtocol` that does not inherit from uvicorn's, so that it can be compiled.
"""

from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import unquote

import httptools

from gateway.headers import Head, Header, Heads
from gateway.repeated import Repeated, repeated
from gateway.turn import ClientProtocol, Turn
from gateway.wire import ENDPOINTS, Endpoint, find_endpoint

_LENGTH: Final = b"content-length"
_BY_TARGET: Final = {path.encode(): endpoint for path, endpoint in ENDPOINTS.items()}


class Forked(ClientProtocol, Protocol):
    """The connection."""

    def take(self, turn: Turn) -> None:
        """A data-plane request has begun: its head is there."""

    def to_asgi(self, url: bytes, headers: list[Header]) -> None:
        """Another request has; what follows of it is told through the next two."""

    def asgi_body(self, body: bytes) -> None:
        """A piece of its body."""

    def asgi_complete(self) -> None:
        """It is in."""


class Known(NamedTuple):
    """A request that may come again with another body."""

    repeated: Repeated
    endpoint: Endpoint
    headers: list[Header]
    head: Head


class Fork:
    """Of one connection, for all of its requests.

    Most clients send the same head again and again. Where one is, but for its length, the last one that the parser has
    read, and comes with its whole body and between two requests, the parser would only say once more what it said then.
    """

    __slots__ = (
        "_begun", "_goes_on", "_headers", "_heads", "_is_between", "_is_in_head", "_known", "_length", "_may_repeat",
        "_protocol", "_turn", "_url", "loose_bytes",
    )  # fmt: skip

    def __init__(self, protocol: Forked) -> None:
        self._protocol = protocol
        self._url = b""
        self._headers: list[Header] = []
        self._length = b""
        self._heads = Heads()
        self._is_in_head = False
        self._turn: Turn | None = None
        self._known: Known | None = None
        self._may_repeat: tuple[Endpoint, list[Header], Head] | None = None
        """Of the last request that the parser has read."""
        self._is_between = self._goes_on = True
        """The parser stands where a request may begin, and has nothing of it."""
        self._begun = 0
        """How many requests have begun in this read; more than that where it does not count: one was underway."""
        self.loose_bytes = 0
        """What has come since the parser last had something to tell: heads, chunk extensions and trailers."""

    # Called by the connection
    def again(self, data: bytes) -> bool:
        """Whether a read is a request that is known, with another body; it is on its way then."""
        if not self._is_between:
            self._begun = 2
            return False
        self._begun = 0
        known = self._known
        start = 0 if known is None else known.repeated.body_at(data)
        if known is None or not start:
            return False
        self.loose_bytes = 0
        turn = Turn(self._protocol, known.endpoint, known.headers, known.head, len(data) - start, True, True)
        self._protocol.take(turn)
        if not turn.response_complete:
            turn.feed(data[start:])
        if not turn.response_complete:
            turn.complete()
        return True

    def learn(self, data: bytes) -> None:
        """The parser has had this read: where it was one request, the next one may be alike."""
        found, self._may_repeat = self._may_repeat, None
        if found is not None and self._begun == 1 and self._is_between:
            head = repeated(data)
            self._known = None if head is None else Known(head, *found)

    # Called by the parser
    def on_message_begin(self) -> None:
        """uvicorn's ASGI scope is made only for requests that need one."""
        self._url = b""
        self._headers = []
        self._length = b""
        self._is_in_head = True
        self._is_between = False
        self._begun += 1
        self._turn = None

    def on_url(self, url: bytes) -> None:
        """The target, or a piece of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """What they mean is looked at once they are all there. Trailers are nobody's business."""
        if self._is_in_head:
            name = name.lower()
            if name == _LENGTH:
                self._length = value
            else:
                self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The fork."""
        protocol, headers = self._protocol, self._headers
        self._is_in_head = False
        self.loose_bytes = 0
        parser = protocol.parser
        # what follows an offer to switch protocols cannot be told apart from a next request
        self._goes_on = goes_on = parser.should_keep_alive() and not parser.should_upgrade()
        endpoint = _endpoint(parser.get_method(), self._url)
        if endpoint is None:
            protocol.to_asgi(self._url, [*headers, (_LENGTH, self._length)] if self._length else headers)
        else:
            announced_bytes = int(self._length) if self._length.isdigit() else 0
            head, is_modern = self._heads.read(headers), parser.get_http_version() == "1.1"
            is_plain = is_modern and not head.expects_100 and not head.offers_upgrade
            self._may_repeat = (endpoint, headers, head) if is_plain else None
            self._turn = turn = Turn(
                protocol, endpoint, headers, head, announced_bytes, is_modern, is_modern and goes_on
            )
            protocol.take(turn)

    def on_body(self, body: bytes) -> None:
        """To whom it belongs."""
        self.loose_bytes = 0
        turn = self._turn
        if turn is None:
            self._protocol.asgi_body(body)
        elif not turn.response_complete:
            turn.feed(body)

    def on_message_complete(self) -> None:
        """To whom it belongs."""
        self._is_between = self._goes_on
        turn, self._turn = self._turn, None
        if turn is None:
            self._protocol.asgi_complete()
        elif not turn.response_complete:
            turn.complete()


def _endpoint(method: bytes, url: bytes) -> Endpoint | None:
    """What a request line leads to: nearly always the bare path, else its target is taken apart."""
    if method == b"POST":
        endpoint = _BY_TARGET.get(url)
        if endpoint is not None:
            return endpoint
    target: Any = httptools.parse_url(url)  # not as its stubs have it: what is not there is None
    return find_endpoint(method, unquote(target.path or b""), (target.query or b"").decode("latin-1"))
