"""`berth size calibrate`: vLLM's start-up logs against what was predicted, kept for the next answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from serving.calibrating import Start, observed
from serving.calibration_table import table_path
from serving.commands.common import failing_in_one_line
from serving.environment import Environment
from sizing.calibration import Calibration, Observation, load_calibration, save_calibration
from sizing.card_names import described_card
from sizing.config_json import parse_config
from sizing.detect import detect
from sizing.errors import CalibrationError, ModelFileError, SizingError
from sizing.gpu import GIB, Device
from sizing.hub import load_model
from sizing.model import ModelShape
from sizing.startup_log import StartupRecord, read_records

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class _Compared:
    """An observation, and what the new table makes of the same start."""

    observation: Observation
    corrected_bytes: int
    starts: int
    """How many starts that rests on."""


def calibrate(
    logs: Annotated[list[Path], typer.Argument(metavar="LOG...", help="vLLM's logs, or folders of *.log.")],
    gpu_name: Annotated[str | None, typer.Option("--gpu", help="The card, where a log does not name it.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder, Hub id or config.json, where the name in the log leads nowhere.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="The table to refit. [default: in Berth's state folder]")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare only; write nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare start-up logs of vLLM, any version's, with the prediction, and let the next answers use them.

    Rows of start-up records in JSON or JSONL are read as well. Exits with 2 when nothing could be compared.
    """
    with failing_in_one_line("berth size calibrate", SizingError):
        path = table or table_path(Environment())
        known = load_calibration(path)
        fresh, left_out = _observed(logs, gpu_name, model)
        if not fresh:
            log, why = left_out[0]
            more = f" (and {len(left_out) - 1} more starts left out)" if len(left_out) > 1 else ""
            raise CalibrationError(f"{log}: {why}{more}")
        refitted = known.merged(fresh)
        if not dry_run:
            save_calibration(path, refitted)
    compared = [_compared(refitted, entry) for entry in fresh]
    if json:
        typer.echo(_as_json(compared, left_out, path, written=not dry_run))
        return
    console = Console(highlight=False)
    for heading, rows in _by_start(compared).items():
        console.print(heading, soft_wrap=True, markup=False)
        console.print(_table(rows))
    for log, why in left_out:
        console.print(f"Left out: {log}: {why}", soft_wrap=True, markup=False)
    done = "not written (--dry-run)" if dry_run else "written"
    console.print(f"Table: {path}, {len(refitted.entries)} in it, {done}", soft_wrap=True, markup=False)


def _observed(
    logs: Sequence[Path], gpu_name: str | None, model: str | None
) -> tuple[list[Observation], list[tuple[str, str]]]:
    """What all starts say, and which say nothing, with the reason."""
    today, models = datetime.now(UTC).date(), _Models(model)
    fresh: list[Observation] = []
    left_out: list[tuple[str, str]] = []
    for name, record in _records(logs, left_out):
        try:
            found = observed(Start(record, models.of(record), _device(record, gpu_name)), today)
        except SizingError as error:
            left_out.append((name, str(error)))
            continue
        if not found:
            left_out.append((name, "no measurement of a term that is predicted"))
        fresh += found
    return fresh, left_out


def _records(logs: Sequence[Path], left_out: list[tuple[str, str]]) -> Iterator[tuple[str, StartupRecord]]:
    """Every start in the files and folders. A file that was named has to hold one; one in a folder may not."""
    for log in logs:
        if not log.is_dir():
            yield from ((str(log), record) for record in read_records(log))
            continue
        files = sorted(log.rglob("*.log"))
        if not files:
            raise CalibrationError(f"{log}: no *.log in this folder; give the logs themselves")
        for file in files:
            try:
                yield from ((str(file), record) for record in read_records(file))
            except CalibrationError as error:
                left_out.append((str(file), str(error).removeprefix(f"{file}: ")))


class _Models:
    """The models the logs name, each read once."""

    def __init__(self, given: str | None) -> None:
        self._given = given
        self._known: dict[str, ModelShape | SizingError] = {}

    def of(self, record: StartupRecord) -> ModelShape:
        """Raises SizingError where it cannot be found or sized."""
        ref = self._given or record.model
        if ref is None:
            raise CalibrationError("the log does not name its model; give --model")
        if ref not in self._known:
            try:
                self._known[ref] = _shape(ref)
            except SizingError as error:
                self._known[ref] = error
        found = self._known[ref]
        if isinstance(found, SizingError):
            raise CalibrationError(f"{found}; --model can say where it is") from found
        return found


def _shape(ref: str) -> ModelShape:
    file = Path(ref).expanduser()
    if not file.is_file():
        return load_model(ref)
    try:
        values = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelFileError(f"{ref}: not a config.json ({error})") from error
    if not isinstance(values, dict):
        raise ModelFileError(f"{ref}: not a config.json (no object)")
    return parse_config(values, name=ref)


def _device(record: StartupRecord, gpu_name: str | None) -> Device:
    if record.device == "cpu":
        return detect().cpu
    name = gpu_name or record.gpu
    if name is None:
        raise CalibrationError("the log does not name its card; give --gpu")
    return described_card(name)


def _compared(table: Calibration, entry: Observation) -> _Compared:
    corrected_bytes, _, _ = table.corrected(
        entry.term,
        predicted_bytes=entry.predicted_bytes,
        low_bytes=entry.predicted_bytes,
        high_bytes=entry.predicted_bytes,
        gpu=entry.gpu,
        link=entry.link,
        tensor_parallel_size=entry.tensor_parallel_size,
        release=entry.release,
        model=entry.model,
    )
    starts = table.count(
        entry.term,
        gpu=entry.gpu,
        link=entry.link,
        tensor_parallel_size=entry.tensor_parallel_size,
        release=entry.release,
        model=entry.model,
    )
    return _Compared(entry, corrected_bytes, starts)


def _by_start(compared: Sequence[_Compared]) -> Mapping[str, list[_Compared]]:
    starts: dict[str, list[_Compared]] = {}
    for row in compared:
        entry = row.observation
        cards = f"{entry.tensor_parallel_size} x {entry.gpu}" if entry.tensor_parallel_size > 1 else entry.gpu
        version = f"vLLM {entry.release}" if entry.release else "vLLM of unknown version"
        starts.setdefault(f"{entry.model} on {cards}, {version}\n{entry.settings}", []).append(row)
    return starts


def _table(rows: Sequence[_Compared]) -> Table:
    table = Table(caption="GiB per rank", caption_justify="left")
    for column in ("term", "predicted", "measured", "error before", "error now", "starts"):
        table.add_column(column, justify="left" if column == "term" else "right")
    for row in rows:
        entry = row.observation
        before, now = entry.predicted_bytes - entry.measured_bytes, row.corrected_bytes - entry.measured_bytes
        sizes = (f"{entry.predicted_bytes / GIB:.2f}", f"{entry.measured_bytes / GIB:.2f}")
        table.add_row(entry.term, *sizes, _signed(before), _signed(now), str(row.starts))
    return table


def _signed(num_bytes: int) -> str:
    return f"{num_bytes / GIB:+.2f}".replace("-0.00", "+0.00")


def _as_json(compared: Sequence[_Compared], left_out: Sequence[tuple[str, str]], path: Path, *, written: bool) -> str:
    document = {
        "schema_version": _SCHEMA_VERSION,
        "table": str(path),
        "written": written,
        "observations": [
            {**asdict(row.observation), "corrected_bytes": row.corrected_bytes, "starts": row.starts}
            for row in compared
        ],
        "left_out": [{"log": log, "reason": why} for log, why in left_out],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()
