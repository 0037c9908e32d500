"""What every command does the same way: errors in one line, and a log on standard error."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from gateway.errors import ConfigError as GatewayConfigError
from serving.errors import ServingError, StartError
from sizing.errors import SizingError


@contextmanager
def failing_in_one_line(command: str) -> Iterator[None]:
    """Turn our errors into one line on standard error and the right exit status; a failed start shows its log first."""
    try:
        yield
    except StartError as error:
        for line in error.last_lines:
            typer.echo(f"  | {line}", err=True)
        typer.echo(f"{command}: {error}; the whole log: {error.log_path}", err=True)
        raise typer.Exit(error.exit_status) from None
    except ServingError as error:
        typer.echo(f"{command}: {error}", err=True)
        raise typer.Exit(error.exit_status) from None
    except (SizingError, GatewayConfigError) as error:
        typer.echo(f"{command}: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.filename is None:
            raise  # not about a file of ours
        way_out = "BERTH_CACHE_DIR and BERTH_STATE_DIR choose other folders"
        typer.echo(f"{command}: {error.filename}: {error.strerror}; {way_out}", err=True)
        raise typer.Exit(2) from None


class _Stderr:
    """Standard error as it is at the moment of writing: a live table replaces it while it owns the terminal."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def logging_to_stderr(level: int = logging.INFO) -> None:
    """One line an event, with its date: what an operator keeps."""
    handler = logging.StreamHandler(_Stderr())
    logging.basicConfig(
        handlers=[handler], level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
    logging.getLogger("berth").setLevel(level)
