"""Kill -9 an engine under load, and count who noticed: streams that failed, and texts that came out different.

    python -m benchmarks.kill_drill --out benchmarks/results/kill.txt

Two replicas of the embedded model in float32 behind one `berth serve`. The same streams run twice: first undisturbed,
then with one engine killed in the middle of them. Ends with status 1 when a stream failed.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from benchmarks.output import machine, publish
from benchmarks.stack import metric, serving
from gateway.wire import ENDPOINTS, Dialect, EventSplitter, read_event
from gateway.wire.partial import Partial

_MODEL = "smollm2"
_START_S = 400.0
_OPENING_EVENTS = 6
_CONFIG = """\
calibrate: false
gateway: {{port: 0}}
models:
  - model: demo
    replicas: 2
    dtype: {dtype}
    max_model_len: 512
    max_num_seqs: {streams}
    kv_cache_memory_bytes: {kv_bytes}
"""
_PATHS: dict[Dialect, str] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
_SUBJECTS = ("a ship", "winter", "an old clock", "the sea", "two brothers", "a lost letter", "a garden", "the moon")
_KINDS = ("story", "letter", "list of facts", "poem with blank lines", "table in Markdown", "Python function")


@dataclass(slots=True)
class Stream:
    """One caller: what it asked, and what it received."""

    number: int
    dialect: Dialect
    status: int = 0
    received: bytearray = field(default_factory=bytearray)
    last_s: float | None = None
    longest_gap_s: float = 0.0
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Past the events that only open a stream, or at its end."""
    is_done: bool = False

    def note(self, data: bytes, now_s: float) -> None:
        """The next bytes."""
        if self.last_s is not None:
            self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_s)
        self.last_s = now_s
        self.received += data
        if not self.has_begun.is_set() and self.received.count(b"data:") > _OPENING_EVENTS:
            self.has_begun.set()

    @property
    def answer(self) -> Partial:
        """All of it, read."""
        read = Partial(self.dialect)
        read.read(bytes(self.received))
        return read

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(self.answer.text)

    @property
    def failure(self) -> str | None:
        """Why it is not a whole answer; None when it is."""
        if self.status != 200:
            return f"status {self.status}: {bytes(self.received[:200]).decode(errors='replace')}"
        signs = [read_event(self.dialect, event) for event in EventSplitter().feed(bytes(self.received))]
        errors = [sign.error for sign in signs if sign.error]
        if errors:
            return errors[0]
        answer = self.answer
        if answer.odd is not None:
            return answer.odd
        return None if answer.is_over else "it stopped without an end"


def _body(stream: Stream, max_tokens: int) -> dict[str, object]:
    subject = _SUBJECTS[stream.number % len(_SUBJECTS)]
    kind = _KINDS[stream.number // len(_SUBJECTS) % len(_KINDS)]
    prompt = f"{stream.number}: write a {kind} about {subject}."
    body: dict[str, object] = {"model": _MODEL, "stream": True, "temperature": 0}
    if stream.dialect == "responses":
        return {**body, "input": prompt, "max_output_tokens": max_tokens}
    said = (
        {"prompt": prompt} if stream.dialect == "completions" else {"messages": [{"role": "user", "content": prompt}]}
    )
    return {**body, **said, "max_tokens": max_tokens}


async def _run(session: aiohttp.ClientSession, url: str, stream: Stream, max_tokens: int) -> None:
    try:
        async with session.post(url + _PATHS[stream.dialect], json=_body(stream, max_tokens)) as answer:
            stream.status = answer.status
            while data := await answer.content.readany():
                stream.note(data, time.monotonic())
    except aiohttp.ClientError as error:
        stream.received += f"\n\n{error!r}".encode()
    stream.is_done = True
    stream.has_begun.set()


async def _load(
    url: str, count: int, dialects: list[Dialect], max_tokens: int, victim: int | None
) -> tuple[list[Stream], int]:
    """All streams at once; a `victim` is killed once every one has begun. Also returns how many were open then."""
    open_streams = 0
    streams = [Stream(number, dialects[number % len(dialects)]) for number in range(count)]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        tasks = [asyncio.create_task(_run(session, url, stream, max_tokens)) for stream in streams]
        if victim is not None:
            await asyncio.gather(*(stream.has_begun.wait() for stream in streams))
            open_streams = sum(not stream.is_done for stream in streams)
            os.kill(victim, signal.SIGKILL)
        await asyncio.gather(*tasks)
    return streams, open_streams


def _engines(pid: int) -> list[int]:
    """The API servers of vLLM: each below a guard of its own."""
    return [engine.pid for guard in psutil.Process(pid).children() for engine in guard.children()]


def _victim(pid: int, part: str) -> int:
    """Whom to kill: vLLM's API server, or the engine core below it, which leaves a server that answers with errors."""
    server = psutil.Process(_engines(pid)[0])
    if part == "server":
        return server.pid
    cores = [child.pid for child in server.children() if "EngineCore" in " ".join(child.cmdline())]
    if not cores:
        raise SystemExit("kill_drill: no EngineCore process below the API server")
    return cores[0]


async def _both_ready(url: str) -> None:
    deadline = time.monotonic() + _START_S
    while await metric(url, "berth_replica_ready") < 2:
        if time.monotonic() > deadline:
            raise SystemExit("kill drill: the two replicas did not become ready")
        await asyncio.sleep(0.5)


def summary(calm: list[Stream], disturbed: list[Stream], continued: int, retried: int) -> list[str]:
    """The figures, one a line."""
    failures = [stream.failure for stream in disturbed if stream.failure]
    same = [a.text == b.text for a, b in zip(calm, disturbed, strict=True) if b.failure is None]
    gaps = sorted(stream.longest_gap_s for stream in disturbed)
    lines = [
        f"streams                          {len(disturbed)}",
        f"failed, undisturbed              {sum(stream.failure is not None for stream in calm)}",
        f"failed, one engine killed        {len(failures)} (bar: 0)",
        f"continued on the other replica   {continued}",
        f"retried before their first byte  {retried}",
        f"same text as undisturbed         {sum(same)} of the {len(same)} that did not fail",
        f"longest pause, median and worst  {gaps[len(gaps) // 2]:.1f} s, {gaps[-1]:.1f} s",
    ]
    for dialect in dict.fromkeys(stream.dialect for stream in disturbed):
        pairs = [(a, b) for a, b in zip(calm, disturbed, strict=True) if b.dialect == dialect]
        whole = [(a, b) for a, b in pairs if b.failure is None]
        equal = sum(a.text == b.text for a, b in whole)
        lines.append(f"  {ENDPOINTS[_PATHS[dialect]].path:<31}{len(pairs) - len(whole)} failed, {equal} same text")
    return [*lines, *(f"  failure: {reason[:160]}" for reason in dict.fromkeys(failures) if reason)]


async def _drill(pid: int, url: str, options: argparse.Namespace) -> tuple[list[str], int]:
    dialects: list[Dialect] = [dialect for dialect in _PATHS if dialect in options.dialects.split(",")]
    count, max_tokens = options.streams, options.max_tokens
    calm, _ = await _load(url, count, dialects, max_tokens, None)
    await _both_ready(url)
    before = [await metric(url, name) for name in ("berth_continuations_total", "berth_retries_total")]
    disturbed, killed_with = await _load(url, count, dialects, max_tokens, _victim(pid, options.part))
    after = [await metric(url, name) for name in ("berth_continuations_total", "berth_retries_total")]
    left_over = await metric(url, "berth_requests_in_flight")
    continued, retried = (int(late - early) for late, early in zip(after, before, strict=True))
    lines = [f"in flight when it was killed     {killed_with}"]
    lines += summary(calm, disturbed, continued, retried)
    return [*lines, f"in flight afterwards             {left_over:.0f}"], sum(s.failure is not None for s in disturbed)


def main() -> None:
    """Entry point of `make drill-kill`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--part", default="server", choices=("server", "core"), help="of the engine, which is killed")
    parser.add_argument("--dialects", default=",".join(_PATHS))
    parser.add_argument("--kv-cache-memory-bytes", type=int, default=1_500_000_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = _CONFIG.format(dtype=options.dtype, streams=options.streams, kv_bytes=options.kv_cache_memory_bytes)
    with tempfile.TemporaryDirectory(prefix="berth-kill-") as folder, serving(Path(folder), config) as (pid, url):
        lines, failed = asyncio.run(_drill(pid, url, options))
    part = "one of two replicas" if options.part == "server" else "the engine core of one of two replicas"
    title = f"kill -9 of {part}, {options.dtype}, at most {options.max_tokens} tokens a stream; {machine()}"
    report = "\n".join([title, "", *lines, ""])
    publish(report, options.out)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
