"""One stream that broke in the middle: it goes on from another replica if that can be exact, else it ends in an error.

Chooses the replicas, counts, and hands the events of each `Resumption` to the caller.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from gateway import faults
from gateway.attempt import Attempt
from gateway.connection import Sink
from gateway.continuation import Ask, Continuation
from gateway.errors import AnswerError, RefusedError, UpstreamError
from gateway.relay import Request
from gateway.replica import Replica
from gateway.resumption import Resumption
from gateway.settlement import MoveKind
from gateway.wire import Call, Fault
from gateway.wire.remainder import CannotContinueError

_log = logging.getLogger("berth.gateway")
_MOST_CONTINUATIONS = 3


class Called(Request, Protocol):
    """Whose stream it is."""

    caller: str


class Streamed(Protocol):
    """The way of the request whose stream it is."""

    def go_on(self, call: Call, others: Sequence[Replica]) -> None:
        """To one of these, now or when it has room: calls `let_in` or `sent_away`."""

    def placed(self, call: Call, candidates: Sequence[Replica]) -> Attempt:
        """An attempt on one of them, which is the request's from now on; not sent yet."""

    def back_to(self, attempt: Attempt) -> None:
        """This one, which has failed and left, is the request's last after all."""

    def moved(self, kind: MoveKind, failed: str, reason: str) -> None:
        """It goes on elsewhere; `failed` is the name of the replica that it leaves."""


class Takeover:
    """Made when a stream breaks for the first time; from then on the replicas that take it up answer to it."""

    _continuation: Continuation
    _is_asked: bool

    def __init__(self, request: Called, streamed: Streamed, attempt: Attempt) -> None:
        self._request = request
        self._streamed = streamed
        self._attempt = attempt
        self._continued = 0
        self._handed_on_by = ""
        self._unfit: tuple[Replica, ...] = ()

    def broke_off(self, error: UpstreamError, told: bytes | None = None) -> None:
        """The replica it came from has failed; `told` is the event in which the engine itself says so."""
        attempt = self._attempt
        attempt.blame(error)
        attempt.leave()
        self.count()
        self._broken = (attempt, error, told)
        if isinstance(error, AnswerError):  # others are out until a probe has found them well
            self._unfit = (*self._unfit, attempt.replica)
        self._hand_on("no other replica can take it")

    def _hand_on(self, or_else: str) -> None:
        """To another replica; `or_else` says why not, if there is none."""
        attempt, error, _ = self._broken
        meter, others = attempt.meter, self._others(attempt)
        try:
            if meter is None or meter.trail is None:
                raise CannotContinueError("what was sent of it is not kept")
            if not others:
                raise CannotContinueError(or_else)
            self._continuation = Continuation(attempt.call, meter.trail)
        except CannotContinueError as reason:
            self.gave_up(str(reason))
            return
        if not self._handed_on_by:
            self._handed_on_by = failed = attempt.replica.name
            _log.warning("%s: %s failed (%s), its stream goes on elsewhere", self._request.request_id, failed, error)
            self._streamed.moved("continuation", failed, str(error))
        self._streamed.go_on(attempt.call, others)

    def _others(self, attempt: Attempt) -> list[Replica]:
        if self._continued >= _MOST_CONTINUATIONS:
            return []
        try:
            found = self._request.relay.pool.candidates(attempt.call.model)
        except RefusedError:
            return []
        return [replica for replica in self.among(found) if replica is not attempt.replica]

    def among(self, candidates: Sequence[Replica]) -> list[Replica]:
        """Those of them that may take it up: they are well, and have not said that they cannot."""
        return [replica for replica in candidates if replica.is_in and replica not in self._unfit]

    # Called by the course
    def let_in(self, candidates: Sequence[Replica]) -> None:
        """These have room."""
        broken, _, _ = self._broken
        self._continued += 1
        self._is_asked = False
        if broken.meter is not None:
            broken.meter.begin_again()
        self._attempt = self._streamed.placed(broken.call, candidates)
        self._attempt.take_up(broken)
        Resumption(self._continuation, self).start()

    def sent_away(self, fault: Fault) -> None:
        """None had room in time: a stream that has begun goes on all the same, unless the gateway ends."""
        others = self._others(self._broken[0]) if fault.code == "overloaded" else []
        if others:
            self.let_in(others)
        else:
            self.gave_up(fault.message)

    def count(self) -> None:
        """Its stream went on, or the request is over. Not sooner: of a replica whose stream nobody could take up, the
        failure is counted as what it became."""
        if self._handed_on_by:
            self._request.relay.metrics.continued(self._attempt.call.model, self._handed_on_by)
            self._handed_on_by = ""

    def _went_on(self) -> None:
        if self._handed_on_by:
            response_id = self._continuation.response_id
            if response_id is not None:
                self._request.relay.owners.left(response_id, self._request.caller)
            self.count()

    # Called by the resumption
    def ask(self, ask: Ask, sink: Sink) -> None:
        """Send this to the replica."""
        attempt, request, self._is_asked = self._attempt, self._request, True
        attempt.heard_s = request.relay.clock()
        attempt.send(b"POST", ask.path.encode(), ask.body, sink)
        if request.client.is_slow:
            attempt.pause()

    def let_go(self) -> None:
        """The answer is complete: its connection is no longer ours."""
        self._attempt.connection = None

    def resumed(self, events: bytes) -> None:
        """The stream goes on."""
        try:
            self._went_on()
            meter = self._attempt.meter
            if meter is not None and (forward := meter.feed(events)):
                self._attempt.note_first_token()
                self._request.client.write(forward)
        except Exception:  # noqa: BLE001  (a boundary, as in Exchange.open)
            self._request.stumble()

    def completed(self, events: bytes) -> None:
        """And is complete."""
        attempt, request = self._attempt, self._request
        try:
            self._went_on()
            if self._is_asked:
                attempt.replica.succeeded()
            request.client.end(attempt.meter.feed(events) if attempt.meter is not None else events)
            request.settle("ok", attempt.status)
        except Exception:  # noqa: BLE001  (see resumed)
            request.stumble()

    def broke(self, error: UpstreamError) -> None:
        """The replica it went on from has failed as well."""
        try:
            self.broke_off(error)
        except Exception:  # noqa: BLE001  (see resumed)
            self._request.stumble()

    def refused(self, reason: str) -> None:
        """The replica lives, and cannot take it up; another one may."""
        try:
            self._unfit = (*self._unfit, self._attempt.replica)
            self._back()
            self._hand_on(reason)
        except Exception:  # noqa: BLE001  (see resumed)
            self._request.stumble()

    def _back(self) -> None:
        attempt, _, _ = self._broken
        if attempt is not self._attempt:
            self._attempt.leave()
            self._attempt = attempt
            self._streamed.back_to(attempt)

    def gave_up(self, reason: str) -> None:
        """It cannot be continued."""
        request, (attempt, error, told) = self._request, self._broken
        self._handed_on_by = ""
        self._back()
        _log.warning("%s: its stream is not continued, because %s", request.request_id, reason)
        # half an event that the meter still holds is dropped: glued to the error it would hide it from the SDK
        fault = faults.broken(request.request_id, attempt.replica.name, error, "during the answer")
        if told is None:
            request.end_with(fault, "broken")
        else:
            request.end_stream(told, fault.status, "broken")
