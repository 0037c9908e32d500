"""No process of an engine outlives its guard, and the guard does not outlive berth."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

# A root with a child, as vLLM has: both write their process ids, then wait. `stubborn` children ignore SIGTERM.
TREE = """
import os, pathlib, signal, subprocess, sys, time
folder, role, ending, stubborn = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "stubborn"
if role == "child" and stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if role == "root":
    subprocess.Popen([sys.executable, __file__, str(folder), "child", "wait", sys.argv[4]])
    while not (folder / "child").exists():
        time.sleep(0.01)
    if ending == "drain":
        def drain(*_):
            (folder / "drained").touch()
            sys.exit(7)
        signal.signal(signal.SIGTERM, drain)
partial = folder / (role + ".partial")
partial.write_text(str(os.getpid()))
partial.rename(folder / role)
if ending.isdecimal():
    sys.exit(int(ending))
time.sleep(60)
"""


class Tree:
    """A guard over a root and its child."""

    def __init__(self, folder: Path, ending: str, manners: str = "polite", grace_s: float = 20.0) -> None:
        self.folder = folder
        script = folder / "tree.py"
        script.write_text(TREE)
        command = [sys.executable, str(script), str(folder), "root", ending, manners]
        guard = [sys.executable, "-m", "serving.guard", str(grace_s), str(os.getpid()), *command]
        self.guard = subprocess.Popen(guard, start_new_session=True)

    def pid(self, role: str) -> int:
        """Of the root or the child, once it is up."""
        deadline = time.monotonic() + 20
        while not (self.folder / role).exists():
            assert time.monotonic() < deadline, f"{role} did not start"
            time.sleep(0.01)
        return int((self.folder / role).read_text())


def ended(pid: int, within_s: float = 15.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def started() -> Iterator[list[Tree]]:
    trees: list[Tree] = []
    yield trees
    for tree in trees:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(tree.guard.pid, signal.SIGKILL)
        tree.guard.wait(10)


def test_sigterm_reaches_the_root_which_may_drain_and_its_status_is_passed_on(
    tmp_path: Path, started: list[Tree]
) -> None:
    tree = Tree(tmp_path, "drain")
    started.append(tree)
    child = tree.pid("child")
    tree.pid("root")
    tree.guard.terminate()
    assert tree.guard.wait(20) == 7
    assert (tmp_path / "drained").exists()
    assert ended(child)


def test_what_a_dead_root_leaves_behind_is_ended(tmp_path: Path, started: list[Tree]) -> None:
    tree = Tree(tmp_path, "wait")
    started.append(tree)
    child = tree.pid("child")
    os.kill(tree.pid("root"), signal.SIGKILL)
    assert tree.guard.wait(20) == 128 + signal.SIGKILL
    assert ended(child)


def test_even_a_child_that_ignores_sigterm(tmp_path: Path, started: list[Tree]) -> None:
    tree = Tree(tmp_path, "3", manners="stubborn")
    started.append(tree)
    child = tree.pid("child")
    assert tree.guard.wait(30) == 3
    assert ended(child)


def test_a_root_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path, started: list[Tree]) -> None:
    ignoring = "import signal, time, pathlib, sys\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    script = tmp_path / "ignores.py"
    script.write_text(ignoring + "pathlib.Path(sys.argv[1]).touch()\ntime.sleep(60)\n")
    up = tmp_path / "up"
    command = [sys.executable, "-m", "serving.guard", "0.2", str(os.getpid()), sys.executable, str(script), str(up)]
    guard = subprocess.Popen(command, start_new_session=True)
    while not up.exists():
        time.sleep(0.01)
    guard.terminate()
    assert guard.wait(20) == 128 + signal.SIGKILL


def test_kill_9_of_berth_ends_the_whole_tree(tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys, os, time\n"
        "subprocess.Popen([sys.executable, '-m', 'serving.guard', '5', str(os.getpid()), *sys.argv[1:]],"
        " start_new_session=True)\n"
        "time.sleep(60)\n"
    )
    script = tmp_path / "tree.py"
    script.write_text(TREE)
    command = [sys.executable, str(script), str(tmp_path), "root", "wait", "polite"]
    berth = subprocess.Popen([sys.executable, "-c", parent, *command])
    tree = Tree.__new__(Tree)
    tree.folder = tmp_path
    root, child = tree.pid("root"), tree.pid("child")
    guard = psutil.Process(root).ppid()
    berth.kill()
    berth.wait(10)
    assert ended(root)
    assert ended(child)
    assert ended(guard)


def test_a_guard_whose_parent_was_already_gone_starts_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    command = [sys.executable, "-c", f"open({str(mark)!r}, 'w')"]
    done = subprocess.run([sys.executable, "-m", "serving.guard", "1", "1", *command], check=False)
    assert done.returncode == 1
    assert not mark.exists()
