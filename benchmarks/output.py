"""What every benchmark's report says of its machine, and where the report goes."""

import os
import platform
import sys
from pathlib import Path


def machine() -> str:
    """This one, in a few words."""
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def publish(report: str, out: Path | None) -> None:
    """Print it, and write it to `out` where one is given; folders are made."""
    sys.stdout.write(report)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(report)
