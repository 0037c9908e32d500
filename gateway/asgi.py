"""The caller's side of a request in raw ASGI: its types, its body, and the watch for its disconnect."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from gateway.errors import ClientGoneError, RefusedError
from gateway.wire import Fault

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]


def new_request_id() -> str:
    """A fresh id: the caller's own is never taken over, since engines answer a repeated id with an error."""
    return f"req_{secrets.token_hex(12)}"


def request_id_headers(request_id: str) -> list[Header]:
    """Under the names that the two SDKs look for."""
    rid = request_id.encode()
    return [(b"x-request-id", rid), (b"request-id", rid)]


@dataclass(slots=True)
class Watch:
    """Shared with the task that waits for the disconnect; `is_over` before the last send: then leaving is no loss."""

    is_over: bool = False
    is_gone: bool = False


@contextlib.asynccontextmanager
async def cancelled_when_gone(receive: Receive) -> AsyncIterator[Watch]:
    """Cancel the block as soon as the client disconnects, and raise ClientGoneError in its place."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (an ASGI application always runs in a task)
    watch = Watch()

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not watch.is_over:
            watch.is_gone = True
            task.cancel()

    watcher = asyncio.create_task(wait_for_disconnect())
    try:
        yield watch
    except asyncio.CancelledError:
        if watch.is_gone and task.uncancel() == 0:
            raise ClientGoneError from None
        raise
    finally:
        watcher.cancel()


async def read_body(scope: Scope, receive: Receive, limit_bytes: int) -> bytes:
    """The whole request body. Raises ClientGoneError, or RefusedError 413 (at once when the length is announced)."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise RefusedError(_too_large(int(announced), limit_bytes))
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit_bytes:
            raise RefusedError(_too_large(size, limit_bytes))
        if not message.get("more_body", False):
            break
    if size == 0 and any(name == b"upgrade" for name, _ in scope["headers"]):
        raise RefusedError(_hidden_by_upgrade())
    return b"".join(pieces)


def _hidden_by_upgrade() -> Fault:
    """Java's HttpClient offers h2c unless told otherwise; httptools then takes the body for the other protocol's."""
    message = "the request offers to switch protocols (Upgrade), which hides its body; set the client to HTTP/1.1"
    return Fault(400, message, code="upgrade_not_supported", should_retry=False)


def _too_large(size: int, limit_bytes: int) -> Fault:
    message = f"the request body has {size:,} bytes or more, the limit is {limit_bytes:,} (max_body_mib)"
    return Fault(413, message, code="request_too_large", should_retry=False)
