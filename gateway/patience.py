"""Ends connections whose client keeps the gateway waiting: one ticker for all of them, no timer for each."""

import asyncio
from typing import Protocol

_TICKS = 8


class Connection(Protocol):
    """A client's connection, as far as waiting for it goes."""

    def waits_for(self) -> object:
        """What the client should do next, and how far it has come with it; None when the wait is not for the client."""

    def give_up(self) -> None:
        """It has not come any further for too long."""


class Patience:
    """Asks every connection at equal intervals; one with the same answer in all of `timeout_s` is given up.

    Nothing is counted while requests pass, so that this costs them nothing; an end is at most an eighth late.
    """

    def __init__(self, timeout_s: float) -> None:
        self._interval_s = timeout_s / _TICKS
        self._waits: dict[Connection, tuple[object, int]] = {}
        self._ticker: asyncio.TimerHandle | None = None

    def use(self, timeout_s: float) -> None:
        """Wait so long from the next interval on."""
        self._interval_s = timeout_s / _TICKS

    def add(self, connection: Connection) -> None:
        """Watch it from now on."""
        self._waits[connection] = (None, 0)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(self._interval_s, self.tick)

    def discard(self, connection: Connection) -> None:
        """It is closed."""
        self._waits.pop(connection, None)
        if not self._waits and self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    def tick(self) -> None:
        """One interval has passed."""
        given_up = []
        for connection, (before, ticks) in self._waits.items():
            now = connection.waits_for()
            ticks = ticks + 1 if now is not None and now == before else 0
            self._waits[connection] = (now, ticks)
            if ticks >= _TICKS:
                given_up.append(connection)
        self._ticker = asyncio.get_running_loop().call_later(self._interval_s, self.tick)
        for connection in given_up:
            connection.give_up()
