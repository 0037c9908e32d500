"""The soak's parts: its mixture, its mock engine read by the gateway's own eyes, and its verdict."""

import random

import pytest

from benchmarks.soak import Sample, Tally, report, wish
from benchmarks.soak_engine import events
from gateway.wire import Dialect, Usage, read_event


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "completions"),
        ("/v1/responses", "responses"),
        ("/v1/messages", "messages"),
    ],
)
def test_the_mock_speaks_every_dialect(path: str, dialect: Dialect) -> None:
    signs = [read_event(dialect, event) for event in events(path, 3, 0)]
    assert [sign.token for sign in signs].count("text") == 3
    assert [sign.usage for sign in signs if sign.usage][-1].output_tokens == 3
    assert signs[-1].end or signs[-1].usage == Usage(5, 3)


def test_the_mixture_has_everything_in_it() -> None:
    dice = random.Random(1)
    drawn = [wish(dice) for _ in range(2000)]
    assert {one.caller for one in drawn} == {"stream", "whole", "leaves", "leaves early", "slow", "fails"}
    assert len({one.path for one in drawn if one.stream}) == 4
    assert len({one.path for one in drawn}) == 6


def _samples(growth_mib: float = 0.0) -> list[Sample]:
    return [Sample(10.0 * i, 60.0 + growth_mib * i / 60, 40, 12.0, 0.1 * i) for i in range(60)]


LAST = Sample(610.0, 60.0, 20, 0.0, 6.0)


@pytest.mark.parametrize(
    ("samples", "last", "lost", "verdict"),
    [
        (_samples(), LAST, 0, "passed"),
        (_samples(5.0), LAST, 0, "FAILED"),
        (_samples(), LAST, 1, "FAILED"),
        (_samples(), Sample(610.0, 60.0, 20, 1.0, 6.0), 0, "FAILED"),
        (_samples(), Sample(610.0, 60.0, 99, 0.0, 6.0), 0, "FAILED"),
    ],
    ids=["fine", "memory grows", "an answer lost", "a gauge not at zero", "files left open"],
)
def test_the_verdict(samples: list[Sample], last: Sample, lost: int, verdict: str) -> None:
    assert list(report(samples, last, Tally(lost=lost)))[-1].split() == ["verdict", verdict]
