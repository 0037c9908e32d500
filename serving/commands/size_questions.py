"""`berth size --questions`: many questions from a file, one answer a line."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import orjson
import typer
from rich.console import Console
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
    lines = _answered(_rows(file), _remembering(replace(sources, configs=_configs(configs))))
    if as_json:
        failed = 0
        for line in lines:
            failed += line.error is not None
            typer.echo(orjson.dumps(_document(line)).decode())
        return SOME_NOT if failed else ALL_ANSWERED
    found = list(lines)
    console = Console(highlight=False)
    console.print(_table(found))
    for line in found:
        why = line.error or (line.answer.reason if line.answer else None)
        if why:
            console.print(f"line {line.number}: {why}", soft_wrap=True, markup=False)
    return SOME_NOT if any(line.error for line in found) else ALL_ANSWERED


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


def _remembering(sources: Sources) -> Sources:
    """A model that many questions name is read once."""
    return replace(sources, load=lru_cache(maxsize=None)(sources.load))


def _rows(file: Path) -> Iterator[tuple[int, object]]:
    """Each line's number and object, or the error that it is not one. A JSON list counts by its entries."""
    text = _text(file)
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except ValueError as error:
            raise QuestionError(f"{file}: is not JSON ({error}); write one JSON object per line") from error
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            yield number, QuestionError(f"not JSON ({error})")


def _configs(file: Path | None) -> Mapping[str, Mapping[str, object]]:
    if file is None:
        return {}
    try:
        found = json.loads(_text(file))
    except ValueError as error:
        raise QuestionError(f"{file}: is not JSON ({error}); give an object of config.json by model") from error
    if not isinstance(found, dict) or not all(isinstance(config, dict) for config in found.values()):
        raise QuestionError(f"{file}: is not an object of config.json by model")
    return found


def _text(file: Path) -> str:
    if str(file) == "-":
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise QuestionError(f"{file}: cannot be read ({reason})") from error


def _document(line: Line) -> dict[str, object]:
    head: dict[str, object] = {"line": line.number, "id": line.id}
    if line.question is None or line.answer is None:
        return {**head, "error": line.error}
    return {**head, "answer": document(line.question, line.answer)}


def _table(lines: list[Line]) -> Table:
    table = Table(title=f"{len(lines)} questions", title_justify="left")
    for name in ("line", "id", "model", "on", "fits", "KV tokens", "context", "requests"):
        numeric = name in ("line", "KV tokens", "context", "requests")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for line in lines:
        table.add_row(*_cells(line))
    return table


def _cells(line: Line) -> tuple[str, ...]:
    head = (str(line.number), "" if line.id is None else str(line.id))
    question, found = line.question, line.answer
    if question is None or found is None:
        return (*head, "", "", "?", "", "", "")
    cards = (
        f"{found.settings.num_cards}x{question.device.name}" if found.settings.num_cards > 1 else question.device.name
    )
    fits = ("yes" if found.fits else "no") + ("" if found.certain else ", close")
    return (
        *head,
        question.model.name,
        f"{cards} ({question.device.memory_bytes / GIB:.0f} GiB)",
        fits,
        f"{found.kv_cache_tokens:,}",
        f"{found.settings.max_model_len:,}",
        f"{found.requests_fit:,}",
    )
