"""What has come of one engine's KV events, in numbers: for metrics."""

from dataclasses import dataclass


@dataclass(slots=True)
class Heard:
    """Over all ranks of an engine, and all connections to it. Each only grows."""

    events: int = 0
    """Blocks stored or removed together, and caches cleared."""
    gaps: int = 0
    """Times that batches were missing before one that came."""
    replays: int = 0
    """Times that missing batches were asked for, the first ones of a connection included."""
    losses: int = 0
    """Times that all that was known was no longer so: a connection broke, or batches were gone for good."""
