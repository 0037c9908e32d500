"""Everything counted of the requests of one model, replica and dialect.

Plain numbers, added to on the event loop: a dozen labelled, locked instruments would cost a request as much as all the
rest of its way through the gateway.
"""

from typing import Final, Literal

from gateway.histogram import Histogram
from gateway.routing import Fate
from gateway.settlement import Outcome, Settlement

Stage = Literal["before_connect", "first_token", "mid_stream"]
"""Where a request stood when its caller left: no replica had it yet; one had it, but no token was out (all along, for
an answer that is not streamed); after its first token."""

# what people promise: 10 ms to a minute, finest where the promises are
_TTFT_BUCKETS: Final[tuple[float, ...]] = (
    *(0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0),
)
_TPOT_BUCKETS: Final[tuple[float, ...]] = (
    *(0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5),
)
_E2E_BUCKETS: Final[tuple[float, ...]] = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0),
    *(7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 240.0, 480.0, 960.0),
)


class Tally:
    """Everything counted for one model, replica and dialect. `in_flight` is changed by whoever has a request there."""

    __slots__ = (
        "aborts",
        "cached_tokens",
        "duration",
        "errors",
        "fates",
        "in_flight",
        "is_placed",
        "outcomes",
        "output_tokens",
        "predicted_tokens",
        "prompt_tokens",
        "tokenless",
        "tpot",
        "ttft",
    )

    def __init__(self, *, is_placed: bool) -> None:
        self.is_placed = is_placed
        self.in_flight = self.prompt_tokens = self.cached_tokens = self.output_tokens = self.predicted_tokens = 0
        self.fates: dict[Fate, int] = {}
        self.outcomes: dict[Outcome, int] = {"ok": 0}
        self.tokenless: dict[Outcome, int] = {}
        self.errors: dict[int, int] = {}
        self.aborts: dict[Stage, int] = {}
        self.ttft = Histogram(_TTFT_BUCKETS)
        self.tpot = Histogram(_TPOT_BUCKETS)
        self.duration = Histogram(_E2E_BUCKETS)

    def settle(self, done: Settlement) -> None:
        """Count one finished request."""
        outcome = done.outcome
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if done.ttft_s is not None:
            self.ttft.observe(done.ttft_s)
        if done.tpot_s is not None:
            self.tpot.observe(done.tpot_s)
        usage = done.usage
        if usage.output_tokens:
            self.output_tokens += usage.output_tokens
        elif done.generates and done.ttft_s is None and (usage.output_tokens == 0 or outcome != "ok"):
            # an answer that came whole and states no usage says nothing about its tokens
            self.tokenless[outcome] = self.tokenless.get(outcome, 0) + 1
        self.prompt_tokens += usage.prompt_tokens or 0
        self.cached_tokens += usage.cached_tokens or 0
        if done.fates:
            self._add_fates(done)
        if outcome != "ok":
            self._settle_failed(done)
        elif done.generates:
            self.duration.observe(done.ended_s - done.arrived_s)

    def _add_fates(self, done: Settlement) -> None:
        self.predicted_tokens += done.predicted_tokens or 0
        for fate, tokens in done.fates.items():
            self.fates[fate] = self.fates.get(fate, 0) + tokens

    def _settle_failed(self, done: Settlement) -> None:
        if done.outcome != "client_gone":
            self.errors[done.status] = self.errors.get(done.status, 0) + 1
            return
        stage: Stage = (
            "before_connect" if not self.is_placed else "first_token" if done.ttft_s is None else "mid_stream"
        )
        self.aborts[stage] = self.aborts.get(stage, 0) + 1
