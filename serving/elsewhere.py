"""The engines of one `berth gateway` while it runs: started by others, taken in and let go as its file says."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from gateway.app import Gateway
from gateway.background import ended, working
from gateway.replica import Replica
from serving.door_change import compare_front
from serving.door_config import door_settings
from serving.environment import Environment, named_key
from serving.errors import ConfigError
from serving.front import EngineSection, FrontConfig
from serving.rereading import Rereading

_log = logging.getLogger("berth.serving")
_POLL_S = 0.2
_SEEN_BY_S = 60.0  # who has not been seen by then is not waited for


def engine_keys(engines: Sequence[EngineSection], api_key: str | None) -> dict[str, str | None]:
    """The key of each engine, by its URL; `api_key` is that of those that name no variable. Raises ConfigError."""
    return {
        engine.url: named_key(engine.api_key_env, f"engine '{engine.name}'") if engine.api_key_env else api_key
        for engine in engines
    }


class Elsewhere(Rereading[FrontConfig]):
    """Engines are known by their URLs. One that is named no more gets no new requests, and is forgotten when those it
    has are answered; we could not end it, so that nothing bounds that but the limits on every request."""

    def __init__(
        self,
        config: FrontConfig,
        again: Callable[[], FrontConfig] | None,
        environment: Environment,
        gateway: Gateway,
        api_key: str | None,
    ) -> None:
        super().__init__(config, again, gateway)
        self._environment = environment
        self._api_key = api_key
        self._leaving: set[asyncio.Task[None]] = set()
        self._use(config.engines, engine_keys(config.engines, api_key))

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Say which names turn out to be nobody's, once for each configuration, while the block runs."""
        async with working(self._watch(), "look for unserved names"):
            yield
        for task in list(self._leaving):
            await ended(task)

    async def _follow(self, new: FrontConfig) -> tuple[str, ...]:
        lines = compare_front(self.config, new)
        settings = door_settings(new, self._environment)
        keys = engine_keys(new.engines, self._api_key)
        self._check_names(new)
        self.config = new
        self._gateway.reconfigure(settings)
        self._use(new.engines, keys)
        return lines

    def _check_names(self, new: FrontConfig) -> None:
        """Who has left the file may be here yet, under a name that somebody else is to have now."""
        pool = self._gateway.pool
        engines = {replica.name: replica.url for replica in pool.replicas}
        names = {replica.url: replica.name for replica in pool.replicas}
        remotes = {remote.name for remote in pool.remotes}
        for engine in new.engines:
            if names.get(engine.url, engine.name) != engine.name:
                raise ConfigError(
                    f"{engine.url} is '{names[engine.url]}' until it has answered what it has: give it that 'name'"
                )
            if engines.get(engine.name, engine.url) != engine.url:
                raise ConfigError(
                    f"engine '{engine.name}' is {engines[engine.name]}, which has to answer what it has first: give "
                    f"{engine.url} another 'name'"
                )
            if engine.name in remotes:
                raise ConfigError(f"'{engine.name}' was a remote: give the engine another 'name', or restart berth")
        for remote in new.remotes:
            if remote.name in engines:
                raise ConfigError(f"'{remote.name}' is an engine's name: give the remote another, or restart berth")

    def _use(self, engines: Sequence[EngineSection], keys: dict[str, str | None]) -> None:
        known = {replica.url: replica for replica in self._gateway.pool.replicas}
        for engine in engines:
            replica = known.pop(engine.url, None)
            if replica is None:
                self._gateway.add(Replica(engine.name, engine.url, api_key=keys[engine.url]))
                continue
            replica.api_key = keys[engine.url]
            if replica.state == "draining":
                replica.state = "unhealthy"  # until a probe says otherwise
        for replica in known.values():
            if replica.state != "draining":
                self._let_go(replica)

    def _let_go(self, replica: Replica) -> None:
        replica.state = "draining"
        task = asyncio.create_task(self._leave(replica), name=f"let {replica.name} go")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave(self, replica: Replica) -> None:
        while replica.in_flight and replica.state == "draining":  # noqa: ASYNC110  (the hot path pays for no event)
            await asyncio.sleep(_POLL_S)
        pool = self._gateway.pool
        if replica.state == "draining" and replica in pool.replicas:  # it may be back, or be let go a second time
            await pool.remove(replica)
            _log.info("%s has left", replica.name)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        current, told, since_s = self.config, False, loop.time()
        while True:
            await asyncio.sleep(_POLL_S)
            if self.config is not current:
                current, told, since_s = self.config, False, loop.time()
            if not told and self._has_seen_them(patient=loop.time() < since_s + _SEEN_BY_S):
                told = True
                self._tell_unserved()

    def _has_seen_them(self, *, patient: bool) -> bool:
        there = [bool(replica.models) for replica in self._gateway.pool.replicas if replica.state != "draining"]
        return all(there) if patient else any(there)

    def _tell_unserved(self) -> None:
        served = [card.name for r in self._gateway.pool.replicas if r.state != "draining" for card in r.models]
        missing = self.config.unserved(frozenset(served))
        if missing:
            names = ", ".join(dict.fromkeys(served))
            _log.warning("no engine serves %s, as the configuration has it; served: %s", ", ".join(missing), names)
