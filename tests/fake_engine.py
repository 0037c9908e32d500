"""A scripted OpenAI-compatible engine, for the faults a real one cannot be made to show.

Each POST takes the next queued `Script` (or the default one) and plays it byte for byte: delays, chunks, then a proper
end, a dropped connection or a hang. Everything that arrives is recorded. It runs in a thread of its own, on loopback.
"""

import asyncio
import json
import ssl
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

BEFORE_HEADERS = -1


@dataclass(frozen=True)
class Script:
    """What one POST gets. `chunks` are (delay_s, bytes) written in order after `delay_s`; then comes `ending`.

    `gates`: chunk i is not written before gates[i] is set; BEFORE_HEADERS holds back the head, len(chunks) the ending.
    `raw`: exactly these bytes, head included, instead of all that, and then the connection is closed.
    """

    chunks: tuple[tuple[float, bytes], ...] = ()
    status: int = 200
    content_type: str = "text/event-stream; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    ending: Literal["end", "drop", "hang"] = "end"
    gates: Mapping[int, threading.Event] = field(default_factory=dict)
    raw: bytes | None = None


def event(payload: dict[str, Any], name: str | None = None) -> bytes:
    """One SSE frame around `payload`, with an `event:` line when `name` is given."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(payload, separators=(',', ':'))}\n\n".encode()


def chat_chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    """One chat.completion.chunk event."""
    return event(
        {
            "id": "chatcmpl-fake",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "fake",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
    )


def chat_stream(
    words: tuple[str, ...] = ("Hello", " there"),
    *,
    interval_s: float = 0.0,
    role_delay_s: float = 0.0,
    first_delay_s: float = 0.0,
    usage: bool = True,
    ending: Literal["end", "drop", "hang"] = "end",
) -> Script:
    """A chat stream as vLLM sends it: role, `words` one a chunk, finish, usage, [DONE] (the tail only when it ends)."""
    chunks = [(role_delay_s, chat_chunk({"role": "assistant", "content": ""}))]
    chunks += [(first_delay_s if i == 0 else interval_s, chat_chunk({"content": w})) for i, w in enumerate(words)]
    if ending == "end":
        chunks.append((interval_s, chat_chunk({}, "stop")))
        if usage:
            total = {"prompt_tokens": 7, "completion_tokens": len(words), "total_tokens": 7 + len(words)}
            chunks.append((0.0, event({"id": "chatcmpl-fake", "model": "fake", "choices": [], "usage": total})))
        chunks.append((0.0, b"data: [DONE]\n\n"))
    return Script(chunks=tuple(chunks), ending=ending)


def json_answer(payload: dict[str, Any], status: int = 200, *, delay_s: float = 0.0) -> Script:
    """An unstreamed JSON answer."""
    body = json.dumps(payload).encode()
    return Script(chunks=((0.0, body),), status=status, content_type="application/json", delay_s=delay_s)


@dataclass
class Seen:
    """One recorded POST; `aborted` turns true when the client's connection went away before the script ended.

    `pieces` is the number of chunks written so far, BEFORE_HEADERS until the head has gone out.
    """

    path: str
    headers: dict[str, str]
    body: bytes
    aborted: bool = False
    finished: bool = False
    pieces: int = BEFORE_HEADERS
    line: str = ""
    """Method and target, as in the request line."""


@dataclass
class FakeEngine:
    """Handle on a running fake: queue scripts, read what was seen, switch health and metrics.

    `reply`, when set, makes up what is played to a POST for which no script is queued.
    """

    models: tuple[str, ...] = ("fake",)
    url: str = ""
    scripts: deque[Script] = field(default_factory=deque)
    default: Script = field(default_factory=chat_stream)
    reply: Callable[[Seen], Script] | None = None
    seen: list[Seen] = field(default_factory=list)
    healthy: bool = True
    metrics_text: str = ""
    event_sources: dict[str, Any] | None = None
    """What it answers to GET /kv_event_sources; None: 404, as older engines do."""
    max_model_len: int = 4096
    running: int = 0

    def enqueue(self, *scripts: Script) -> None:
        """Play these, in order, for the next POSTs; afterwards the default again."""
        self.scripts.extend(scripts)

    # Handlers (run in the server thread)
    async def _post(self, request: web.Request) -> web.StreamResponse:
        line = f"{request.method} {request.path_qs}"
        seen = Seen(request.path, dict(request.headers), await request.read(), line=line)
        self.seen.append(seen)
        script = self._script_for(seen)
        self.running += 1
        try:
            return await self._play(request, script, seen)
        except (asyncio.CancelledError, ConnectionError):
            seen.aborted = True
            raise
        finally:
            seen.finished = True
            self.running -= 1

    def _script_for(self, seen: Seen) -> Script:
        if self.scripts:
            return self.scripts.popleft()
        return self.default if self.reply is None else self.reply(seen)

    async def _play(self, request: web.Request, script: Script, seen: Seen) -> web.StreamResponse:
        await asyncio.sleep(script.delay_s)
        await _opened(script, BEFORE_HEADERS)
        response = web.StreamResponse(
            status=script.status, headers=[("content-type", script.content_type), *script.headers]
        )
        assert request.transport is not None
        if script.raw is not None:
            request.transport.write(script.raw)
            request.transport.close()
            return response
        if script.ending == "drop" and not script.chunks:
            request.transport.abort()
            return response
        await response.prepare(request)
        await response.write(b"")  # or aiohttp keeps the head back until there is a body
        seen.pieces = 0
        for i, (delay_s, data) in enumerate(script.chunks):
            await asyncio.sleep(delay_s)
            await _opened(script, i)
            await response.write(data)
            seen.pieces += 1
        await _opened(script, len(script.chunks))
        if script.ending == "drop":
            request.transport.abort()
        elif script.ending == "hang":
            await asyncio.sleep(3600)
        else:
            await response.write_eof()
        return response

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _models(self, _: web.Request) -> web.Response:
        rows = [
            {"id": m, "object": "model", "created": 1, "owned_by": "fake", "max_model_len": self.max_model_len}
            for m in self.models
        ]
        return web.json_response({"object": "list", "data": rows})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.metrics_text)

    async def _sources(self, _: web.Request) -> web.Response:
        return web.json_response(self.event_sources, status=404 if self.event_sources is None else 200)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**30, handler_args={"handler_cancellation": True})
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/kv_event_sources", self._sources)
        app.router.add_get("/v1/responses/{tail:.*}", self._post)
        app.router.add_post("/{tail:.*}", self._post)
        return app


async def _opened(script: Script, index: int) -> None:
    gate = script.gates.get(index)
    while gate is not None and not gate.is_set():  # noqa: ASYNC110  (the test that sets it lives in another thread)
        await asyncio.sleep(0.002)


@contextmanager
def running(
    engine: FakeEngine, *, port: int = 0, keep_alive_s: float = 75.0, tls: ssl.SSLContext | None = None
) -> Iterator[FakeEngine]:
    """Serve `engine` on loopback (a free port unless one is asked for) until the block ends; sets `engine.url`."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(engine.app(), shutdown_timeout=0.1, keepalive_timeout=keep_alive_s)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
        await site.start()
        bound: int = runner.addresses[0][1]
        return bound

    async def stop() -> None:
        await asyncio.sleep(0.01)  # asyncio forgets the socket of a connection that comes in while it stops listening
        await runner.cleanup()
        await asyncio.sleep(0.01)  # a closed connection needs a turn of the loop to give its socket back

    engine.url = f"{'https' if tls else 'http'}://127.0.0.1:{loop.run_until_complete(start())}"
    thread = threading.Thread(target=loop.run_forever, name="fake-engine", daemon=True)
    thread.start()
    try:
        yield engine
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()
