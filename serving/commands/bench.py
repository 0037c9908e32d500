"""`berth bench`: load a server and measure what it does."""

import asyncio
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from benchmarks.config import RunConfig
from benchmarks.errors import BenchError, ConfigError
from benchmarks.report import dump, render, save
from benchmarks.run import Progress, RunResult, execute
from benchmarks.schedule import ARRIVALS, Arrivals
from benchmarks.slo import NO_SLO, parse_slo

app = typer.Typer(no_args_is_help=True, add_completion=False)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@app.callback()
def bench() -> None:
    """Load a server and measure what it does."""


@app.command()
def run(
    url: Annotated[
        str, typer.Argument(help="The server, with or without /v1; anything OpenAI-compatible.")
    ] = "http://127.0.0.1:8000",
    rate: Annotated[
        float | None,
        typer.Option(help="Open loop: requests per second, sent whether or not earlier ones are answered."),
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Closed loop: requests kept in flight.")] = None,
    requests: Annotated[int, typer.Option(help="How many requests to measure.")] = 100,
    prompt_tokens: Annotated[int, typer.Option(help="About how long each prompt is.")] = 128,
    output_tokens: Annotated[int, typer.Option(help="How long an answer may become.")] = 64,
    shared_prefix_tokens: Annotated[int, typer.Option(help="How much of each prompt's beginning all share.")] = 0,
    slo: Annotated[
        str | None, typer.Option(help="Targets for goodput, in seconds or ms: ttft=0.5,tpot=50ms,e2e=10s.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model; default: the one the server serves.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Sent as a Bearer token; written nowhere.")] = None,
    arrivals: Annotated[str, typer.Option(help="Open loop: poisson or constant gaps.")] = "poisson",
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Make every answer full length (vLLM, SGLang).")
    ] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same arrivals; prompts are new in each run.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is given up as failed.")] = 600.0,
    warmup: Annotated[int, typer.Option(help="Requests sent before, not measured.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Directory for the results. Default: runs/<UTC time>-<model>.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout.")] = False,
) -> None:
    """Send synthetic streaming chat requests to URL and report latency, throughput and goodput.

    Give --rate or --concurrency. Each request is a line of records.jsonl, the figures are in summary.json. Ctrl-C ends
    the run early and reports what there is. Exits with 0, 1 when no request succeeded, 2 when the run made no sense.
    """
    try:
        config = RunConfig(
            url=url,
            rate=rate,
            concurrency=concurrency,
            requests=requests,
            model=model,
            api_key=api_key,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            shared_prefix_tokens=shared_prefix_tokens,
            arrivals=_arrivals(arrivals),
            ignore_eos=ignore_eos,
            seed=seed,
            slo=NO_SLO if slo is None else parse_slo(slo),
            timeout_s=timeout,
            warmup=warmup,
            out_dir=out,
        )
        _allow_open_files()
        with _progress() as show:
            result = asyncio.run(_run(config, show))
        save(result)
    except BenchError as error:
        typer.echo(f"berth bench: {error}", err=True)
        raise typer.Exit(2) from None
    if json:
        typer.echo(dump(result))
    else:
        Console(highlight=False).print(render(result))
    raise typer.Exit(0 if result.summary.ok else 1)


async def _run(config: RunConfig, on_progress: Callable[[Progress], None]) -> RunResult:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        return await execute(config, on_progress=on_progress, stop=stop)
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _arrivals(text: str) -> Arrivals:
    for known in ARRIVALS:
        if text == known:
            return known
    raise ConfigError(f"arrivals '{text}' is not one of {', '.join(ARRIVALS)}")


def _allow_open_files() -> None:
    """Each request in flight is a socket: lift the soft limit, often 1024, to what the system grants without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error where someone watches, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("connecting")

        def show(progress: Progress) -> None:
            text = f"{progress.in_flight} in flight" + (f", {progress.failed} failed" if progress.failed else "")
            bar.update(task, completed=progress.done, total=progress.total, description=text)

        yield show
