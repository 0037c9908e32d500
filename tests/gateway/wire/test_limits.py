from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.wire import Allowance, limit_headers

NOW = datetime(2026, 2, 28, 23, 59, 30, tzinfo=UTC)
ALL = (Allowance("requests", 60, 59, 0.25), Allowance("tokens", 1000, -5, 90), Allowance("input-tokens", 700, 1, 30))


def test_openais_names_and_durations() -> None:
    assert limit_headers("chat", ALL, NOW) == [
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"59"),
        (b"x-ratelimit-reset-requests", b"250ms"),
        (b"x-ratelimit-limit-tokens", b"1000"),
        (b"x-ratelimit-remaining-tokens", b"0"),
        (b"x-ratelimit-reset-tokens", b"1m30s"),
    ]


def test_anthropics_names_and_moments() -> None:
    headers = dict(limit_headers("messages", ALL, NOW.astimezone(timezone(timedelta(hours=5)))))
    assert len(headers) == 9
    assert headers[b"anthropic-ratelimit-requests-limit"] == b"60"
    assert headers[b"anthropic-ratelimit-tokens-remaining"] == b"0"
    assert headers[b"anthropic-ratelimit-requests-reset"] == b"2026-02-28T23:59:31Z"
    assert headers[b"anthropic-ratelimit-input-tokens-reset"] == b"2026-03-01T00:00:00Z"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, b"0ms"), (-1, b"0ms"), (0.0004, b"1ms"), (1, b"1s"), (59.2, b"1m0s"), (360, b"6m0s"), (3725, b"1h2m5s")],
)
def test_durations_as_go_writes_them(seconds: float, text: bytes) -> None:
    assert limit_headers("responses", [Allowance("requests", 1, 0, seconds)], NOW)[2][1] == text
