"""`berth gateway`: the door alone, in front of engines started elsewhere."""

import asyncio
from typing import Annotated
from urllib.parse import urlsplit

import typer
import uvloop
from rich.console import Console

from gateway.replica import Replica
from serving import stack
from serving.commands.common import failing_in_one_line, logging_to_stderr
from serving.config import gateway_section
from serving.environment import Environment
from serving.errors import ConfigError


def gateway(
    upstream: Annotated[list[str], typer.Option(help="An engine: http://host:port or unix:/path. Repeatable.")],
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; a public one needs API keys.")] = "127.0.0.1",
    upstream_api_key: Annotated[
        str | None, typer.Option(envvar="BERTH_UPSTREAM_API_KEY", help="The key the engines ask for.")
    ] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Requests taken at once; more get 503.")] = None,
    routing: Annotated[
        str,
        typer.Option(
            help="prefix (where the prompt's beginning is cached), least_work, round_robin, session, latency."
        ),
    ] = "prefix",
    kv_events: Annotated[
        bool,
        typer.Option(
            "--kv-events", help="Route by what engines publish of their KV caches (vLLM's --kv-events-config)."
        ),
    ] = False,
    log_format: Annotated[str, typer.Option(help="text, or json: one object a line.")] = "text",
) -> None:
    """Put one door in front of running OpenAI-compatible engines: routing, failover, keys, metrics."""
    with failing_in_one_line("berth gateway"):
        raw = {"host": host, "port": port, "max_in_flight": max_in_flight, "log_format": log_format, "routing": routing}
        section = gateway_section(raw)
        replicas = [_replica(url, upstream_api_key) for url in dict.fromkeys(upstream)]
        logging_to_stderr(log_format=section.log_format)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            running = stack.run_gateway(section, Environment(), replicas, Console(), kv_events=kv_events)
            raise typer.Exit(runner.run(running))


def _replica(url: str, api_key: str | None) -> Replica:
    url = url.rstrip("/").removesuffix("/v1")
    if url.startswith("unix:/"):
        return Replica(url.rpartition("/")[2], url, api_key=api_key)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path:
        raise ConfigError(f"--upstream {url}: expected http://host:port or unix:/path/to.sock")
    return Replica(parts.netloc.rpartition("@")[2], url, api_key=api_key)
