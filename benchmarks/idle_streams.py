"""What idle connections and idle streams cost: memory for each, and what a new request notices of them.

    python -m benchmarks.idle_streams --count 10000

An idle stream has had its first token and waits for the second one. Engine and clients share this process; the gateway
has its own. One stream is two open files of the gateway, so that 10,000 of them ask for more than 20,000: what the
system allows is taken first, and the count comes down to what fits.
"""

import argparse
import asyncio
import json
import resource
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_BERTH = """
import asyncio, sys, threading, time
from serving.cli import main
late = []
class Watch:
    def __init__(self):
        self.due = 0.0
    def __call__(self):
        now = time.perf_counter()
        late.append(now - self.due)
        self.arm()
    def arm(self):
        self.due = time.perf_counter() + 0.02
        asyncio.get_running_loop().call_at(asyncio.get_running_loop().time() + 0.02, self)
import gateway.app
enter = gateway.app.probing
def probing(*given):
    Watch().arm()
    return enter(*given)
gateway.app.probing = probing
def tell():
    for _ in sys.stdin:
        seen, late[:] = sorted(late), []
        print("late", seen[len(seen) // 2], seen[len(seen) * 99 // 100], seen[-1], flush=True)
threading.Thread(target=tell, daemon=True).start()
main()
"""
"""The gateway as its command starts it, with a timer on its loop; each line on stdin asks by how much it came late."""

_BODY = json.dumps({"model": "idle", "stream": True, "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]})
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_OK = b"HTTP/1.1 200"
_SPARE_FILES = 300
_BATCH = 200


@dataclass(frozen=True, slots=True)
class Row:
    """The gateway while so many of one kind were open; times in seconds."""

    what: str
    open: int
    rss_mib: float
    lag_s: tuple[float, float, float]
    ttft_s: Sequence[float]


class _Engine(asyncio.Protocol):
    """One token, then nothing; a whole short stream for a request that says `quick`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (what a TCP server gives)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._seen += data
        head, end, body = self._seen.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if not end or len(body) < length:
            return
        self._seen = b""
        assert self._transport is not None  # noqa: S101  (it is connected)
        if head.startswith(b"GET"):
            answer = b'{"data":[{"id":"idle"}]}'
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))
            return
        last = b"0\r\n\r\n" if b"quick" in body else b""
        self._transport.write(_HEAD + b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT) + last)


class _Client(asyncio.Protocol):
    """Sends one request, if any, and says when the first token came."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._got = b""
        self.first_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (what a TCP client gives)
        if self._request:
            transport.write(self._request)
        else:
            self.first_s.set_result(time.perf_counter())

    def data_received(self, data: bytes) -> None:
        if not self.first_s.done():
            self._got += data
            if b"word" in self._got:
                self.first_s.set_result(time.perf_counter())
            elif len(self._got) >= len(_OK) and not self._got.startswith(_OK):
                self.first_s.set_exception(ConnectionError(f"refused: {self._got[:300]!r}"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.first_s.done():
            self.first_s.set_exception(ConnectionError(f"closed before the first token: {exc or self._got[:200]!r}"))


def _request(body: str) -> bytes:
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


async def _open(port: int, request: bytes) -> asyncio.BaseTransport:
    transport, client = await asyncio.get_running_loop().create_connection(lambda: _Client(request), "127.0.0.1", port)
    await client.first_s
    return transport


async def _many(port: int, request: bytes, count: int) -> list[asyncio.BaseTransport]:
    found: list[asyncio.BaseTransport] = []
    while len(found) < count:
        batch = min(_BATCH, count - len(found))
        found += await asyncio.gather(*(_open(port, request) for _ in range(batch)))
    return found


async def _ttft(port: int, samples: int = 200) -> list[float]:
    times = []
    for _ in range(samples):
        transport, client = await asyncio.get_running_loop().create_connection(
            lambda: _Client(_request(_BODY.replace('"hi"', '"quick"'))), "127.0.0.1", port
        )
        sent_s = time.perf_counter()
        times.append(await client.first_s - sent_s)
        transport.close()
        await asyncio.sleep(0.005)
    return times


class _Gateway:
    """The process under test."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self._port = port

    async def _lag(self) -> tuple[float, float, float]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101  (both are pipes)
        assert stdout is not None  # noqa: S101
        stdin.write(b"\n")
        while not (line := await stdout.readline()).startswith(b"late "):
            if not line:
                raise SystemExit("bench-idle: the gateway has ended")
        p50, p99, most = line.split()[1:]
        return float(p50), float(p99), float(most)

    async def row(self, what: str, count: int) -> Row:
        """Measured now."""
        await self._lag()  # what opening them cost is not counted
        ttft_s = await _ttft(self._port)
        rss = psutil.Process(self._process.pid).memory_info().rss / 2**20
        return Row(what, count, rss, await self._lag(), ttft_s)


def _files(count: int) -> int:
    """Allow as many open files as the system lets us; returns the count that fits, at two files a stream."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(count, (hard - _SPARE_FILES) // 2)


async def measure(count: int) -> list[Row]:
    """Nothing open, then `count` connections, then as many streams."""
    loop = asyncio.get_running_loop()
    engine = await loop.create_server(_Engine, "127.0.0.1", 0, backlog=4096)
    upstream = engine.sockets[0].getsockname()[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    flags = ("gateway", "--upstream", f"http://127.0.0.1:{upstream}", "--port", str(port))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _BERTH, *flags,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        await _until_ready(port)
        gateway = _Gateway(process, port)
        rows = [await gateway.row("nothing", 0)]
        idle = await _many(port, b"", count)
        rows.append(await gateway.row("connections", count))
        for transport in idle:
            transport.close()
        await asyncio.sleep(1)
        await _many(port, _request(_BODY), count)
        rows.append(await gateway.row("streams", count))
        return rows
    finally:
        process.kill()
        await process.wait()
        engine.close()


async def _until_ready(port: int) -> None:
    for _ in range(600):
        try:
            (await _open(port, _request(_BODY.replace('"hi"', '"quick"')))).close()
        except OSError:
            await asyncio.sleep(0.1)
        else:
            return
    raise SystemExit("bench-idle: the gateway does not answer after a minute")


def table(rows: Sequence[Row]) -> str:
    """As Markdown; memory is what each open one adds to the gateway's that has none."""
    lines = [
        "| open | RSS MiB | KiB each | loop lag p50 / p99 / max ms | TTFT of a new request p50 / p99 ms |",
        "|---" * 5 + "|",
    ]
    for row in rows:
        each = f"{(row.rss_mib - rows[0].rss_mib) * 1024 / row.open:.1f}" if row.open else "-"
        lag = " / ".join(f"{value * 1000:.1f}" for value in row.lag_s)
        p99 = statistics.quantiles(row.ttft_s, n=100)[98]
        ttft = f"{statistics.median(row.ttft_s) * 1000:.2f} / {p99 * 1000:.2f}"
        lines.append(f"| {row.open:,} {row.what} | {row.rss_mib:.1f} | {each} | {lag} | {ttft} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point of `make bench-idle`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    count = _files(options.count)
    note = "" if count == options.count else f"{options.count:,} were asked for; open files allow {count:,}\n\n"
    text = note + table(asyncio.run(measure(count)))
    sys.stdout.write(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
