"""What vLLM logged at start-up beside what sizing predicts: weights, KV tokens, the page rules alone, yes or no.

    python -m benchmarks.sizing_logs [--logs ROWS ...] [--configs CONFIGS ...] [--out LINES.jsonl]

A row is a start-up log as `berth size --questions` takes it, and beside the question what was logged. Rows of sources
that the overhead table was read off are the fit half ("half": "fit"); all others are the check half.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.errors import BenchError, ConfigError
from benchmarks.sizing_speed import speed_lines
from benchmarks.statistics import percentile
from sizing.errors import ModelNotFoundError, QuestionError, SizingError
from sizing.gpu import GIB, Device
from sizing.model import ModelShape
from sizing.plan import cache_capacity, settle
from sizing.question import Answer, Question
from sizing.questions import Sources, read_question

Row = Mapping[str, object]
_DATA = Path(__file__).with_name("data")
LOGS = (_DATA / "startup_logs.jsonl",)
CONFIGS = (_DATA / "model_configs.json",)
_LOADED = ("weights", "drafter", "LoRA adapters")  # what vLLM counts as the model it loads
_ANY_CARD = "A100-80GB"  # a page needs no card; the rows that check pages alone often name none


@dataclass(frozen=True)
class Figure:
    """A prediction and what was logged."""

    prediction: float
    truth: float
    band: tuple[float, float]

    @property
    def error(self) -> float:
        return self.prediction / self.truth - 1


@dataclass(frozen=True)
class Checked:
    """One row: what could be compared, and why the rest could not."""

    id: str
    half: str
    discrete: bool
    """Whether the card has memory of its own."""
    outlier: bool
    weights_gib: Figure | None = None
    page_tokens: Figure | None = None
    kv_tokens: Figure | None = None
    kv_gib: Figure | None = None
    fits: bool | None = None
    certain: bool | None = None
    started: bool | None = None
    left_out: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Bar:
    title: str
    figure: str
    median: float
    p90: float | None


BARS = (
    Bar("page rules: logged memory to logged tokens", "page_tokens", 0.001, 0.005),
    Bar("KV tokens end to end, discrete cards", "kv_tokens", 0.01, 0.05),
    Bar("KV memory end to end, discrete cards", "kv_gib", math.inf, None),
    Bar("weights per rank", "weights_gib", 0.01, None),
)


def check(row: Row, sources: Sources) -> Checked:
    """A row's predictions beside its log."""
    base = Checked(
        id=str(row.get("id")),
        half=str(row.get("half", "check")),
        discrete=not row.get("unified_memory"),
        outlier=bool(row.get("outlier")),
        started=_started(row),
    )
    asked = {key: value for key, value in row.items() if key != "half"}
    try:
        base = replace(base, page_tokens=_page(asked, sources))
        base = replace(base, weights_gib=_weights(asked, sources))
        return _end_to_end(base, asked, sources)
    except SizingError as error:
        return replace(base, left_out=str(error))


def _started(row: Row) -> bool | None:
    outcome = row.get("outcome")
    if outcome is None or str(outcome).startswith("ok"):
        return True if row.get("kv_tokens") or row.get("kv_gib") else None
    return False


def _page(row: Row, sources: Sources) -> Figure | None:
    """The tokens that vLLM's rules make of the logged memory, which was rounded to 0.01 GiB."""
    kv_gib, tokens = _logged(row, "kv_gib"), _logged(row, "kv_tokens")
    if kv_gib is None or tokens is None or row.get("page_check") is False:
        return None
    if (row.get("pp") or 1) != 1:  # the logged memory is one stage's, and not always the one that decides
        return None
    question = _page_question({"gpu": _ANY_CARD, **_without_null(row)}, sources)

    def at(gib: float) -> int:
        return cache_capacity(question, max(1, int(gib * GIB))).tokens

    return Figure(at(kv_gib), tokens, (at(kv_gib - 0.005), at(kv_gib + 0.005)))


def _page_question(row: Row, sources: Sources) -> Question:
    """With the whole model where its config describes one, since that says which KV cache its checkpoint asks for."""
    try:
        return read_question(row, sources)
    except SizingError:
        return read_question(row, sources, cache_only=True)


def _weights(row: Row, sources: Sources) -> Figure | None:
    load_gib = _logged(row, "load_gib")
    if load_gib is None:
        return None
    question = read_question({"gpu": _ANY_CARD, **_without_null(row)}, sources)
    terms = settle(replace(question, kv_cache_memory_bytes=GIB)).terms
    loaded = [term for term in terms if term.name in _LOADED]
    band = sum(term.low_bytes for term in loaded) / GIB, sum(term.high_bytes for term in loaded) / GIB
    return Figure(sum(term.bytes for term in loaded) / GIB, load_gib, band)


def _end_to_end(base: Checked, row: Row, sources: Sources) -> Checked:
    if row.get("gpu") is None and row.get("gpu_total_gib") is None:
        return replace(base, left_out="no card stated")
    if not _utilization_known(row):
        return replace(base, left_out="gpu_memory_utilization not stated")
    question = read_question(row, sources)
    found = settle(question)
    base = replace(base, fits=found.fits, certain=found.certain, reason=found.reason)
    if not base.discrete or row.get("complete") is False:
        return base
    return replace(base, kv_tokens=_tokens(row, question, found), kv_gib=_memory(row, found))


def _utilization_known(row: Row) -> bool:
    return any(row.get(key) is not None for key in ("gmu", "gmu_default", "gpu_memory_utilization"))


def _tokens(row: Row, question: Question, found: Answer) -> Figure | None:
    tokens = _logged(row, "kv_tokens")
    if tokens is None:
        return None
    band = found.kv_cache_tokens_range
    return Figure(found.kv_cache_tokens, tokens, (band.low, band.high))


def _memory(row: Row, found: Answer) -> Figure | None:
    kv_gib = _logged(row, "kv_gib")
    if kv_gib is None or kv_gib <= 0:
        return None
    band = found.kv_cache_bytes_range
    return Figure(found.kv_cache_bytes / GIB, kv_gib, (band.low / GIB, band.high / GIB))


def _logged(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _without_null(row: Row) -> dict[str, object]:
    return {key: value for key, value in row.items() if value is not None}


def read_rows(files: Iterable[Path]) -> list[dict[str, object]]:
    """Rows of JSON lists or of JSON lines.

    Raises:
        ConfigError: a file that cannot be read, with its line.
    """
    found: list[dict[str, object]] = []
    for file in files:
        text = _text(file)
        if text.lstrip().startswith("["):
            found += _json(text, f"{file}")
        else:
            lines = enumerate(text.splitlines(), 1)
            found += [_json(line, f"{file} line {number}") for number, line in lines if line.strip()]
    return found


def read_configs(files: Iterable[Path]) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for file in files:
        found |= _json(_text(file), f"{file}")
    return found


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error


def _json(text: str, where: str):  # type: ignore[no-untyped-def]  # what JSON holds is checked by the reader of rows
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error


def table(title: str, rows: Sequence[Checked]) -> Table:
    shown = Table(title=title, title_justify="left", min_width=96)
    for name in ("figure", "n", "median", "p90", "max", "bar", "met", "in band"):
        shown.add_column(name, justify="left" if name == "figure" else "right")
    for bar in BARS:
        figures = [figure for row in rows if (figure := getattr(row, bar.figure)) is not None]
        errors = [abs(figure.error) for figure in figures]
        median, p90 = percentile(errors, 0.5), percentile(errors, 0.9)
        met = median <= bar.median and (bar.p90 is None or p90 <= bar.p90)
        allowed = "" if bar.median == math.inf else f"{bar.median:.1%}" + (f" / {bar.p90:.1%}" if bar.p90 else "")
        inside = sum(1 for figure in figures if figure.band[0] <= figure.truth <= figure.band[1])
        shown.add_row(
            bar.title,
            str(len(errors)),
            f"{median:.2%}",
            f"{p90:.2%}",
            f"{max(errors, default=math.nan):.1%}",
            allowed,
            ("yes" if met else "no") if allowed and errors else "",
            f"{inside / len(figures):.0%}" if figures else "",
        )
    return shown


def verdicts(rows: Sequence[Checked]) -> str:
    """How often yes and no were right; "close" counts the answers whose band holds both."""
    told = [row for row in rows if row.fits is not None and row.started is not None]
    started = [row for row in told if row.started]
    refused = [row for row in told if not row.started]
    wrong_no = [row.id for row in started if not row.fits]
    wrong_yes = [row.id for row in refused if row.fits]
    close = sum(1 for row in told if not row.certain)
    named = [f"; {what}: {', '.join(ids)}" for what, ids in (("wrong no", wrong_no), ("wrong yes", wrong_yes)) if ids]
    return (
        f"yes or no: {len(started)} runs that started, {len(wrong_no)} of them told no; "
        f"{len(refused)} refused or out of memory, {len(wrong_yes)} of them told yes; {close} close calls"
        + "".join(named)
    )


def line(row: Checked) -> str:
    """One JSON object: every figure's prediction, truth, signed error and band."""
    entry: dict[str, object] = {"id": row.id, "half": row.half}
    for name in ("weights_gib", "page_tokens", "kv_tokens", "kv_gib"):
        figure: Figure | None = getattr(row, name)
        if figure is not None:
            entry[name] = {
                "prediction": figure.prediction,
                "truth": figure.truth,
                "error": figure.error,
                "band": list(figure.band),
            }
    for name in ("fits", "certain", "started", "reason", "left_out"):
        if getattr(row, name) is not None:
            entry[name] = getattr(row, name)
    return json.dumps(entry)


def show(console: Console, rows: Sequence[Checked]) -> None:
    left_out = Counter(row.left_out for row in rows if row.left_out)
    console.print(f"{len(rows)} start-up logs")
    halves = {half: [row for row in rows if row.half == half] for half in ("fit", "check")}
    titles = {"fit": "Fit half: sources the table was read off", "check": "Check half: all other sources"}
    for half, chosen in halves.items():
        if chosen:
            console.print(table(titles[half], chosen))
            console.print(verdicts(chosen))
    for reason, count in left_out.most_common():
        console.print(f"not predicted end to end, {count}: {reason}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Logged memory beside predicted, and measured speed if any is given.")
    parser.add_argument("--logs", type=Path, nargs="+", default=LOGS, help="rows: JSON lists or JSON lines")
    parser.add_argument("--configs", type=Path, nargs="+", default=(), help="JSON objects of config.json by model")
    parser.add_argument("--perf", type=Path, nargs="+", default=(), help="measured runs, as bench-speed takes them")
    parser.add_argument("--out", type=Path, help="one JSON line per row goes here")
    asked = parser.parse_args(argv)
    console = Console(width=120, highlight=False)
    try:
        sources = Sources(_no_model, _no_machine, read_configs([*CONFIGS, *asked.configs]))
        rows = [check(row, sources) for row in read_rows(asked.logs)]
        show(console, rows)
        lines = [line(row) for row in rows]
        if asked.perf:
            lines += speed_lines(console, asked.perf, asked.configs)
        if asked.out is not None:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text("".join(entry + "\n" for entry in lines))
            console.print(f"{len(lines)} rows, each with prediction, truth, error and band: {asked.out}")
    except (BenchError, OSError) as error:
        sys.stderr.write(f"bench-sizing: {error}\n")
        return 2
    return 0


def _no_model(ref: str, revision: str | None) -> ModelShape:
    """Logs are checked without a network: what CONFIGS does not hold is left out."""
    raise ModelNotFoundError(f"no config.json of {ref} is given")


def _no_machine() -> tuple[Device, int]:
    raise QuestionError("a log is of the machine it was written on; name its card")


if __name__ == "__main__":
    sys.exit(main())
