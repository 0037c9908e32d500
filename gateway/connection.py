"""One connection to an engine: a request goes out, and what comes back is told to a `Sink` as it arrives.

Its head once, its body at most once a socket read, then its end or its failure. While a stream runs, nearly every read
is one chunk with one event, and is passed on as it is, without a parser.
"""

import asyncio
import select
import socket
from typing import Final, Literal, Protocol, cast

from httptools import HttpParserError, HttpResponseParser

from gateway.errors import BrokenError, UpstreamError
from gateway.headers import Header
from gateway.repeated import Repeated, repeated

_KEEP_ALIVE_S: Final = 4.0  # vLLM closes idle connections after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE): retire ours before
_MAX_HEAD_BYTES: Final = 64 * 1024
_MOST_DIGITS: Final = 8
_END_OF_EVENT: Final = b"\n\n"
_END_OF_EVENT_AND_CHUNK: Final = b"\n\n\r\n"


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


class Known:
    """The head of an engine's last whole answer, and its headers without the length: the next ones are mostly alike,
    but for their date, which changes once a second."""

    __slots__ = ("head", "headers")

    def __init__(self) -> None:
        self.head: Repeated | None = None
        self.headers: list[Header] = []


class Home(Protocol):
    """Where a connection belongs: its engine, and the others to it."""

    url: str
    prefix: bytes
    """Of every path."""
    host_header: bytes
    known: "Known"
    """The last head that may come again."""

    def put_back(self, connection: "Connection") -> None:
        """Its answer is complete: it may serve others."""

    def forget(self, connection: "Connection") -> None:
        """It is closed."""


class Connection:
    """An `asyncio.Protocol` in all but name (a base class that is not compiled would keep this one from it), and the
    request on it. Made before its transport, which is still being connected."""

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

    def __init__(self, engine: Home) -> None:
        self._engine = engine
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._sink: Sink | None = None
        self._request: tuple[bytes, bytes] | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
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
        self._parser = None  # it points back here: a circle would be left to the garbage collector
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
        elif not self._status and not self.head_bytes:
            known = self._engine.known
            start = 0 if known.head is None else known.head.body_at(data)
            if start:
                self._repeat(known.headers, data[start:], sink)
                return
        self._parse(data, sink)

    def _repeat(self, headers: list[Header], body: bytes, sink: Sink) -> None:
        """A whole answer with a known head: the parser would only say once more what it said then."""
        self._status, self._is_begun, self._is_reusable = 200, True, True
        sink.began(200, headers)
        if self._sink is not sink:
            return
        if body:
            sink.received(body)
        now = self._sink
        if now is not None:
            self._finish(now)

    def _parse(self, data: bytes, sink: Sink) -> None:
        parser, is_new = self._parser, not self._status and not self.head_bytes
        assert parser is not None  # noqa: S101  (gone only with the sink)
        try:
            parser.feed_data(data)
        except HttpParserError:
            self._is_clean = False
        if is_new and self._status == 200 and self._is_whole and self._is_clean and self._is_reusable:
            self._learn(data)
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

    def _learn(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 200 "):
            return  # an interim answer came before it, in the same read
        known = self._engine.known
        known.head = repeated(data)
        known.headers = [header for header in self._headers if header[0] != b"content-length"]

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
        self._parser = None  # as in `cut`
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if self._is_begun and self._awaits_end and exc is None:
            sink.ended()
        else:
            reason = str(exc) if exc else "closed by the engine"
            sink.failed(BrokenError(f"the connection to {self._engine.url} broke: {reason}"))

    def eof_received(self) -> None:
        """The engine says nothing more: `connection_lost` follows."""

    def pause_writing(self) -> None:
        """A request is written at once, or by and by: its caller has already sent all of it."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

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
        assert self._parser is not None  # noqa: S101  (it calls)
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
            assert self._parser is not None  # noqa: S101  (it calls)
            self._is_reusable = self._parser.should_keep_alive()


def _one_chunk(data: bytes) -> int:
    """Where its content starts if a read that begins between two chunks is one whole chunk, spelt as all engines do.

    0 where only the parser can tell; the last chunk, which is empty, is the parser's too.
    """
    size = len(data)
    line = _CHUNK_LINES[size] if size < _MOST_LINES else _chunk_line(size)
    return len(line) if line and data.startswith(line) and data.endswith(b"\r\n") else 0


def _chunk_line(size: int) -> bytes:
    """The first line of a chunk that takes `size` bytes in all; empty where none does."""
    for digits in range(1, _MOST_DIGITS + 1):
        length = size - digits - 4
        if length > 0 and len(b"%x" % length) == digits:
            return b"%x\r\n" % length
    return b""


_MOST_LINES: Final = 1024
"""Events with text are shorter."""
_CHUNK_LINES: Final = [_chunk_line(size) for size in range(_MOST_LINES)]
