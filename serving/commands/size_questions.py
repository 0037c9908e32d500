"""`berth size --questions`: many questions from a file, one answer a line."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sizing.document import as_json as document
from sizing.errors import QuestionError, SizingError
from sizing.gpu import GIB
from sizing.plan import answer
from sizing.question import Answer, Question
from sizing.questions import Sources, read_question

ALL_ANSWERED, SOME_NOT = 0, 2


@dataclass(frozen=True)
class Line:
    """One question's outcome; exactly one of `error` and the two others is None."""

    number: int
    id: object
    error: str | None = None
    question: Question | None = None
    answer: Answer | None = None


def answer_questions(file: Path, configs: Path | None, sources: Sources, *, as_json: bool) -> int:
    """Answer every line of `file` ("-": standard input), a bad one by its error. Returns the exit status.

    Raises:
        QuestionError: a file that cannot be read.
    """
    lines = _answered(_rows(file), replace(sources, configs=_configs(configs)))
    if as_json:
        failed = 0
        for line in lines:
            failed += line.error is not None
            typer.echo(_as_line(_document(line)))
        return SOME_NOT if failed else ALL_ANSWERED
    table, reasons, failed = _table(), [], 0
    for line in lines:  # of a long file only what is printed is kept
        table.add_row(*_cells(line))
        failed += line.error is not None
        why = line.error or (line.answer.reason if line.answer else None)
        reasons += [_encodable(f"line {line.number}: {why}")] if why else []
    table.title = f"{table.row_count:,} questions"
    console = Console(highlight=False)
    console.print(table)
    for reason in reasons:
        console.print(reason, soft_wrap=True, markup=False)
    return SOME_NOT if failed else ALL_ANSWERED


def _answered(rows: Iterator[tuple[int, object]], sources: Sources) -> Iterator[Line]:
    for number, row in rows:
        name = row.get("id") if isinstance(row, dict) else None
        if isinstance(row, SizingError):
            yield Line(number, None, error=str(row))
            continue
        try:
            question = read_question(row, sources)
            yield Line(number, name, question=question, answer=answer(question))
        except SizingError as error:
            yield Line(number, name, error=str(error))


def _rows(file: Path) -> Iterator[tuple[int, object]]:
    """Each line's number and object, or the error that it is not one. A JSON list counts by its entries."""
    text = _text(file)
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except (ValueError, RecursionError) as error:
            raise QuestionError(f"{file}: is not JSON ({error}); write one JSON object per line") from error
        return
    if not text.strip():
        raise QuestionError(f"{file}: holds no questions; write one JSON object per line")
    # not splitlines(), which also ends a line at characters that may stand in a JSON string
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, QuestionError(f"not JSON ({error}); write one JSON object per line")


def _configs(file: Path | None) -> Mapping[str, Mapping[str, object]]:
    if file is None:
        return {}
    try:
        found = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise QuestionError(f"{file}: is not JSON ({error}); give an object of config.json by model") from error
    if not isinstance(found, dict) or not all(isinstance(config, dict) for config in found.values()):
        raise QuestionError(f"{file}: is not an object of config.json by model")
    return found


def _text(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise QuestionError(f"{file}: cannot be read ({reason}); give a file of JSON lines") from error


def _document(line: Line) -> dict[str, object]:
    head: dict[str, object] = {"line": line.number, "id": line.id}
    if line.question is None or line.answer is None:
        return {**head, "error": line.error}
    return {**head, "answer": document(line.question, line.answer)}


def _as_line(document: dict[str, object]) -> str:
    """The quick way; the other takes an id of any size, and characters that UTF-8 has no form of."""
    try:
        return orjson.dumps(document).decode()
    except TypeError:
        return json.dumps(document, separators=(",", ":"))


def _table() -> Table:
    table = Table(title_justify="left")
    for name in ("line", "id", "model", "on", "fits", "KV tokens", "context", "requests"):
        numeric = name in ("line", "KV tokens", "context", "requests")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    return table


def _encodable(text: str) -> str:
    """Half a surrogate pair, which JSON can say and no terminal can show, as "?"."""
    return text.encode(errors="replace").decode()


def _cells(line: Line) -> tuple[str, ...]:
    head = (str(line.number), "" if line.id is None else escape(_encodable(str(line.id))))
    question, found = line.question, line.answer
    if question is None or found is None:
        return (*head, "", "", "?", "", "", "")
    cards = (
        f"{found.settings.num_cards}x{question.device.name}" if found.settings.num_cards > 1 else question.device.name
    )
    fits = ("yes" if found.fits else "no") + ("" if found.certain else ", close")
    return (
        *head,
        escape(_encodable(question.model.name)),
        f"{cards} ({question.device.memory_bytes / GIB:.0f} GiB)",
        fits,
        f"{found.kv_cache_tokens:,}",
        f"{found.settings.max_model_len:,}",
        f"{found.requests_fit:,}",
    )
