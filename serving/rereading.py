"""A configuration file that is read again while the gateway runs: by SIGHUP or over HTTP, one at a time."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from gateway.app import Gateway
from gateway.errors import ConfigError as GatewayConfigError
from serving.door_config import DoorConfig
from serving.errors import ServingError
from serving.signals import on_hangup

_log = logging.getLogger("berth.serving")
C = TypeVar("C", bound=DoorConfig)


class Rereading(ABC, Generic[C]):
    """The configuration in force, `config`, and who follows it, while `is_open`. `again` reads it anew (and raises
    ConfigError); None: there is nothing to read."""

    def __init__(self, config: C, again: Callable[[], C] | None, gateway: Gateway) -> None:
        self.config = config
        self.is_open = False
        self._again = again
        self._gateway = gateway
        self._turn = asyncio.Lock()
        self._asked: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def _follow(self, new: C) -> tuple[str, ...]:
        """Put `new` in force, whole or not at all: what changed, a line each. Raises what `reload` turns into one
        error."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGHUP and POST /admin/reload while the block runs, if there is anything to read again."""
        if self._again is None:
            yield
            return
        again = self._again

        async def reload() -> tuple[str, ...]:
            return await self.reload(again)

        def hung_up() -> None:
            task = asyncio.create_task(self._reload_and_say(again), name="reload")
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)

        self._gateway.reload = reload
        with on_hangup(hung_up):
            yield
        self._gateway.reload = None

    async def reload(self, again: Callable[[], C]) -> tuple[str, ...]:
        """What changed, a line each. Raises the gateway's ConfigError, and then nothing did."""
        async with self._turn:
            if not self.is_open:
                raise GatewayConfigError("engines are still starting, or stopping already")
            try:
                lines = await self._follow(await asyncio.to_thread(again))
            except (ServingError, OSError) as error:
                raise GatewayConfigError(str(error)) from error
            for line in lines or ("nothing changed",):
                _log.info("configuration read again: %s", line)
            return lines

    async def _reload_and_say(self, again: Callable[[], C]) -> None:
        try:
            await self.reload(again)
        except GatewayConfigError as error:
            _log.error("the old configuration stays in force: %s", error)
