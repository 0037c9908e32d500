"""The only HTTP client of the gateway, at protocol level: no task, future or await stands between two sockets.

A request takes an idle connection of its engine (or a new one, over TCP or a Unix socket) and names a `Sink`, which is
called with the answer as it arrives: its head once, its body at most once a socket read, then its end or its failure.
"""

import asyncio
import select
import socket
import ssl
from types import TracebackType
from typing import Literal, Protocol, cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from gateway.config import Timeouts
from gateway.errors import BrokenError, ConnectError, UpstreamError
from gateway.headers import Header

_KEEP_ALIVE_S = 4.0  # vLLM closes idle connections after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE): retire ours before
_MAX_HEAD_BYTES = 64 * 1024
_LONGEST_CHUNK_LINE = 10  # eight hexadecimal digits and the end of their line
_END_OF_EVENT = b"\n\n"
_END_OF_EVENT_AND_CHUNK = b"\n\n\r\n"
_UNIX = "unix:"
_LAST_WAIT_S = 0.5  # at the end, for connections that are just being made: to be closed, they have to be there


class Sink(Protocol):
    """Who hears the answer to one request. Exactly one of `ended` and `failed` comes, last, unless it was cut."""

    def began(self, status: int, headers: list[Header]) -> None:
        """The head; names in lower case."""

    def received(self, data: bytes) -> None:
        """What one read of the socket brought of the body."""

    def passed(self, chunk: bytes, start: int) -> bool:
        """What one read brought if that was one whole chunk, as on the wire; its content is `chunk[start:-2]`.

        False: to be `received` instead.
        """

    def ended(self) -> None:
        """The answer is complete; its connection already serves others."""

    def failed(self, error: UpstreamError) -> None:
        """No (more) answer will come."""


class Connection(asyncio.Protocol):
    """One connection to an engine, and the request on it. Made before its transport, which is still being connected."""

    __slots__ = (
        "_awaits_end",
        "_engine",
        "_headers",
        "_is_begun",
        "_is_between_chunks",
        "_is_chunked",
        "_is_clean",
        "_is_reusable",
        "_is_whole",
        "_parser",
        "_pieces",
        "_poll",
        "_request",
        "_sink",
        "_status",
        "_transport",
        "head_bytes",
        "idle_since_s",
        "is_cut",
        "is_heard",
        "is_paused",
    )

    def __init__(self, engine: "_Engine") -> None:
        self._engine = engine
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._sink: Sink | None = None
        self._request: tuple[bytes, bytes] | None = None
        self._parser = HttpResponseParser(self)
        self.is_paused = False
        self.is_cut = False
        self.idle_since_s = 0.0
        self._ready()

    def _ready(self) -> None:
        """For the next answer."""
        self._status = 0
        self._headers: list[Header] = []
        self._pieces: list[bytes] = []
        self._is_begun = self._is_whole = self._is_reusable = self._awaits_end = False
        self._is_chunked = self._is_between_chunks = False
        self._is_clean = True
        self.head_bytes = 0
        self.is_heard = False

    # For whoever has a request
    def send(self, method: bytes, path: bytes, headers: bytes, body: bytes, sink: Sink) -> None:
        """Send a request; `headers` are complete lines, each with its CRLF."""
        head = b"%b %b%b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n%b\r\n" % (
            method,
            self._engine.prefix,
            path,
            self._engine.host_header,
            len(body),
            headers,
        )
        self._sink = sink
        if self._transport is None:
            self._request = (head, body)
        else:
            self._transport.writelines((head, body))

    def cut(self) -> None:
        """Give the request up and say so to the engine by closing: it stops working. The sink hears nothing more."""
        self._sink = self._request = None
        self.is_cut = True
        if self._transport is not None:
            self._transport.abort()

    def hand_over(self, sink: Sink) -> None:
        """All that follows is for another one."""
        self._sink = sink

    def pause(self) -> None:
        """Read no more for now: the client is slower than the engine."""
        if not self.is_paused:
            self.is_paused = True
            if self._transport is not None:
                self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.is_paused:
            self.is_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    # For the pool
    def is_alive(self, now_s: float) -> bool:
        """Whether an idle connection can be used: anything there to be read on it is its end, or nonsense."""
        assert self._transport is not None  # noqa: S101  (it was used before)
        if self._transport.is_closing() or now_s - self.idle_since_s > _KEEP_ALIVE_S:
            return False
        # also of one idle for a moment: what it has to say would be taken for the answer to the next request
        return self._poll is None or not self._poll.poll(0)

    @property
    def state(self) -> Literal["connecting", "busy", "idle"]:
        """What it does now."""
        if self._transport is None:
            return "connecting"
        return "idle" if self._sink is None else "busy"

    def fail(self, error: UpstreamError) -> None:
        """End it from our side."""
        sink = self._sink
        self.cut()
        if sink is not None:
            sink.failed(error)

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what has been waiting."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)
        if self.is_cut:
            self._transport.abort()
        elif self._request is not None:
            self._transport.writelines(self._request)
            self._request = None
        if self.is_paused:
            self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """Parse one read, then tell the sink: what it does to this connection must not happen inside the parser."""
        self.is_heard = True
        sink = self._sink
        if sink is None:
            self.cut()  # nobody asked: an idle connection that speaks is of no use
            return
        if self._is_between_chunks:
            start = _one_chunk(data)
            if start and sink.passed(data, start):
                return  # nearly every read of a stream: the parser stands where it stood
        self._parse(data, sink)

    def _parse(self, data: bytes, sink: Sink) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._is_clean = False
        if not self._is_begun and not self._begin(sink, len(data)):
            return
        if self._pieces:
            self.head_bytes = 0
            self._hand_on(data, sink)
        else:
            self.head_bytes += len(data)  # chunk extensions and trailers, which the parser keeps, count as a head
        now = self._sink  # another one, if the bytes were handed over to it
        if now is None:
            return
        if self._is_whole:
            self._finish(now)
        elif not self._is_clean or self.head_bytes > _MAX_HEAD_BYTES:
            self.fail(BrokenError(f"{self._engine.url} answered with what is not HTTP"))

    def _hand_on(self, data: bytes, sink: Sink) -> None:
        pieces, self._pieces = self._pieces, []
        # what follows on the end of an event can only be the end of its chunk
        ends = data.endswith(_END_OF_EVENT_AND_CHUNK) and pieces[-1].endswith(_END_OF_EVENT)
        self._is_between_chunks = ends and self._is_chunked
        sink.received(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _begin(self, sink: Sink, size: int) -> bool:
        if self._status:
            self._is_begun = True
            sink.began(self._status, self._headers)
            return self._sink is sink
        self.head_bytes += size
        if not self._is_clean or self.head_bytes > _MAX_HEAD_BYTES:
            self.fail(BrokenError(f"{self._engine.url} answered with what is not HTTP"))
        return False

    def _finish(self, sink: Sink) -> None:
        transport = self._transport
        assert transport is not None  # noqa: S101  (data came through it)
        self._sink = None
        self.resume()
        if self._is_clean and self._is_reusable and transport.get_write_buffer_size() == 0:
            self._ready()
            self._engine.put_back(self)
        else:
            self.cut()
        sink.ended()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of an answer that has no other end, or of our hopes."""
        self._engine.forget(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self._is_begun and self._awaits_end and exc is None:
            sink.ended()
        else:
            reason = str(exc) if exc else "closed by the engine"
            sink.failed(BrokenError(f"the connection to {self._engine.url} broke: {reason}"))

    # httptools
    def on_message_begin(self) -> None:
        """A second answer to one request is none of ours."""
        if self._is_whole:
            self._is_clean = False
        self._awaits_end = True  # unless a header says how long it will be

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the head; after it come trailers, which are dropped."""
        if not self._status:
            name = name.lower()
            if name == b"transfer-encoding":
                self._awaits_end = False
                self._is_chunked = value.lower() == b"chunked"
            elif name == b"content-length":
                self._awaits_end = False
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Interim answers (100 Continue, 103 Early Hints) are skipped."""
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []
            self._awaits_end = True
        elif not self._is_whole:
            self._status = status

    def on_body(self, body: bytes) -> None:
        """A piece of the body: one for each chunk of its transfer encoding."""
        if not self._is_whole:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        """Whether the connection can be used again is known only here."""
        if self._status and not self._is_whole:
            self._is_whole = True
            self._is_reusable = self._parser.should_keep_alive()


def _one_chunk(data: bytes) -> int:
    """Where its content starts if a read that begins between two chunks is one whole chunk, spelt as all engines do.

    0 where only the parser can tell; the last chunk, which is empty, is the parser's too.
    """
    start = data.find(b"\n", 0, _LONGEST_CHUNK_LINE) + 1
    length = len(data) - start - 2
    return start if length > 0 and data.endswith(b"\r\n") and data[:start] == b"%x\r\n" % length else 0


class _Engine:
    """Where one engine listens, and the connections to it; idle ones are used last in, first out."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.url = url
        self.loop = loop
        self._idle: list[Connection] = []
        self.connections: set[Connection] = set()
        self._unix_path = url.removeprefix(_UNIX) if url.startswith(_UNIX) else None
        parts = urlsplit(url if self._unix_path is None else "http://engine")
        self.prefix = parts.path.rstrip("/").encode()
        self.host_header = parts.netloc.rpartition("@")[2].encode()
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._is_known = parts.scheme in ("http", "https") and bool(parts.hostname)

    def take(self) -> Connection | None:
        """An idle connection that still works."""
        now_s = self.loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_alive(now_s):
                return connection
            connection.cut()
        return None

    def put_back(self, connection: Connection) -> None:
        """Its answer is complete."""
        connection.idle_since_s = self.loop.time()
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """It is closed."""
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    async def connect(self, connection: Connection, timeout_s: float) -> None:
        """Give `connection` its transport, or make it fail with a ConnectError."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._unix_path is not None:
                    await self.loop.create_unix_connection(lambda: connection, self._unix_path)
                elif self._is_known:
                    await self.loop.create_connection(lambda: connection, self._host, self._port, ssl=self._tls)
                else:
                    raise BrokenError(f"{self.url} is neither http://host:port nor unix:/path")
        except BrokenError as error:
            self._give_up(connection, error)
        except TimeoutError:
            self._give_up(connection, ConnectError(f"cannot connect to {self.url}: no answer in time"))
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            reason = getattr(error, "strerror", None) or error
            self._give_up(connection, ConnectError(f"cannot connect to {self.url}: {reason}"))

    async def refuse(self, connection: Connection) -> None:
        """Nobody connects any more."""
        self._give_up(connection, BrokenError("the gateway ends"))

    def _give_up(self, connection: Connection, error: UpstreamError) -> None:
        self.connections.discard(connection)
        connection.fail(error)


class Upstream:
    """Connections to all replicas, without a limit of their own."""

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._engines: dict[str, _Engine] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def __aenter__(self) -> "Upstream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed = True
        for url in list(self._engines):
            await self.forget(url)
        while self._connecting:  # those of requests that have failed just now and try elsewhere, too
            _, slow = await asyncio.wait(self._connecting, timeout=_LAST_WAIT_S)
            for task in slow:
                task.cancel()

    def open(self, url: str) -> Connection:
        """A connection to send one request on; whether it can be made, its sink will hear."""
        engine = self._engines.get(url)
        if engine is None:
            # asked for once: before Python 3.12 each get_running_loop is a system call (getpid)
            engine = self._engines[url] = _Engine(url, asyncio.get_running_loop())
        connection = engine.take()
        if connection is not None:
            return connection
        connection = Connection(engine)
        engine.connections.add(connection)
        work = engine.refuse(connection) if self._is_closed else engine.connect(connection, self._timeouts.connect_s)
        task = engine.loop.create_task(work)
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return connection

    def use(self, timeouts: Timeouts) -> None:
        """Wait so long from now on."""
        self._timeouts = timeouts

    def states(self) -> dict[str, int]:
        """How many connections there are, by what they do."""
        found = {"connecting": 0, "busy": 0, "idle": 0}
        for engine in self._engines.values():
            for connection in engine.connections:
                found[connection.state] += 1
        return found

    async def get(self, url: str, path: str, api_key: str | None, timeout_s: float) -> tuple[int, bytes]:
        """A small control request: status and body. Raises ConnectError or BrokenError."""
        return await self._ask(url, b"GET", path, api_key, None, timeout_s)

    async def post(self, url: str, path: str, api_key: str | None, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """The same with a JSON body."""
        return await self._ask(url, b"POST", path, api_key, body, timeout_s)

    async def _ask(
        self, url: str, method: bytes, path: str, api_key: str | None, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        whole = _Whole(asyncio.get_running_loop().create_future())
        headers = b"authorization: Bearer %s\r\n" % api_key.encode() if api_key else b""
        if body is not None:
            headers += b"content-type: application/json\r\n"
        connection = self.open(url)
        connection.send(method, path.encode(), headers, body or b"", whole)
        try:
            async with asyncio.timeout(timeout_s):
                return await whole.answer
        except TimeoutError:
            raise BrokenError(f"{url} was silent for too long") from None
        finally:
            if not whole.is_over:
                connection.cut()

    async def forget(self, url: str) -> None:
        """Close all connections to a replica that is gone; requests still on them fail."""
        engine = self._engines.pop(url, None)
        if engine is None:
            return
        for connection in list(engine.connections):
            connection.fail(BrokenError(f"the gateway closed its connections to {url}"))
        await asyncio.sleep(0)


class _Whole:
    """Collects a small answer."""

    def __init__(self, answer: asyncio.Future[tuple[int, bytes]]) -> None:
        self.answer = answer
        self.is_over = False
        self._status = 0
        self._pieces: list[bytes] = []

    def began(self, status: int, headers: list[Header]) -> None:
        self._status = status

    def received(self, data: bytes) -> None:
        self._pieces.append(data)

    def passed(self, chunk: bytes, start: int) -> bool:
        return False

    def ended(self) -> None:
        self.is_over = True
        if not self.answer.done():
            self.answer.set_result((self._status, b"".join(self._pieces)))

    def failed(self, error: UpstreamError) -> None:
        self.is_over = True
        if not self.answer.done():
            self.answer.set_exception(error)
