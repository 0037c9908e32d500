"""One benchmark run: workload, schedule, requests, records on disk, summary."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import schedule, workload
from benchmarks.client import ChatClient, open_session
from benchmarks.config import RunConfig
from benchmarks.errors import OutputError
from benchmarks.load import closed_loop, open_loop
from benchmarks.loop_lag import LoopLag, LoopLagMeter
from benchmarks.measure import Summary, summarise
from benchmarks.record import RecordWriter, RequestRecord
from benchmarks.server import MetricsWatch, ServerFigures, figures
from benchmarks.target import find_model
from benchmarks.workload import Prompt

RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands; passed to `on_progress` as it starts and after each request."""

    total: int
    done: int
    failed: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished or interrupted run. `records` are in the order they ended, as on disk.

    `given_up` requests were in flight when the run was interrupted: neither done nor failed, they are not recorded.
    """

    config: RunConfig
    model: str
    run_id: str
    started_at: datetime
    directory: Path
    records: tuple[RequestRecord, ...]
    summary: Summary
    server: ServerFigures | None
    loop_lag: LoopLag
    is_interrupted: bool
    given_up: int


def show_nothing(_: Progress) -> None:
    """For callers that do not follow the progress."""


async def execute(
    config: RunConfig,
    *,
    on_progress: Callable[[Progress], None] = show_nothing,
    stop: asyncio.Event | None = None,
) -> RunResult:
    """Do the run; setting `stop` ends it early, and what was recorded by then is summarised.

    Each record is written to `<directory>/records.jsonl` as its request ends: nothing hangs on living to the summary.
    Raises ConfigError, TargetError (before any load) and OutputError.
    """
    started_at = datetime.now(UTC)
    run_id = config.run_id or secrets.token_hex(4)
    prompts, warmup = _prompts(config, config.requests, run_id), _prompts(config, config.warmup, f"{run_id}:warmup")
    stop = stop or asyncio.Event()
    meter = LoopLagMeter()
    # /metrics goes over a session of its own, so that its connections never stand in the load's way
    async with open_session(config.api_key) as session, open_session(config.api_key) as aside:
        model = await find_model(aside, config.base_url, config.model)
        watch = MetricsWatch(aside, config.base_url, model)
        directory = _make_directory(config.out_dir, started_at, model)
        with RecordWriter(directory / RECORDS_FILE) as writer:
            is_interrupted = await _is_stopped(stop, _warm_up(warmup, _client(session, config, model), config))
            if not is_interrupted:
                await watch.look()
            keeper = _Keeper(len(prompts), writer, on_progress)
            async with _beside(watch.sample(), meter.run()):
                offer = _offer(prompts, _client(session, config, model), config, keeper)
                is_interrupted = await _is_stopped(stop, offer)
        if watch.readings:
            await watch.settle(0 if is_interrupted else keeper.output_tokens)
    return RunResult(
        config=config,
        model=model,
        run_id=run_id,
        started_at=started_at,
        directory=directory,
        records=tuple(keeper.records),
        summary=summarise(keeper.records, config.slo),
        server=figures(watch.readings),
        loop_lag=meter.lag(),
        is_interrupted=is_interrupted,
        given_up=keeper.in_flight,
    )


class _Keeper:
    """Keeps what comes back: first on disk, then in memory, then on the screen."""

    def __init__(self, total: int, writer: RecordWriter, on_progress: Callable[[Progress], None]) -> None:
        self.records: list[RequestRecord] = []
        self.in_flight = 0
        self.output_tokens = 0
        self._total = total
        self._failed = 0
        self._writer = writer
        self._on_progress = on_progress
        self._show()

    async def send(self, client: ChatClient, prompt: Prompt, intended_s: float | None) -> None:
        self.in_flight += 1
        record = await client.ask(prompt, intended_s)
        self.in_flight -= 1  # not in a `finally`: what an interruption cuts off stays counted as in flight
        self._writer.write(record)
        self.records.append(record)
        self.output_tokens += record.output_tokens or 0
        self._failed += not record.is_ok
        self._show()

    def _show(self) -> None:
        self._on_progress(Progress(self._total, len(self.records), self._failed, self.in_flight))


async def _warm_up(prompts: Sequence[Prompt], client: ChatClient, config: RunConfig) -> None:
    """Wake the engine and open connections; what comes back is not looked at, the run itself will show it."""

    async def send(prompt: Prompt, _: float | None) -> None:
        await client.ask(prompt, None)

    await closed_loop(prompts, config.concurrency or 1, send)


async def _offer(prompts: Sequence[Prompt], client: ChatClient, config: RunConfig, keeper: _Keeper) -> None:
    async def send(prompt: Prompt, intended_s: float | None) -> None:
        await keeper.send(client, prompt, intended_s)

    try:
        if config.rate is None:
            await closed_loop(prompts, config.concurrency or 1, send)
        elif config.arrivals == "constant":
            await open_loop(prompts, schedule.constant(config.rate, len(prompts)), send, client.elapsed_s)
        else:
            arrivals_s = schedule.poisson(config.rate, len(prompts), config.seed)
            await open_loop(prompts, arrivals_s, send, client.elapsed_s)
    except ExceptionGroup as failures:  # requests do not raise: this is the disk, and the first reason is enough
        raise failures.exceptions[0] from None


async def _is_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work` unless and until `stop` is set; whether it was."""
    if stop.is_set():
        work.close()
        return True
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return not working.done()
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


@asynccontextmanager
async def _beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless `work` for as long as the block lasts."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def _prompts(config: RunConfig, count: int, run_id: str) -> tuple[Prompt, ...]:
    return workload.build(
        count,
        prompt_tokens=config.prompt_tokens,
        output_tokens=config.output_tokens,
        shared_prefix_tokens=config.shared_prefix_tokens,
        seed=config.seed,
        run_id=run_id,
    )


def _client(session: aiohttp.ClientSession, config: RunConfig, model: str) -> ChatClient:
    return ChatClient(
        session,
        config.base_url,
        model,
        timeout_s=config.timeout_s,
        ignore_eos=config.ignore_eos,
        clock=time.perf_counter,
    )


def _make_directory(out_dir: Path | None, started_at: datetime, model: str) -> Path:
    name = "".join(mark if mark.isalnum() or mark in "._-" else "-" for mark in model)[:80]
    directory = out_dir or Path("runs") / f"{started_at:%Y%m%dT%H%M%SZ}-{name}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {directory}: {error.strerror}; give another directory") from None
    return directory
