"""What the log looks like on standard error, from a process that logs as a command does."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, logging, sys
from gateway.access_log import write_lines
from serving.commands.common import logging_to_stderr
from tests.gateway.settling import DONE
logging_to_stderr(log_format=sys.argv[1])
logging.getLogger("berth.serving").info("two\\nlines: %s", "ü")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("berth.gateway").exception("oops")
logging.getLogger("httpx").info("not ours")
write_lines(sys.argv[1])([DONE, DONE], 0.0)
"""


def _logged(log_format: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, log_format]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_whatever_is_said() -> None:
    lines = [json.loads(line) for line in _logged("json")]
    assert [(line["level"], line["logger"]) for line in lines] == [
        ("info", "berth.serving"),
        ("error", "berth.gateway"),
        ("info", "berth.access"),
        ("info", "berth.access"),
    ]
    assert lines[0]["message"] == "two\nlines: ü"
    assert lines[1]["exception"].endswith("ZeroDivisionError: division by zero")
    assert all(line["time"].endswith("Z") for line in lines)


@pytest.mark.parametrize("place", [0, -1, -2])
def test_text_has_the_same_head_on_every_line(place: int) -> None:
    date, time, level, logger = _logged("text")[place].split(" ")[:4]
    assert (len(date), len(time), level) == (len("2026-01-01"), len("00:00:00,000"), "INFO")
    assert logger in ("berth.serving", "berth.access")
