"""What can go wrong with a run as a whole; a single failed request is a record, never an exception.

BenchError
├── ConfigError     an option that makes no sense, or two that exclude each other
├── TargetError     the server cannot be reached, refuses the key or does not serve the model
└── OutputError     the results cannot be written or read back
"""


class BenchError(Exception):
    """Root of the room. The message is one line: what, where, and the way out."""


class ConfigError(BenchError):
    """An option out of its range, or options that exclude each other."""


class TargetError(BenchError):
    """The server under test is not there, refuses the key, or does not serve the model."""


class OutputError(BenchError):
    """The run directory or a record file cannot be written or read."""
