"""What came over the wire for one request -> when its tokens came and what the server said of them."""

from dataclasses import dataclass, field

from gateway.wire import EventSplitter, Usage, read_event


@dataclass(slots=True)
class Timeline:
    """The reading of one streamed chat answer, fed with stamped socket reads in order. Stamps are passed through.

    A chunk is one socket read that completed at least one event with generated text; `chunk_at` holds their stamps.
    """

    chunk_at: list[float] = field(default_factory=list)
    token_events: int = 0
    first_chunk_tokens: int | None = None
    usage: Usage | None = None
    error: str | None = None
    ended: bool = False
    _splitter: EventSplitter = field(default_factory=EventSplitter)

    def feed(self, at_s: float, data: bytes) -> None:
        """Read the events completed by `data`, which was read from the socket at `at_s`."""
        had_tokens = self.token_events
        for event in self._splitter.feed(data):
            self._read(event, is_first_chunk=not self.chunk_at)
        if self.token_events > had_tokens:
            self.chunk_at.append(at_s)

    def close(self) -> None:
        """Read a last event whose blank line never came: some servers leave it out after [DONE]."""
        if self._splitter.tail.strip():
            self._read(self._splitter.tail, is_first_chunk=False)

    def _read(self, event: bytes, *, is_first_chunk: bool) -> None:
        if self.ended:
            return  # nothing after the end, or after an error, is part of the answer
        sign = read_event("chat", event)
        self.usage = sign.usage or self.usage
        if sign.token:
            self.token_events += 1
            if is_first_chunk and sign.usage:  # a running usage, where the server sends one
                self.first_chunk_tokens = sign.usage.output_tokens
        self.error = sign.error if sign.error is not None else self.error
        self.ended = sign.end
