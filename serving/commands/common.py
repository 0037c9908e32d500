"""What every command does the same way: errors in one line, and a log on standard error."""

import asyncio
import logging
import sys
import time
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


_BATCH_S = 0.1
_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class _Stderr:
    """Standard error as it is at the moment of writing: a live table replaces it while it owns the terminal."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Batched(logging.Handler):
    """The access log: at thousands of requests a second a write for each would cost more than the request."""

    def __init__(self, stream: _Stderr) -> None:
        super().__init__()
        self._stream = stream
        self._records: list[logging.LogRecord] = []
        self._second = -1
        self._date = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it for a moment, if an event loop runs that will write it."""
        self._records.append(record)
        if len(self._records) > 1:
            return
        try:
            asyncio.get_running_loop().call_later(_BATCH_S, self.flush)
        except RuntimeError:
            self.flush()

    def flush(self) -> None:
        """Write what was kept, in one go; also called by logging itself when the process ends."""
        records, self._records = self._records, []
        if records:
            self._stream.write("".join([self._line(record) for record in records]))
            self._stream.flush()

    def _line(self, record: logging.LogRecord) -> str:
        """As _FORMAT says, with the date worked out once a second."""
        second = int(record.created)
        if second != self._second:
            self._second, self._date = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._date},{int(record.msecs):03d} {record.levelname} {record.name} {record.getMessage()}\n"


def logging_to_stderr(level: int = logging.INFO) -> None:
    """One line an event, with its date: what an operator keeps."""
    stream = _Stderr()
    handler = logging.StreamHandler(stream)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, format=_FORMAT, force=True)
    logging.getLogger("berth").setLevel(level)
    access = logging.getLogger("berth.access")
    access.handlers = [_Batched(stream)]
    access.propagate = False
    logging.logProcesses = logging.logMultiprocessing = logging.logThreads = False  # not in the format, and not free
