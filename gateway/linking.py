"""Texts of requests that were answered, linked to their engine's blocks: asks its /tokenize, off every request's path.

An engine tokenizes each prompt for itself; once more for us costs it some milliseconds, once for each new text. So
there are few at a time, of a few waiting ones the oldest goes when another comes, and nothing that fails is repeated:
the next request with that text brings it again, three times at most.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import orjson

from gateway.errors import UpstreamError
from gateway.routing.alignment import token_counts
from gateway.routing.precise import PreciseIndex
from gateway.upstream import Upstream

_log = logging.getLogger("berth.gateway")
_AT_ONCE = 4
_MOST_WAITING = 64
MOST_TEXT_BYTES = 2**20
_MOST_TRIES = 3
_MOST_TRIED = 4096
_TIMEOUT_S = 10.0


class Answered(NamedTuple):
    """One request whose prompt its engine has computed just now."""

    slot: int
    url: str
    api_key: str | None
    question: dict[str, Any]
    """What to ask /tokenize: the model, and the prompt or the messages."""
    text: bytes
    """What was hashed."""
    hashes: Sequence[int]
    ends: Sequence[int]
    """`hashes[i]` is everything in `text` before `ends[i]`."""
    lora: str | None = None
    salt: str | None = None


class Linker:
    """Brings texts and blocks together in `index`."""

    def __init__(self, upstream: Upstream, index: PreciseIndex) -> None:
        self._upstream = upstream
        self._index = index
        self._waiting: deque[Answered] = deque(maxlen=_MOST_WAITING)
        self._come = asyncio.Event()
        self._tried: dict[int, int] = {}
        """How often, by a prompt's last text; the latest last. Some texts end where no place can be found."""

    def wants(self, slot: int, last: int) -> bool:
        """Whether a prompt whose last text this is, and that the engine at `slot` has computed, is worth looking at."""
        if not self._index.caches(slot) or self._index.is_linked(last):
            return False
        return self._tried.get(last, 0) < _MOST_TRIES

    def offer(self, answered: Answered) -> bool:
        """Whether it is worth asking; returns at once."""
        if not answered.hashes or len(answered.text) > MOST_TEXT_BYTES:
            return False
        last = answered.hashes[-1]
        if not self.wants(answered.slot, last):
            return False
        self._try(last)
        self._waiting.append(answered)
        self._come.set()
        return True

    def _try(self, text: int) -> None:
        self._tried[text] = self._tried.pop(text, 0) + 1
        if len(self._tried) > _MOST_TRIED:
            del self._tried[next(iter(self._tried))]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask while the block runs."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._work(), name="link texts") for _ in range(_AT_ONCE)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._come.clear()
                await self._come.wait()
            answered = self._waiting.popleft()
            try:
                await self.link(answered)
            except UpstreamError as error:
                _log.debug("a prompt's tokens cannot be had: %s", error)
            except Exception:  # noqa: BLE001  (linking goes on whatever one answer does to it)
                _log.exception("unexpected error while a prompt's tokens were looked at")

    async def link(self, answered: Answered) -> int:
        """Ask, and link what can be; how many texts that were. Raises UpstreamError."""
        body = orjson.dumps({**answered.question, "return_token_strs": True})
        status, answer = await self._upstream.post(answered.url, "/tokenize", answered.api_key, body, _TIMEOUT_S)
        if status != 200:
            return 0
        read = orjson.loads(answer)
        token_ids, pieces = read["tokens"], read["token_strs"]
        ends = answered.ends[: len(answered.hashes)]
        counts = await asyncio.to_thread(token_counts, answered.text, ends, pieces)
        return self._index.link(answered.slot, answered.hashes, counts, token_ids, answered.lora, answered.salt)
