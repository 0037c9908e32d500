"""One line for each finished request, as text or as JSON: never a prompt, never a key.

A batch becomes one log record of many lines, each with its own date: a record for every line would cost more than the
line. Handlers of `berth.access` therefore write the bare message.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal

import orjson

from gateway.settlement import Settlement

LogFormat = Literal["text", "json"]

_logger = logging.getLogger("berth.access")

FIELDS: Final = {
    "time": "when it ended, RFC 3339 in UTC",
    "level": "always `info`",
    "logger": "always `berth.access`",
    "request_id": "as in the answer's `x-request-id`",
    "caller": "whose key it was; null when none was accepted",
    "model": "the public name; `(none)` when the request ended before it was known",
    "replica": "the engine that had it last; `(none)` when none had",
    "dialect": "`chat`, `completions`, `responses`, `messages`, ...",
    "stream": "whether a stream was asked for",
    "outcome": "`ok`, `refused` (by the gateway), `engine_error`, `broken` (the engine failed), `client_gone`",
    "status": "the HTTP status; 499 when the caller left first",
    "ttft_s": "seconds to the first token; null when there was none or the answer was not streamed",
    "tpot_s": "seconds per further token; null when there was no second one",
    "duration_s": "seconds from the request's head to its end",
    "prompt_tokens": "as the engine states them; null when it did not",
    "cached_tokens": "of these, from prefix cache",
    "predicted_cached_tokens": "what the router expected there when it chose the replica",
    "prompt_fates": "prompt tokens by what became of them: `hit`, or computed for `no_reuse`, `evicted`, ...",
    "output_tokens": "as the engine states them; of a broken stream those that were seen",
    "retries": "how often it was moved to another replica before its first byte",
    "continuations": "how often after it",
    "trace_id": "of its span; null without tracing",
}
"""The keys of a JSON line and what they mean."""


# one % for all of a line: f-strings take twice as long once they are compiled
_LINE: Final = (
    "%s,%03d INFO berth.access %s caller=%s model=%s replica=%s dialect=%s outcome=%s status=%d ttft_s=%s"
    " duration_s=%.3f prompt_tokens=%s cached_tokens=%s predicted_cached_tokens=%s output_tokens=%s%s"
)
_SECONDS: Final = "%.3f"


def write_lines(log_format: LogFormat) -> Callable[[Sequence[Settlement], float], None]:
    """A reader of settlements that logs them in `log_format`."""
    line = json_line if log_format == "json" else text_line

    def write(batch: Sequence[Settlement], offset_s: float) -> None:
        if _logger.isEnabledFor(logging.INFO):
            text = "\n".join([line(done, done.ended_s + offset_s) for done in batch])
            # not info(): it would look for the caller's file and line
            _logger.handle(logging.LogRecord(_logger.name, logging.INFO, "", 0, text, None, None))

    return write


def text_line(done: Settlement, ended_wall_s: float) -> str:
    """In the shape of every other line of the log."""
    millis = int(ended_wall_s * 1000)
    usage = done.usage
    return _LINE % (
        _local(millis // 1000),
        millis % 1000,
        done.request_id,
        done.caller or "-",
        done.model,
        done.replica,
        done.dialect,
        done.outcome,
        done.status,
        "-" if done.ttft_s is None else _SECONDS % done.ttft_s,
        done.duration_s,
        usage.prompt_tokens,
        usage.cached_tokens,
        done.predicted_tokens,
        usage.output_tokens,
        f" moved={len(done.moves)}" if done.moves else "",
    )


def json_line(done: Settlement, ended_wall_s: float) -> str:
    """One JSON object with the keys of FIELDS."""
    millis = int(ended_wall_s * 1000)
    usage = done.usage
    retries = sum(move.kind == "retry" for move in done.moves) if done.moves else 0
    return orjson.dumps(
        {
            "time": f"{_utc(millis // 1000)}.{millis % 1000:03d}Z",
            "level": "info",
            "logger": "berth.access",
            "request_id": done.request_id,
            "caller": done.caller or None,
            "model": done.model,
            "replica": done.replica,
            "dialect": done.dialect,
            "stream": done.stream,
            "outcome": done.outcome,
            "status": done.status,
            "ttft_s": _rounded(done.ttft_s),
            "tpot_s": _rounded(done.tpot_s),
            "duration_s": round(done.duration_s, 6),
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "predicted_cached_tokens": done.predicted_tokens,
            "prompt_fates": done.fates,
            "output_tokens": usage.output_tokens,
            "retries": retries,
            "continuations": sum(move.kind == "continuation" for move in done.moves) if done.moves else 0,
            "trace_id": done.trace.trace_id if done.trace else None,
        }
    ).decode()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


@lru_cache(maxsize=4)
def _local(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


@lru_cache(maxsize=4)
def _utc(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"
