"""What the gateway costs beside nginx: a mock engine and a load generator in C on one core, one gateway on another.

    python -m benchmarks.gateway_cost --out benchmarks/results/gateway.txt

Each round loads every gateway in turn, so that a slow minute of the machine hits all of them; figures are medians.
Berth checks a key, chooses between two replicas, counts, logs and reads usage meanwhile; nobody else checks a key.

S2: whole answers on 64 connections. S3: bursts of chunks. S4: 200 streams, a chunk each 10 ms. S5: one connection.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.output import machine, publish
from benchmarks.trend import trend

_RIG = Path(__file__).parent / "rig"
_ENGINE_PORT = 9100
_GROWTH_SHARE = 0.02
_LEAST_REQUESTS = 200_000
_KEY = "berth-of-this-benchmark-only"
_BERTH = "from serving.cli import main; main()"
_NGINX = """worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/err;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 100000000; client_body_buffer_size 1m; client_body_temp_path {folder}/body;
 proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
 upstream e {{ server 127.0.0.1:{engine}; keepalive 512; keepalive_requests 100000000; }}
 server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://e; proxy_http_version 1.1;
  proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 300s; }} }} }}
"""
# short and often: a shared machine's speed changes within seconds, and all gateways are to see the same of it
_SCENARIOS = {
    "S2": "--conns 64 --stream 0 --max-tokens 16 --warmup 0.3 --duration 1",
    "S3": "--conns 16 --stream 1 --max-tokens 128 --warmup 0.3 --duration 1",
    "S4": "--conns 200 --stream 1 --max-tokens 64 --directive i=10000,t=20000 --ramp-ms 650 --warmup 1.5 --duration 2",
    "S5": "--conns 1 --stream 1 --max-tokens 16 --warmup 0.3 --duration 0.7",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """One gateway under test, or the engine itself."""

    name: str
    port: int
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one peer; rates are per second."""

    name: str
    requests_s: float
    cpu_us_per_request: float
    chunks_s: float
    cpu_us_per_chunk: float
    gap_p99_ms: float
    ttft_us: float
    rss_mib: float
    errors: int


def _peers(folder: Path, compiled: Path | None = None) -> list[Peer]:
    engine = f"http://127.0.0.1:{_ENGINE_PORT}"
    # two names for the one engine, so that there is a choice to make
    upstreams = ("--upstream", engine, "--upstream", f"http://localhost:{_ENGINE_PORT}")
    python = (sys.executable,)
    found = [
        Peer("berth, all on", 9301, (*python, "-c", _BERTH, "gateway", *upstreams, "--port", "9301")),
        Peer("floor in Python", 9302, (*python, str(_RIG / "floor.py"), "9302", str(_ENGINE_PORT))),
    ]
    if compiled is not None:
        path = ("/usr/bin/env", f"PYTHONPATH={compiled.resolve()}")
        command = (*path, *python, "-P", "-c", _BERTH, "gateway", *upstreams, "--port", "9303")
        found.insert(1, Peer("berth, all on, compiled", 9303, command))
    nginx = shutil.which("nginx")
    if nginx:
        config = folder / "nginx.conf"
        config.write_text(_NGINX.format(folder=folder, engine=_ENGINE_PORT, port=9210))
        found.append(Peer("nginx", 9210, (nginx, "-c", str(config), "-p", str(folder))))
    router = shutil.which("vllm-router")
    for port, policy in ((9207, "round_robin"), (9208, "cache_aware")) if router else ():
        flags = (
            "--worker-urls",
            engine,
            f"http://localhost:{_ENGINE_PORT}",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        )
        more = ("--prometheus-port", str(port + 100), "--policy", policy, "--log-level", "warning")
        found.append(Peer(f"vllm-router, {policy}", port, (str(router), *flags, *more)))
    return found


@contextlib.contextmanager
def _running(peer: Peer, core: int, log: Path) -> Iterator[int]:
    """Run it on one core until the block ends; yields its process id once it answers."""
    with log.open("wb") as out:
        command = ["/usr/bin/env", f"BERTH_API_KEY={_KEY}", "taskset", "-c", str(core), *peer.command]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while not _answers(peer.port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench-gateway: {peer.name} does not answer on port {peer.port}; its log is {log}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    body = json.dumps(
        {"model": "mock-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    ).encode()
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    headers = {"content-type": "application/json", "authorization": f"Bearer {_KEY}"}
    request = urllib.request.Request(url, body, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as answer:
            return b'"choices"' in answer.read()
    except OSError:
        return False


def _load(folder: Path, peer: Peer, pid: int, scenario: str, core: int, more: str = "") -> dict[str, object]:
    flags = ["--port", str(peer.port), "--path", "/v1/chat/completions", "--model", "mock-model", "--pids", str(pid)]
    flags += ["--header", f"authorization: Bearer {_KEY}"]
    command = [
        "taskset",
        "-c",
        str(core),
        str(folder / "loadgen"),
        *flags,
        *_SCENARIOS[scenario].split(),
        *more.split(),
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _rss_mib(pid: int) -> float:
    """Of the process and its children (nginx's worker)."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _row(name: str, rounds: dict[str, list[dict[str, object]]], rss_mib: float) -> Row:
    def median(scenario: str, *path: str) -> float:
        values = []
        for found in rounds[scenario]:
            value: object = found
            for key in path:
                value = value[key] if isinstance(value, dict) else None
            values.append(float(str(value)))
        return statistics.median(values)

    errors = sum(int(str(found["errors"])) for all_rounds in rounds.values() for found in all_rounds)
    return Row(
        name,
        median("S2", "rps"),
        median("S2", "cpu_us_per_req"),
        median("S3", "chunks_s"),
        median("S4", "cpu_us_per_chunk"),
        median("S4", "gap_us", "p99") / 1000,
        median("S5", "ttft_us", "p50"),
        rss_mib,
        errors,
    )


def table(rows: Sequence[Row]) -> str:
    """The table as Markdown; the first row is the engine itself, to which S5 is compared."""
    titles = (
        "S2 requests/s",
        "S2 CPU us/request",
        "S3 chunks/s",
        "S4 CPU us/chunk",
        "S4 gap p99 ms",
        "S5 added TTFT us",
        "RSS MiB",
        "errors",
    )
    lines = [f"| gateway | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for row in rows:
        cells = (
            f"{row.requests_s:,.0f}",
            f"{row.cpu_us_per_request:.1f}",
            f"{row.chunks_s:,.0f}",
            f"{row.cpu_us_per_chunk:.1f}",
            f"{row.gap_p99_ms:.1f}",
            f"{row.ttft_us - rows[0].ttft_us:,.0f}",
            f"{row.rss_mib:.0f}",
            str(row.errors),
        )
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rig(exits: contextlib.ExitStack) -> tuple[Path, Peer]:
    folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="berth-rig-")))
    for name in ("mock_engine", "loadgen"):
        subprocess.run(["cc", "-O2", "-o", str(folder / name), str(_RIG / f"{name}.c")], check=True)  # noqa: S607
    return folder, Peer("engine", _ENGINE_PORT, (str(folder / "mock_engine"), "--port", str(_ENGINE_PORT)))


def measure(rounds: int, gateway_core: int, load_core: int, compiled: Path | None = None) -> list[Row]:
    """Build the rig, start everything, and load each in turn."""
    with contextlib.ExitStack() as exits:
        folder, engine = _rig(exits)
        pids = {engine: exits.enter_context(_running(engine, load_core, folder / "engine.log"))}
        for peer in _peers(folder, compiled):
            pids[peer] = exits.enter_context(_running(peer, gateway_core, folder / f"{peer.name}.log"))
        found: dict[Peer, dict[str, list[dict[str, object]]]] = {peer: {s: [] for s in _SCENARIOS} for peer in pids}
        for _ in range(rounds):
            for scenario in _SCENARIOS:
                for peer, pid in pids.items():
                    found[peer][scenario].append(_load(folder, peer, pid, scenario, load_core))
        return [_row(peer.name, found[peer], _rss_mib(pid)) for peer, pid in pids.items()]


def memory_after(requests: int, gateway_core: int, load_core: int) -> tuple[list[tuple[int, float]], int]:
    """Berth's RSS in MiB after so many requests, measured about every fiftieth of them, and the errors there were."""
    with contextlib.ExitStack() as exits:
        folder, engine = _rig(exits)
        exits.enter_context(_running(engine, load_core, folder / "engine.log"))
        berth = _peers(folder)[0]
        pid = exits.enter_context(_running(berth, gateway_core, folder / "berth.log"))
        rows, done, errors, seconds = [(0, _rss_mib(pid))], 0, 0, 0.2
        while done < requests:
            short = f"--max-tokens 4 --warmup 0 --duration {seconds:.1f}"
            slice_ = _load(folder, berth, pid, "S2", load_core, short)
            streamed = _load(folder, berth, pid, "S2", load_core, f"--stream 1 {short}")
            completed = sum(int(str(one["done"])) for one in (slice_, streamed))
            if not completed:
                raise SystemExit("bench-gateway: no request was answered")
            seconds = min(30.0, max(0.2, seconds * requests / 50 / completed))
            done += completed
            errors += sum(int(str(one["errors"])) for one in (slice_, streamed))
            rows.append((done, _rss_mib(pid)))
            sys.stderr.write(f"\r{done:,} requests, {rows[-1][1]:.1f} MiB ")
        return rows, errors


def flatness(rows: Sequence[tuple[int, float]], errors: int) -> str:
    """Whether memory grew with the number of requests, the first fifth of them left out as warm-up."""
    steady = rows[len(rows) // 5 :]
    found = trend([float(done) for done, _ in steady], [mib for _, mib in steady])
    word = "flat" if found.is_flat(_GROWTH_SHARE) else "NOT FLAT"
    shown = " ".join(f"{mib:.1f}" for _, mib in rows[:: max(1, len(rows) // 15)])
    return (
        f"{rows[-1][0]:,} requests, half of them streamed, {errors} errors\n"
        f"memory {word}: {found.slope * 1e6:+.2f} MiB a million requests, 95 % band +-{found.band * 1e6:.2f}\n"
        f"RSS MiB, evenly spaced: {shown}; at the end {rows[-1][1]:.1f}\n"
    )


def main() -> None:
    """Entry point of `make bench-gateway` and `make bench-million`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gateway-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--compiled", type=Path, help="a folder with a compiled berth, to be measured as well")
    parser.add_argument("--requests", type=int, help="no table: does memory grow over so many requests?")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.requests is not None:
        if options.requests < _LEAST_REQUESTS:
            parser.error(f"--requests: at least {_LEAST_REQUESTS:,}, or there are too few samples for a verdict")
        text = flatness(*memory_after(options.requests, options.gateway_core, options.load_core))
        how = "one core a gateway, engine and load on another"
    else:
        text = table(measure(options.rounds, options.gateway_core, options.load_core, options.compiled))
        how = f"medians of {options.rounds} rounds; one core a gateway, engine and load on another"
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    cpu = models[0].split(":")[1].strip() if models else "unknown processor"
    publish(f"{cpu}, {machine()}\n{how}\n\n{text}\n", options.out)


if __name__ == "__main__":
    main()
