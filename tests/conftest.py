"""Fixtures shared by all rooms' tests."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.fake_engine import FakeEngine, running

settings.register_profile("untimed", deadline=None)  # what a test takes says more about the machine than about us
settings.load_profile("untimed")


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    """A scripted engine on a free loopback port, for faults a real one cannot be made to show."""
    with running(FakeEngine()) as engine:
        yield engine
