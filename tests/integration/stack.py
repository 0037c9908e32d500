"""Runs the real `berth` command as a user would, and looks at it from outside: its URL, metrics and processes."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

BERTH = str(Path(sys.executable).with_name("berth"))
KEY = "berth-test-key"
MODEL = "smollm2"
_START_S = 300.0
_ANSWER_S = 120.0  # a machine that stands still for a minute says nothing about us; it is named in the summary
_SLOW_S = 10.0
_LAST_LINES = 80


def berth(*args: str, env: dict[str, str] | None = None, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [BERTH, *args],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **(env or {})},
        check=False,
    )


def wait_until(what: str, condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.05) -> float:
    """Seconds until `condition` held; fails the test with `what` if it never did."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise AssertionError(f"after {timeout_s} s still not: {what}")
        time.sleep(poll_s)
    return time.monotonic() - started


@dataclass
class Stack:
    """A running `berth serve`."""

    process: subprocess.Popen[bytes]
    output: Path
    url: str = ""
    pids: set[int] = field(default_factory=set)
    """Every process ever seen below it."""

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    def get(self, path: str) -> str:
        """GET with the key."""
        request = urllib.request.Request(self.url + path, headers={"authorization": f"Bearer {KEY}"})
        started = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                text: str = answer.read().decode()
        except OSError as error:
            raise AssertionError(f"GET {path}: {error!r}; berth ({self._life()}) said last:\n{self._last()}") from error
        took_s = time.monotonic() - started
        if took_s > _SLOW_S:
            message = f"GET {path} took {took_s:.1f} s; berth ({self._life()}) said last:\n{self._last()}"
            warnings.warn(message, stacklevel=2)
        return text

    def _life(self) -> str:
        status = self.process.poll()
        if status is not None:
            return f"ended with {status}"
        process, load = psutil.Process(self.process.pid), os.getloadavg()[0]
        free = psutil.virtual_memory().available // 2**20
        return f"{process.status()} after {sum(process.cpu_times()[:2]):.1f} s of work; load {load}, {free} MiB free"

    def _last(self) -> str:
        return "\n".join(self.text().splitlines()[-_LAST_LINES:])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` whose labels include `labels`."""
        total = 0.0
        for line in self.get("/metrics").splitlines():
            if line.split("{")[0].split(" ")[0] != name:
                continue
            found = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if labels.items() <= found.items():
                total += float(line.rpartition(" ")[2])
        return total

    def tree(self) -> list[psutil.Process]:
        """Its live processes, itself first."""
        root = psutil.Process(self.process.pid)
        processes = [root, *root.children(recursive=True)]
        self.pids |= {p.pid for p in processes}
        return processes

    def engine_roots(self) -> list[psutil.Process]:
        """The vLLM API servers: the children of the guards."""
        guards = psutil.Process(self.process.pid).children()
        return [child for guard in guards for child in guard.children()]

    def is_ready(self) -> bool:
        """Whether it has announced itself."""
        if self.process.poll() is not None:
            raise AssertionError(f"berth {self._life()}:\n{self.text()}")
        return "curl -N" in self.text()

    def everything_ended(self) -> bool:
        """Whether none of the processes seen so far is alive."""
        return not any(_alive(pid) for pid in self.pids)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def started(folder: Path, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Iterator[Stack]:
    """`berth serve ARGS`, just started; stopped in order (or killed by the test) when the block ends."""
    output = folder / "berth.out"
    variables = {**os.environ, "BERTH_STATE_DIR": str(folder / "state"), "BERTH_API_KEY": KEY}
    variables |= {"PYTHONFAULTHANDLER": "1", **(env or {})}  # should it crash, its output says where
    with output.open("wb") as out:
        process = subprocess.Popen(
            [BERTH, "serve", *args], stdout=out, stderr=subprocess.STDOUT, env=variables, cwd=cwd
        )
    stack = Stack(process, output)
    try:
        yield stack
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


@contextmanager
def serving(folder: Path, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Iterator[Stack]:
    """The same, ready to be asked."""
    with started(folder, *args, env=env, cwd=cwd) as stack:
        wait_until("berth serve is ready", stack.is_ready, _START_S, 0.2)
        stack.url = re.findall(r"curl -N (http://[^/]+)/", stack.text())[0]
        stack.tree()
        yield stack
