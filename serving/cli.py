"""The command line: `berth serve | size | gateway | bench | keys`. Each command lives in `serving.commands`."""

from typing import Annotated

import typer

from gateway.app import VERSION
from serving.commands import bench, keys
from serving.commands.gateway import gateway
from serving.commands.serve import serve
from serving.commands.size import size

app = typer.Typer(name="berth", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(serve)
app.command()(size)
app.command()(gateway)
app.add_typer(bench.app, name="bench")
app.add_typer(keys.app, name="keys")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"berth {VERSION}")
        raise typer.Exit


@app.callback()
def berth(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Size, serve and measure open language models on the GPUs you own."""


def main() -> None:
    """Entry point of the `berth` script."""
    app()
