"""One finished request, whatever its end: what metrics, log lines and spans are made of."""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from gateway.routing import Fate
from gateway.tracing import Trace
from gateway.wire import Dialect, Usage

Outcome = Literal["ok", "refused", "engine_error", "broken", "client_gone"]
"""ok: answered in full; refused: turned away by the gateway; engine_error: the engine said no; broken: the engine
failed before or during the answer; client_gone: the caller left first."""

NO_FATES: Final[Mapping[Fate, int]] = {}

NOBODY: Final = "(none)"
"""Stands for the model and the replica of a request that ended before it had one."""


MoveKind = Literal["retry", "continuation", "fallback", "hedge"]
"""retry: before its first byte had gone out; continuation: after it; fallback: to another model or provider; hedge: to
a second replica that was faster."""


class Move(NamedTuple):
    """A request that went on elsewhere."""

    kind: MoveKind
    at_s: float
    replica: str
    """The one that failed, or was slower."""
    reason: str


NO_MOVES: Final[tuple[Move, ...]] = ()


class Settlement:  # made for every request: as a class of its own it is made in machine code, a NamedTuple is not
    """Made once a request. Moments are seconds of the gateway's clock; None where there was no such moment.

    `url`: where that replica listens; empty without one. `predicted_tokens`: of the prompt, expected in the KV cache
    of its replica when that was chosen. `fates`: what became of the prompt tokens, found there or computed, and why;
    empty where the engine did not say.
    """

    def __init__(
        self,
        request_id: str,
        caller: str,
        model: str,
        replica: str,
        url: str,
        dialect: Dialect,
        generates: bool,
        stream: bool,
        outcome: Outcome,
        status: int,
        arrived_s: float,
        ended_s: float,
        ttft_s: float | None,
        tpot_s: float | None,
        usage: Usage,
        trace: Trace | None = None,
        moves: tuple[Move, ...] = NO_MOVES,
        predicted_tokens: int | None = None,
        fates: Mapping[Fate, int] = NO_FATES,
    ) -> None:
        self.request_id: Final = request_id
        self.caller: Final = caller
        self.model: Final = model
        self.replica: Final = replica
        self.url: Final = url
        self.dialect: Final = dialect
        self.generates: Final = generates
        self.stream: Final = stream
        self.outcome: Final = outcome
        self.status: Final = status
        self.arrived_s: Final = arrived_s
        self.ended_s: Final = ended_s
        self.ttft_s: Final = ttft_s
        self.tpot_s: Final = tpot_s
        self.usage: Final = usage
        self.trace: Final = trace
        self.moves: Final = moves
        self.predicted_tokens: Final = predicted_tokens
        self.fates: Final = fates

    @property
    def duration_s(self) -> float:
        """From the request's head to its end."""
        return self.ended_s - self.arrived_s
