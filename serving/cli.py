"""The command line: `berth serve | size | gateway | bench | keys`. Each command lives in `serving.commands`.

A command's module is imported when it is asked for: sizing a model needs neither the gateway nor the engines.
"""

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
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
        from importlib.metadata import version as distribution_version  # loads an email parser: not for every command

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
    """Entry point of the `berth` script. A mistake in the command itself is one line and status 2, as others are."""
    try:
        status = app(standalone_mode=False)
    except TyperException as error:
        typer.echo(_in_one_line(error), err=True)
        status = error.exit_code
    except typer.Abort:
        typer.echo("Aborted!", err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _in_one_line(error: TyperException) -> str:
    """`berth size: No such option: --tp; ...`; a group of commands alone asks for its help, which is the message."""
    said = error.format_message()
    if type(error).__name__ == "NoArgsIsHelpError":  # of Typer's own click, which has no public name for it
        return said
    command = "berth"
    context = getattr(error, "ctx", None)
    if context is not None:
        command += context.command_path.removeprefix(context.find_root().info_name or "")
    return f"{command}: {' '.join(said.split()).rstrip('.')}; {command} --help says what there is"


if __name__ == "__main__":
    main()
