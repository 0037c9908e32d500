"""Who is next: requests of one model that wait for room on a replica, by priority and in fairness. Pure.

Higher priorities go first, but after `_IN_A_ROW` of them in a row one of those below is let through: whoever stands in
line comes to the front. Within a priority callers share by tokens (start-time fair queueing, Goyal et al. 1996): each
caller has a tag, the line serves the caller with the lowest one, which then moves on by what the request needs. A
caller that was not there starts where the line stands: what it did not use is not saved up, and somebody's thousand
requests are one place in line. Nobody overtakes within that order: a large request would never find room again.

Before them all are those that had a place on a replica and lost it with that (`returned`): broken streams, then whoever
arrived first. They are no more than were in flight, so the line's bounds are not for them.
"""

from bisect import insort
from collections import OrderedDict
from typing import Final, Generic, Literal, NamedTuple, TypeVar, get_args

from gateway.routing import Route

Priority = Literal["high", "normal", "low"]
PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)
"""The highest first."""
_IN_A_ROW: Final = 8

W = TypeVar("W")


class Asker(NamedTuple):
    """Who asks, and how urgent it is."""

    caller: str
    priority: Priority = "normal"


class Return(NamedTuple):
    """Of a request that had a place, and lost it with its replica."""

    is_streaming: bool
    """Whether its caller waits in the middle of the answer."""
    arrived_s: float
    """When the request came in, by the gateway's clock."""


class Place(Generic[W]):
    """One request in line; `waiter` is whose it is, `until_s` when it is no longer worth serving. `back`: it was served
    before."""

    __slots__ = ("back", "caller", "model", "priority", "route", "since_s", "tokens", "until_s", "waiter")

    def __init__(
        self,
        waiter: W,
        asker: Asker,
        model: str,
        route: Route,
        since_s: float,
        until_s: float,
        back: Return | None = None,
    ) -> None:
        self.back = back
        self.waiter = waiter
        self.caller, self.priority = asker
        self.model = model
        self.route = route
        self.tokens = max(1, route.prompt_tokens + route.output_tokens)
        self.since_s = since_s
        self.until_s = until_s


class Joined(NamedTuple, Generic[W]):
    """What came of it: whether the request is in line, and who had to leave to make room for it."""

    is_in: bool
    pushed_out: tuple[Place[W], ...] = ()


class _Caller(Generic[W]):
    """What one caller has in one rank of the line."""

    __slots__ = ("places", "tag", "tokens")

    def __init__(self) -> None:
        self.places: OrderedDict[Place[W], None] = OrderedDict()
        self.tag = 0.0
        self.tokens = 0


class _Rank(Generic[W]):
    """Everybody of one priority. A caller is kept for as long as its tag is ahead of the rank's."""

    __slots__ = ("callers", "count", "tag", "tokens")

    def __init__(self) -> None:
        self.callers: dict[str, _Caller[W]] = {}
        self.tag = 0.0
        self.count = 0
        self.tokens = 0

    def add(self, place: Place[W]) -> None:
        caller = self.callers.get(place.caller)
        if caller is None:
            caller = self.callers[place.caller] = _Caller()
        if not caller.places:
            caller.tag = max(caller.tag, self.tag)
        caller.places[place] = None
        caller.tokens += place.tokens
        self.count += 1
        self.tokens += place.tokens

    def first(self) -> Place[W]:
        waiting = (caller for caller in self.callers.values() if caller.places)
        return next(iter(min(waiting, key=lambda caller: caller.tag).places))

    def last(self) -> Place[W]:
        """Whose turn would come latest: the newest of the caller that has the most to come."""
        waiting = (caller for caller in self.callers.values() if caller.places)
        return next(reversed(max(waiting, key=lambda caller: caller.tag + caller.tokens).places))

    def remove(self, place: Place[W], *, is_served: bool) -> None:
        caller = self.callers[place.caller]
        del caller.places[place]
        caller.tokens -= place.tokens
        self.count -= 1
        self.tokens -= place.tokens
        if is_served:
            self.tag = caller.tag
            caller.tag += place.tokens
        if not self.count:
            self.callers.clear()
            self.tag = 0.0
        elif not caller.places:
            self.callers = {name: had for name, had in self.callers.items() if had.places or had.tag > self.tag}

    def ahead_of(self, caller: str, tokens: int) -> int:
        """Tokens that are served before a new request of `caller` with `tokens` would be: as much as it has and asks
        for itself, of each of the others, if they have it."""
        found = self.callers.get(caller)
        own = found.tokens if found is not None else 0
        tag = self.tag if found is None else max(found.tag, self.tag)
        end = tag + own + tokens
        others = 0.0
        for name, other in self.callers.items():
            if name != caller:
                others += min(other.tokens, max(0.0, end - max(other.tag, self.tag)))
        return own + int(others)


class Line(Generic[W]):
    """At most `most` requests with `most_tokens` together, beside those that are back. A place is in line until it is
    taken, left or pushed out. `count` and `tokens` are of everybody."""

    def __init__(self, most: int, most_tokens: int) -> None:
        self.most = most
        self.most_tokens = most_tokens
        self.count = 0
        self.tokens = 0
        self.returned: list[Place[W]] = []
        """Those that are back, in the order in which they are to be served; to be read only."""
        self._returned_tokens = 0
        self._ranks: dict[Priority, _Rank[W]] = {priority: _Rank() for priority in PRIORITIES}
        self._in_a_row = 0

    def __len__(self) -> int:
        return self.count

    def waiting(self, priority: Priority) -> int:
        """How many of this priority."""
        return self._ranks[priority].count + sum(place.priority == priority for place in self.returned)

    def join(self, place: Place[W]) -> Joined[W]:
        """Stand in line. Where that is full, whoever would be served latest is pushed out for somebody who would be
        served before: a lower priority, or a caller with more in line than this one. Who is back gets in always."""
        self._add(place)
        pushed_out: list[Place[W]] = []
        while place.back is None and self._is_over():
            last = self._last()
            self.leave(last)
            if last is place:
                for earlier in reversed(pushed_out):  # it was too large in any case: nobody had to leave for it
                    self._add(earlier)
                return Joined(False)
            pushed_out.append(last)
        return Joined(True, tuple(pushed_out))

    def first(self) -> Place[W] | None:
        """Who is next of those that are not back; it stays in line until it is taken."""
        rank = self._next_rank()
        return None if rank is None else self._ranks[rank].first()

    def take(self, place: Place[W]) -> None:
        """The first one, or one that is back, is served."""
        if place.back is not None:
            self.leave(place)
            return
        below = self._below(place.priority)
        self._in_a_row = self._in_a_row + 1 if below is not None and not self._is_owed(place.priority) else 0
        self._remove(place, is_served=True)

    def leave(self, place: Place[W]) -> None:
        """It is not served: its caller has left, or its time is over."""
        self._remove(place, is_served=False)

    def tokens_ahead(self, asker: Asker, tokens: int) -> int:
        """What would be served before a request that joined now, as far as those in line know."""
        caller, priority = asker
        above = sum(self._ranks[higher].tokens for higher in PRIORITIES[: PRIORITIES.index(priority)])
        return self._returned_tokens + above + self._ranks[priority].ahead_of(caller, tokens)

    def _next_rank(self) -> Priority | None:
        """The highest priority that waits, or the turn of those below it: of them, whoever has waited longest."""
        highest = next((priority for priority in PRIORITIES if self._ranks[priority].count), None)
        if highest is None or self._in_a_row < _IN_A_ROW:
            return highest
        return self._below(highest) or highest

    def _below(self, priority: Priority) -> Priority | None:
        lower = [rank for rank in PRIORITIES[PRIORITIES.index(priority) + 1 :] if self._ranks[rank].count]
        return min(lower, key=lambda rank: self._ranks[rank].first().since_s, default=None)

    def _is_owed(self, priority: Priority) -> bool:
        """Whether this is the turn of somebody below the highest."""
        return any(self._ranks[higher].count for higher in PRIORITIES[: PRIORITIES.index(priority)])

    def _last(self) -> Place[W]:
        lowest = next(priority for priority in reversed(PRIORITIES) if self._ranks[priority].count)
        return self._ranks[lowest].last()

    def _is_over(self) -> bool:
        return self.count - len(self.returned) > self.most or self.tokens - self._returned_tokens > self.most_tokens

    def _add(self, place: Place[W]) -> None:
        if place.back is None:
            self._ranks[place.priority].add(place)
        else:
            insort(self.returned, place, key=_turn)
            self._returned_tokens += place.tokens
        self.count += 1
        self.tokens += place.tokens

    def _remove(self, place: Place[W], *, is_served: bool) -> None:
        if place.back is None:
            self._ranks[place.priority].remove(place, is_served=is_served)
        else:
            self.returned.remove(place)
            self._returned_tokens -= place.tokens
        self.count -= 1
        self.tokens -= place.tokens


def _turn(place: Place[W]) -> tuple[bool, float]:
    """Of one that is back: streams go first, then whoever has been here longest."""
    assert place.back is not None  # noqa: S101  (asked of no others)
    return not place.back.is_streaming, place.back.arrived_s
