import asyncio
import logging
from collections.abc import Sequence

import pytest

from gateway.ledger import Ledger
from gateway.settlement import Settlement
from tests.gateway.settling import DONE, settled


class _Reader:
    """Remembers its batches, and says so."""

    def __init__(self) -> None:
        self.batches: list[list[Settlement]] = []
        self.offsets: set[float] = set()
        self.called = asyncio.Event()

    def __call__(self, batch: Sequence[Settlement], offset_s: float) -> None:
        self.batches.append(list(batch))
        self.offsets.add(offset_s)
        self.called.set()

    @property
    def ids(self) -> list[str]:
        return [done.request_id for batch in self.batches for done in batch]


def _numbered(count: int) -> list[Settlement]:
    return [settled(request_id=f"req_{i}") for i in range(count)]


async def test_a_few_are_handed_on_together_a_moment_later_by_the_walls_clock() -> None:
    reader = _Reader()
    ledger = Ledger([reader], clock=lambda: 100.0, wall=lambda: 1_000_100.0)
    few = _numbered(3)
    for done in few:
        ledger.add(done)
    assert reader.batches == []
    await asyncio.wait_for(reader.called.wait(), 20)
    assert reader.batches == [few]
    assert reader.offsets == {1_000_000.0}


async def test_many_are_handed_on_before_there_are_more_than_can_be_written_at_once() -> None:
    reader = _Reader()
    ledger = Ledger([reader])
    for done in _numbered(1000):
        ledger.add(done)
        await asyncio.sleep(0)
    ledger.flush()
    assert max(len(batch) for batch in reader.batches) <= 260
    assert reader.ids == [done.request_id for done in _numbered(1000)]


async def test_a_reader_that_fails_takes_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def fails(batch: Sequence[Settlement], offset_s: float) -> None:
        raise OSError("disk full")

    reader = _Reader()
    ledger = Ledger([fails, reader])
    for round_ in range(2):
        ledger.add(_numbered(2)[round_])
        ledger.flush()
    assert reader.ids == ["req_0", "req_1"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "disk full" in caplog.text


async def test_nothing_is_handed_on_twice_or_empty() -> None:
    reader = _Reader()
    ledger = Ledger([reader])
    ledger.flush()
    ledger.add(DONE)
    ledger.flush()
    ledger.flush()
    assert reader.batches == [[DONE]]
