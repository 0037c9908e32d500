"""One rank's KV events over ZeroMQ, from the moment its engine is ready until it is gone."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Literal

import zmq
import zmq.asyncio
from zmq.utils.monitor import recv_monitor_message

from gateway.kv_events.feed import Feed, Sink
from gateway.kv_events.heard import Heard
from gateway.kv_events.source import Source

_log = logging.getLogger("berth.gateway")
_END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
_SILENCE_S = 5.0
"""A publisher looks for questions ten times a second."""
_PAUSE_S = 1.0
_MOST_WAITING = 1000
"""Batches read and not yet looked at; more wait in ZeroMQ."""

_Came = tuple[Literal["up", "down"], None] | tuple[Literal["batch"], list[bytes]]


@contextlib.asynccontextmanager
async def subscribed(source: Source, sink: Sink, name: str, heard: Heard | None = None) -> AsyncIterator[None]:
    """Tell `sink` what `source` says, on this event loop, while the block runs, and count it in `heard`; `name` is for
    the log.

    The sink is told at once that nothing is known, and again each time that the connection is lost, which is as near to
    a restart as can be seen from here.
    """
    task = asyncio.create_task(_Subscription(source, sink, name, heard).run(), name=f"KV events of {name}")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        sink.forgotten()


class _Subscription:
    def __init__(self, source: Source, sink: Sink, name: str, heard: Heard | None) -> None:
        self._source = source
        self._feed = Feed(sink, heard)
        self._name = name
        self._came: asyncio.Queue[_Came] = asyncio.Queue(_MOST_WAITING)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._feed.restart()
            context = zmq.asyncio.Context()
            try:
                await self._listen(context)
            except* Exception:  # noqa: BLE001  (the gateway serves on whatever one batch does to this)
                _log.exception("%s: its KV events could not be read; listening anew", self._name)
            finally:
                context.destroy(linger=0)
            await asyncio.sleep(_PAUSE_S)

    async def _listen(self, context: zmq.asyncio.Context) -> None:
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, 0)  # to drop one would cost all that is known
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        socket.subscribe(self._source.topic.encode())
        socket.connect(self._source.endpoint)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(monitor))
            group.create_task(self._read(socket))
            await self._tell(context)

    async def _watch(self, monitor: zmq.asyncio.Socket) -> None:
        while True:
            happened = await recv_monitor_message(monitor)
            await self._came.put(("down" if happened["event"] == zmq.EVENT_DISCONNECTED else "up", None))

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            await self._came.put(("batch", await socket.recv_multipart()))

    async def _tell(self, context: zmq.asyncio.Context) -> None:
        while True:
            kind, frames = await self._came.get()
            if kind == "down":
                _log.info("%s: the connection for its KV events is lost", self._name)
                self._feed.restart()
            elif kind == "up":
                await self._catch_up(context, 0)
            elif frames is not None and len(frames) == 3:
                await self._take(context, int.from_bytes(frames[1], "big"), frames[2])
            await asyncio.sleep(0)  # thousands may be there at once, and requests must not wait for all of them

    async def _take(self, context: zmq.asyncio.Context, seq: int, payload: bytes) -> None:
        if not self._feed.live(seq, payload):
            await self._catch_up(context, seq)
            self._feed.nothing_before(seq)
            self._feed.live(seq, payload)

    async def _catch_up(self, context: zmq.asyncio.Context, seq: int) -> None:
        """Ask for what is missing before `seq`, as long as that brings any: a long replay has holes where it was faster
        than its reader."""
        endpoint = self._source.replay_endpoint
        if endpoint is None:
            return
        while True:
            before = self._feed.next
            is_whole = await self._replay(context, endpoint)
            if is_whole:
                self._feed.nothing_before(0)  # nothing at all was ever published, unless something has come
            if self._feed.next == before or (is_whole and self._feed.next >= seq):
                return

    async def _replay(self, context: zmq.asyncio.Context, endpoint: str) -> bool:
        """One question and its answer; whether that was without a hole, to its end."""
        self._feed.heard.replays += 1
        with context.socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.connect(endpoint)
            await socket.send_multipart([b"", self._feed.next.to_bytes(8, "big")])
            is_first = True
            while await socket.poll(_SILENCE_S * 1000):
                *_, seq, payload = await socket.recv_multipart()
                if seq == _END_OF_REPLAY:
                    return True
                if not self._feed.replayed(int.from_bytes(seq, "big"), payload, is_first=is_first):
                    return False
                is_first = False
                await asyncio.sleep(0)
        return False
