"""The one timer of all requests in flight."""

import asyncio

from gateway.watch import Watch


class Request:
    """Notes what time it was told; may leave when told."""

    def __init__(self, watch: Watch, third: asyncio.Event | None = None) -> None:
        self.told: list[float] = []
        self._third = third
        self._watch = watch
        self.leaves = False

    def tick(self, now_s: float) -> None:
        self.told.append(now_s)
        if self.leaves:
            self._watch.discard(self)
        if self._third is not None and len(self.told) >= 3:
            self._third.set()


def test_each_request_in_flight_is_told_the_time_and_none_that_has_left() -> None:
    times = iter([1.0, 2.0])
    watch = Watch(lambda: next(times))
    stays, leaves = Request(watch), Request(watch)
    leaves.leaves = True
    watch.add(stays)
    watch.add(leaves)
    watch.tick()
    watch.tick()
    assert (stays.told, leaves.told) == ([1.0, 2.0], [1.0])


def test_it_ticks_for_as_long_as_the_block_runs() -> None:
    watch = Watch(lambda: 5.0, interval_s=0.001)
    third = asyncio.Event()
    request = Request(watch, third=third)
    watch.add(request)

    async def run() -> None:
        loop, later = asyncio.get_running_loop(), asyncio.Event()
        with watch.ticking(loop):
            await asyncio.wait_for(third.wait(), 20)
        told = len(request.told)
        loop.call_later(0.02, later.set)  # behind where the next tick would have been
        await later.wait()
        assert len(request.told) == told

    asyncio.run(run())
