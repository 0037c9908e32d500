"""A broken stream being taken up on another replica: asks what `gateway.continuation` wants asked, hands on the rest.

Stands between the takeover (`gateway.takeover`) and the new replica's connection for as long as that replica answers:
what comes back are events of the caller's own dialect, which are relayed like any others.
"""

import logging
from typing import Protocol

from gateway.connection import Sink
from gateway.continuation import Ask, Continuation
from gateway.errors import AnswerError, BrokenError, UpstreamError
from gateway.headers import Header, is_event_stream
from gateway.wire import Fault, read_fault
from gateway.wire.remainder import CannotContinueError

_log = logging.getLogger("berth.gateway")
_MOST_ANSWER_BYTES = 64 * 2**20


class Resumed(Protocol):
    """Whose stream goes on."""

    def ask(self, ask: Ask, sink: Sink) -> None:
        """Send this to the replica; the answer is for `sink`."""

    def let_go(self) -> None:
        """The answer is complete: its connection is no longer ours."""

    def resumed(self, events: bytes) -> None:
        """The next events of the caller's stream."""

    def completed(self, events: bytes) -> None:
        """The last ones."""

    def broke(self, error: UpstreamError) -> None:
        """This replica did not deliver either."""

    def refused(self, reason: str) -> None:
        """This replica's answers are not what is needed; another one's may be."""

    def gave_up(self, reason: str) -> None:
        """It cannot be continued exactly, on no replica."""


class Resumption:
    """The `Sink` of all that one replica is asked for one broken stream."""

    def __init__(self, continuation: Continuation, resumed: Resumed) -> None:
        self._continuation = continuation
        self._resumed = resumed
        self._is_stream = self._is_over = False
        self._status = self._size = 0
        self._pieces: list[bytes] = []

    def start(self) -> None:
        """Ask the first question."""
        try:
            self._go_on(self._continuation.first())
        except CannotContinueError as error:
            self._resumed.gave_up(str(error))

    def began(self, status: int, headers: list[Header]) -> None:
        """The head of an answer."""
        self._status = status
        self._pieces, self._size = [], 0
        self._is_stream = self._asked.is_stream and status == 200 and is_event_stream(headers)

    def received(self, data: bytes) -> None:
        """A piece of it."""
        try:
            self._take(data)
        except Exception:  # noqa: BLE001  (an answer nobody thought of must not leave its caller waiting)
            self._stumble()

    def _take(self, data: bytes) -> None:
        if not self._is_stream:
            self._pieces.append(data)
            self._size += len(data)
            if self._size > _MOST_ANSWER_BYTES:
                self._fail(BrokenError("its answer is too long to hold"))
            return
        events = self._continuation.feed(data)
        if self._continuation.broken_by is not None:  # it lives, and says that it cannot
            self._fail(AnswerError(Fault(500, self._continuation.broken_by)))
        elif events:
            self._resumed.resumed(events)

    def passed(self, chunk: bytes, start: int) -> bool:
        """Everything is read here."""
        return False

    def ended(self) -> None:
        """An answer is complete."""
        self._resumed.let_go()
        try:
            self._complete()
        except CannotContinueError as error:
            self._refuse(str(error))
        except Exception:  # noqa: BLE001  (see received)
            self._stumble()

    def _complete(self) -> None:
        if self._is_over:
            return
        if self._is_stream:
            events = self._continuation.end()
            if self._continuation.broken_by is None:
                self._resumed.completed(events)
            else:
                self._fail(BrokenError(self._continuation.broken_by))
        elif not self._asked.is_stream:
            self._go_on(self._continuation.answered(self._status, b"".join(self._pieces)))
        elif self._status >= 400:
            self._fail(AnswerError(read_fault(self._status, b"".join(self._pieces))))
        else:
            self._fail(BrokenError(f"it answered {self._status} without a stream when asked to go on"))

    def failed(self, error: UpstreamError) -> None:
        """There will be none; perhaps it had said all."""
        if self._is_stream and self._continuation.is_ended and not self._is_over:
            self.ended()
        else:
            self._fail(error)

    def _go_on(self, step: Ask | bytes) -> None:
        if isinstance(step, bytes):
            self._resumed.completed(step)
        else:
            self._asked = step
            self._resumed.ask(step, self)

    def _fail(self, error: UpstreamError) -> None:
        if not self._is_over:
            self._is_over = True
            self._resumed.broke(error)

    def _stumble(self) -> None:
        _log.exception("unexpected error while a stream was taken up")
        if self._asked.is_stream:
            self._fail(AnswerError(Fault(500, "what it went on with cannot be read")))
        else:
            self._refuse("what the other replica answered cannot be read")

    def _refuse(self, reason: str) -> None:
        if not self._is_over:
            self._is_over = True
            self._resumed.refused(reason)
