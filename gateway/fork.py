"""What the parser of a client's connection calls: data-plane requests become turns, all others go on to uvicorn.

A part of `gateway.lane.LaneProtocol` that does not inherit from uvicorn's, so that it can be compiled.
"""

from typing import Any, Protocol
from urllib.parse import unquote

import httptools

from gateway.headers import Header, Heads
from gateway.turn import ClientProtocol, Turn
from gateway.wire import ENDPOINTS, Endpoint, find_endpoint

_LENGTH = b"content-length"
_BY_TARGET = {path.encode(): endpoint for path, endpoint in ENDPOINTS.items()}


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


class Fork:
    """Of one connection, for all of its requests."""

    __slots__ = ("_headers", "_heads", "_is_in_head", "_length", "_protocol", "_turn", "_url", "loose_bytes")

    def __init__(self, protocol: Forked) -> None:
        self._protocol = protocol
        self._url = b""
        self._headers: list[Header] = []
        self._length = b""
        self._heads = Heads()
        self._is_in_head = False
        self._turn: Turn | None = None
        self.loose_bytes = 0
        """What has come since the parser last had something to tell: heads, chunk extensions and trailers."""

    def on_message_begin(self) -> None:
        """uvicorn's ASGI scope is made only for requests that need one."""
        self._url = b""
        self._headers = []
        self._length = b""
        self._is_in_head = True
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
        endpoint = _endpoint(protocol.parser.get_method(), self._url)
        if endpoint is None:
            protocol.to_asgi(self._url, [*headers, (_LENGTH, self._length)] if self._length else headers)
        else:
            announced_bytes = int(self._length) if self._length.isdigit() else 0
            self._turn = turn = Turn(protocol, endpoint, headers, self._heads.read(headers), announced_bytes)
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
