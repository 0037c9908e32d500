"""A pipe that nobody reads any more ends nothing, and keeps nothing from ending."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.harness import free_port

BERTH = Path(sys.executable).with_name("berth")


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP without a file"])
def test_a_gateway_whose_reader_has_gone_still_stops_when_told_to(told: signal.Signals) -> None:
    command = [str(BERTH), "gateway", "--upstream", "http://127.0.0.1:9", "--port", str(free_port())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        while b"metrics" not in process.stdout.readline():
            pass
        process.stdout.close()
        process.send_signal(told)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


def _unheard(code: str) -> tuple[int, str]:
    """Exit status and standard error of `code`, whose standard output has no reader."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    return done.returncode, done.stderr


def test_a_line_that_nobody_reads_is_dropped() -> None:
    code = "from serving.voice import say\nsay('one')\nsay('two')\nprint('three')"
    assert _unheard(code) == (0, "")


def test_so_is_what_rich_draws() -> None:
    code = """
from serving.progress import Progress, Voice
voice = Voice()
voice.print("one")
Progress(voice).say("two")
assert voice.quiet
"""
    assert _unheard(code) == (0, "")
