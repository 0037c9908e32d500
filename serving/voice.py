"""How a running `berth` speaks to who started it; when nobody listens any more (`| head`), it goes on in silence."""

import os
import sys

import typer


def say(line: str) -> None:
    """One line on standard output, neither wrapped nor cut."""
    try:
        typer.echo(line)
    except BrokenPipeError:
        fall_silent()


def fall_silent() -> None:
    """Standard output leads nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
