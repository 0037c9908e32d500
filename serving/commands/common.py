"""What every command does the same way: errors in one line, and a log on standard error."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson
import typer

from serving.errors import ServingError, StartError

if TYPE_CHECKING:
    from gateway.access_log import LogFormat  # sizing a model loads no gateway


@contextmanager
def failing_in_one_line(command: str, *others: type[Exception]) -> Iterator[None]:
    """Turn our errors into one line on standard error and the right exit status; a failed start shows its log first.

    `others` are those of other rooms that the command goes into; it loads no room to fail only.
    """
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
    except others as error:
        typer.echo(f"{command}: {error}", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.filename is None:
            raise  # not about a file of ours
        way_out = "BERTH_CACHE_DIR and BERTH_STATE_DIR choose other folders"
        typer.echo(f"{command}: {error.filename}: {error.strerror}; {way_out}", err=True)
        raise typer.Exit(2) from None


_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class _Stderr:
    """Standard error as it is at the moment of writing: a live table replaces it while it owns the terminal."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Json(logging.Formatter):
    """A record as one JSON object on one line; the access log writes its own."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {
            "time": moment,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def logging_to_stderr(level: int = logging.INFO, log_format: "LogFormat" = "text") -> None:
    """One line an event, with its date: what an operator keeps."""
    stream = _Stderr()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json() if log_format == "json" else logging.Formatter(_FORMAT))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("berth").setLevel(level)
    bare = logging.StreamHandler(stream)  # lines of the access log are whole when they come (gateway.access_log)
    access = logging.getLogger("berth.access")
    access.handlers = [bare]
    access.propagate = False
    logging.logProcesses = logging.logMultiprocessing = logging.logThreads = False  # not in the format, and not free
