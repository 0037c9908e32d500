"""A publisher that numbers, keeps and replays batches as vLLM's does, on real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import zmq
import zmq.asyncio

from gateway.kv_events.source import Source
from tests.gateway.kv_events.batches import batch, stored

END = (-1).to_bytes(8, "big", signed=True)


class Publisher:
    """Publishes on request; what it does not publish is lost on its way, and still kept."""

    def __init__(self, folder: Path, most_kept: int = 10_000) -> None:
        self.source = Source(0, f"ipc://{folder}/events", f"ipc://{folder}/replay", "")
        self.kept: list[tuple[int, bytes]] = []
        self.asked: list[int] = []
        self.dropped: list[int] = []
        """Left out of the next answers, one of each, as ZeroMQ does when a reader is slow."""
        self._most_kept = most_kept
        self._seq = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Publisher"]:
        context = zmq.asyncio.Context()
        self._out = context.socket(zmq.PUB)
        self._out.bind(self.source.endpoint)
        self._questions = context.socket(zmq.ROUTER)
        self._questions.bind(self.source.replay_endpoint or "")
        answering = asyncio.create_task(self._answer())
        try:
            yield self
        finally:
            answering.cancel()
            context.destroy(linger=0)

    async def _answer(self) -> None:
        while True:
            who, _, start = await self._questions.recv_multipart()
            self.asked.append(int.from_bytes(start, "big"))
            dropped = self.dropped.pop(0) if self.dropped else None
            for seq, payload in list(self.kept):
                if seq >= self.asked[-1] and seq != dropped:
                    await self._questions.send_multipart([who, b"", b"", seq.to_bytes(8, "big"), payload])
            await self._questions.send_multipart([who, b"", b"", END, b""])

    async def make(self, *, is_lost: bool = False) -> None:
        """The next batch: the block of its own number is stored."""
        await self.say(stored([self._seq], None, [1, 2]), is_lost=is_lost)

    async def say(self, *events: object, is_lost: bool = False) -> None:
        """The next batch: these."""
        payload = batch(*events)
        self.kept = [*self.kept, (self._seq, payload)][-self._most_kept :]
        if not is_lost:
            await self._out.send_multipart([b"", self._seq.to_bytes(8, "big"), payload])
        self._seq += 1


async def until(condition: Callable[[], bool]) -> None:
    """Within a minute, or the test fails."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (what is waited for is at the other end of a socket)
            await asyncio.sleep(0.01)
