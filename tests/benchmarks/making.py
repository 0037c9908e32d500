"""A record with a plain timeline, to be changed where a test says so; and patience for a loaded machine."""

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings

from benchmarks.record import RequestRecord

patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])

PLAIN = RequestRecord(
    index=0,
    outcome="ok",
    intended_s=None,
    sent_s=1.0,
    first_byte_s=1.1,
    first_token_s=1.5,
    last_token_s=2.5,
    done_s=2.6,
    status=200,
    error=None,
    prompt_tokens=100,
    output_tokens=11,
    cached_tokens=0,
    asked_prompt_tokens=90,
    asked_output_tokens=16,
    first_chunk_tokens=None,
    token_events=11,
    chunks=11,
    chunk_gaps_s=(0.1,) * 10,
    max_gap_s=0.1,
)
"""Sent at 1.0 s, eleven tokens from 1.5 s to 2.5 s, one every 100 ms."""


def record(**changes: Any) -> RequestRecord:
    """PLAIN with some fields changed."""
    return replace(PLAIN, **changes)


def failed(**changes: Any) -> RequestRecord:
    """A request refused with 500 half a second after it was sent at 1.0 s."""
    nothing = {
        "first_token_s": None,
        "last_token_s": None,
        "done_s": 1.5,
        "prompt_tokens": None,
        "output_tokens": None,
        "cached_tokens": None,
        "token_events": 0,
        "chunks": 0,
        "chunk_gaps_s": (),
        "max_gap_s": None,
    }
    return replace(PLAIN, **{"outcome": "http_error", "status": 500, "error": "boom", **nothing, **changes})
