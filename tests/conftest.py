"""Fixtures shared by all rooms' tests."""

import gc
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fake_engine import FakeEngine, running

settings.register_profile("untimed", deadline=None)  # what a test takes says more about the machine than about us
settings.load_profile("untimed")


_REAL_TIME = {"gateway", "integration", "serving"}  # sockets, processes and clocks, on a machine that may be busy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What talks to processes in real time is tried once more when it fails, and the summary names it (RERUN)."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in _REAL_TIME:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test's report parses its source. What is collected meanwhile (a task whose exception nobody asked for)
    must not parse as well: CPython 3.11's parser is not to be entered twice, and pytest ends with an internal error."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return (yield)
    finally:
        if was_on:
            gc.enable()


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    """A scripted engine on a free loopback port, for faults a real one cannot be made to show."""
    with running(FakeEngine()) as engine:
        yield engine
