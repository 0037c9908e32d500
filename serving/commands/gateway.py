"""`berth gateway`: the door alone, in front of engines started elsewhere."""

import asyncio
from typing import Annotated

import typer
import uvloop

from gateway.errors import ConfigError
from serving import alone
from serving.announcing import say_front
from serving.commands.common import failing_in_one_line, logging_to_stderr
from serving.door_config import door_settings
from serving.elsewhere import engine_keys
from serving.environment import Environment
from serving.front import FrontConfig, load_front
from serving.voice import say

_FILE = typer.Argument(
    metavar="FILE.yaml",
    help="Engines, and keys, models, remotes, routes and gateway as in a berth.yaml; SIGHUP reads it again.",
    show_default=False,
)


def gateway(
    file: Annotated[str | None, _FILE] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            help="An engine: http://host:port or unix:/path. Repeatable. Beside FILE: instead of its engines.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (default: 8000).")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; a public one needs API keys (default: 127.0.0.1).")
    ] = None,
    upstream_api_key: Annotated[
        str | None,
        typer.Option(envvar="BERTH_UPSTREAM_API_KEY", help="The key of engines that have no api_key_env in FILE."),
    ] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Requests taken at once; more get 503.")] = None,
    routing: Annotated[
        str | None,
        typer.Option(
            help="prefix (default: where the prompt's beginning is cached), least_work, round_robin, session, latency."
        ),
    ] = None,
    kv_events: Annotated[
        bool,
        typer.Option(
            "--kv-events", help="Route by what engines publish of their KV caches (vLLM's --kv-events-config)."
        ),
    ] = False,
    log_format: Annotated[str | None, typer.Option(help="text (default), or json: one object a line.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check FILE and its keys, say what is in it, end.")
    ] = False,
) -> None:
    """Put one door in front of running OpenAI-compatible engines: routing, failover, keys, metrics."""
    overrides = {
        "gateway.host": host,
        "gateway.port": port,
        "gateway.max_in_flight": max_in_flight,
        "gateway.routing": routing,
        "gateway.log_format": log_format,
    }
    with failing_in_one_line("berth gateway", ConfigError):
        environment = Environment()

        def load() -> FrontConfig:
            return load_front(file, upstream or (), overrides, kv_events=kv_events)

        config = load()
        if dry_run:
            engine_keys(config.engines, upstream_api_key)
            door_settings(config, environment)
            say_front(typer.echo, config)
            return
        logging_to_stderr(log_format=config.gateway.log_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            again = None if file is None else load
            raise typer.Exit(runner.run(alone.run(config, environment, say, upstream_api_key, again)))
