"""Runs one engine as its parent and makes sure that none of its processes outlives it, or us.

    berth ── guard ── vLLM API server ── EngineCore ── workers        (guard and below: one process group)

vLLM is a tree of processes; killing its root leaves the others holding the GPU. The guard is told when berth dies
(PR_SET_PDEATHSIG, even for kill -9), passes SIGTERM on to the root so that it can drain, and when the root has ended
for whatever reason, ends what is left of the group. Standard library only: it must not fail to start.

Usage: python -m serving.guard GRACE_S PARENT_PID COMMAND...   exits with the command's status.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.05
_LEFTOVERS_S = 5.0


def main(argv: list[str]) -> int:
    """Guard `argv[2:]`; returns its exit status (128 + n for a signal n)."""
    grace_s, parent, command = float(argv[0]), int(argv[1]), argv[2:]
    stopping_since: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: stopping_since.append(time.monotonic()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for berth, which then stops us in order
    _die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        return 1  # berth was gone before the kernel could be asked to tell us
    child = subprocess.Popen(command, preexec_fn=lambda: _die_with_parent(signal.SIGTERM))
    told = False
    while child.poll() is None:
        if stopping_since and not told:
            told = True
            child.terminate()
        if stopping_since and time.monotonic() - stopping_since[0] > grace_s:
            child.kill()
        time.sleep(_POLL_S)
    _end_group()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _die_with_parent(signum: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum)


def _end_group() -> None:
    """SIGTERM what is left of our group, SIGKILL what is still left after a moment."""
    deadline = time.monotonic() + _LEFTOVERS_S
    signum = signal.SIGTERM
    told: set[int] = set()
    while pids := _others_in_group():
        if time.monotonic() > deadline:
            signum, told = signal.SIGKILL, set()
        for pid in pids - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        told |= pids
        time.sleep(_POLL_S)


def _others_in_group() -> set[int]:
    """Live processes of our own process group, from /proc; zombies are nobody."""
    group, own = os.getpgrp(), os.getpid()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == own:
            continue
        with contextlib.suppress(OSError):
            state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(pgrp) == group and state != "Z":
                found.add(int(entry.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
