"""Puts `berth serve`'s configuration, read again, in force: settings at once, engines in the background."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from gateway.app import Gateway
from serving.change import Change, compare
from serving.config import StackConfig, child_environment, key_variables
from serving.door_config import door_settings
from serving.environment import Environment
from serving.errors import PlacementError
from serving.fleet import Fleet, numbered_apart
from serving.placement import Folders, Placement
from serving.rereading import Rereading
from serving.supervisor import Supervisor
from sizing.errors import SizingError

Again = Callable[[], StackConfig]
"""Reads the configuration anew. Raises ConfigError."""


class Reloader(Rereading[StackConfig]):
    """The engines follow too. `place` puts them on what is free; it is called in a thread."""

    def __init__(
        self,
        config: StackConfig,
        again: Again | None,
        environment: Environment,
        gateway: Gateway,
        folders: Folders,
        place: Callable[[StackConfig, Folders], list[Placement]],
    ) -> None:
        super().__init__(config, again, gateway)
        self.fleet = Fleet(gateway, self._keep)
        self._environment = environment
        self._folders = folders
        self._place = place
        self._reloads = 0

    async def _follow(self, new: StackConfig) -> tuple[str, ...]:
        change = compare(self.config, new)
        settings = door_settings(new, self._environment)
        added = await self._placed(new, change)
        self.config = new
        self._gateway.reconfigure(settings)
        self.fleet.grow(added)
        for model, count in change.removed:
            self.fleet.shrink(model, count, new.gateway.drain_timeout_s)
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
        try:
            placements = await asyncio.to_thread(self._place, wanted, folders)
        except SizingError as error:
            raise PlacementError(str(error)) from error
        return [
            replace(placement, spec=replace(placement.spec, name=name))
            for placement, name in numbered_apart(placements, self.fleet.names())
        ]

    def _keep(self, placement: Placement) -> Supervisor:
        environment = partial(child_environment, secrets=key_variables(self.config))
        return Supervisor(placement, self._gateway, environment, start_timeout_s=self.config.start_timeout_s)
