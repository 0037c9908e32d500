"""What is left of a caller's limits, in the headers of each dialect.

Sources: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers and
https://docs.anthropic.com/en/api/rate-limits#response-headers. OpenAI knows requests and tokens and says for how long,
Anthropic counts input and output apart as well and says until when.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from gateway.wire.dialect import Dialect

Counted = Literal["requests", "tokens", "input-tokens", "output-tokens"]


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit of a caller: how much of what, how much of it is left, and in how many seconds it is full again."""

    counted: Counted
    limit: int
    remaining: int
    reset_s: float


def limit_headers(dialect: Dialect, allowances: Iterable[Allowance], now: datetime) -> list[tuple[bytes, bytes]]:
    """The headers for every answer to that caller, refused or not; `now` with its time zone."""
    headers = []
    for has in allowances:
        if dialect == "messages":
            names = [f"anthropic-ratelimit-{has.counted}-{figure}" for figure in ("limit", "remaining", "reset")]
            reset = _moment(now, has.reset_s)
        elif has.counted in ("requests", "tokens"):
            names = [f"x-ratelimit-{figure}-{has.counted}" for figure in ("limit", "remaining", "reset")]
            reset = _duration(has.reset_s)
        else:
            continue
        values = (str(has.limit), str(max(has.remaining, 0)), reset)
        headers += [(name.encode(), value.encode()) for name, value in zip(names, values, strict=True)]
    return headers


def _moment(now: datetime, seconds: float) -> str:
    """RFC 3339, rounded up: who comes back then is not early."""
    then = now.astimezone(UTC) + timedelta(seconds=max(seconds, 0.0) + 0.999_999)
    return then.strftime("%Y-%m-%dT%H:%M:%SZ")


def _duration(seconds: float) -> str:
    """As Go writes a duration, which is what OpenAI sends: 20ms, 1s, 6m0s, 1h0m0s."""
    milliseconds = math.ceil(max(seconds, 0.0) * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    whole = math.ceil(milliseconds / 1000)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
