"""Precise routing: engines that publish their KV events are heard from when they are ready until they are gone, and
prompts that were answered are linked to what they say.

An engine is asked once where it publishes; most do not, and are known by what they were sent. Nothing here is on a
request's path but `answered`, when its caller has its answer already.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator

import orjson
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.background import ended
from gateway.errors import UpstreamError
from gateway.kv_events.heard import Heard
from gateway.kv_events.source import PATH, Source, read_sources
from gateway.linking import MOST_TEXT_BYTES, Answered, Linker
from gateway.replica import Pool, Replica
from gateway.routing.precise import PreciseIndex
from gateway.upstream import Upstream
from gateway.wire import Call
from gateway.wire.prompt import read_text
from gateway.wire.remainder import CannotContinueError, prompt_question

_log = logging.getLogger("berth.gateway")
_INTERVAL_S = 0.5


class Precise(Collector):
    """What the engines of `pool` say of their KV caches, and what prompts that makes; its figures for Prometheus."""

    def __init__(self, pool: Pool, upstream: Upstream) -> None:
        self._pool = pool
        self._upstream = upstream
        self._index = PreciseIndex(pool.router)
        self._linker = Linker(upstream, self._index)
        self._asked: set[Replica] = set()
        """Since they were last seen to be ready."""
        self._listening: dict[Replica, asyncio.Task[None]] = {}
        self._heard: dict[Replica, Heard] = {}

    @contextlib.asynccontextmanager
    async def running(self, is_wanted: Callable[[], bool], timeout_s: Callable[[], float]) -> AsyncIterator[None]:
        """Listen to every engine that publishes while the block runs; whether that is wanted, and how long an engine
        has to say where, is asked anew each time. Needs the `events` extra (`kv_events.source.require_extra`)."""

        async def forever() -> None:
            while True:
                if is_wanted():
                    await self._look(timeout_s())
                await asyncio.sleep(_INTERVAL_S)

        async with self._linker.running():
            task = asyncio.create_task(forever(), name="listen to KV caches")
            try:
                yield
            finally:
                await ended(task)
                for replica in list(self._listening):
                    await self.leave(replica)

    async def _look(self, timeout_s: float) -> None:
        """Whoever has become ready is asked."""
        self._asked = {replica for replica in self._asked if replica.state == "ready"}
        new = [
            replica
            for replica in self._pool.replicas
            if replica.state == "ready" and replica not in self._asked and replica not in self._listening
        ]
        for outcome in await asyncio.gather(*(self._ask(each, timeout_s) for each in new), return_exceptions=True):
            if isinstance(outcome, Exception):  # the others are listened to whatever one engine does to it
                _log.error("unexpected error while an engine's KV events were looked for", exc_info=outcome)

    async def _ask(self, replica: Replica, timeout_s: float) -> None:
        try:
            status, body = await self._upstream.get(replica.url, PATH, replica.api_key, timeout_s)
            sources = read_sources(body, replica.url) if status == 200 else ()
        except UpstreamError:
            return  # asked again
        except ValueError as error:
            _log.warning("%s: its KV events are not used: %s", replica.name, error)
            sources = ()
        self._asked.add(replica)
        if sources and replica.slot >= 0:
            self._listening[replica] = asyncio.create_task(self._listen(replica, sources))

    async def _listen(self, replica: Replica, sources: tuple[Source, ...]) -> None:
        """Until cancelled; its sockets come back by themselves when the engine does."""
        from gateway.kv_events.subscription import subscribed  # an extra, which only precise routing needs

        slot, heard = replica.slot, self._heard.setdefault(replica, Heard())
        caches = self._index.add(slot, len(sources))
        try:
            async with contextlib.AsyncExitStack() as stack:
                for source, cache in zip(sources, caches, strict=True):
                    await stack.enter_async_context(subscribed(source, cache, replica.name, heard))
                _log.info("%s says what its KV cache holds", replica.name)
                await asyncio.Event().wait()
        except Exception:  # noqa: BLE001  (requests go there all the same)
            _log.exception("%s: unexpected error while its KV events were listened to", replica.name)
        finally:
            self._index.remove(slot)

    async def leave(self, replica: Replica) -> None:
        """Listen no more to `replica`, whose slot is free for another one afterwards."""
        self._asked.discard(replica)
        task = self._listening.pop(replica, None)
        if task is not None:
            await ended(task)
        self._heard.pop(replica, None)

    def answered(self, replica: Replica, call: Call) -> None:
        """`replica` has computed the prompt of `call`, whose body is as it was sent there."""
        slot, hashes, dialect = replica.slot, call.chain.hashes, call.endpoint.dialect
        if not hashes or len(call.body) > MOST_TEXT_BYTES or not self._linker.wants(slot, hashes[-1]):
            return
        payload = orjson.loads(call.body)
        try:
            question, text = prompt_question(dialect, payload), read_text(dialect, payload)
        except CannotContinueError:
            return  # a picture, say: such a prompt is known by what was sent
        if text is not None:
            lora = call.model if replica.is_adapter(call.model) else None
            answered = Answered(
                slot, replica.url, replica.api_key, question, text, hashes, call.chain.ends, lora, call.cache_salt
            )
            self._linker.offer(answered)

    def is_complete(self, replica: Replica) -> bool:
        """Whether its engine says what its KV cache holds, and nothing of that was missed."""
        caches = self._index.caches(replica.slot)
        return bool(caches) and all(cache.is_complete for cache in caches)

    def blocks(self, replica: Replica) -> int | None:
        """How many KV blocks its engine says it holds; None where it says nothing."""
        caches = self._index.caches(replica.slot)
        return sum(cache.blocks for cache in caches) if caches else None

    def collect(self) -> Iterator[Metric]:
        """For Prometheus; of replicas that say nothing there is no sample."""
        complete, blocks = _gauge("complete", _COMPLETE), _gauge("blocks", _BLOCKS)
        events, gaps = _counter("events", _EVENTS), _counter("event_gaps", _GAPS)
        replays, losses = _counter("event_replays", _REPLAYS), _counter("event_losses", _LOSSES)
        for replica, heard in list(self._heard.items()):
            name = (replica.name,)
            complete.add_metric(name, float(self.is_complete(replica)))
            blocks.add_metric(name, self.blocks(replica) or 0)
            events.add_metric(name, heard.events)
            gaps.add_metric(name, heard.gaps)
            replays.add_metric(name, heard.replays)
            losses.add_metric(name, heard.losses)
        yield from (complete, blocks, events, gaps, replays, losses)


_COMPLETE = "1 while what its engine says of its KV cache is all there is to know, 0 while something was missed"
_BLOCKS = "KV blocks that its engine says it holds"
_EVENTS = "KV events heard: blocks stored or removed together, caches cleared"
_GAPS = "Times that batches of KV events were missing before one that came"
_REPLAYS = "Times that an engine was asked for batches again, at the start of a connection too"
_LOSSES = "Times that what was known of a KV cache was so no longer"


def _gauge(name: str, about: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"berth_kv_{name}", about, labels=("replica",))


def _counter(name: str, about: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"berth_kv_{name}", about, labels=("replica",))
