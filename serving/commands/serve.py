"""`berth serve`: size, place, start and supervise engines behind one gateway."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from gateway.errors import ConfigError
from serving import report, stack
from serving.commands.common import failing_in_one_line, logging_to_stderr
from serving.config import load_stack
from serving.environment import Environment
from serving.placement import Folders
from serving.progress import Progress, Voice
from sizing.errors import SizingError

_TARGET = typer.Argument(
    metavar="[MODEL|FILE.yaml]",
    help="A Hub id, a local folder, or a berth.yaml. Without it: the embedded model.",
    show_default=False,
)


def serve(
    target: Annotated[str | None, _TARGET] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; a public one needs API keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the gateway. [default: 8000]")] = None,
    name: Annotated[str | None, typer.Option(help="Public name of the model.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Engines to start for the model.")] = None,
    max_model_len: Annotated[str | None, typer.Option(help="Context in tokens, such as 8192 or 32k.")] = None,
    max_num_seqs: Annotated[int | None, typer.Option(help="Requests an engine computes at once.")] = None,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help="Share of a GPU an engine takes.")] = None,
    kv_cache_memory_bytes: Annotated[int | None, typer.Option(help="Bytes of KV cache per GPU, not a share.")] = None,
    kv_cache_dtype: Annotated[str | None, typer.Option(help="Such as fp8. [default: the model's own]")] = None,
    tensor_parallel_size: Annotated[int | None, typer.Option(help="GPUs one engine spreads over.")] = None,
    pipeline_parallel_size: Annotated[int | None, typer.Option(help="Stages one engine is cut into.")] = None,
    enable_expert_parallel: Annotated[
        bool | None, typer.Option("--enable-expert-parallel", help="Whole experts on each GPU.")
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="fp8: 16-bit weights, packed while they are loaded.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the placement and the engine commands only.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="--dry-run, and why not for every other way.")] = False,
) -> None:
    """Serve open models: one command sizes them, starts vLLM engines where they fit, and opens the gateway."""
    console = Voice()
    overrides = {
        "gateway.host": host,
        "gateway.port": port,
        "name": name,
        "replicas": replicas,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "gpu_memory_utilization": gpu_memory_utilization,
        "kv_cache_memory_bytes": kv_cache_memory_bytes,
        "kv_cache_dtype": kv_cache_dtype,
        "tensor_parallel_size": tensor_parallel_size,
        "pipeline_parallel_size": pipeline_parallel_size,
        "enable_expert_parallel": enable_expert_parallel,
        "quantization": quantization,
    }
    with failing_in_one_line("berth serve", ConfigError, SizingError):
        environment = Environment()
        config = load_stack(target, environment, overrides)
        if dry_run or explain:
            with tempfile.TemporaryDirectory(prefix="berth-") as sockets:
                folders = Folders(Path(sockets), environment.state() / "logs" / "dry-run")
                placements = stack.prepare(config, environment, folders, Progress(console))
                report.show_plan(placements, console, commands=True, rejected="all" if explain else "few")
            return
        logging_to_stderr(log_format=config.gateway.log_format)
        is_file = target is not None and target.endswith((".yaml", ".yml"))
        again = (lambda: load_stack(target, environment, overrides)) if is_file else None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            raise typer.Exit(runner.run(stack.run(config, environment, console, again)))
