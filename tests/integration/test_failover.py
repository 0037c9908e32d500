"""An engine killed under load: its streams break in their own dialect, everything else is answered, it comes back."""

import asyncio
import signal
from dataclasses import dataclass

import aiohttp
import pytest

from tests.integration.stack import KEY, MODEL, Stack, wait_until

pytestmark = pytest.mark.engine
REQUESTS = 40


@dataclass
class Outcome:
    """What a client saw; `begun` when a byte of a streamed answer had reached it before the kill."""

    begun: bool = False
    complete: bool = False
    told: bool = False
    answer: bytes = b""


async def _ask(session: aiohttp.ClientSession, url: str, number: int, killed: asyncio.Event) -> Outcome:
    outcome = Outcome()
    stream = number % 2 == 0
    body = {
        "model": MODEL,
        "stream": stream,
        "messages": [{"role": "user", "content": f"{number}: tell me a story."}],
        "max_tokens": 40,
        "ignore_eos": True,
    }
    received = b""
    async with session.post(url, json=body) as answer:
        async for piece in answer.content.iter_any():
            received += piece
            outcome.begun = outcome.begun or (stream and not killed.is_set())
        end = b"data: [DONE]" if stream else b'"finish_reason":"length"'
        outcome.told = b'"error"' in received
        outcome.answer = str(answer.status).encode() + received[-300:]
        outcome.complete = answer.status == 200 and end in received and not outcome.told
    return outcome


@pytest.mark.timeout(480)
async def test_kill_9_under_load_loses_only_what_had_begun_to_stream(stack: Stack) -> None:
    def both_ready() -> bool:
        return stack.metric("berth_replica_ready") == 2

    await asyncio.to_thread(
        wait_until, "both engines are there", both_ready, 180
    )  # at a second try, the killed one too
    killed = asyncio.Event()
    restarted_from = len(stack.text())
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as session:
        url = f"{stack.url}/v1/chat/completions"
        tasks = []
        for number in range(REQUESTS):
            tasks.append(asyncio.create_task(_ask(session, url, number, killed)))
            await asyncio.sleep(0.1)
            if number == REQUESTS // 3:
                stack.engine_roots()[0].send_signal(signal.SIGKILL)
                killed.set()
        outcomes = await asyncio.gather(*tasks)
    lost = [outcome for outcome in outcomes if not outcome.complete]
    assert not [outcome.answer for outcome in lost if not outcome.begun]
    assert all(outcome.told for outcome in lost)  # a broken stream says so; it does not just stop
    assert len(lost) < REQUESTS / 2
    assert stack.metric("berth_retries_total") > 0

    await asyncio.to_thread(wait_until, "the killed engine is back", both_ready, 180)
    assert "restart 1 in" in stack.text()[restarted_from:]
    assert stack.metric("berth_requests_in_flight") == 0
