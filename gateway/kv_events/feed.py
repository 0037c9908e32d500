"""Batches in their order: what is missing, what came twice, and what began anew. No I/O.

A publisher numbers its batches from 0, and keeps the last ones (10,000) to be asked for again. Whoever has heard all
since 0 knows the cache exactly; whoever has missed one knows nothing, since it may have been a removal.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from gateway.kv_events.event import Cleared, EngineHash, Extra, Removed, Stored, read_batch
from gateway.kv_events.heard import Heard

_log = logging.getLogger("berth.gateway")


class Sink(Protocol):
    """Who is told of one rank's KV cache."""

    def stored(
        self,
        hashes: Sequence[EngineHash],
        parent: EngineHash | None,
        token_ids: Sequence[int],
        block_tokens: int,
        extras: Sequence[Extra],
        lora: str | None,
        group: int,
    ) -> None:
        """These blocks are in it now, each behind the one before, the first behind `parent` (None: at the start)."""

    def removed(self, hashes: Sequence[EngineHash], group: int) -> None:
        """These are not, any more."""

    def cleared(self) -> None:
        """It is empty, and everything that comes into it from now on will be told."""

    def forgotten(self) -> None:
        """What was told may no longer be so. What comes is told, but there may be more."""


class Feed:
    """One publisher's batches on their way to a sink.

    `live` takes what is published, unless others are missing before it. Those are asked for again from `next` on and
    go to `replayed`; when that is over, `nothing_before` says that what is still missing is gone.
    """

    def __init__(self, sink: Sink, heard: Heard | None = None) -> None:
        self._sink = sink
        self.heard = heard or Heard()
        self._next: int | None = None
        """The batch that has to come; None: unknown, nothing has come yet."""
        self._last_live = -1

    @property
    def next(self) -> int:
        """From where on to ask again."""
        return self._next or 0

    def restart(self) -> None:
        """One of the two ends has begun anew: everything is to be asked for again."""
        if self._next is not None:
            self.heard.losses += 1
        self._next = None
        self._last_live = -1
        self._sink.forgotten()

    def live(self, seq: int, payload: bytes) -> bool:
        """A batch that was published now. False: it was not taken, since others are missing before it; hand it in again
        when those have come, or are known to be gone."""
        if seq <= self._last_live:  # each number is published once, so this is another publisher
            self.restart()
        if self._next is None or seq > self._next:
            self.heard.gaps += self._next is not None
            return False
        self._last_live = seq
        if seq == self._next:  # else it has come in a replay
            self._take(seq, payload)
        return True

    def replayed(self, seq: int, payload: bytes, *, is_first: bool) -> bool:
        """A batch that was asked for again. False: there is a hole before it; ask again, from `next` on.

        A hole before the first one is no accident: what was there is not kept any more.
        """
        if is_first:
            self.nothing_before(seq)
        if self._next is None or seq > self._next:
            return False
        if seq == self._next:
            self._take(seq, payload)
        return True

    def nothing_before(self, seq: int) -> None:
        """Nobody has the batches between `next` and `seq`, if there are any."""
        if self._next is None and seq == 0:
            self._sink.cleared()
        elif self._next is not None and seq > self._next:
            self._lose()
        self._next = seq if self._next is None else max(seq, self._next)

    def _take(self, seq: int, payload: bytes) -> None:
        self._next = seq + 1
        try:
            events = read_batch(payload)
        except ValueError as error:
            _log.warning("%s; what its engine holds is not known any more", error)
            self._lose()
            return
        self.heard.events += len(events)
        for event in events:
            if isinstance(event, Stored):
                self._sink.stored(*event)
            elif isinstance(event, Removed):
                self._sink.removed(*event)
            elif isinstance(event, Cleared):
                self._sink.cleared()

    def _lose(self) -> None:
        self.heard.losses += 1
        self._sink.forgotten()
