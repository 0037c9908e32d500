"""The user's own calibration table: where it is, and how a command reads it without what adds to it."""

from pathlib import Path

from serving.environment import Environment
from sizing.calibration import Calibration, load_calibration


def table_path(environment: Environment) -> Path:
    """Where the table is unless a command is told otherwise."""
    return environment.state() / "calibration.json"


def current(environment: Environment) -> Calibration:
    """The table as it is now, for a command to answer with; empty before the first start. Raises CalibrationError."""
    return load_calibration(table_path(environment))
