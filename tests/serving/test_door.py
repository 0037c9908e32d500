"""What opening the door leaves behind in the process."""

import gc
from collections.abc import Iterator

import pytest

from gateway.app import Gateway
from serving.door import bind, open_door
from tests.gateway.harness import CONFIG


@pytest.fixture
def collector() -> Iterator[None]:
    """The garbage collector, put back afterwards."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("collector")
async def test_a_full_collection_does_not_walk_what_start_up_made() -> None:
    gc.unfreeze()
    gateway = Gateway(CONFIG)
    with bind("127.0.0.1", 0) as listener:
        async with open_door(gateway, listener):
            assert not any(found is gateway for found in gc.get_objects())
            assert gc.get_freeze_count() > 10_000
            assert gc.get_threshold()[0] > 10_000
