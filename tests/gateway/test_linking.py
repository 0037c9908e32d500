"""What is asked of an engine's /tokenize, by a server that answers with one token for each word."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from gateway.config import Timeouts
from gateway.linking import Answered, Linker
from gateway.routing.precise import EngineCache, PreciseIndex
from gateway.upstream import Upstream

TEXT = b"one two three four five six seven eight nine ten eleven twelve"
HASHES = (101, 102)
ENDS = (len(b"one two three four five"), len(TEXT))
"""Four words are sure before the first end, eleven before the second."""


class Silent:
    """Believes nothing."""

    def found(self, slot: int, texts: Sequence[int]) -> None: ...
    def lost(self, slot: int, texts: Sequence[int]) -> None: ...
    def cleared(self, slot: int) -> None: ...
    def unsure(self, slot: int, texts: Sequence[int]) -> None: ...


class Server:
    """Counts the questions."""

    def __init__(self, folder: Path, status: str = "200 OK", answer: bytes | None = None) -> None:
        self.path = folder / "s"
        self.asked: list[dict[str, object]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._status = status
        self._answer = answer

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        server = await asyncio.start_unix_server(self._serve, self.path)
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        assert asked.startswith(b"POST /tokenize HTTP/1.1\r\n")
        length = int(asked.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        question = orjson.loads(await reader.readexactly(length))
        self.asked.append(question)
        await self.gate.wait()
        words = question["prompt"].split(" ")
        pieces = [words[0], *("\u0120" + word for word in words[1:])]
        answer = self._answer or orjson.dumps({"tokens": list(range(len(words))), "token_strs": pieces})
        writer.write(
            b"HTTP/1.1 %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (self._status.encode(), len(answer))
        )
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def answered(server: Server, hashes: Sequence[int] = HASHES, text: bytes = TEXT) -> Answered:
    question = {"model": "m", "prompt": TEXT.decode()}
    return Answered(0, f"unix:{server.path}", None, question, text, hashes, ENDS)


def computed() -> tuple[PreciseIndex, EngineCache]:
    """The engine says that it holds the six blocks of two words each."""
    index = PreciseIndex(Silent())
    (cache,) = index.add(0)
    cache.cleared()
    cache.stored(range(6), None, range(12), 2, [()] * 6, None, 0)
    return index, cache


async def until_asked(server: Server, times: int) -> None:
    async with asyncio.timeout(10):
        while len(server.asked) < times:  # noqa: ASYNC110  (what is waited for is at the other end of a socket)
            await asyncio.sleep(0.005)


async def test_texts_are_linked_to_what_lies_before_their_ends(tmp_path: Path) -> None:
    index, cache = computed()
    async with Server(tmp_path).running() as server, Upstream(Timeouts()) as upstream:
        assert await Linker(upstream, index).link(answered(server)) == 2
        assert server.asked == [{"model": "m", "prompt": TEXT.decode(), "return_token_strs": True}]
    cache.removed([2], 0)  # words five and six: the second text's
    assert [index.holds(0, text) for text in HASHES] == [True, False]


async def test_what_is_linked_is_not_asked_for_again(tmp_path: Path) -> None:
    index, _ = computed()
    async with Server(tmp_path).running() as server, Upstream(Timeouts()) as upstream:
        linker = Linker(upstream, index)
        async with linker.running():
            assert linker.offer(answered(server))
            async with asyncio.timeout(10):
                while not index.is_linked(HASHES[-1]):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            assert not linker.offer(answered(server))
            assert linker.offer(answered(server, (*HASHES, 103, 104)))  # the conversation has gone on


async def test_what_cannot_be_linked_is_not_asked_for(tmp_path: Path) -> None:
    async with Upstream(Timeouts()) as upstream:
        server = Server(tmp_path)
        linker = Linker(upstream, computed()[0])
        assert not linker.offer(answered(server, hashes=()))
        assert not linker.offer(answered(server, text=b"x" * (2**20 + 1)))
        assert not Linker(upstream, PreciseIndex(Silent())).offer(answered(server))  # its engine publishes nothing


async def test_what_cannot_be_placed_is_tried_three_times(tmp_path: Path) -> None:
    async with Upstream(Timeouts()) as upstream:
        linker = Linker(upstream, computed()[0])
        unplaced = answered(Server(tmp_path))
        assert [linker.offer(unplaced) for _ in range(5)] == [True, True, True, False, False]
        for text in range(5000):
            linker.offer(unplaced._replace(hashes=(text,)))
        assert len(linker._tried) == 4096


async def test_a_few_at_a_time_and_of_too_many_the_oldest_go(tmp_path: Path) -> None:
    async with Server(tmp_path).running() as server, Upstream(Timeouts()) as upstream:
        server.gate.clear()
        linker = Linker(upstream, computed()[0])
        async with linker.running():
            for text in range(4):
                linker.offer(answered(server, (text,)))
            await until_asked(server, 4)
            for text in range(100):
                linker.offer(answered(server, (1000 + text,)))
            assert len(server.asked) == 4
            server.gate.set()
            await until_asked(server, 4 + 64)
            assert not linker._waiting


async def test_an_engine_that_does_not_answer_so_costs_nothing_but_the_link(tmp_path: Path) -> None:
    index, _ = computed()
    async with Upstream(Timeouts()) as upstream:
        async with Server(tmp_path, "404 Not Found").running() as server:
            assert await Linker(upstream, index).link(answered(server)) == 0
        linker = Linker(upstream, index)
        async with linker.running():
            async with Server(tmp_path, answer=b"{}").running() as odd:
                linker.offer(answered(odd))
                await until_asked(odd, 1)
            async with Server(tmp_path).running() as server:
                linker.offer(answered(server))
                async with asyncio.timeout(10):
                    while not index.is_linked(HASHES[-1]):  # noqa: ASYNC110
                        await asyncio.sleep(0.005)
