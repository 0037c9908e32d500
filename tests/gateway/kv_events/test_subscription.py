"""Over real sockets, from a publisher that numbers, keeps and replays batches as vLLM's does."""

import asyncio
from pathlib import Path

import pytest

from gateway.kv_events.heard import Heard
from gateway.kv_events.source import Source
from gateway.kv_events.subscription import subscribed
from tests.gateway.kv_events.batches import Told
from tests.gateway.kv_events.publisher import Publisher, until


def lines(*seqs: int) -> list[str]:
    return [f"stored {seq} behind None" for seq in seqs]


async def test_what_is_published_is_told_and_what_was_before_is_asked_for(tmp_path: Path) -> None:
    told = Told()
    async with Publisher(tmp_path).running() as publisher:
        await publisher.make()
        async with subscribed(publisher.source, told, "m/0"):
            await until(lambda: told.lines[1:] == ["cleared", *lines(0)])
            await publisher.make()
            await until(lambda: told.lines[2:] == lines(0, 1))
        assert told.lines[0] == told.lines[-1] == "forgotten"


async def test_a_gap_is_asked_for(tmp_path: Path) -> None:
    told, heard = Told(), Heard()
    async with Publisher(tmp_path).running() as publisher, subscribed(publisher.source, told, "m/0", heard):
        await publisher.make()
        await until(lambda: told.lines[1:] == ["cleared", *lines(0)])
        for is_lost in (True, True, False):
            await publisher.make(is_lost=is_lost)
        await until(lambda: told.lines[2:] == lines(0, 1, 2, 3))
        assert publisher.asked[-1] == 1
        assert (heard.events, heard.gaps, heard.losses) == (4, 1, 0)
        assert heard.replays == len(publisher.asked)


async def test_a_gap_that_is_not_kept_is_told(tmp_path: Path) -> None:
    told, heard = Told(), Heard()
    async with (
        Publisher(tmp_path, most_kept=2).running() as publisher,
        subscribed(publisher.source, told, "m/0", heard),
    ):
        await publisher.make()
        await until(lambda: told.lines[1:] == ["cleared", *lines(0)])
        for is_lost in (True, True, True, False):
            await publisher.make(is_lost=is_lost)
        await until(lambda: told.lines[3:] == ["forgotten", *lines(3, 4)])
        assert (heard.gaps, heard.losses) == (1, 1)


async def test_a_restart_begins_anew_though_the_numbers_would_fit(tmp_path: Path) -> None:
    """The new one has published 0, 1 and 2 before we are back, and then 3, which would have been the next."""
    told = Told()
    first, second = Publisher(tmp_path), Publisher(tmp_path)
    async with first.running(), subscribed(first.source, told, "m/0"):
        for _ in range(3):
            await first.make()
        await until(lambda: told.lines[1:] == ["cleared", *lines(0, 1, 2)])
        first._out.close(0)
        first._questions.close(0)
        async with second.running():
            for _ in range(3):
                await second.make(is_lost=True)
            await until(lambda: told.lines[5:] == ["forgotten", "cleared", *lines(0, 1, 2)])
            await second.make()
            await until(lambda: told.lines[-1:] == lines(3))


async def test_a_replay_with_holes_is_asked_for_again_from_each(tmp_path: Path) -> None:
    told = Told()
    async with Publisher(tmp_path).running() as publisher:
        for _ in range(9):
            await publisher.make(is_lost=True)
        publisher.dropped = [3, 8]  # the last one: nothing shows it until the next batch comes
        async with subscribed(publisher.source, told, "m/0"):
            await until(lambda: told.lines[-1:] == lines(7))
            assert publisher.asked == [0, 3]
            await publisher.make()
            await until(lambda: told.lines[-1:] == lines(9))
        assert publisher.asked == [0, 3, 8]
        assert told.lines[1:-1] == ["cleared", *lines(*range(10))]


async def test_a_long_replay_comes_whole(tmp_path: Path) -> None:
    """Longer than what ZeroMQ keeps for a slow reader (1000 batches)."""
    told = Told()
    async with Publisher(tmp_path).running() as publisher:
        for _ in range(5000):
            await publisher.make(is_lost=True)
        async with subscribed(publisher.source, told, "m/0"):
            await until(lambda: len(told.lines) == 5002)
        assert told.lines[1:5002] == ["cleared", *lines(*range(5000))]


async def test_without_a_replay_endpoint_what_was_before_stays_unknown(tmp_path: Path) -> None:
    told = Told()
    async with Publisher(tmp_path).running() as publisher:
        for _ in range(7):
            await publisher.make()
        source = Source(0, publisher.source.endpoint, None, "")
        async with subscribed(source, told, "m/0"):
            async with asyncio.timeout(10):
                while len(told.lines) < 3:  # nothing says when a subscription has begun; what comes before is missed
                    await publisher.make()
                    await asyncio.sleep(0.01)
            first = int(told.lines[1].split()[1])
            assert first >= 7
            assert told.lines[:3] == ["forgotten", *lines(first, first + 1)]


async def test_a_sink_that_fails_is_told_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Told):
        def stored(self, *fields: object) -> None:
            super().stored(*fields)
            if len(self.lines) == 3:
                raise ZeroDivisionError

    told = Failing()
    async with Publisher(tmp_path).running() as publisher, subscribed(publisher.source, told, "m/0"):
        await publisher.make()
        await until(lambda: told.lines[3:] == ["forgotten", "cleared", *lines(0)])
    assert "m/0: its KV events could not be read" in caplog.text
