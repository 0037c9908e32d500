"""Keeps one engine alive: start, wait for its own health, read back its KV capacity, restart with back-off."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Literal

from gateway.app import Gateway
from gateway.figures import EngineFigures, read_figures
from gateway.replica import ModelCard, Replica
from serving.engine import EngineProcess
from serving.errors import StartError
from serving.placement import Placement

_log = logging.getLogger("berth.serving")
_POLL_S = 0.1
_FIGURES_S = 5.0
_START_PATIENCE_S = 1.0
_BACK_OFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_SETTLED_S = 60.0  # an engine that was up this long starts the back-off afresh


def back_off_s(failures: int) -> float:
    """How long to wait before the start after `failures` in a row that did not last: 0, 1, 2, 4, ... at most 30 s."""
    return _BACK_OFF_S[min(failures, len(_BACK_OFF_S)) - 1] if failures else 0.0


State = Literal["starting", "ready", "restarting", "stopping", "stopped"]


class Supervisor:
    """One engine's keeper. `run` returns after `stop`; it raises StartError only if the very first start fails."""

    def __init__(
        self,
        placement: Placement,
        gateway: Gateway,
        make_environment: Callable[[Mapping[str, str]], dict[str, str]],
        *,
        start_timeout_s: float,
    ) -> None:
        self.placement = placement
        self.state: State = "starting"
        self.stage = ""
        self.ready = asyncio.Event()
        self.confirmed: EngineFigures | None = None
        self.restarts = 0
        self.is_up = False
        self.process: EngineProcess | None = None
        spec = placement.spec
        card = ModelCard(spec.served_model_name, placement.answer.settings.max_model_len)
        self.replica = Replica(
            spec.name,
            spec.url,
            (card,),
            predicted_kv_tokens=placement.answer.kv_cache_tokens,
            max_num_seqs=placement.answer.settings.max_num_seqs,
        )
        self._gateway = gateway
        self._make_environment = make_environment
        self._start_timeout_s = start_timeout_s
        self._stopping = asyncio.Event()
        gateway.add(self.replica)

    async def run(self) -> None:
        """Start the engine and keep it up until `stop`."""
        failures = 0
        while not self._stopping.is_set():
            up_s = await self._guarded_life(first=self.restarts == 0)
            if self._stopping.is_set():
                break
            failures = 0 if up_s > _SETTLED_S else failures + 1
            pause_s = back_off_s(failures)
            self.restarts += 1
            self.state = "restarting"
            _log.warning("%s: restart %d in %.0f s", self.placement.spec.name, self.restarts, pause_s)
            await self._pause(pause_s)
        self.state = "stopped"

    def retire(self) -> None:
        """Take no more requests here, and do not start it again; what runs there goes on until `stop`."""
        self._stopping.set()
        self.state = "stopping"
        self.replica.state = "draining"

    async def stop(self) -> None:
        """Take no more requests here, then end the engine; it is killed if it does not end in time."""
        self.retire()
        process = self.process
        if process is None:
            return
        process.terminate()
        # an engine that was never ready has nothing to drain, and vLLM does not listen to SIGTERM while it starts
        patience_s = self.placement.spec.drain_s + 20 if self.is_up else _START_PATIENCE_S
        deadline = asyncio.get_running_loop().time() + patience_s
        while process.exit_status() is None:
            if asyncio.get_running_loop().time() > deadline:
                if self.is_up:
                    _log.warning("%s did not end in time and is killed", self.placement.spec.name)
                process.kill()
                deadline += 3600
            await asyncio.sleep(_POLL_S)

    def kill(self) -> None:
        """End it now."""
        if self.process is not None:
            self.process.kill()

    async def _guarded_life(self, *, first: bool) -> float:
        """A life that could not even begin (no process, no file, no disk left) counts as one that failed."""
        try:
            return await self._one_life(first=first)
        except OSError as error:
            spec = self.placement.spec
            _log.error("%s cannot be started: %s", spec.name, error)
            if first:
                raise StartError(f"{spec.name}: {error}", log_path=spec.log_path, last_lines=()) from error
            return 0.0

    async def _one_life(self, *, first: bool) -> float:
        """From start to exit; returns how long it was ready, in seconds."""
        self.state = "starting"
        self.replica.state = "starting"
        spec = self.placement.spec
        if self.process is not None:
            self.process.kill()  # whatever a killed guard left behind; it must not answer for its successor
            await self._gateway.upstream.forget(spec.url)
        self.process = process = EngineProcess(spec, self._make_environment(spec.env))
        if not await self._becomes_ready(process):
            if first and not self._stopping.is_set():
                raise self._start_error(process)
            return 0.0
        loop = asyncio.get_running_loop()
        since = loop.time()
        self.state = "ready"
        self.is_up = True
        await self._confirm()
        self.ready.set()
        while (status := process.exit_status()) is None:  # noqa: ASYNC110  (a child process sets no event)
            await asyncio.sleep(_POLL_S)
        if not self._stopping.is_set():
            self.is_up = False
            self.replica.state = "starting"
            _log.error("%s ended unexpectedly (status %d); log: %s", spec.name, status, spec.log_path)
        return loop.time() - since

    async def _becomes_ready(self, process: EngineProcess) -> bool:
        """Wait for the engine's own /health, as the gateway's probes see it."""
        deadline = asyncio.get_running_loop().time() + self._start_timeout_s
        while self.replica.state != "ready":
            if process.exit_status() is not None or self._stopping.is_set():
                return False
            if asyncio.get_running_loop().time() > deadline:
                process.kill()
                return False
            self.stage = process.follow_log()
            await asyncio.sleep(_POLL_S)
        return True

    async def _confirm(self) -> None:
        """Read the engine's own KV capacity back and say how it compares with the prediction."""
        name, predicted = self.placement.spec.name, self.placement.answer.kv_cache_tokens
        self.confirmed = await read_figures(self.replica, self._gateway.upstream, _FIGURES_S)
        actual = self.confirmed.kv_cache_tokens if self.confirmed else None
        if actual is None:
            _log.warning("%s: the engine does not state its KV capacity; predicted %s tokens", name, f"{predicted:,}")
            return
        off = (actual - predicted) / predicted if predicted else 0.0
        _log.info("%s: KV cache %s tokens, predicted %s (%+.1f %%)", name, f"{actual:,}", f"{predicted:,}", off * 100)

    def _start_error(self, process: EngineProcess) -> StartError:
        status = process.exit_status()
        how = "did not become healthy in time" if status is None else f"ended with status {status} while starting"
        spec = self.placement.spec
        return StartError(f"{spec.name} {how}", log_path=spec.log_path, last_lines=process.last_lines())

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
