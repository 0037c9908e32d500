"""The fast lane: data-plane requests are answered by protocol objects, everything else goes to uvicorn's ASGI side.

`LaneProtocol` is uvicorn's own HTTP protocol with one `gateway.fork`: what `gateway.wire.find_endpoint` knows becomes a
`gateway.turn.Turn` (keep-alive and shutdown stay uvicorn's), which hands the request to a `gateway.exchange.Exchange`.
There are no ASGI messages, no task and no future. When the client's buffer is full, `pause_writing` stops the reading
from its engine.
"""

import asyncio
import select
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from gateway.fork import Fork
from gateway.headers import Header, lines
from gateway.patience import Patience
from gateway.relay import Relay
from gateway.turn import STATUS_LINES, Turn

_MOST_IN_LINE = 8
_LOOK_S = 0.25  # how often, while a client is not read
_HANG_UP = getattr(select, "POLLRDHUP", 0)  # Linux; elsewhere a poll tells of a reset alone
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
        self._fork = Fork(self)
        self.parser = httptools.HttpRequestParser(self._fork)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
        self._running: Turn | RequestResponseCycle | None = None
        self._defaults: object = None
        self._default_lines = b""
        self._looking: asyncio.TimerHandle | None = None

    def default_lines(self) -> bytes:
        """uvicorn's own headers, the date among them; uvicorn makes a new list of them each second."""
        defaults = self.server_state.default_headers
        if self._defaults is not defaults:
            self._defaults, self._default_lines = defaults, lines(defaults)
        return self._default_lines

    def data_received(self, data: bytes) -> None:
        """As uvicorn, within bounds: heads may have 256 KiB."""
        fork = self._fork
        self._unset_keepalive_if_required()
        if fork.again(data):
            return
        fork.loose_bytes += len(data)
        super().data_received(data)
        fork.learn(data)
        if fork.loose_bytes > _MOST_LOOSE_BYTES and not self.transport.is_closing():
            self._refuse(431, "the head of this request is too large")

    # Called by the fork
    def take(self, turn: Turn) -> None:
        """A data-plane request: it begins, or waits for those before it."""
        before: Any = self.cycle
        taken: Any = turn  # not uvicorn's cycle, but as good as one
        self.cycle = taken
        if before is None or before.response_complete:
            self._running = turn
            turn.begin()
        else:
            self.pipeline.appendleft((self.cycle, self.app))
            if len(self.pipeline) >= _MOST_IN_LINE:  # not at the first, as uvicorn does
                self.hold()

    def to_asgi(self, url: bytes, headers: list[Header]) -> None:
        """Another request: as uvicorn."""
        before: Any = self.cycle
        super().on_message_begin()
        self.url = url
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # as for a Turn
        if before is None or before.response_complete:
            self._running = self.cycle

    def asgi_body(self, body: bytes) -> None:
        """As uvicorn."""
        super().on_body(body)
        if self.flow.read_paused:
            self.hold()

    def asgi_complete(self) -> None:
        """As uvicorn."""
        super().on_message_complete()

    def _should_upgrade(self) -> bool:
        """Never: uvicorn would look for the offer among headers that it has not got."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """The client is told; the log need not be, with advice to install what would not be used."""

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

    def hold(self) -> None:
        """Read no more of it for now: enough stands in line."""
        self.flow.pause_reading()
        if self._looking is None:
            self._looking = self.loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        """A socket that is not read does not tell that its client has left: it is asked."""
        self._looking = None
        if not self.flow.read_paused or self.transport.is_closing():
            return
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), _HANG_UP)
        if poll.poll(0):
            self.transport.abort()
        else:
            self._looking = self.loop.call_later(_LOOK_S, self._look)

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
        elif self._fork.loose_bytes:
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
        if self._looking is not None:
            self._looking.cancel()
        running, self._running = self._running, None
        self.pipeline.clear()
        if isinstance(running, Turn):
            self.cycle = cast(RequestResponseCycle, None)
            super().connection_lost(exc)
            running.leave()
        else:
            self.cycle = cast(RequestResponseCycle, running)
            super().connection_lost(exc)
        del self._fork  # it points back here: a circle would be left to the garbage collector

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
