"""Both sides of the gateway without sockets: protocol objects are called, and what they write is looked at."""

import asyncio
import socket
from typing import Any, cast

from gateway.connection import Connection, Known, Sink


class FakeSocket:
    """What the two `connection_made` want of a socket."""

    family = socket.AF_UNIX

    def fileno(self) -> int:
        return 0

    def getsockname(self) -> str:
        return ""

    def getpeername(self) -> str:
        return ""


class FakeTransport(asyncio.Transport):
    """Keeps what is written; closing takes effect when the test says so, as with a real loop."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.reads = True
        self.is_closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return FakeSocket() if name == "socket" else default

    def write(self, data: Any) -> None:
        if not self.is_closed:
            self.written += data

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class _Engine:
    """The part of `upstream._Engine` that a connection calls."""

    url = "http://engine"
    prefix = b""
    host_header = b"engine"

    def __init__(self) -> None:
        self.idle: list[Connection] = []
        self.known = Known()

    def put_back(self, connection: Connection) -> None:
        self.idle.append(connection)

    def forget(self, connection: Connection) -> None:
        if connection in self.idle:
            self.idle.remove(connection)


class Wire:
    """One engine and the connections to it, each with a transport that the test holds."""

    def __init__(self) -> None:
        self.engine = _Engine()

    def open(self) -> Connection:
        """An idle connection if there is one, else a new one that has yet to connect."""
        return self.engine.idle.pop() if self.engine.idle else Connection(cast(Any, self.engine))

    def connect(self, sink: Sink) -> Connection:
        """A connected one with a request on it."""
        connection = self.open()
        connection.connection_made(FakeTransport())
        connection.send(b"POST", b"/", b"", b"", sink)
        return connection
