"""One request's way along its model's chain: who stands in next, and when the first token is overdue."""

import asyncio
import logging
from typing import Protocol

from gateway.config import Chain, Trouble
from gateway.fallback import StandIn, next_stand_in
from gateway.relay import Request
from gateway.wire import Call

_log = logging.getLogger("berth.gateway")


class Detoured(Protocol):
    """The way that it is a part of."""

    @property
    def is_answered(self) -> bool:
        """Whether anything of an answer has come: then nobody stands in any more."""

    def go_to(self, stand_in: StandIn, trouble: Trouble) -> None:
        """Leave what the request has, and try this one. Somebody is there."""


class Detour:
    """Made for a request whose model has a chain; its deadline, if it has one, runs from then on."""

    def __init__(self, request: Request, detoured: Detoured, chain: Chain, asked: Call) -> None:
        self._request = request
        self._detoured = detoured
        self._chain = chain
        self._asked = asked
        self._place = 0
        self._deadline: asyncio.TimerHandle | None = None
        if chain.ttft_deadline_s is not None and asked.stream:
            self._deadline = asyncio.get_running_loop().call_later(chain.ttft_deadline_s, self._late)

    def take(self, trouble: Trouble | None) -> bool:
        """Send the request on to the next who can take it after `trouble`; whether there was somebody."""
        if trouble is None:
            return False
        pool, asked = self._request.relay.pool, self._asked
        stand_in = next_stand_in(self._chain, self._place, trouble, asked, lambda step: bool(pool.stand_ins(step)))
        if stand_in is None:
            return False
        request_id, name = self._request.request_id, stand_in.step.name
        _log.warning("%s: '%s' %s, '%s' stands in", request_id, asked.model, trouble, name)
        self._place = stand_in.place
        self._detoured.go_to(stand_in, trouble)
        return True

    def _late(self) -> None:
        try:
            if not self._detoured.is_answered:
                self.take("late")
        except Exception:  # noqa: BLE001  (a boundary, as in Exchange.open)
            self._request.stumble()

    def end(self) -> None:
        """The request is over."""
        if self._deadline is not None:
            self._deadline.cancel()
