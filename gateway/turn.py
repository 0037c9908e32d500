"""One data-plane request on its client's connection: reads its body in, and frames what its exchange answers.

It stands where uvicorn keeps its RequestResponseCycle. Bytes that an engine's socket brings are written to the client's
socket before the read returns; when the client's buffer is full, its protocol tells the turn, which stops the reading
from its engine.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Protocol

from uvicorn.protocols.http.flow_control import FlowControl

from gateway.exchange import Exchange
from gateway.headers import Head, Header
from gateway.relay import Relay
from gateway.wire import Endpoint

STATUS_LINES: Final = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
"""By status."""
_MOST_BYTES_IN_LINE: Final = 64 * 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientProtocol(Protocol):
    """The connection as its turns see it."""

    relay: Relay
    parser: Any
    transport: asyncio.Transport
    flow: FlowControl

    def default_lines(self) -> bytes:
        """Headers of every answer."""

    def hold(self) -> None:
        """Read no more for now."""

    def on_response_complete(self) -> None:
        """The next in line runs."""


class Turn:
    """One data-plane request on its connection, and the `Client` of its exchange: frames the answer."""

    __slots__ = (
        "_announced_bytes", "_body", "_endpoint", "_exchange", "_head", "_headers", "_is_modern", "_protocol", "_write",
        "keep_alive", "more_body", "response_complete", "size",
    )  # fmt: skip

    def __init__(
        self,
        protocol: ClientProtocol,
        endpoint: Endpoint,
        headers: list[Header],
        head: Head,
        announced_bytes: int,
        is_modern: bool,
        keep_alive: bool,
    ) -> None:
        self._protocol = protocol
        self._endpoint = endpoint
        self._exchange: Exchange | None = None
        self._headers = headers
        self._head = head
        self._announced_bytes = announced_bytes
        self._body: list[bytes] = []
        self.size = 0
        self._write = protocol.transport.write
        self._is_modern = is_modern
        # what uvicorn looks at in its own cycles
        self.keep_alive = keep_alive
        self.more_body = True
        self.response_complete = False

    # Called by the protocol
    async def run_asgi(self, _: object) -> None:
        """uvicorn starts the next request in line as a task."""
        self.begin()

    def begin(self) -> None:
        """It is this request's turn."""
        if self.response_complete:
            return  # its client left while it stood in line
        self._exchange = exchange = Exchange(self._protocol.relay, self, self._endpoint)
        exchange.open(self._headers, self._head, self._announced_bytes)
        if self._head.expects_100 and self.more_body and not self._is_answered():
            self._write(_CONTINUE)
        if not self.more_body:
            self._advance(exchange)

    def feed(self, data: bytes) -> None:
        """A piece of the body."""
        self._body.append(data)
        self.size += len(data)
        if self._exchange is None:
            if self.size > _MOST_BYTES_IN_LINE:
                self._protocol.hold()
        elif self.size > self._announced_bytes:  # what was announced is checked already
            self._exchange.check_size(self.size)

    def complete(self) -> None:
        """The body is in."""
        self.more_body = False
        if self._exchange is not None:
            self._advance(self._exchange)

    def _advance(self, exchange: Exchange) -> None:
        if self.size > self._announced_bytes and not self.response_complete:
            exchange.check_size(self.size)  # what came in while it stood in line
        if not self._is_answered():
            body, self._body = self._body, []
            exchange.call(body[0] if len(body) == 1 else b"".join(body))

    def _is_answered(self) -> bool:
        return self.response_complete  # anew: opening or feeding the exchange may have refused it

    def leave(self) -> None:
        """The client is gone."""
        self.response_complete = True
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()

    def time_out(self) -> None:
        """The client has stopped sending its body."""
        if self._exchange is not None:
            self.keep_alive = False
            self._exchange.time_out()

    def pause(self) -> None:
        """The client reads slower than we write."""
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        """It has caught up."""
        if self._exchange is not None:
            self._exchange.resume()

    # Called by the exchange
    @property
    def is_slow(self) -> bool:
        """Whether the client's buffer is full, from an earlier answer."""
        return self._protocol.flow.write_paused

    @property
    def raw(self) -> Callable[[bytes], None] | None:
        """Where whole chunks go as they are; None for a client that takes no chunks."""
        return self._write if self._is_modern else None

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        """A whole answer in one write."""
        framing = b"content-length: %d\r\n\r\n%b" % (len(body), body)
        self._write(self._top(status) + headers + framing)
        self._finish()

    def start(self, status: int, headers: bytes, data: bytes) -> None:
        """The head of a stream and its first bytes in one write."""
        framing = b"transfer-encoding: chunked\r\n\r\n" if self._is_modern else b"\r\n"
        self._write(self._top(status) + headers + framing + self._framed(data))

    def write(self, data: bytes) -> None:
        """The next bytes, as one chunk."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_modern else data)

    def end(self, data: bytes) -> None:
        """The last chunk, if any, and the end."""
        self._write(self._framed(data) + (b"0\r\n\r\n" if self._is_modern else b""))
        self._finish()

    def close(self) -> None:
        """Break off: a body without its end is how HTTP says that something is missing."""
        self._let_go()
        self._protocol.transport.close()

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if data and self._is_modern else data

    def _top(self, status: int) -> bytes:
        top = (STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status) + self._protocol.default_lines()
        return top if self.keep_alive else top + b"connection: close\r\n"

    def _let_go(self) -> None:
        self.response_complete = True
        self._exchange = None  # it points back here: a circle would be left to the garbage collector at every request

    def _finish(self) -> None:
        self._let_go()
        if not self.keep_alive:
            self._protocol.transport.close()
        self._protocol.on_response_complete()
