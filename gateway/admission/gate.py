"""Who goes to a replica now, who waits for one, and who is turned away. Nothing to await: it is called, and calls back.

A request goes on at once where a replica has room (`room`) and nobody is before it; else it stands in its model's line
(`line`), until room is made for it, its time is over, or its caller leaves. Whoever could not be served in time anyway
is told so when it comes: its wait would be the line ahead of it over the pace at which that is served (`drain`).

A request that lost its place with its replica is bound by the same room, and goes before all others. It may not go
everywhere; where it may, the room that is made is kept for it, and whoever stands behind it gets that of the others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from gateway.admission.desk import Desk, Waiter
from gateway.admission.line import Asker, Joined, Place, Return
from gateway.admission.room import NO_BOUND, Room, strictest, with_room
from gateway.config import Queue, Slo
from gateway.errors import RefusedError
from gateway.replica import Replica
from gateway.routing import Pick, Route
from gateway.wire import Call, Fault, Usage

_LEARN_EVERY_S: Final = 0.02
_CLOSING: Final = "the gateway is shutting down; try again shortly"


class Answer(NamedTuple):
    """How one came, in seconds of the gateway's clock."""

    there: int
    """Requests at its replica when it was sent, itself among them."""
    ended_s: float
    ttft_s: float | None
    """Since it was sent; None for one that came whole."""
    tpot_s: float | None


class Gate:
    """All lines. `replicas` are those there are, `candidates` such as can take a request for a model (RefusedError for
    none); `clock` in seconds."""

    def __init__(
        self,
        replicas: Callable[[], Sequence[Replica]],
        candidates: Callable[[str], Sequence[Replica]],
        clock: Callable[[], float],
        queue: Queue,
        slos: Mapping[str, Slo],
    ) -> None:
        self._replicas = replicas
        self._candidates = candidates
        self._clock = clock
        self._queue = queue
        self._slos = slos
        self.is_timed = bool(slos)
        """Whether the time to a first token is bounded: then it matters what a replica has of a prompt already."""
        self._rooms: dict[Replica, Room] = {}
        self._busy: dict[str, Desk] = {}
        self._is_serving = False
        self.learn_at_s = -NO_BOUND
        self.desks: dict[str, Desk] = {}

    def use(self, queue: Queue, slos: Mapping[str, Slo]) -> None:
        """Other settings from now on. Who stands in line already stays, and keeps its time."""
        self._queue, self._slos, self.is_timed = queue, slos, bool(slos)
        for desk in self.desks.values():
            desk.line.most, desk.line.most_tokens = queue.max_waiting, queue.max_waiting_tokens
        self.refresh()

    @property
    def is_busy(self) -> bool:
        """Whether anybody waits for anything."""
        return bool(self._busy)

    def desk(self, model: str) -> Desk:
        """The one of a model that is served here."""
        desk = self.desks.get(model)
        if desk is None:
            desk = self.desks[model] = Desk(self._queue)
            self._measure(model, desk)
        return desk

    def room(self, replica: Replica) -> Room:
        """The one of a replica."""
        room = self._rooms.get(replica)
        if room is None:
            room = self._rooms[replica] = Room(replica, replica.max_num_seqs)
            room.bound(self._slo_of(replica))
        return room

    # One request
    def enter(self, call: Call, route: Route, candidates: Sequence[Replica]) -> Sequence[Replica]:
        """Those of `candidates` on which the request may take a place now; empty where it has to wait. Raises
        RefusedError (400) for one that no replica of its model can take, however empty it is."""
        model = call.model
        desk = self.desks.get(model) or self.desk(model)
        if (
            call.most_output_tokens or 1
        ) + call.chain.size > desk.longest_tokens:  # in units, of which no token has none
            desk.check_fits(call)
        return self.free(model, route, candidates)

    def free(self, model: str, route: Route, candidates: Sequence[Replica]) -> Sequence[Replica]:
        """The same for one that was let in before: it is not looked at again."""
        if model in self._busy:
            return ()
        return with_room(candidates, route) if self._queue.is_enabled else candidates

    def wait(self, model: str, asker: Asker, route: Route, waiter: Waiter) -> None:
        """A place in line, which may be served before this returns. Raises RefusedError (503) where that is full, or
        too long to be worth standing in."""
        desk, now_s, limit_s = self.desk(model), self._clock(), self._limit_s(model)
        place = Place(waiter, asker, model, route, now_s, now_s + limit_s)
        if desk.line.count:
            wait_s = desk.drain.wait_s(desk.line.tokens_ahead(asker, place.tokens) + place.tokens, now_s)
            if wait_s is not None and wait_s > limit_s:
                raise desk.refusal("slow", wait_s - limit_s)
        joined = self._join(desk, place)
        if not joined.is_in:
            self._close_if_empty(model, desk)
            raise desk.refusal("full", desk.line_s(now_s))
        waiter.stands(place)  # before anybody else is told anything: what they do may make room for it
        for out in joined.pushed_out:
            out.waiter.turned_away(desk.refusal("full", desk.line_s(now_s)).fault)
        if desk.line.returned:  # those before it may not want the room that there is
            self.serve()

    def wait_again(self, model: str, asker: Asker, route: Route, back: Return, waiter: Waiter) -> None:
        """A place before all that are not back; it may be served before this returns. What was let in once is not sent
        away because an SLO cannot be kept any more: it has as long as anybody may stand in line."""
        now_s = self._clock()
        place = Place(waiter, asker, model, route, now_s, now_s + self._queue.max_wait_s, back)
        self._join(self.desk(model), place)
        waiter.stands(place)
        self.serve()

    def _join(self, desk: Desk, place: "Place[Waiter]") -> "Joined[Waiter]":
        if not desk.line.count:
            desk.drain.opened(place.since_s)
            self._busy[place.model] = desk
        return desk.line.join(place)

    def leave(self, place: "Place[Waiter]") -> None:
        """Its caller has left. Those behind it may need less room."""
        desk = self.desks[place.model]
        desk.line.leave(place)
        self._close_if_empty(place.model, desk)
        if self._busy:
            self.serve()

    def check_time(self, place: "Place[Waiter]", now_s: float) -> Fault | None:
        """A Fault for one whose time in line is over, which has left it then."""
        if now_s <= place.until_s:
            return None
        desk = self.desks[place.model]
        if place.back is not None and place.back.is_streaming:
            fault = desk.fault("late", desk.line_s(now_s))  # it goes on all the same
        else:
            fault = desk.refusal("late", desk.line_s(now_s)).fault
        self.leave(place)
        return fault

    def serve(self) -> None:
        """Room has been made somewhere: let those go on for whom it is enough, one of each model in turn."""
        if self._is_serving:  # by somebody who was let through and failed at once
            return
        self._is_serving = True
        try:
            while sum(self._serve_one(model, desk) for model, desk in tuple(self._busy.items())):
                pass
        finally:
            self._is_serving = False

    def close(self) -> None:
        """The gateway ends: nobody is served any more."""
        for model, desk in tuple(self._busy.items()):
            while (place := next(iter(desk.line.returned), None) or desk.line.first()) is not None:
                desk.line.leave(place)
                place.waiter.turned_away(Fault(503, _CLOSING, code="shutting_down", retry_after_s=1))
            self._close_if_empty(model, desk)

    def learn(self, pick: Pick[Replica], call: Call, usage: Usage, answer: Answer) -> None:
        """An answer is complete. Of many at once some fifty a second are enough: not before `learn_at_s`."""
        self.learn_at_s = answer.ended_s + _LEARN_EVERY_S
        replica, desk, prompt_tokens = pick.load, self.desk(call.model), usage.prompt_tokens or 0
        desk.fewest.learn(call.chain.size, prompt_tokens)
        desk.note(prompt_tokens, usage.output_tokens or 0)
        if replica.kind == "engine":
            there = (answer.there + replica.in_flight) / 2
            self.room(replica).learn(answer.ended_s, there, answer.ttft_s, answer.tpot_s)

    # Several times a second
    def refresh(self) -> None:
        """Put every replica's bounds in force anew, and see who fits now."""
        replicas = self._replicas()
        for gone in self._rooms.keys() - set(replicas):
            del self._rooms[gone]
        for replica in replicas:
            self.room(replica).bound(self._slo_of(replica))
        for model, desk in self.desks.items():
            self._measure(model, desk)
        if self._busy:
            self.serve()

    def headroom(self, model: str) -> int | None:
        """How many more requests like the last ones would be served in time; None where nothing bounds them."""
        desk = self.desk(model)
        serving = [replica for replica in self._replicas() if replica.is_in and replica.serves(model)]
        if desk.line.count or not serving:
            return 0
        if not desk.mean_tokens:
            return None
        rooms = [self.room(replica).headroom(desk.mean_tokens, desk.mean_prompt_tokens) for replica in serving]
        return None if NO_BOUND in rooms else sum(math.floor(room) for room in rooms)

    def _serve_one(self, model: str, desk: Desk) -> bool:
        try:
            left = self._candidates(model)
        except RefusedError:  # they are away: perhaps not for long
            left = ()
        for place in desk.line.returned:
            among = place.waiter.among(left)
            if self._is_done_with(place, desk, among):
                return True
            left = [replica for replica in left if replica not in among]
            if not left:
                break
        first = desk.line.first()
        return first is not None and self._is_done_with(first, desk, left)

    def _is_done_with(self, place: "Place[Waiter]", desk: Desk, candidates: Sequence[Replica]) -> bool:
        """Whether it stands in line no more: its time is over, or one of these has room."""
        now_s = self._clock()
        fault = self.check_time(place, now_s)
        if fault is not None:
            place.waiter.turned_away(fault)
            return True
        found = with_room(candidates, place.route)
        if not found:
            return False
        desk.line.take(place)
        desk.drain.served(place.tokens, now_s)
        self._close_if_empty(place.model, desk)
        place.waiter.admitted(found)
        return True

    def _close_if_empty(self, model: str, desk: Desk) -> None:
        if not desk.line.count and self._busy.pop(model, None) is not None:
            desk.drain.closed(self._clock())

    def _limit_s(self, model: str) -> float:
        """How long a request may stand in line: until it could not have its first token in time any more."""
        slo, limit_s = self._slos.get(model), self._queue.max_wait_s
        if slo is None or slo.ttft_s is None:
            return limit_s
        ttfts = [self.room(replica).ttft_s for replica in self._replicas() if replica.serves(model)]
        return min(limit_s, max(0.0, slo.ttft_s - min(ttfts, default=0.0)))

    def _measure(self, model: str, desk: Desk) -> None:
        """A replica's longest request: what its model can remember, and what its KV cache holds."""
        longest = []
        for replica in self._replicas():
            for card in replica.models:
                if card.name == model:
                    bounds = (card.max_model_len, replica.kv_capacity_tokens)
                    longest.append(min((bound for bound in bounds if bound), default=NO_BOUND))
        desk.longest_tokens = max(longest, default=NO_BOUND)

    def _slo_of(self, replica: Replica) -> Slo | None:
        if not self._slos:
            return None
        return strictest(self._slos[card.name] for card in replica.models if card.name in self._slos)
