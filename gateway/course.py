"""Where one request goes: to a replica with room or into the line for one, and on to another when that one fails.

What only some requests need is an object of its own, made when it is needed: a place in line (`stand`), the way along a
chain (`detour`), a second replica (`rival`), a broken stream that goes on (`takeover`).
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from gateway import faults
from gateway.admission.line import Asker, Priority, Return
from gateway.attempt import Attempt, Attempted
from gateway.config import Trouble
from gateway.detour import Detour
from gateway.dues import Dues
from gateway.errors import AnswerError, RefusedError, UpstreamError
from gateway.fallback import StandIn, remote_path, trouble_of
from gateway.replica import Replica
from gateway.rival import Rival
from gateway.routing import POLICIES, Policy, Route
from gateway.session import session_key
from gateway.settlement import NO_MOVES, NOBODY, Move, MoveKind
from gateway.stand import Stand
from gateway.takeover import Takeover
from gateway.wire import Call, Fault

_log = logging.getLogger("berth.gateway")


class Routed(Attempted, Protocol):
    """Whose way it is."""

    caller: str
    priority: Priority
    dues: Dues | None
    arrived_s: float


class Course:
    """Begun with the call, ended with the request. `attempt` is the last there was, None before the first."""

    # class attributes are what most requests never change: they cost nothing to set
    call: Call | None = None
    attempt: Attempt | None = None
    stand: Stand | None = None
    _earlier: tuple[Replica, ...] = ()
    _refused_by: tuple[Replica, ...] = ()
    _failure: UpstreamError | None = None
    _route: Route | None = None
    _detour: Detour | None = None
    _rival: Rival | None = None
    _takeover: Takeover | None = None

    def __init__(self, request: Routed) -> None:
        self._request = request
        self._relay = request.relay
        self.moves: tuple[Move, ...] = NO_MOVES

    # Room on a replica, or a place in line
    def begin(self, call: Call) -> None:
        """On a replica of its model, or along the model's chain when none is fit for it. Raises RefusedError."""
        relay = self._relay
        if call.response_id is not None:
            self.call, candidates = relay.owners.candidates(call, self._request.caller, relay.pool)
            self._charge(self.call)
            self._try(self.call, candidates)
            return
        chain = relay.config.chains.get(call.model)
        if chain is not None:
            self._detour = Detour(self._request, self, chain, call)
            if relay.pool.is_panicking(call.model) and self._stood_in("failed"):
                return
        try:
            found = relay.pool.candidates(call.model)
        except RefusedError as error:
            if not self._stood_in(trouble_of(error)):
                raise
            return
        self.call = call
        if not call.endpoint.generates:
            self._try(call, found)
        else:
            self._enter(call, found)

    def _enter(self, call: Call, found: Sequence[Replica]) -> None:
        """Go where there is room, or wait for it. Raises RefusedError."""
        gate, route = self._relay.gate, self._routed(call)
        if gate.is_timed:
            self._relay.pool.router.look(route)
        free = gate.enter(call, route, found)
        self._charge(call)
        if free:
            self._first_try(call, free)
            return
        self.stand = stand = Stand(self._request, self)  # before it joins: it may be let in at once
        try:
            stand.join(call.model, Asker(self._request.caller, self._request.priority), route)
        except RefusedError as error:
            self.stand = None
            if not self._stood_in(trouble_of(error)):
                raise

    def _charge(self, call: Call) -> None:
        """Its caller's tokens, of what makes any, before a replica or a provider has it. Raises RefusedError."""
        if self._request.dues is not None and call.endpoint.generates:
            self._request.dues.charge(self._routed(call))

    def let_in(self, candidates: Sequence[Replica]) -> None:
        """Called by its stand: these have room."""
        self.stand = None
        if self._takeover is not None:
            self._takeover.let_in(candidates)
        elif self.attempt is not None:
            self._retry(self.attempt, candidates)
        else:
            assert self.call is not None  # noqa: S101  (only a call stands in line)
            self._first_try(self.call, candidates)

    def sent_away(self, fault: Fault) -> None:
        """Called by its stand: there is no room."""
        self.stand = None
        trouble = trouble_of(RefusedError(fault))
        if self._takeover is not None:
            self._takeover.sent_away(fault)
        elif self._stood_in(trouble):
            pass
        elif self.attempt is None:
            self._request.end_with(fault, "refused")
        elif self._failure is not None:
            self._give_up(self.attempt, self._failure, may_stand_in=trouble is not None)

    def among(self, candidates: Sequence[Replica]) -> Sequence[Replica]:
        """Called by its stand, when it goes on elsewhere: not to one that has refused it, unless there is no other. One
        whose connection broke is no candidate before a probe has found it well."""
        if self._takeover is not None:
            return self._takeover.among(candidates)
        return [replica for replica in candidates if replica not in self._refused_by] or candidates

    def _leave_line(self) -> None:
        stand, self.stand = self.stand, None
        if stand is not None:
            stand.leave()

    # Attempts
    def _first_try(self, call: Call, free: Sequence[Replica]) -> None:
        self._try(call, free)
        relay = self._relay
        hedge = relay.config.hedges.get(call.model)
        if hedge is None:
            return
        relay.hedges.requested()
        after_s = relay.pool.hedge_after_s(call.model, hedge)
        if after_s is not None:
            self._rival = Rival(self._request, self, call, self._routed(call), hedge, after_s)

    def _try(self, call: Call, candidates: Sequence[Replica]) -> None:
        attempt, endpoint = self.placed(call, candidates), call.endpoint
        path = remote_path(endpoint) if attempt.replica.kind == "remote" else endpoint.raw_path
        attempt.send(endpoint.method, path, call.body, attempt)
        if self._request.client.is_slow:
            attempt.pause()

    def placed(self, call: Call, candidates: Sequence[Replica]) -> Attempt:
        """Take a place on one of them; the attempt there, which has yet to be sent, is the request's from now on."""
        attempt = self.placed_beside(call, candidates)
        if self.attempt is not None:
            self._note_earlier(self.attempt)
        self.attempt = attempt
        return attempt

    def placed_beside(self, call: Call, candidates: Sequence[Replica]) -> Attempt:
        """The same beside the attempt there is."""
        routings = self._relay.config.routings
        policy: Policy[Replica] | None = POLICIES[routings[call.model]] if call.model in routings else None
        place = self._relay.pool.router.pick(self._routed(call), candidates, policy)
        return Attempt(self._request, self, call, place)

    def _note_earlier(self, attempt: Attempt) -> None:
        self._earlier = (*self._earlier, attempt.replica)

    def _routed(self, call: Call) -> Route:
        """Made once: what is tried elsewhere is the same prompt."""
        if self._route is None:
            estimate = self._relay.estimates.of(call.model)
            chain, ratio = call.chain, estimate.tokens_per_unit
            prompt, likely = 0, 0
            if call.endpoint.generates:
                prompt = int(chain.size * ratio) + 1
                likely = estimate.likely_output(call.most_output_tokens) * call.answers
            session = session_key(self._request.head.session, call.session, self._request.caller)
            self._route = Route(chain, prompt, likely, session, ratio)
        return self._route

    def others(self) -> list[Replica]:
        """Who may be tried beside those that were; nobody once they are enough."""
        call, attempt = self.call, self.attempt
        if call is None or attempt is None or call.response_id is not None:
            return []
        tried = (*self._earlier, attempt.replica)
        if len(tried) > self._relay.config.retries:
            return []
        try:
            return [replica for replica in self._relay.pool.candidates(call.model) if replica not in tried]
        except RefusedError:
            return []

    @property
    def is_answered(self) -> bool:
        """Whether the caller has been sent some of its answer."""
        return self.attempt is not None and self.attempt.is_started

    # Going on elsewhere
    def lost(self, attempt: Attempt, error: UpstreamError) -> None:
        """Called by the attempt, of which the caller has seen nothing: try another replica, or say what happened."""
        self.end_race()
        attempt.blame(error)
        attempt.leave()
        others = self.others() if faults.worth_another(error) else []
        if others and self._relay.pool.retry_budget.take():
            self._failure = error
            if isinstance(error, AnswerError):
                self._refused_by = (*self._refused_by, attempt.replica)
            self.go_on(attempt.call, others)
        else:
            self._give_up(attempt, error)

    def go_on(self, call: Call, others: Sequence[Replica]) -> None:
        """Where there is room, or first of all into the line for it: what was lost with a replica is not poured out
        over the others."""
        request, gate, route = self._request, self._relay.gate, self._routed(call)
        free = gate.free(call.model, route, others) if call.endpoint.generates else others
        if free:
            self.let_in(free)
            return
        self.stand = stand = Stand(request, self)
        back = Return(self.is_answered, request.arrived_s)
        stand.rejoin(call.model, Asker(request.caller, request.priority), route, back)

    def _retry(self, attempt: Attempt, candidates: Sequence[Replica]) -> None:
        name, error = attempt.replica.name, self._failure
        _log.warning("%s: %s failed (%s), trying another replica", self._request.request_id, name, error)
        self._relay.metrics.retried(attempt.call.model, name)
        self.moved("retry", name, str(error))
        self._try(attempt.call, candidates)

    def _give_up(self, attempt: Attempt, error: UpstreamError, *, may_stand_in: bool = True) -> None:
        request, replica = self._request, attempt.replica
        if may_stand_in and self._stood_in(trouble_of(error, of_remote=replica.kind == "remote")):
            pass
        elif isinstance(error, AnswerError):
            request.end_with(error.fault, "engine_error")
        else:
            when = faults.BEFORE_AN_ANSWER
            if attempt.call.stream and not attempt.call.endpoint.generates:
                when = faults.BEFORE_A_KEPT_STREAM
            request.end_with(faults.broken(request.request_id, replica.name, error, when), "broken")

    def _stood_in(self, trouble: Trouble | None) -> bool:
        """Send the request on along its model's chain, if somebody there can take it."""
        return self._detour is not None and self._detour.take(trouble)

    def go_to(self, stand_in: StandIn, trouble: Trouble) -> None:
        """Called by the detour: this one is there."""
        if self.call is None:  # nobody of its own model was there
            self._charge(stand_in.call)
        self.end_race()
        self._leave_line()
        attempt, failed = self.attempt, NOBODY
        if attempt is not None:
            failed = attempt.replica.name
            if trouble == "late" and attempt.place is not None:
                attempt.replica.was_late(self._relay.clock() - attempt.sent_s)
                attempt.leave()
        self.call, self._route = stand_in.call, None
        self.moved("fallback", failed, trouble)
        self._try(stand_in.call, self._relay.pool.stand_ins(stand_in.step))

    def overtaken(self, winner: Attempt) -> None:
        """Called by the rival: the second attempt was first."""
        slower, now_s = self.attempt, self._relay.clock()
        assert slower is not None  # noqa: S101  (there is no second without a first)
        self._rival = None
        slower.replica.was_late(now_s - slower.sent_s)
        slower.leave()
        self.moved("hedge", slower.replica.name, "slower")
        self._note_earlier(slower)
        self.attempt, winner.heard_s = winner, now_s
        if self._request.client.is_slow:
            winner.pause()

    def end_race(self) -> None:
        """Nobody else is asked any more, or listened to."""
        rival, self._rival = self._rival, None
        if rival is not None:
            rival.drop()

    def broke(self, attempt: Attempt, error: UpstreamError, told: bytes | None = None) -> None:
        """Called by the attempt, in the middle of the stream: it goes on elsewhere if that can be exact."""
        self._takeover = Takeover(self._request, self, attempt)
        self._takeover.broke_off(error, told)

    def back_to(self, attempt: Attempt) -> None:
        """Called by the takeover: nobody could go on from this one."""
        self.attempt = attempt

    def moved(self, kind: MoveKind, failed: str, reason: str) -> None:
        """Note that it goes on elsewhere; `failed` is the name of the replica that it leaves."""
        self.moves = (*self.moves, Move(kind, self._relay.clock(), failed, reason))

    def end(self) -> None:
        """The request is over: leave, and let go of whatever points back here."""
        if self._rival is not None:
            self.end_race()
        if self.stand is not None:
            self._leave_line()
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.leave()
        if self._detour is not None:
            self._detour.end()
            self._detour = None
        if self._takeover is not None:
            self._takeover.count()
            self._takeover = None
