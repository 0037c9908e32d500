"""The fast lane: data-plane requests are answered by protocol objects, everything else goes to uvicorn's ASGI side.

`LaneProtocol` is uvicorn's own HTTP protocol with one fork: what `gateway.wire.find_endpoint` knows becomes a
`gateway.turn.Turn` (keep-alive and shutdown stay uvicorn's), which hands the request to a `gateway.exchange.Exchange`.
There are no ASGI messages, no task and no future. When the client's buffer is full, `pause_writing` stops the reading
from its engine.
"""

import asyncio
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.headers import lines
from gateway.patience import Patience
from gateway.relay import Relay
from gateway.turn import STATUS_LINES, Turn
from gateway.wire import ENDPOINTS, Endpoint, find_endpoint

_BY_TARGET = {path.encode(): endpoint for path, endpoint in ENDPOINTS.items()}
_MOST_IN_LINE = 8
_LEAST_PROGRESS_BYTES = 16 * 1024  # of a body, while patience lasts
_MOST_LOOSE_BYTES = 256 * 1024  # of a head, chunk extensions or trailers: what the parser collects without a word to us


class LaneProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with a lane for the data plane."""

    def __init__(
        self,
        relay: Relay,
        patience: Patience,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.relay = relay
        self._patience = patience
        self._is_in_head = False
        self._loose_bytes = 0
        self._running: Turn | RequestResponseCycle | None = None
        self._defaults: object = None
        self._default_lines = b""

    def default_lines(self) -> bytes:
        """uvicorn's own headers, the date among them; uvicorn makes a new list of them each second."""
        defaults = self.server_state.default_headers
        if self._defaults is not defaults:
            self._defaults, self._default_lines = defaults, lines(defaults)
        return self._default_lines

    def data_received(self, data: bytes) -> None:
        """As uvicorn, within bounds: heads may have 256 KiB."""
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > _MOST_LOOSE_BYTES and not self.transport.is_closing():
            self._refuse(431, "the head of this request is too large")

    # Parser callbacks
    def on_message_begin(self) -> None:
        """uvicorn's ASGI scope is made only for requests that need one."""
        self.url = b""
        self.headers = []
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """As uvicorn; what they mean is looked at once they are all there. Trailers are nobody's business."""
        if self._is_in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The fork."""
        self._is_in_head = False
        self._loose_bytes = 0
        endpoint = _endpoint(self.parser.get_method(), self.url)
        before: Any = self.cycle
        is_first = before is None or before.response_complete
        if endpoint is None:
            self._to_asgi()
            if is_first:
                self._running = self.cycle
            return
        turn = Turn(self, endpoint)
        self.cycle = cast(RequestResponseCycle, turn)
        if is_first:
            self._running = turn
            turn.begin()
        else:
            self._line_up(turn)

    def _line_up(self, turn: Turn) -> None:
        self.pipeline.appendleft((cast(RequestResponseCycle, turn), self.app))
        if len(self.pipeline) >= _MOST_IN_LINE:  # not at the first, as uvicorn does: a paused socket hides that its
            self.flow.pause_reading()  # client has left

    def _to_asgi(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # as for a Turn

    def on_body(self, body: bytes) -> None:
        """To whom it belongs."""
        self._loose_bytes = 0
        cycle: Any = self.cycle
        if not isinstance(cycle, Turn):
            super().on_body(body)
        elif not cycle.response_complete:
            cycle.feed(body)

    def on_message_complete(self) -> None:
        """To whom it belongs."""
        cycle: Any = self.cycle
        if not isinstance(cycle, Turn):
            super().on_message_complete()
        elif not cycle.response_complete:
            cycle.complete()

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """End the connection; why is said only where it cannot be taken for a piece of the answer before it."""
        running = self._running
        if running is not None and not running.response_complete and not (running is self.cycle and running.more_body):
            self.transport.abort()
            return
        head = STATUS_LINES[status] + self.default_lines()
        framing = b"content-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(message)
        self.transport.write(head + framing + message.encode())
        self.transport.close()

    def on_response_complete(self) -> None:
        """The next in line runs."""
        self._running = self.pipeline[-1][0] if self.pipeline else None
        if self._running is not None or not isinstance(self.cycle, Turn):
            super().on_response_complete()
            return
        self.server_state.total_requests += 1  # as uvicorn, but for its timer: `Patience` watches
        self.flow.resume_reading()

    # Called by Patience
    def waits_for(self) -> object:
        """See `Patience`: to read what it was sent, to send its body (at a certain pace), or to send a request."""
        running = self._running
        if self.flow.write_paused:
            return "read", self.transport.get_write_buffer_size()
        if running is None or running.response_complete:
            return "ask" if self.timeout_keep_alive_task is None else None  # between requests uvicorn's own timer runs
        if isinstance(running, Turn) and running.more_body:
            return "body", running.size // _LEAST_PROGRESS_BYTES
        return None

    def give_up(self) -> None:
        """The client has kept us waiting for too long."""
        running = self._running
        if self.flow.write_paused:
            self.transport.abort()
        elif isinstance(running, Turn) and not running.response_complete:
            running.time_out()
        elif self._loose_bytes:
            self._refuse(408, "the head of this request took too long")
        else:
            self.transport.close()

    # Transport callbacks
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        """The client has come."""
        super().connection_made(transport)
        self._patience.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that runs; uvicorn would tell the last one in line."""
        self._patience.discard(self)
        running, self._running = self._running, None
        self.pipeline.clear()
        if isinstance(running, Turn):
            self.cycle = cast(RequestResponseCycle, None)
            super().connection_lost(exc)
            running.leave()
        else:
            self.cycle = cast(RequestResponseCycle, running)
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Our buffer for this client is full."""
        super().pause_writing()
        if isinstance(self._running, Turn):
            self._running.pause()

    def resume_writing(self) -> None:
        """It has drained."""
        super().resume_writing()
        if isinstance(self._running, Turn):
            self._running.resume()


def _endpoint(method: bytes, url: bytes) -> Endpoint | None:
    """What a request line leads to: nearly always the bare path, else its target is taken apart."""
    if method == b"POST" and (endpoint := _BY_TARGET.get(url)):
        return endpoint
    target = httptools.parse_url(url)
    return find_endpoint(method, unquote(target.path or b""), (target.query or b"").decode("latin-1"))
