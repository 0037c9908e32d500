"""`berth keys`: virtual keys, shown once and stored hashed."""

import json
from typing import Annotated

import typer

from gateway.identity import new_key

app = typer.Typer(help="Virtual API keys.", no_args_is_help=True, add_completion=False)


@app.callback()
def keys() -> None:
    """Virtual API keys."""


@app.command()
def new(caller: Annotated[str, typer.Argument(help="Who the key stands for.")]) -> None:
    """Make a key: printed once here, its hash to be put under gateway.keys in berth.yaml."""
    key, stored = new_key(caller)
    typer.echo(f"{key}\n", err=False)
    typer.echo("# berth.yaml (the key itself is not stored anywhere: copy it now)", err=True)
    typer.echo(f"gateway:\n  keys:\n    - {{caller: {json.dumps(stored.caller)}, sha256: {stored.sha256}}}", err=True)
