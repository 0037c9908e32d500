"""Serving's error tree; every message is one line for the person at the terminal: what, where, the way out.

ServingError
├── ConfigError      a file, flag or variable that cannot be used (exit status 2)
├── PlacementError   the models asked for do not fit this machine (exit status 1)
└── StartError       an engine that did not come up; carries the end of its log (exit status 1)
"""

from pathlib import Path


class ServingError(Exception):
    """Root; `exit_status` is what the command ends with."""

    exit_status = 1


class ConfigError(ServingError):
    """Wrong input."""

    exit_status = 2


class PlacementError(ServingError):
    """It does not fit."""


class StartError(ServingError):
    """An engine failed to start."""

    def __init__(self, message: str, *, log_path: Path, last_lines: tuple[str, ...]) -> None:
        super().__init__(message)
        self.log_path = log_path
        self.last_lines = last_lines
