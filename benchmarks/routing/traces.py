"""Reads recorded requests, plain or gzip, in Mooncake's format or Azure's, whichever the content is."""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TextIO

from benchmarks.errors import ConfigError
from benchmarks.routing.demand import Request

TRACE_BLOCK_TOKENS = 512
"""What one of Mooncake's hash_ids stands for."""
_GZIP = b"\x1f\x8b"
_AZURE = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"}
_MOST_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests by time, the first at 0."""

    name: str
    kind: Literal["mooncake", "azure"]
    requests: tuple[Request, ...]
    step_s: float
    """Distance of the recording's own timestamps; 0 where they are as fine as one can tell."""

    @property
    def span_s(self) -> float:
        return self.requests[-1].at_s + self.step_s

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.requests) / self.span_s if self.span_s else float(len(self.requests))


def read_trace(path: Path) -> Trace:
    """A Mooncake trace (one JSON object a line) or an Azure one (CSV with a header).

    Raises:
        ConfigError: it cannot be read, is neither, or has a row that is not what it should be (with its line).
    """
    try:
        with _open(path) as lines:
            first = next(lines, "")
            everything = chain([first], lines)
            if first.lstrip().startswith("{"):
                kind: Literal["mooncake", "azure"] = "mooncake"
                found = list(_mooncake(everything, path))
            elif set(next(csv.reader([first.removeprefix("\ufeff")]), [])) >= _AZURE:
                kind = "azure"
                found = list(_azure(everything, path))
            else:
                raise ConfigError(
                    f"{path} is neither a Mooncake trace (JSON lines with timestamp, input_length, output_length, "
                    f"hash_ids) nor an Azure one (CSV with {', '.join(sorted(_AZURE))})"
                )
    except (OSError, EOFError, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}; give the path of a file") from error
    if not found:
        raise ConfigError(f"{path} has no request; give a trace with at least one")
    found.sort(key=lambda request: request.at_s)
    start_s = found[0].at_s
    requests = tuple(_moved(request, request.at_s - start_s) for request in found)
    return Trace(path.name, kind, requests, _step_s(requests))


def _moved(request: Request, at_s: float) -> Request:
    return Request(at_s, request.prompt_tokens, request.output_tokens, request.blocks)


def _open(path: Path) -> TextIO:
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == _GZIP
    return gzip.open(path, "rt", encoding="utf-8") if is_gzip else path.open(encoding="utf-8")


def _mooncake(lines: Iterable[str], path: Path) -> Iterator[Request]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            at_s = _number(row, "timestamp") / 1e3
            prompt, output = _count(row, "input_length"), _count(row, "output_length")
            ids = tuple(row["hash_ids"])
            if not all(type(value) is int for value in ids):
                raise ValueError("hash_ids are not all whole numbers")
            if len(ids) < prompt // TRACE_BLOCK_TOKENS:
                raise ValueError(f"{len(ids)} hash_ids for {prompt} tokens")
        except KeyError as error:
            raise _bad(path, number, f"no {error.args[0]}") from None
        except (ValueError, TypeError) as error:
            raise _bad(path, number, str(error)) from None
        # the last id may stand for less than a block, which no engine keeps for others
        yield Request(at_s, prompt, output, ids[: prompt // TRACE_BLOCK_TOKENS])


def _azure(lines: Iterable[str], path: Path) -> Iterator[Request]:
    rows = csv.DictReader(line.removeprefix("\ufeff") for line in lines)
    fresh = -1  # every prompt is its own: ids that no other has
    for row in rows:
        try:
            at_s = _instant_s(row["TIMESTAMP"])
            prompt, output = _count(row, "ContextTokens"), _count(row, "GeneratedTokens")
        except (ValueError, TypeError, KeyError) as error:
            raise _bad(path, rows.line_num, str(error)) from None
        blocks = tuple(range(fresh, fresh - prompt // TRACE_BLOCK_TOKENS, -1))
        fresh -= len(blocks)
        yield Request(at_s, prompt, output, blocks)


def _instant_s(text: str) -> float:
    """Seven digits behind the point, with or without a zone: more than the standard library reads."""
    head, _, tail = text.strip().partition(".")
    fraction, digits = tail.rstrip("Z").partition("+")[0], 0.0
    if fraction:
        digits = float(f"0.{fraction}")
    day = datetime.fromisoformat(head.rstrip("Z"))
    zone = datetime(1970, 1, 1, tzinfo=day.tzinfo)
    return (day - zone).total_seconds() + digits


def _number(row: dict[str, object], key: str) -> float:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise ValueError(f"{key} is {value!r}, not a number of at least 0")
    return float(value)


def _count(row: dict[str, object] | dict[str, str], key: str) -> int:
    value = row[key]
    try:
        count = int(value) if isinstance(value, str) else value
    except ValueError:
        count = None
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= _MOST_TOKENS:
        raise ValueError(f"{key} is {value!r}, not a whole number of tokens")
    return max(count, 1)


def _bad(path: Path, line: int, why: str) -> ConfigError:
    return ConfigError(f"{path}, line {line}: {why}; correct or delete that line")


def _step_s(requests: tuple[Request, ...]) -> float:
    """Mooncake's timestamps come every 3 s: many requests at one instant, and nothing between two of them."""
    instants = sorted({request.at_s for request in requests})
    if len(instants) < 10 or len(requests) < 2 * len(instants):
        return 0.0
    gaps = sorted(later - earlier for earlier, later in zip(instants, islice(instants, 1, None), strict=False))
    return gaps[len(gaps) // 2]
