"""Breaks a real engine's stream after some of its events and continues it, without a gateway in between."""

from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from gateway.continuation import Ask, Continuation, Trail
from gateway.wire import ENDPOINTS, Call, EventSplitter, parse_call, read_event
from gateway.wire.partial import Partial


@dataclass
class Answer:
    """One stream as its caller saw it; `read` from its events."""

    events: list[bytes] = field(default_factory=list)
    read: Partial = field(default_factory=lambda: Partial("chat"))

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.read.text)

    @property
    def usage(self) -> tuple[int, int] | None:
        """Prompt and output tokens as the last event says that says them."""
        for event in reversed(self.events):
            usage = read_event(self.read.dialect, event).usage
            if usage is not None and usage.prompt_tokens is not None and usage.output_tokens is not None:
                return usage.prompt_tokens, usage.output_tokens
        return None


def call_of(path: str, body: dict[str, Any]) -> Call:
    """The request as the gateway parses it."""
    ids = {"return_token_ids": True} if path.endswith("completions") else {}
    call = parse_call(ENDPOINTS[path], orjson.dumps({**ids, **body, "stream": True}))
    assert isinstance(call, Call), call
    return call


async def _post(session: aiohttp.ClientSession, url: str, ask: Ask) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"}
    async with session.post(url + ask.path, data=ask.body, headers=headers) as answer:
        return answer.status, await answer.read()


async def undisturbed(session: aiohttp.ClientSession, url: str, call: Call) -> Answer:
    """The whole stream."""
    status, body = await _post(session, url, Ask(call.endpoint.path, call.body, is_stream=True))
    assert status == 200, body
    return answer_of(call, body)


async def continued(session: aiohttp.ClientSession, url: str, call: Call, begun: list[bytes]) -> Answer:
    """What a caller gets who was sent `begun` before the engine died."""
    trail = Trail(call.endpoint.dialect)
    for event in begun:
        trail.keep(event)
    continuation = Continuation(call, trail)
    step = continuation.first()
    status, body = 0, b""
    while isinstance(step, Ask):
        status, body = await _post(session, url, step)
        if step.is_stream:
            break
        step = continuation.answered(status, body)
    if isinstance(step, bytes):
        return answer_of(call, b"".join(begun) + step)
    assert status == 200, body
    rest = continuation.feed(body)
    rest += continuation.end()
    assert continuation.broken_by is None, continuation.broken_by
    return answer_of(call, b"".join(begun) + rest)


def answer_of(call: Call, stream: bytes) -> Answer:
    """Read what one caller received."""
    answer = Answer(EventSplitter().feed(stream), Partial(call.endpoint.dialect))
    answer.read.read(stream)
    return answer
