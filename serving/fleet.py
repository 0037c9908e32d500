"""The engines of one `berth serve` while it runs: started, added to, taken from, ended."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from gateway.app import Gateway
from serving.errors import StartError
from serving.placement import Placement
from serving.progress import Progress
from serving.signals import Signals
from serving.supervisor import Supervisor

_log = logging.getLogger("berth.serving")
_POLL_S = 0.1


class Fleet:
    """Every supervisor and its task. An engine that was there from the start and cannot be kept ends the service; one
    that was added later and does not come up is only left out again."""

    def __init__(self, gateway: Gateway, keep: Callable[[Placement], Supervisor]) -> None:
        self._gateway = gateway
        self._keep = keep
        self._tasks: dict[Supervisor, asyncio.Task[None]] = {}
        self._leaving: dict[Supervisor, asyncio.Task[None]] = {}
        self._first: list[Supervisor] = []
        self._broken = asyncio.Event()

    @property
    def supervisors(self) -> list[Supervisor]:
        """Of the engines that are to stay, in the order of their start."""
        return [supervisor for supervisor in self._tasks if supervisor not in self._leaving]

    def take(self, placements: Iterable[Placement]) -> None:
        """The engines that the service stands on: known to the gateway from now on."""
        self._first = [self._keep(placement) for placement in placements]

    def start(self) -> None:
        """Start those."""
        for supervisor in self._first:
            task = asyncio.create_task(supervisor.run(), name=supervisor.placement.spec.name)
            task.add_done_callback(self._ended)
            self._tasks[supervisor] = task

    async def ready(self, progress: Progress, signals: Signals) -> None:
        """Until every engine is ready or a stop is asked for; raises the first StartError."""
        supervisors = self.supervisors
        with progress.engines(supervisors) as show:
            while not signals.stop.is_set() and not all(s.ready.is_set() for s in supervisors):
                show()
                self._raise_what_broke()
                await asyncio.sleep(_POLL_S)
            show()

    async def serve(self, signals: Signals) -> None:
        """Until a stop is asked for; raises what ended a supervisor, since an engine nobody keeps is no service."""
        waits = [asyncio.create_task(event.wait()) for event in (signals.stop, self._broken)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self._raise_what_broke()

    def grow(self, placements: Iterable[Placement]) -> None:
        """Start more; requests go to each as soon as it is ready."""
        for supervisor in [self._keep(placement) for placement in placements]:
            self._tasks[supervisor] = asyncio.create_task(self._added(supervisor))

    def shrink(self, model: str, count: int, patience_s: float) -> list[str]:
        """End `count` replicas of `model`, the last ones: no new requests now, the end when those there are answered
        or `patience_s` is over. Returns their names."""
        ours = [s for s in self.supervisors if s.placement.spec.served_model_name == model]
        chosen = ours[len(ours) - count :]
        for supervisor in chosen:
            supervisor.retire()
            self._leaving[supervisor] = asyncio.create_task(self._leave(supervisor, patience_s))
        return [supervisor.placement.spec.name for supervisor in chosen]

    def names(self) -> set[str]:
        """Of every replica, such as are leaving included."""
        return {supervisor.placement.spec.name for supervisor in self._tasks}

    async def end(self, signals: Signals) -> None:
        """Stop every engine; a second signal kills them."""
        supervisors = list(self._tasks)

        async def kill_when_hurried() -> None:
            await signals.hurry.wait()
            for supervisor in supervisors:
                supervisor.kill()

        impatient = asyncio.create_task(kill_when_hurried())
        for task in self._leaving.values():
            task.cancel()
        await asyncio.gather(*(supervisor.stop() for supervisor in supervisors))
        await asyncio.gather(*self._tasks.values(), *self._leaving.values(), return_exceptions=True)
        impatient.cancel()

    async def _added(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
        except StartError as error:
            _log.error("%s is left out: %s; the whole log: %s", supervisor.placement.spec.name, error, error.log_path)
            await self._forget(supervisor)

    async def _leave(self, supervisor: Supervisor, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience_s
        replica = supervisor.replica
        while replica.in_flight and loop.time() < deadline:  # noqa: ASYNC110  (the hot path pays for no event)
            await asyncio.sleep(_POLL_S)
        await supervisor.stop()
        await asyncio.gather(self._tasks[supervisor], return_exceptions=True)
        _log.info("%s has left", replica.name)
        await self._forget(supervisor)

    async def _forget(self, supervisor: Supervisor) -> None:
        if supervisor.replica in self._gateway.pool.replicas:
            await self._gateway.pool.remove(supervisor.replica)
        self._tasks.pop(supervisor, None)
        self._leaving.pop(supervisor, None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._broken.set()

    def _raise_what_broke(self) -> None:
        for task in self._tasks.values():
            if task.done():
                task.result()


def numbered_apart(placements: Sequence[Placement], taken: set[str]) -> Iterable[tuple[Placement, str]]:
    """Each placement with a replica's name that is not taken yet: `m/2` after `m/0` and `m/1`."""
    used = set(taken)
    for placement in placements:
        model, number = placement.spec.served_model_name, 0
        while f"{model}/{number}" in used:
            number += 1
        used.add(f"{model}/{number}")
        yield placement, f"{model}/{number}"
