"""One prompt -> one RequestRecord over a streamed chat completion. The only module that sends load."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp
import orjson

from benchmarks.record import Outcome, RequestRecord
from benchmarks.timeline import Timeline
from benchmarks.workload import Prompt
from gateway.wire import read_fault

# An engine closes idle connections after 5 s (vLLM, uvicorn): reusing one at that very moment fails a POST that is
# nobody's fault, so they are dropped well before.
_KEEPALIVE_S = 3.0
_READ_BUFFER_BYTES = 8 * 2**20  # at the default 256 KiB a long answer is paused by the client itself
_ERROR_BODY_BYTES = 64 * 2**10
_READS_A_SLICE = 100  # read about half a millisecond of a finished answer, then let the running ones be stamped

Clock = Callable[[], float]


@asynccontextmanager
async def open_session(api_key: str | None) -> AsyncIterator[aiohttp.ClientSession]:
    """A session without a cap on connections, cookies, proxies or compression. asyncio sets TCP_NODELAY on each."""
    headers = {"accept-encoding": "identity"}  # a compressing proxy would hold tokens back
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, keepalive_timeout=_KEEPALIVE_S, ttl_dns_cache=300),
        timeout=aiohttp.ClientTimeout(total=None),  # the one time limit is ChatClient's
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BUFFER_BYTES,
    ) as session:
        yield session


@dataclass(slots=True)
class _Wire:
    """Stamped socket reads of one answer, unread, and how it broke off."""

    reads: list[tuple[float, bytes]] = field(default_factory=list)
    status: int | None = None
    outcome: Outcome = "ok"
    error: str | None = None

    def fail(self, outcome: Outcome, error: str) -> None:
        self.outcome, self.error = outcome, error


class ChatClient:
    """Sends prompts to POST {base_url}/v1/chat/completions. The run, time 0 of its records, starts when it is made."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        model: str,
        *,
        timeout_s: float,
        ignore_eos: bool = False,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._session = session
        self._url = f"{base_url}/v1/chat/completions"
        self._model = model
        self._timeout_s = timeout_s
        self._ignore_eos = ignore_eos
        self._clock = clock
        self._started_s = clock()

    def elapsed_s(self) -> float:
        """Seconds since the start of the run."""
        return self._clock() - self._started_s

    async def ask(self, prompt: Prompt, intended_s: float | None) -> RequestRecord:
        """Send `prompt` and record what happened; every failure is a record. Raises only CancelledError."""
        body = self._body(prompt)
        wire = _Wire()
        sent_at = self._clock()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange(body, wire)
        except TimeoutError:
            wire.fail("timeout", f"no end within {self._timeout_s:g} s")
        except Exception as error:  # noqa: BLE001 - whatever a server does to one request, the run goes on
            wire.fail("connection" if wire.status is None else "cut_short", _one_line(error))
        return await self._record(prompt, intended_s, sent_at, self._clock(), wire)

    def _body(self, prompt: Prompt) -> bytes:
        body: dict[str, object] = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt.text}],
            "max_tokens": prompt.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._ignore_eos:  # vLLM's and SGLang's extension; others may refuse it
            body["ignore_eos"] = True
        return orjson.dumps(body)

    async def _exchange(self, body: bytes, wire: _Wire) -> None:
        headers = {"content-type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
            wire.status = response.status
            if response.status != 200:
                at, refusal = self._clock(), await response.content.read(_ERROR_BODY_BYTES)
                wire.reads.append((at, refusal))
                wire.fail("http_error", _one_line(read_fault(response.status, refusal).message))
                return
            while data := await response.content.readany():
                wire.reads.append((self._clock(), data))

    async def _record(
        self, prompt: Prompt, intended_s: float | None, sent_at: float, done_at: float, wire: _Wire
    ) -> RequestRecord:
        timeline = Timeline()
        if wire.status == 200:
            for start in range(0, len(wire.reads), _READS_A_SLICE):
                for at_s, data in wire.reads[start : start + _READS_A_SLICE]:
                    timeline.feed(at_s, data)
                await asyncio.sleep(0)
            timeline.close()
            _judge(timeline, wire)
        usage, chunk_at = timeline.usage, timeline.chunk_at
        gaps = tuple(round(later - earlier, 6) for earlier, later in pairwise(chunk_at))
        return RequestRecord(
            index=prompt.index,
            outcome=wire.outcome,
            intended_s=intended_s,
            sent_s=sent_at - self._started_s,
            first_byte_s=wire.reads[0][0] - self._started_s if wire.reads else None,
            first_token_s=chunk_at[0] - self._started_s if chunk_at else None,
            last_token_s=chunk_at[-1] - self._started_s if chunk_at else None,
            done_s=done_at - self._started_s,
            status=wire.status,
            error=wire.error,
            prompt_tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            asked_prompt_tokens=prompt.prompt_tokens,
            asked_output_tokens=prompt.output_tokens,
            first_chunk_tokens=timeline.first_chunk_tokens,
            token_events=timeline.token_events,
            chunks=len(chunk_at),
            chunk_gaps_s=gaps,
            max_gap_s=max(gaps, default=None),
        )


def _judge(timeline: Timeline, wire: _Wire) -> None:
    """A stream may carry its failure inside, or end without the [DONE] that says it is whole."""
    if timeline.error is not None:
        wire.fail("stream_error", _one_line(timeline.error))
    elif not timeline.ended and wire.outcome == "ok":
        wire.fail("cut_short", "the stream ended without [DONE]")
    elif timeline.ended and wire.outcome == "cut_short":
        wire.outcome, wire.error = "ok", None  # the connection broke after the last word: the answer is whole


def _one_line(error: Exception | str) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, Exception):
        name = type(error).__name__
        text = f"{name}: {text}" if text else name
    return text[:500]
