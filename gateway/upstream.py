"""The only HTTP client of the gateway, at protocol level: no task, future or await stands between two sockets.

A request takes an idle connection of its engine, or a new one, over TCP or a Unix socket.
"""

import asyncio
import ssl
from types import TracebackType
from typing import Final, cast
from urllib.parse import urlsplit

from gateway.config import Timeouts
from gateway.connection import Connection, Known
from gateway.errors import BrokenError, ConnectError, UpstreamError
from gateway.headers import Header

_UNIX: Final = "unix:"
_LAST_WAIT_S: Final = 0.5  # at the end, for connections that are just being made: to be closed, they have to be there


class _Engine:
    """Where one engine listens, and the connections to it; idle ones are used last in, first out."""

    def __init__(self, url: str, loop: asyncio.AbstractEventLoop) -> None:
        self.url = url
        self.loop = loop
        self._idle: list[Connection] = []
        self.connections: set[Connection] = set()
        self.known = Known()
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
                protocol = cast(asyncio.Protocol, connection)  # which it is in all but name
                if self._unix_path is not None:
                    await self.loop.create_unix_connection(lambda: protocol, self._unix_path)
                elif self._is_known:
                    await self.loop.create_connection(lambda: protocol, self._host, self._port, ssl=self._tls)
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
