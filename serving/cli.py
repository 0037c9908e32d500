"""The command line: `berth serve | size | gateway | bench | keys`. Each command lives in `serving.commands`.

A command's module is imported when it is asked for: sizing a model needs neither the gateway nor the engines.
"""

from importlib import import_module
from importlib.metadata import version as distribution_version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

# The function or the typer.Typer of that name in the module.
_COMMANDS = {
    "serve": "serving.commands.serve:serve",
    "size": "serving.commands.size:size",
    "size compare": "serving.commands.size_compare:compare",
    "size plan": "serving.commands.size_plan:plan",
    "size calibrate": "serving.commands.calibrate:calibrate",
    "gateway": "serving.commands.gateway:gateway",
    "bench": "serving.commands.bench:app",
    "keys": "serving.commands.keys:app",
}


class _OnDemand(TyperGroup):
    """A group that knows its commands by name, and imports the one that is asked for.

    Typer carries a click of its own, without public types.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """`size MODEL` takes a model where `size compare` names another command."""
        two_words = " ".join(args[:2])
        if len(args) > 1 and two_words in _COMMANDS:
            return two_words, self.get_command(ctx, two_words), args[2:]
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        where = _COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        found = getattr(import_module(module), name)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False)
            alone.command(cmd_name)(found)
            found = alone
        command = get_command(found)
        command.name = cmd_name
        return command


app = typer.Typer(
    name="berth", cls=_OnDemand, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"berth {distribution_version('berth')}")
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


if __name__ == "__main__":
    main()
