"""A gateway whose file is read again on request, as it is while a command runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from gateway.app import Gateway
from serving.door_config import DoorConfig
from serving.rereading import Rereading
from tests.gateway.harness import Door, opened

C = TypeVar("C", bound=DoorConfig)


@contextmanager
def opened_to_reload(gateway: Gateway, reader: Rereading[C], again: Callable[[], C]) -> Iterator[Door]:
    """Serve `gateway`, whose POST /admin/reload makes `reader` follow what `again` reads, until the block ends."""

    async def reload() -> tuple[str, ...]:
        return await reader.reload(again)

    reader.is_open = True
    gateway.reload = reload
    with opened(gateway) as door:
        door.wait_ready()
        yield door
