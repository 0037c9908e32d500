"""Which replica made which kept response: engines keep them in their own memory, so only that one can go on from it.

Responses API only. Bounded: the longest unused is forgotten first. Ids are secrets between an engine and one caller, so
what another caller made is unknown to everybody else.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from gateway.errors import RefusedError
from gateway.replica import Pool, Replica
from gateway.wire import Call, Fault

_MOST_KINDS: Final = 1000


@dataclass(frozen=True, slots=True)
class Owner:
    """Who made a response: `replica` by name, for `caller`, as `model`."""

    replica: str
    model: str
    caller: str
    has_left: bool = False
    """Its stream broke there and was ended by another replica, so that nobody keeps the whole of it."""


class Owners:
    """Remembers the owners of the latest `most` responses (about 200 bytes each)."""

    def __init__(self, most: int = 20_000) -> None:
        self._most = most
        self._owners: OrderedDict[str, Owner] = OrderedDict()
        self._kinds: dict[Owner, Owner] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def note(self, response_id: str, owner: Owner) -> None:
        """Remember a response. An id that a caller chose itself does not take over what another caller made."""
        known = self._owners.get(response_id)
        if known is not None and known.caller != owner.caller:
            return
        if len(self._kinds) >= _MOST_KINDS:
            self._kinds.clear()
        self._owners[response_id] = self._kinds.setdefault(owner, owner)  # the same one for all that are equal
        self._owners.move_to_end(response_id)
        if len(self._owners) > self._most:
            self._owners.popitem(last=False)

    def left(self, response_id: str, caller: str) -> None:
        """A response of this caller went on from another replica, which does not keep it."""
        owner = self._owners.get(response_id)
        if owner is not None and owner.caller == caller:
            self._owners[response_id] = replace(owner, has_left=True)

    def find(self, response_id: str, caller: str) -> Owner | None:
        """Who made the response, if `caller` may know; asking keeps it from being forgotten."""
        owner = self._owners.get(response_id)
        if owner is None or owner.caller != caller:
            return None
        self._owners.move_to_end(response_id)
        return owner

    def candidates(self, call: Call, caller: str, pool: Pool) -> tuple[Call, list[Replica]]:
        """The one replica that can take a call about a kept response, or one that goes on from it, and the call with
        its model named. Raises RefusedError: 404 for what nobody keeps any more, 503 while its replica is away."""
        response_id = call.response_id or ""
        goes_on = bool(call.model)
        owner = self.find(response_id, caller)
        if owner is None:
            raise RefusedError(unknown(response_id, goes_on=goes_on))
        if owner.has_left:
            raise RefusedError(left(response_id, owner, goes_on=goes_on))
        replica = next((replica for replica in pool.replicas if replica.name == owner.replica), None)
        if replica is None:
            raise RefusedError(gone(response_id, owner, goes_on=goes_on))
        if replica not in pool.candidates(call.model or owner.model) and not replica.is_suspect:
            raise RefusedError(away(response_id, owner, replica.state))
        return call.but(model=call.model or owner.model), [replica]


def unknown(response_id: str, *, goes_on: bool) -> Fault:
    """The 404 for an id that is not remembered; `goes_on`: it came as `previous_response_id`."""
    message = (
        f"Response with id '{response_id[:100]}' not found: the gateway knows the latest responses made through it with"
        " this key since it started; send the conversation as 'input' instead"
    )
    return _not_found(message, goes_on=goes_on)


def left(response_id: str, owner: Owner, *, goes_on: bool) -> Fault:
    """The 404 for a response of which one replica has the beginning and another one told the rest."""
    message = (
        f"Response with id '{response_id[:100]}' not found: {owner.replica} failed in the middle of it, and the replica"
        " that went on keeps nothing; send the conversation as 'input' instead"
    )
    return _not_found(message, goes_on=goes_on)


def gone(response_id: str, owner: Owner, *, goes_on: bool) -> Fault:
    """The 404 for a response whose replica was removed: what an engine keeps ends with it."""
    message = (
        f"Response with id '{response_id[:100]}' not found: {owner.replica}, which kept it in its memory, is no longer"
        " there; send the conversation as 'input' instead"
    )
    return _not_found(message, goes_on=goes_on)


def away(response_id: str, owner: Owner, state: str) -> Fault:
    """The 503 while the replica of a response takes no requests: it may come back with or without it."""
    message = f"{owner.replica}, which keeps response '{response_id[:100]}', is {state}; no other replica has it"
    return Fault(503, message, code="not_ready", retry_after_s=5)


def _not_found(message: str, *, goes_on: bool) -> Fault:
    code = "previous_response_not_found" if goes_on else "response_not_found"
    param = "previous_response_id" if goes_on else "response_id"
    return Fault(404, message, code=code, param=param, should_retry=False)
