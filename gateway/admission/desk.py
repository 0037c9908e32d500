"""One model's line, what its requests are like, and what those are told that are turned away."""

import math
from collections.abc import Sequence
from typing import Final, Literal, Protocol, get_args

from gateway.admission.drain import Drain
from gateway.admission.fewest import Fewest
from gateway.admission.line import Line, Place
from gateway.admission.room import NO_BOUND
from gateway.config import Queue
from gateway.errors import RefusedError
from gateway.replica import Replica
from gateway.wire import Call, Fault, is_one_prompt

Reason = Literal["too_large", "full", "slow", "late"]
"""too_large: can never fit; full: no place in line; slow: the wait would be too long; late: it was too long."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
_WEIGHT: Final = 1 / 32
_LONGEST_RETRY_S: Final = 120
_OTHER_SIZE: Final[tuple[bytes, ...]] = (
    *(b'"image', b'"input_image', b'"input_audio', b'"audio', b'"video', b'"file'),
    *(b'"truncate_prompt_tokens"', b'"truncation"'),
)
"""A body with one of these is no measure of its prompt."""


class Waiter(Protocol):
    """A request in line. It is told that it `stands` there, then exactly one of the two, unless it leaves before."""

    def stands(self, place: "Place[Waiter]") -> None:
        """This is its place: what to leave by."""

    def among(self, candidates: Sequence[Replica]) -> Sequence[Replica]:
        """Those of them to which it may go; asked only of one that is back."""

    def admitted(self, candidates: Sequence[Replica]) -> None:
        """These have room now: take a place on one of them before anything else happens."""

    def turned_away(self, fault: Fault) -> None:
        """There will be none."""


class Desk:
    """One model's line, and what its requests are like."""

    __slots__ = ("drain", "fewest", "line", "longest_tokens", "mean_prompt_tokens", "mean_tokens", "refused")

    def __init__(self, queue: Queue) -> None:
        self.line: Line[Waiter] = Line(queue.max_waiting, queue.max_waiting_tokens)
        self.drain = Drain()
        self.fewest = Fewest()
        self.refused: dict[Reason, int] = dict.fromkeys(REASONS, 0)
        self.longest_tokens: float = NO_BOUND
        """Prompt and output of the longest request that any of its replicas can take."""
        self.mean_tokens = self.mean_prompt_tokens = 0.0

    def note(self, prompt_tokens: int, output_tokens: int) -> None:
        """One more request of the current mix."""
        tokens = prompt_tokens + output_tokens
        if not self.mean_tokens:
            self.mean_tokens, self.mean_prompt_tokens = float(tokens), float(prompt_tokens)
            return
        self.mean_tokens += (tokens - self.mean_tokens) * _WEIGHT
        self.mean_prompt_tokens += (prompt_tokens - self.mean_prompt_tokens) * _WEIGHT

    def line_s(self, now_s: float) -> float:
        """How long the line would take, as far as that is known."""
        return self.drain.wait_s(self.line.tokens, now_s) or 0.0

    def refusal(self, reason: Reason, retry_s: float) -> RefusedError:
        """Counts one more, who may try again in `retry_s`."""
        self.refused[reason] += 1
        return RefusedError(self.fault(reason, retry_s))

    def fault(self, reason: Reason, retry_s: float) -> Fault:
        """What it says."""
        seconds = min(_LONGEST_RETRY_S, max(1, math.ceil(retry_s)))
        waiting = self.line.count
        said = {
            "full": f"no room on any replica, and no place in line ({waiting} waiting)",
            "slow": f"no room on any replica, and the line is too long to be served in time ({waiting} waiting)",
        }.get(reason, f"no replica had room in time ({waiting} waiting)")
        return Fault(503, f"{said}; try again in {seconds} s", code="overloaded", retry_after_s=seconds)

    def check_fits(self, call: Call) -> None:
        """Raises RefusedError (400) for one that cannot fit on any replica, as far as one can tell."""
        asked, fewest = call.most_output_tokens or 1, self.fewest.tokens(call.chain.size)
        if asked + fewest <= self.longest_tokens:
            return
        longest = int(self.longest_tokens)
        if asked > longest:
            said = f"max_tokens is {asked:,}"
        elif any(sign in call.body for sign in _OTHER_SIZE) or not is_one_prompt(call.endpoint, call.body):
            return
        else:
            said = f"the prompt has {fewest:,} tokens or more and max_tokens is {asked:,}"
        self.refused["too_large"] += 1
        message = f"{said}; '{call.model}' takes {longest:,} tokens together (prompt and output)"
        fault = Fault(400, message, code="context_length_exceeded", param="max_tokens", should_retry=False)
        raise RefusedError(fault)
