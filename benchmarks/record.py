"""One line of JSON for each request, and back: the raw material every figure can be computed from again.

Schema of `records.jsonl`, one object a line, in the order the requests ended. Times are seconds from the start of the
run on one monotonic clock; null is "did not happen" or "the server did not say", never 0.

index               position in the workload
outcome             ok | http_error | timeout | connection | cut_short | stream_error
intended_s          when it should have been sent; null in a closed loop
sent_s              just before the request was handed to the connection
first_byte_s        first byte of the answer's body
first_token_s       first text, reasoning or tool-call text; never a role or usage event
last_token_s        last of these
done_s              the answer ended, failed or was given up
status              HTTP status; null when none came
error               one line; null when ok
prompt_tokens, output_tokens, cached_tokens     the server's own usage
asked_prompt_tokens, asked_output_tokens        what the workload asked for
first_chunk_tokens  tokens in the first chunk where the server states a running usage, else null
token_events        events that carried generated text
chunks              socket reads that carried at least one such event
chunk_gaps_s        time from each chunk to the next, rounded to a microsecond
max_gap_s           the longest of them
"""

from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import orjson

from benchmarks.errors import OutputError

Outcome = Literal["ok", "http_error", "timeout", "connection", "cut_short", "stream_error"]
"""How a request ended. `cut_short`: the stream ended or broke before its [DONE]."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request; see the module's docstring for each field."""

    index: int
    outcome: Outcome
    intended_s: float | None
    sent_s: float
    first_byte_s: float | None
    first_token_s: float | None
    last_token_s: float | None
    done_s: float
    status: int | None
    error: str | None
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    asked_prompt_tokens: int
    asked_output_tokens: int
    first_chunk_tokens: int | None
    token_events: int
    chunks: int
    chunk_gaps_s: tuple[float, ...]
    max_gap_s: float | None

    @property
    def is_ok(self) -> bool:
        """Whether the whole answer came."""
        return self.outcome == "ok"


class RecordWriter:
    """Appends records to a new file, each one on disk's way before the next is looked at; use it as a context."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("xb")
        except FileExistsError:
            raise OutputError(
                f"{path} already exists: give another directory, old results are not overwritten"
            ) from None
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; give a writable directory") from None

    def write(self, record: RequestRecord) -> None:
        """Append one line and flush it; OutputError when the disk refuses."""
        try:
            self._file.write(orjson.dumps(record) + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"cannot write {self._file.name}: {error.strerror}; free some space") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def read_records(path: Path) -> tuple[RequestRecord, ...]:
    """All records of a file, in its order; OutputError names the line that is not one.

    A last line without its newline is what a killed run leaves behind and is passed over.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}") from None
    return tuple(_parse(line, f"{path}:{number}") for number, line in enumerate(lines[:-1], start=1))


_FIELDS = frozenset(field.name for field in fields(RequestRecord))


def _parse(line: bytes, where: str) -> RequestRecord:
    try:
        raw: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise OutputError(f"{where} is not JSON ({error}): is this a records.jsonl?") from None
    if not isinstance(raw, dict) or raw.keys() != _FIELDS or raw["outcome"] not in OUTCOMES:
        raise OutputError(f"{where} is not a request record of this version")
    gaps = tuple(raw.pop("chunk_gaps_s"))
    return RequestRecord(**raw, chunk_gaps_s=gaps)
