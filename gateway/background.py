"""Work that goes on beside requests for as long as a block runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any


@contextlib.asynccontextmanager
async def working(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run `work`, which never ends by itself, as a task until the block ends; it has ended then."""
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        await ended(task)


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel it, and wait until it has ended."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
