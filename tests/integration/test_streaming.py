"""What a stream looks like on the wire, and what a client that leaves costs the engine: nothing."""

import asyncio
import io
import itertools
import time
from typing import Any

import aiohttp
import pytest

from gateway.wire import EventSplitter, read_event
from tests.integration.stack import KEY, MODEL, Stack, wait_until

pytestmark = pytest.mark.engine
LONG = 1200
HEADERS = {"authorization": f"Bearer {KEY}"}
_STORY = [{"role": "user", "content": "Tell me a very long story about a ship."}]
BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": _STORY, "max_tokens": LONG, "ignore_eos": True},
    "completions": {"prompt": "Once upon a time", "max_tokens": LONG, "ignore_eos": True},
    "responses": {"input": "Tell me a very long story.", "max_output_tokens": LONG, "ignore_eos": True},
    "messages": {"messages": _STORY, "max_tokens": LONG},
}


async def test_tokens_arrive_one_by_one(stack: Stack) -> None:
    body = {"model": MODEL, "stream": True, **BODIES["chat/completions"], "max_tokens": 40}
    arrivals: list[float] = []
    splitter = EventSplitter()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{stack.url}/v1/chat/completions", json=body, headers=HEADERS) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for piece in answer.content.iter_any():
            now = time.perf_counter()
            arrivals += [now for event in splitter.feed(piece) if read_event("chat", event).token]
    assert len(arrivals) > 30
    moments = len(set(arrivals))
    assert moments > len(arrivals) * 0.5  # not collected on the way
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(arrivals))
    assert gaps[-1] < (arrivals[-1] - arrivals[0]) * 0.5  # nor held back and sent in one go


@pytest.mark.parametrize("stage", ["before the first token", "mid-stream", "unstreamed"])
@pytest.mark.parametrize("path", list(BODIES))
async def test_a_client_that_leaves_frees_the_engine_within_a_second(stack: Stack, path: str, stage: str) -> None:
    body = {"model": MODEL, "stream": stage != "unstreamed", **BODIES[path]}
    took_s: list[float] = []
    while len(took_s) < 3 and min(took_s, default=1.0) >= 1.0:  # a machine that stalled once says nothing about us
        took_s.append(await _leave(stack, f"{stack.url}/v1/{path}", body, stage))
    assert min(took_s) < 1.0
    assert stack.metric("berth_requests_in_flight") == 0


async def _leave(stack: Stack, url: str, body: dict[str, Any], stage: str) -> float:
    """Seconds until the engines were free after a client left at `stage`."""

    def running() -> float:
        return stack.metric("berth_engine_requests_running")

    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(_read_some(session, url, body))
        try:
            if stage == "before the first token":
                await asyncio.sleep(0.02)  # the request is in the gateway or the engine; its prefill has hardly begun
            else:
                await asyncio.to_thread(wait_until, "the engine computes", lambda: running() > 0, 60)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return await asyncio.to_thread(wait_until, "the engine is free", lambda: running() == 0, 30)


async def _read_some(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> None:
    async with session.post(url, json=body, headers=HEADERS) as answer:
        async for _ in answer.content.iter_any():
            pass


async def test_prefix_caching_and_continuous_batching_are_on(stack: Stack) -> None:
    hits = "berth_engine_prefix_cache_hits_tokens_total"
    before = stack.metric(hits)
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "one two three four five six seven " * 100}],
        "max_tokens": 1,
    }
    async with aiohttp.ClientSession(headers=HEADERS) as session:

        async def ask(extra: dict[str, Any]) -> dict[str, Any]:
            async with session.post(f"{stack.url}/v1/chat/completions", json={**body, **extra}) as answer:
                assert answer.status == 200
                payload: dict[str, Any] = await answer.json()
                return {**payload, "replica": answer.headers["x-berth-replica"]}

        asked: set[str] = set()
        for _ in range(4):  # two replicas: at the latest the third time the same one is asked again
            answered = await ask({})
            if answered["replica"] in asked:
                assert answered["usage"]["prompt_tokens_details"]["cached_tokens"] >= 512
            asked.add(answered["replica"])
        assert len(asked) <= 2
        assert stack.metric(hits) - before >= 512

        together = [ask({"max_tokens": 60, "ignore_eos": True}) for _ in range(6)]
        tasks = [asyncio.create_task(one) for one in together]
        peak = 0.0
        while not all(task.done() for task in tasks):
            peak = max(peak, await asyncio.to_thread(stack.metric, "berth_engine_requests_running"))
        await asyncio.gather(*tasks)
    assert peak >= 3  # more requests computed at once than there are engines


def test_metrics_tell_predicted_and_confirmed_capacity(stack: Stack) -> None:
    for replica in ("smollm2/0", "smollm2/1"):
        predicted = stack.metric("berth_engine_kv_cache_predicted_tokens", replica=replica)
        assert predicted == 11_648  # 536,870,912 B / (128 tokens x 46,080 B) = 91 blocks of 128 tokens
        assert stack.metric("berth_engine_kv_cache_tokens", replica=replica) == predicted


async def test_bodies_that_are_wrong_cost_one_request_and_nothing_else(stack: Stack) -> None:
    url = f"{stack.url}/v1/chat/completions"
    async with aiohttp.ClientSession(headers=HEADERS) as session:
        async with session.post(url, data=b'{"model": ') as answer:
            assert answer.status == 400
            assert "not valid JSON" in (await answer.json())["error"]["message"]
        async with session.post(url, data=io.BytesIO(b"x" * 100_000_000)) as answer:
            assert answer.status == 413
            assert "max_body_mib" in (await answer.json())["error"]["message"]
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        async with session.post(url, json=body) as answer:
            assert answer.status == 200
