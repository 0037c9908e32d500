"""The gateway's listening socket and its HTTP server, run inside our own event loop and stopped in our own order."""

import asyncio
import contextlib
import errno
import gc
import logging
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn

from gateway.app import Gateway
from serving import standstill
from serving.errors import ConfigError

_log = logging.getLogger("berth.serving")
_BACKLOG = 2048
_KEEP_ALIVE_S = 75  # longer than the pools of the SDKs in front, so that it is they who close idle connections
_LAST_WORDS_S = 2
_COLLECT_AFTER = (50_000, 20, 20)


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, taken before any engine is started. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            message = f"port {port} on {host} is in use: stop what listens there, or choose another with --port"
        else:
            message = f"cannot listen on {host}:{port}: {error.strerror}"
        raise ConfigError(message) from None
    except OverflowError:
        raise ConfigError(f"--port {port}: ports go from 0 to 65535") from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """What to type to reach it from this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: `serving.stack` and `serving.alone` decide the order of a shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def open_door(gateway: Gateway, listener: socket.socket) -> AsyncIterator[None]:
    """Answer requests on `listener` while the block runs; on the way out open answers get two seconds more."""
    config = uvicorn.Config(
        gateway,
        http=gateway.protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="http server")
    try:
        while not server.started:
            if task.done():
                await task
                raise ConfigError("the HTTP server stopped while starting; its log says why")
            await asyncio.sleep(0.01)
        _quiet_collector()
        with standstill.told():
            yield
    finally:
        server.should_exit = True
        await task


def _quiet_collector() -> None:
    """Keep full collections short and rare, now that everything is loaded.

    One walks all of FastAPI and pydantic, seventy thousand objects, on the event loop: 20 ms in which every stream
    stands still. What start-up made stays as long as the process, so it is set aside; requests leave few circles.
    """
    gc.collect()  # what start-up dropped would be kept for good
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


async def drain(gateway: Gateway, timeout_s: float, hurry: asyncio.Event) -> None:
    """Take no new requests and wait for the running ones; says how many were left when time or patience ran out."""
    gateway.admission.is_draining = True
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while gateway.admission.in_flight and loop.time() < deadline and not hurry.is_set():  # noqa: ASYNC110  (the hot path pays for no event)
        await asyncio.sleep(0.05)
    if gateway.admission.in_flight:
        _log.warning("%d requests were still running when the drain ended", gateway.admission.in_flight)
