"""An event loop that stands still is told of while it lasts, with what holds it, and afterwards."""

import subprocess
import sys

_PROGRAM = """
import asyncio, logging, time
from serving import standstill

logging.basicConfig(level=logging.WARNING, format="%(message)s")

def hold_everybody_up(seconds, at_work):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not at_work:
            time.sleep(seconds)

async def main():
    with standstill.told(after_s=0.5):
        await asyncio.sleep(0.2)
        hold_everybody_up(SECONDS, AT_WORK)
        await asyncio.sleep(0.3)

asyncio.run(main())
"""


def _stderr(seconds: float, *, at_work: bool = False) -> str:
    program = _PROGRAM.replace("SECONDS", str(seconds)).replace("AT_WORK", str(at_work))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return done.stderr


def test_what_holds_the_loop_is_named_while_it_does_and_afterwards_whether_it_worked() -> None:
    said = _stderr(2.0)
    stack, _, after = said.partition("the event loop stood still for ")
    assert "the event loop has stood still for " in stack
    assert "in hold_everybody_up" in stack
    stood_s, worked_s = (float(after.split()[at]) for at in (0, 7))
    assert stood_s >= 1.5
    assert worked_s < 1.0

    after = _stderr(2.0, at_work=True).partition("the event loop stood still for ")[2]
    assert float(after.split()[7]) > 0.0  # how much is the machine's affair


def test_a_loop_that_goes_on_is_left_in_peace() -> None:
    assert _stderr(0.0) == ""
