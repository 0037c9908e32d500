"""Fixtures: a gateway before one scripted engine, or before two."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.fake_engine import FakeEngine, running
from tests.gateway.harness import Door, door_before


@pytest.fixture
def door(fake: FakeEngine) -> Iterator[Door]:
    """A ready gateway in front of one engine."""
    with door_before(fake) as opened_door:
        yield opened_door


@pytest.fixture
def second() -> Iterator[FakeEngine]:
    """Another engine with the same model."""
    with running(FakeEngine()) as engine:
        yield engine


@pytest.fixture
def pair(fake: FakeEngine, second: FakeEngine) -> Iterator[Door]:
    """A ready gateway in front of `fake` (e0) and `second` (e1); e0 takes the first request."""
    with door_before(fake, second) as opened_door:
        yield opened_door


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opened, last first."""
    with ExitStack() as exits:
        yield exits
