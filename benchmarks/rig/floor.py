"""The floor under any gateway in Python: two protocols, their parsers, and nothing that makes it a gateway.

    python benchmarks/rig/floor.py PORT ENGINE_PORT

No keys, limits, choice, metrics, errors, retries or back-pressure: the whole request in, the same bytes to the engine,
its body back as it comes, usage looked for. What Berth costs above this is what its features cost.
"""

import asyncio
import sys
from typing import cast

import uvloop
from httptools import HttpRequestParser, HttpResponseParser

_ENGINE = b"POST %b HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_idle: list["_Engine"] = []


class _Engine(asyncio.Protocol):
    """A connection to the engine."""

    def __init__(self) -> None:
        self.client: _Client | None = None
        self.parser = HttpResponseParser(self)
        self.out: list[bytes] = []
        self.is_whole = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self in _idle:
            _idle.remove(self)
        if self.client is not None:
            self.client.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)
        client, out, self.out = self.client, self.out, []
        if client is None:
            return
        if out:
            client.transport.write(b"".join(out))
        if self.is_whole:
            self.is_whole, self.client, client.engine = False, None, None
            _idle.append(self)

    def on_message_begin(self) -> None:
        self.head: list[bytes] = []
        self.is_chunked = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-length":
            self.is_chunked = False
        self.head.append(b"%b: %b\r\n" % (name, value))

    def on_headers_complete(self) -> None:
        self.out.append(b"HTTP/1.1 %d OK\r\n%b\r\n" % (self.parser.get_status_code(), b"".join(self.head)))

    def on_body(self, body: bytes) -> None:
        self.has_usage = b'"usage":{' in body
        self.out.append(b"%x\r\n%b\r\n" % (len(body), body) if self.is_chunked else body)

    def on_message_complete(self) -> None:
        self.is_whole = True
        if self.is_chunked:
            self.out.append(b"0\r\n\r\n")


class _Client(asyncio.Protocol):
    """A caller's connection."""

    def __init__(self) -> None:
        self.engine: _Engine | None = None
        self.parser = HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.engine is not None:
            self.engine.client = None
            self.engine.transport.abort()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url = b""
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """As a gateway has to."""

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self.body)
        request = _ENGINE % (self.url, len(body)) + body
        if _idle:
            self._send(_idle.pop(), request)
        else:
            task = asyncio.ensure_future(asyncio.get_running_loop().create_connection(_Engine, "127.0.0.1", _port()))
            task.add_done_callback(lambda done: self._send(done.result()[1], request))

    def _send(self, engine: _Engine, request: bytes) -> None:
        self.engine, engine.client = engine, self
        engine.transport.write(request)


def _port() -> int:
    return int(sys.argv[2])


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(_Client, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
