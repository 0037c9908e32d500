"""Half an hour of everything at once through a gateway: does its memory stay flat, does every count come back to zero?

    python -m benchmarks.soak --minutes 30 --out benchmarks/results/soak.txt

Two mock engines in processes of their own, one of them killed and started again every minute; callers of all dialects,
some of which leave, read slowly, or ask for an answer that fails. Load is kept low: time is what finds leaks here.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import platform
import random
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.trend import Trend, trend

_BERTH = "from serving.cli import main; main()"
_MODEL = "soak"
_STREAMS = {
    "/v1/chat/completions": b"data: [DONE]",
    "/v1/completions": b"data: [DONE]",
    "/v1/responses": b"response.completed",
    "/v1/messages": b"message_stop",
}
_WHOLE = ("/v1/messages/count_tokens", "/v1/embeddings", *_STREAMS)
_SAMPLE_S = 10.0
_WARM_UP_SHARE = 0.2
_GROWTH_SHARE = 0.02
"""Of its level: what memory may have grown by over the run, at the upper end of the band, and still be called flat."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The gateway at one moment."""

    at_s: float
    rss_mib: float
    fds: int
    in_flight: float
    cpu_s: float


@dataclass(slots=True)
class Tally:
    """What callers saw. `lost`: an answer that ended with neither its end nor an error, the one thing not allowed."""

    seen: collections.Counter[str] = field(default_factory=collections.Counter)
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """One request: what its engine shall do, and what its caller does meanwhile."""

    path: str
    body: bytes
    caller: str
    stream: bool


def wish(dice: random.Random) -> Wish:
    """Draw one. Shares: half plain streams, a sixth unstreamed, the rest everything that goes wrong."""
    caller = dice.choices(
        ("stream", "whole", "leaves", "leaves early", "slow", "fails"), weights=(50, 17, 12, 8, 1, 12)
    )[0]
    stream = caller in ("stream", "leaves", "slow") or (caller != "whole" and dice.random() < 0.6)
    path = dice.choice(tuple(_STREAMS) if stream else _WHOLE)
    soak: dict[str, Any] = {"do": "", "events": dice.randint(3, 40), "gap_s": dice.choice((0.02, 0.05, 0.1))}
    if caller == "fails":
        soak["do"] = dice.choice(("refuse", "full", "crash", "drop", "break"))
    elif caller == "leaves early":
        soak["do"] = "silent"
    elif caller == "slow":
        soak |= {"events": 3000, "gap_s": 0.0, "pad": 2000}
    body = {"model": _MODEL, "stream": stream, "soak": soak, "max_tokens": 16, "pad": "p" * dice.randint(0, 20_000)}
    return Wish(path, json.dumps(body).encode(), caller, stream)


class Caller:
    """Sends requests one after another, mostly on one connection."""

    def __init__(self, port: int, dice: random.Random, tally: Tally) -> None:
        self._port = port
        self._dice = dice
        self._tally = tally

    async def run(self, until_s: float) -> None:
        """Until the clock says `until_s`."""
        while time.monotonic() < until_s:
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**16)
                try:
                    while time.monotonic() < until_s and await self._one(reader, writer):  # noqa: ASYNC110  (a pause to think)
                        await asyncio.sleep(self._dice.expovariate(4.0))
                finally:
                    writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        one = wish(self._dice)
        head = f"POST {one.path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(one.body)}\r\n\r\n".encode() + one.body)
        if one.caller == "leaves early":
            await asyncio.sleep(self._dice.uniform(0, 0.3))
            self._tally.seen["left early"] += 1
            return False
        try:
            return await self._answer(one, reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._tally.lost += 1
            return False

    async def _answer(self, one: Wish, reader: asyncio.StreamReader) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        if b"content-length" in head:
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            self._tally.seen[f"{'whole' if status == 200 else 'error'} {status}"] += 1
            return True
        leaves_after = self._dice.randint(1, 10) if one.caller == "leaves" else None
        is_whole, text = await self._stream(reader, leaves_after, slow=one.caller == "slow")
        if not is_whole:
            self._tally.seen["left"] += 1
            return False
        ended = _STREAMS[one.path] in text
        failed = b'"error"' in text
        self._tally.seen["stream" if ended else "stream with error"] += 1
        self._tally.lost += not (ended or failed)
        return True

    async def _stream(
        self, reader: asyncio.StreamReader, leaves_after: int | None, *, slow: bool
    ) -> tuple[bool, bytes]:
        """Whether it was read to its end, and its last few hundred bytes."""
        text, chunks = b"", 0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            text = text[-500:] + (await reader.readexactly(size + 2))[:-2]
            chunks += 1
            if leaves_after is not None and chunks >= leaves_after:
                return False, text
            if slow:
                await asyncio.sleep(0.05)
                if chunks > 100:
                    return False, text
        await reader.readexactly(2)
        return True, text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _get(port: int, path: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        text: bytes = answer.read()
        return text.decode()


def _in_flight(port: int) -> float:
    lines = _get(port, "/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("berth_requests_in_flight{"))


async def _engine(port: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.soak_engine", "--port", str(port), "--model", _MODEL
    )


@contextlib.asynccontextmanager
async def _engines(ports: list[int], restart_s: float) -> AsyncIterator[None]:
    """Both, one of which is killed and started again every `restart_s` while the block runs."""
    processes = {port: await _engine(port) for port in ports}

    async def restart() -> None:
        for i in range(sys.maxsize):
            await asyncio.sleep(restart_s)
            port = ports[i % len(ports)]
            processes[port].kill()
            await processes[port].wait()
            await asyncio.sleep(2)
            processes[port] = await _engine(port)

    task = asyncio.create_task(restart())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def _gateway(port: int, engines: list[int], log: Path) -> AsyncIterator[psutil.Process]:
    flags = [flag for engine in engines for flag in ("--upstream", f"http://127.0.0.1:{engine}")]
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _BERTH, "gateway", *flags, "--port", str(port), stdout=out, stderr=out
        )
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            await process.wait()


async def _until_ready(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            if await asyncio.to_thread(_get, port, "/ready"):
                return
        await asyncio.sleep(0.1)
    raise SystemExit("soak: the gateway is not ready after a minute; its log is runs/soak-gateway.log")


async def _sample(process: psutil.Process, port: int, start_s: float) -> Sample:
    in_flight = await asyncio.to_thread(_in_flight, port)
    times = process.cpu_times()
    rss = process.memory_info().rss / 2**20
    return Sample(time.monotonic() - start_s, rss, process.num_fds(), in_flight, times.user + times.system)


async def soak(minutes: float, callers: int, seed: int, log: Path) -> tuple[list[Sample], Sample, Tally]:
    """The samples of the run, one more after all callers are gone, and what the callers saw."""
    port, engines = _free_port(), [_free_port(), _free_port()]
    tally = Tally()
    async with _engines(engines, 60.0), _gateway(port, engines, log) as process:
        await _until_ready(port)
        start_s = time.monotonic()
        until_s = start_s + minutes * 60
        dice = random.Random(seed)  # noqa: S311  (a mixture that can be repeated)
        tasks = [
            asyncio.create_task(Caller(port, random.Random(dice.random()), tally).run(until_s))  # noqa: S311
            for _ in range(callers)
        ]
        samples = []
        while time.monotonic() < until_s:
            await asyncio.sleep(min(_SAMPLE_S, max(0.0, until_s - time.monotonic())))
            try:
                samples.append(await _sample(process, port, start_s))
            except OSError as error:  # a machine busy with other things may not get round to a scrape
                sys.stderr.write(f"\n{time.monotonic() - start_s:6.0f} s  no sample: {error}\n")
                continue
            sys.stderr.write(f"\r{samples[-1].at_s:6.0f} s  {samples[-1].rss_mib:.1f} MiB  {samples[-1].fds} fds ")
        await asyncio.gather(*tasks)
        await asyncio.sleep(10)  # longer than idle connections are kept, on either side
        last = await _sample(process, port, start_s)
    return samples, last, tally


def report(samples: list[Sample], last: Sample, tally: Tally) -> Iterator[str]:
    """The verdict and what it rests on, line by line."""
    steady = samples[int(len(samples) * _WARM_UP_SHARE) :]
    found: Trend = trend([s.at_s for s in steady], [s.rss_mib for s in steady])
    is_flat = found.is_flat(_GROWTH_SHARE)
    hourly = 3600.0
    yield f"requests   {sum(tally.seen.values())}: {', '.join(f'{k} {n}' for k, n in tally.seen.most_common())}"
    yield f"lost       {tally.lost} answers without an end or an error"
    yield (
        f"memory     {'flat' if is_flat else 'NOT FLAT'}: {found.slope * hourly:+.2f} MiB an hour,"
        f" 95 % band +-{found.band * hourly:.2f}, at {found.level:.1f} MiB,"
        f" over {found.span_s:.0f} s after a warm-up of {steady[0].at_s:.0f} s"
    )
    shown = samples[:: max(1, len(samples) // 15)]
    yield f"RSS MiB    {' '.join(f'{s.rss_mib:.1f}' for s in shown)}; at the end {last.rss_mib:.1f}"
    yield f"open files {min(s.fds for s in steady)} to {max(s.fds for s in steady)}, at the end {last.fds}"
    yield f"in flight  {max(s.in_flight for s in samples):.0f} at most, at the end {last.in_flight:.0f}"
    yield f"CPU        {(samples[-1].cpu_s - samples[0].cpu_s) / (samples[-1].at_s - samples[0].at_s):.1%} of one core"
    is_good = is_flat and not tally.lost and last.in_flight == 0 and last.fds <= samples[0].fds
    yield f"verdict    {'passed' if is_good else 'FAILED'}"


def main() -> None:
    """Entry point of `make soak`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--callers", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.minutes * 60 * (1 - _WARM_UP_SHARE) < 11 * _SAMPLE_S:
        parser.error("--minutes: at least 3, or there are too few samples for a verdict")
    log = Path("runs/soak-gateway.log")
    log.parent.mkdir(exist_ok=True)
    samples, last, tally = asyncio.run(soak(options.minutes, options.callers, options.seed, log))
    machine = f"Linux {platform.release()}, Python {platform.python_version()}"
    lines = [f"{options.minutes:g} minutes, {options.callers} callers, {machine}", *report(samples, last, tally)]
    text = "\n".join(lines) + "\n"
    sys.stdout.write("\n" + text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    raise SystemExit("passed" not in lines[-1])


if __name__ == "__main__":
    main()
