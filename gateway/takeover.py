"""One stream that broke in the middle: it goes on from another replica if that can be exact, else it ends in an error.

Chooses the replicas, counts, and hands the events of each `Resumption` to the caller.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from gateway import faults
from gateway.attempt import Attempt
from gateway.continuation import Ask, Continuation
from gateway.errors import RefusedError, UpstreamError
from gateway.relay import Request
from gateway.replica import Replica
from gateway.resumption import Resumption
from gateway.settlement import MoveKind
from gateway.upstream import Sink
from gateway.wire import Call
from gateway.wire.remainder import CannotContinueError

_log = logging.getLogger("berth.gateway")
_MOST_CONTINUATIONS = 3


class Streamed(Protocol):
    """The way of the request whose stream it is."""

    def placed(self, call: Call, candidates: Sequence[Replica]) -> Attempt:
        """An attempt on one of them, which is the request's from now on; not sent yet."""

    def back_to(self, attempt: Attempt) -> None:
        """This one, which has failed and left, is the request's last after all."""

    def moved(self, kind: MoveKind, failed: str, reason: str) -> None:
        """It goes on elsewhere; `failed` is the name of the replica that it leaves."""


class Takeover:
    """Made when a stream breaks for the first time; from then on the replicas that take it up answer to it."""

    def __init__(self, request: Request, streamed: Streamed, attempt: Attempt) -> None:
        self._request = request
        self._streamed = streamed
        self._attempt = attempt
        self._continued = 0
        self._handed_on_by = ""

    def broke_off(self, error: UpstreamError, told: bytes | None = None) -> None:
        """The replica it came from has failed; `told` is the event in which the engine itself says so."""
        attempt = self._attempt
        attempt.blame(error)
        attempt.leave()
        self.count()
        self._broken = (attempt, error, told)
        meter, others = attempt.meter, self._others(attempt)
        try:
            if meter is None or meter.trail is None:
                raise CannotContinueError("what was sent of it is not kept")
            if not others:
                raise CannotContinueError("no other replica can take it")
            continuation = Continuation(attempt.call, meter.trail)
        except CannotContinueError as reason:
            self.gave_up(str(reason))
            return
        failed = attempt.replica.name
        _log.warning("%s: %s failed (%s), its stream goes on elsewhere", self._request.request_id, failed, error)
        self._handed_on_by = failed
        self._streamed.moved("continuation", failed, str(error))
        self._continued += 1
        meter.begin_again()
        self._attempt = self._streamed.placed(attempt.call, others)
        self._attempt.take_up(attempt)
        Resumption(continuation, self).start()

    def _others(self, attempt: Attempt) -> list[Replica]:
        if self._continued >= _MOST_CONTINUATIONS:
            return []
        try:
            found = self._request.relay.pool.candidates(attempt.call.model)
        except RefusedError:
            return []
        return [replica for replica in found if replica is not attempt.replica and replica.is_in]

    def count(self) -> None:
        """Its stream went on, or the request is over. Not sooner: of a replica whose stream nobody could take up, the
        failure is counted as what it became."""
        if self._handed_on_by:
            self._request.relay.metrics.continued(self._attempt.call.model, self._handed_on_by)
            self._handed_on_by = ""

    # Called by the resumption
    def ask(self, ask: Ask, sink: Sink) -> None:
        """Send this to the replica."""
        attempt, request = self._attempt, self._request
        attempt.heard_s = request.relay.clock()
        attempt.send(b"POST", ask.path.encode(), ask.body, sink)
        if request.client.is_slow:
            attempt.pause()

    def resumed(self, events: bytes) -> None:
        """The stream goes on."""
        try:
            self.count()
            meter = self._attempt.meter
            if meter is not None and (forward := meter.feed(events)):
                self._attempt.note_first_token()
                self._request.client.write(forward)
        except Exception:  # noqa: BLE001  (a boundary, as in Exchange.open)
            self._request.stumble()

    def completed(self, events: bytes) -> None:
        """And is complete."""
        attempt, request = self._attempt, self._request
        attempt.connection = None
        try:
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

    def gave_up(self, reason: str) -> None:
        """It cannot be continued."""
        request, (attempt, error, told) = self._request, self._broken
        if attempt is not self._attempt:  # the other one only said that it cannot
            self._handed_on_by = ""
            self._attempt.leave()
            self._attempt = attempt
            self._streamed.back_to(attempt)
        _log.warning("%s: its stream is not continued, because %s", request.request_id, reason)
        # half an event that the meter still holds is dropped: glued to the error it would hide it from the SDK
        fault = faults.broken(request.request_id, attempt.replica.name, error, "during the answer")
        if told is None:
            request.end_with(fault, "broken")
        else:
            request.end_stream(told, fault.status, "broken")
