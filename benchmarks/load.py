"""The two shapes of load: requests that arrive when they should, and requests that wait for each other."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from benchmarks.workload import Prompt

Send = Callable[[Prompt, float | None], Coroutine[Any, Any, None]]
"""Send one prompt, given its intended arrival in seconds (None in a closed loop), and see its answer through."""


async def open_loop(
    prompts: Sequence[Prompt], arrivals_s: Sequence[float], send: Send, elapsed_s: Callable[[], float]
) -> None:
    """Send each prompt at its arrival, whatever became of the earlier ones.

    One that is due late is sent at once and the next keeps its own time: the debt is shown as send lag, not forgiven.
    """
    async with asyncio.TaskGroup() as group:
        for prompt, intended_s in zip(prompts, arrivals_s, strict=True):
            await asyncio.sleep(max(0.0, intended_s - elapsed_s()))
            group.create_task(send(prompt, intended_s))


async def closed_loop(prompts: Sequence[Prompt], concurrency: int, send: Send) -> None:
    """Keep `concurrency` requests in flight until all are answered."""
    waiting = iter(prompts)

    async def one_caller() -> None:
        for prompt in waiting:
            await send(prompt, None)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(prompts))):
            group.create_task(one_caller())
