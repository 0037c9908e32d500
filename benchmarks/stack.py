"""A real `berth serve` for as long as a benchmark needs one."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

_BERTH = "from serving.cli import main; main()"
_START_S = 400.0


@contextlib.contextmanager
def serving(folder: Path, config: str) -> Iterator[tuple[int, str]]:
    """`berth serve` on `config`, which is written to `folder`, until the block ends; yields its process id and URL once
    all engines are ready. Ends the program when it does not come up."""
    (folder / "berth.yaml").write_text(config)
    output = folder / "berth.out"
    arguments = [sys.executable, "-c", _BERTH, "serve", str(folder / "berth.yaml")]
    with output.open("wb") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_S
        while not (found := re.search(r"curl -N (http://[^/]+)/", output.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"berth serve did not come up:\n{output.read_text()}")
            time.sleep(0.2)
        yield process.pid, found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def metric(url: str, name: str) -> float:
    """The sum of a metric's samples on the gateway's /metrics."""
    async with aiohttp.ClientSession() as session, session.get(url + "/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)
