"""Matrices of what fits where: models by GPUs, and contexts by concurrency for one model. Arithmetic alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sizing.compare import Option, Verdict, asked_of, first_clause, settled, short_reason, verdict
from sizing.log_lines import concurrency_range
from sizing.model import ModelShape
from sizing.question import Answer, Question

CONCURRENCIES = (1, 4, 16, 64, 256)
_SHORTEST_CONTEXT = 2048


@dataclass(frozen=True)
class Cell:
    """Whether it fits, and how many requests of `max_model_len` tokens do at once.

    `said` is that, or why not, in the room that a cell has.
    """

    verdict: Verdict
    max_model_len: int | None
    requests: int
    low_requests: int
    high_requests: int
    said: str


@dataclass(frozen=True)
class Matrix:
    """Cells by row and column, each with its heading."""

    title: str
    row_heading: str
    column_heading: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Cell, ...], ...]


def models_by_gpus(base: Question, models: Sequence[ModelShape], options: Sequence[Option]) -> Matrix:
    """Which model fits on which cards; where no context is asked for, the longest that does."""
    cells = tuple(tuple(_cell(replace(base, model=model), chosen) for chosen in options) for model in models)
    names = tuple(short_name(model.name) for model in models)
    return Matrix("Models by GPUs", "model", "GPU", names, tuple(chosen.label for chosen in options), cells)


def short_name(name: str) -> str:
    """A Hub id without its owner, a folder without its path."""
    return name.rstrip("/").rsplit("/", 1)[-1] or name


def contexts_by_concurrency(question: Question, concurrencies: Sequence[int] = CONCURRENCIES) -> Matrix:
    """Whether so many requests of so many tokens are in the KV cache at once, each row an engine of that length."""
    contexts = _contexts(question)
    rows = [_concurrency_row(replace(question, max_model_len=context), concurrencies) for context in contexts]
    count = question.count
    where = f"{count}x{question.device.name}" if count > 1 else question.device.name
    return Matrix(
        f"Context by concurrency on {where}",
        "tokens",
        "requests at once",
        tuple(f"{context:,}" for context in contexts),
        tuple(f"{concurrency:,}" for concurrency in concurrencies),
        tuple(rows),
    )


def _contexts(question: Question) -> tuple[int, ...]:
    """Powers of two up to what is asked or the model's own, which comes last."""
    longest = question.max_model_len or question.model.max_model_len
    powers = [2**n for n in range(int(math.log2(_SHORTEST_CONTEXT)), longest.bit_length()) if 2**n < longest]
    return (*powers, longest)


def _concurrency_row(question: Question, concurrencies: Sequence[int]) -> tuple[Cell, ...]:
    found, refused = settled(question)
    if found is None:
        return tuple(Cell("no", question.max_model_len, 0, 0, 0, first_clause(refused)) for _ in concurrencies)
    return tuple(_at_once(found, concurrency) for concurrency in concurrencies)


def _at_once(found: Answer, concurrency: int) -> Cell:
    low, high = _requests_range(found)
    most = found.settings.max_num_seqs
    context = found.settings.max_model_len
    if not found.fits and found.certain:
        return Cell("no", context, 0, 0, 0, short_reason(found))
    if concurrency > most:
        return Cell("no", context, found.requests_fit, low, high, f"max_num_seqs is {most}")
    if concurrency <= low:
        return Cell("fits", context, found.requests_fit, low, high, f"{found.requests_fit:,} fit")
    if concurrency <= high:
        return Cell("close", context, found.requests_fit, low, high, f"{low:,} to {high:,} fit")
    return Cell("no", context, found.requests_fit, low, high, f"{found.requests_fit:,} fit")


def _requests_range(found: Answer) -> tuple[int, int]:
    """Whole requests at both ends of the band, never narrower than the answer itself.

    The block vLLM keeps for itself is counted here, so that the ends may be one request too many by a hair.
    """
    low, high = (int(end) for end in concurrency_range(found))
    if not found.certain:
        low = 0
    if not found.fits:
        return 0, max(high, 1) if not found.certain else 0
    return min(low, found.requests_fit), max(high, found.requests_fit)


def _cell(base: Question, chosen: Option) -> Cell:
    question, found, refused = asked_of(base, chosen)
    if found is None:
        return Cell("no", question.max_model_len, 0, 0, 0, first_clause(refused))
    low, high = _requests_range(found)
    judged = verdict(found)
    context, requests = found.settings.max_model_len, found.requests_fit if found.fits else 0
    said = f"{requests:,} x {context:,}" if judged == "fits" else short_reason(found)
    if judged == "close":
        said = f"{low:,} to {high:,} x {context:,}"
    return Cell(judged, context, requests, low, high, said)
