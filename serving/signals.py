"""The signals that a running `berth` listens to."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Signals:
    """Ctrl-C, SIGTERM, or a terminal that is closed: the first asks to stop in order, the second not to wait."""

    stop: asyncio.Event
    hurry: asyncio.Event

    @classmethod
    @contextmanager
    def handled(cls, say: Callable[[str], object]) -> Iterator["Signals"]:
        """Take over these signals while the block runs; `say` takes a line for who pressed the keys."""
        signals = cls(asyncio.Event(), asyncio.Event())

        def received() -> None:
            if signals.stop.is_set():
                signals.hurry.set()
            else:
                signals.stop.set()
                say("\nstopping; press Ctrl-C again not to wait for running requests")

        loop = asyncio.get_running_loop()
        for signum in _ENDS:
            loop.add_signal_handler(signum, received)
        try:
            yield signals
        finally:
            for signum in _ENDS:
                loop.remove_signal_handler(signum)


@contextmanager
def on_hangup(received: Callable[[], None]) -> Iterator[None]:
    """Call `received` at each SIGHUP while the block runs, which would ask the process to stop otherwise."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, received)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
