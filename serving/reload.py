"""Puts a configuration that was read again in force: settings at once, engines in the background."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from gateway.app import Gateway
from gateway.errors import ConfigError as GatewayConfigError
from serving.change import Change, compare
from serving.config import StackConfig, child_environment, gateway_config, key_variables
from serving.environment import Environment
from serving.errors import ServingError
from serving.fleet import Fleet, numbered_apart
from serving.placement import Folders, Placement
from serving.signals import on_hangup
from serving.supervisor import Supervisor
from sizing.errors import SizingError

_log = logging.getLogger("berth.serving")

Again = Callable[[], StackConfig]
"""Reads the configuration anew. Raises ConfigError."""


class Reloader:
    """One reload after the other, while `is_open`. `place` puts engines on what is free; it is called in a thread."""

    def __init__(
        self,
        config: StackConfig,
        again: Again | None,
        environment: Environment,
        gateway: Gateway,
        folders: Folders,
        place: Callable[[StackConfig, Folders], list[Placement]],
    ) -> None:
        self.config = config
        self.fleet = Fleet(gateway, self._keep)
        self.is_open = False
        self._again = again
        self._environment = environment
        self._gateway = gateway
        self._folders = folders
        self._place = place
        self._reloads = 0
        self._turn = asyncio.Lock()
        self._asked: set[asyncio.Task[None]] = set()

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

    async def reload(self, again: Again) -> tuple[str, ...]:
        """What changed, a line each. Raises the gateway's ConfigError, and then nothing did."""
        async with self._turn:
            if not self.is_open:
                raise GatewayConfigError("engines are still starting, or stopping already")
            try:
                return await self._reload(again)
            except (ServingError, SizingError, OSError) as error:
                raise GatewayConfigError(str(error)) from error

    async def _reload(self, again: Again) -> tuple[str, ...]:
        new = await asyncio.to_thread(again)
        change = compare(self.config, new)
        settings = gateway_config(new.gateway, self._environment, new.models, new.remotes, new.routes)
        added = await self._placed(new, change)
        self.config = new
        self._gateway.reconfigure(settings)
        self.fleet.grow(added)
        for model, count in change.removed:
            self.fleet.shrink(model, count, new.gateway.drain_timeout_s)
        for line in change.lines or ("nothing changed",):
            _log.info("configuration read again: %s", line)
        return change.lines

    async def _placed(self, new: StackConfig, change: Change) -> list[Placement]:
        """The added engines; their sockets and logs lie apart from those of the running ones."""
        if not change.added:
            return []
        self._reloads += 1
        name = f"reload-{self._reloads}"
        folders = Folders(self._folders.sockets / name, self._folders.logs / name)
        folders.sockets.mkdir()
        wanted = new.model_copy(update={"models": change.added})
        placements = await asyncio.to_thread(self._place, wanted, folders)
        return [
            replace(placement, spec=replace(placement.spec, name=name))
            for placement, name in numbered_apart(placements, self.fleet.names())
        ]

    def _keep(self, placement: Placement) -> Supervisor:
        environment = partial(child_environment, secrets=key_variables(self.config))
        return Supervisor(placement, self._gateway, environment, start_timeout_s=self.config.start_timeout_s)

    async def _reload_and_say(self, again: Again) -> None:
        try:
            await self.reload(again)
        except GatewayConfigError as error:
            _log.error("the old configuration stays in force: %s", error)
