"""A real engine says what its KV cache holds, and what is believed of it is compared with what it then finds there."""

import asyncio
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import zmq
import zmq.asyncio

from gateway.config import Timeouts
from gateway.kv_events.event import Cleared, EngineHash, Extra, read_batch
from gateway.kv_events.feed import Feed
from gateway.kv_events.source import PATH, Source, read_sources
from gateway.kv_events.subscription import subscribed
from gateway.linking import Answered, Linker
from gateway.routing import Chain
from gateway.routing.alignment import token_counts
from gateway.routing.precise import EngineCache, PreciseIndex
from gateway.upstream import Upstream
from gateway.wire.prompt import read_chain, read_text
from gateway.wire.remainder import prompt_question
from tests.integration.publishing import BLOCK_TOKENS, Engine, chat, running, words
from tests.integration.stack import MODEL, wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(700)]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="berth-") as folder, running(Path(folder)) as one:
        yield one  # the folder: pytest's own is too long for a Unix socket


class Believed:
    """Counts what is told of texts."""

    def __init__(self) -> None:
        self.found_texts = self.lost_texts = self.times_cleared = 0

    def found(self, slot: int, texts: Sequence[int]) -> None:
        self.found_texts += len(texts)

    def lost(self, slot: int, texts: Sequence[int]) -> None:
        self.lost_texts += len(texts)

    def cleared(self, slot: int) -> None:
        self.times_cleared += 1

    def unsure(self, slot: int, texts: Sequence[int]) -> None: ...


class Counted:
    """Hands on to a cache what is said of it, and counts that."""

    def __init__(self, cache: EngineCache) -> None:
        self._cache = cache
        self.events = 0

    def stored(
        self,
        hashes: Sequence[EngineHash],
        parent: EngineHash | None,
        token_ids: Sequence[int],
        block_tokens: int,
        extras: Sequence[Extra],
        lora: str | None,
        group: int,
    ) -> None:
        self.events += 1
        self._cache.stored(hashes, parent, token_ids, block_tokens, extras, lora, group)

    def removed(self, hashes: Sequence[EngineHash], group: int) -> None:
        self.events += 1
        self._cache.removed(hashes, group)

    def cleared(self) -> None:
        self._cache.cleared()

    def forgotten(self) -> None:
        self.events = 0
        self._cache.forgotten()


class Listener:
    """What a gateway would have: an index that hears one engine, and a linker."""

    def __init__(self, engine: Engine, upstream: Upstream) -> None:
        self.url = engine.spec.url
        self.upstream = upstream
        self.believed = Believed()
        self.index = PreciseIndex(self.believed)
        (self.cache,) = self.index.add(0)
        self.counted = Counted(self.cache)
        self.linker = Linker(upstream, self.index)

    async def source(self) -> Source:
        """As the engine says."""
        status, body = await self.upstream.get(self.url, PATH, None, 10)
        assert status == 200
        (source,) = read_sources(body, self.url)
        return source

    async def ask(self, payload: dict[str, Any]) -> tuple[int, int]:
        """Prompt tokens, and those that the engine found in its cache."""
        path = "/v1/chat/completions"
        status, body = await self.upstream.post(self.url, path, None, orjson.dumps(payload), 60)
        assert status == 200, body
        usage = orjson.loads(body)["usage"]
        return usage["prompt_tokens"], (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0

    async def link(self, payload: dict[str, Any], salt: str | None = None) -> int:
        """As after an answer."""
        chain, text = self.chain(payload), read_text("chat", payload) or b""
        question = prompt_question("chat", payload)
        return await self.linker.link(Answered(0, self.url, None, question, text, chain.hashes, chain.ends, None, salt))

    async def settled(self) -> None:
        """All that the engine has said by now is heard.

        What it says of an answer waits in a queue when the answer is sent, and its publisher looks for questions before
        each batch: so the answer to a second question has it.
        """
        source = await self.source()
        context = zmq.asyncio.Context()
        try:
            socket = context.socket(zmq.DEALER)
            socket.connect(source.replay_endpoint or "")
            await _said(socket)
            said = await _said(socket)
        finally:
            context.destroy(linger=0)
        await until(lambda: self.counted.events >= said)

    async def linked(self, payload: dict[str, Any], texts: int, salt: str | None = None) -> None:
        """Until so many are; what the engine says of its answer may come after it."""
        async with asyncio.timeout(20):
            while await self.link(payload, salt) < texts:  # noqa: ASYNC110  (see until)
                await asyncio.sleep(0.02)

    def chain(self, payload: dict[str, Any]) -> Chain:
        return read_chain("chat", MODEL, payload, 0)

    def claimed(self, payload: dict[str, Any]) -> int:
        """How many leading texts it is said to hold."""
        hashes = self.chain(payload).hashes
        return next((at for at, text in enumerate(hashes) if not self.index.holds(0, text)), len(hashes))

    async def tokens(self, payload: dict[str, Any], texts: int) -> int:
        """In whole blocks, what is sure to lie before the end of so many texts."""
        question = orjson.dumps({**prompt_question("chat", payload), "return_token_strs": True})
        _, body = await self.upstream.post(self.url, "/tokenize", None, question, 10)
        ends = self.chain(payload).ends[:texts]
        counts = token_counts(read_text("chat", payload) or b"", ends, orjson.loads(body)["token_strs"])
        return max((count or 0 for count in counts), default=0) // BLOCK_TOKENS * BLOCK_TOKENS


async def _said(socket: zmq.asyncio.Socket) -> int:
    """How many blocks were stored or removed, each time counted once, since the engine's start."""
    await socket.send_multipart([b"", bytes(8)])
    events = 0
    while (frames := await socket.recv_multipart())[-1]:
        events += sum(not isinstance(event, Cleared) for event in read_batch(frames[-1]))
    return events


@asynccontextmanager
async def listening(engine: Engine) -> AsyncIterator[Listener]:
    async with Upstream(Timeouts()) as upstream:
        listener = Listener(engine, upstream)
        async with subscribed(await listener.source(), listener.counted, "one"):
            await until(lambda: listener.cache.is_complete)
            yield listener


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (what is waited for is at the other end of a socket)
            await asyncio.sleep(0.02)


async def test_no_more_is_claimed_than_the_engine_finds_and_little_less(engine: Engine) -> None:
    """Six conversations that do not fit together, in any order, the turns of each longer than those before."""
    rng = random.Random(5)
    talks: list[list[str]] = [[words(rng, 150)] for _ in range(6)]
    claimed_tokens = found_tokens = 0
    async with listening(engine) as listener:
        for _ in range(60):
            talk = rng.choice(talks)
            payload = chat(*talk)
            texts = listener.claimed(payload)
            before = await listener.tokens(payload, texts)
            prompt_tokens, cached_tokens = await listener.ask(payload)
            most = (prompt_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS  # the last token is always computed
            assert min(before, most) <= cached_tokens
            claimed_tokens += min(before, most)
            found_tokens += cached_tokens
            await listener.settled()
            await listener.link(payload)
            talk += [words(rng, 30), words(rng, 40)]
            if len(talk) > 9:
                talk[:] = [words(rng, 150)]
        assert listener.believed.lost_texts > 0
        print(f"claimed {claimed_tokens} of {found_tokens} tokens found")  # noqa: T201
    assert claimed_tokens > 0.75 * found_tokens > 0


async def test_what_was_computed_before_anybody_listened_is_heard_too(engine: Engine) -> None:
    payload = chat(words(random.Random(7), 200))
    async with listening(engine) as first:
        await first.ask(payload)
        await first.linked(payload, 3)
        async with listening(engine) as second:
            await second.linked(payload, 3)
            assert second.cache.blocks == first.cache.blocks


async def test_a_gap_is_asked_for_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Feed.live
    seqs: list[int] = []

    def every_third(feed: Feed, seq: int, payload: bytes) -> bool:
        """Two of three batches never come."""
        if seq not in seqs:
            seqs.append(seq)
            if len(seqs) % 3:
                return True
        return real(feed, seq, payload)

    rng = random.Random(11)
    async with listening(engine) as listener:
        monkeypatch.setattr(Feed, "live", every_third)
        payloads = [chat(words(rng, 100)) for _ in range(6)]
        for payload in payloads:
            await listener.ask(payload)
        await until(lambda: len(seqs) >= 6)
        await listener.linked(payloads[0], 2)
        assert listener.cache.is_complete
        assert listener.believed.times_cleared == 1  # at the start


async def test_a_salt_keeps_prompts_apart(engine: Engine) -> None:
    payload = chat(words(random.Random(13), 120), cache_salt="one caller")
    async with listening(engine) as listener:
        await listener.ask(payload)
        await listener.linked(payload, 2, salt="one caller")
        assert await listener.link(payload) == 0


async def test_tools_are_part_of_the_prompt(engine: Engine) -> None:
    function = {"name": "look", "description": words(random.Random(17), 60), "parameters": {"type": "object"}}
    payload = chat(words(random.Random(19), 120), tools=[{"type": "function", "function": function}])
    async with listening(engine) as listener:
        await listener.ask(payload)
        await listener.linked(payload, 2)


async def test_a_reset_is_told_with_the_next_request(engine: Engine) -> None:
    rng = random.Random(23)
    payload, other = chat(words(rng, 200)), chat(words(rng, 50))
    async with listening(engine) as listener:
        await listener.ask(payload)
        await listener.linked(payload, 3)
        status, _ = await listener.upstream.post(engine.spec.url, "/reset_prefix_cache", None, b"", 10)
        assert status == 200
        cleared = listener.believed.times_cleared
        await listener.ask(other)
        await until(lambda: listener.believed.times_cleared == cleared + 1)
        assert listener.claimed(payload) == 0
        assert (await listener.ask(payload))[1] == 0


async def test_a_restart_is_told(engine: Engine) -> None:
    """The last test here: it kills the engine, and starts it again on the same sockets."""
    payload = chat(words(random.Random(29), 200))
    async with listening(engine) as listener:
        await listener.ask(payload)
        await listener.linked(payload, 3)
        os.killpg(engine.process.pid, signal.SIGKILL)
        await until(lambda: not listener.cache.is_complete)
        assert listener.claimed(payload) == 0
        engine.spec.log_path.unlink()
        await asyncio.to_thread(wait_until, "it has ended", lambda: engine.process.exit_status() is not None, 10)
        engine.start()  # from the main thread: its guard ends with the thread that made it
        await until(lambda: listener.cache.is_complete)
        assert listener.index.holds(0, listener.chain(payload).hashes[2]) is False
        await listener.ask(payload)
        await until(lambda: listener.claimed(payload) > 2)  # the links have outlived the engine
