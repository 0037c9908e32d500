"""Fixtures shared by all rooms' tests."""

from collections.abc import Iterator

import pytest

from tests.fake_engine import FakeEngine, running


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    """A scripted engine on a free loopback port, for faults a real one cannot be made to show."""
    with running(FakeEngine()) as engine:
        yield engine
