"""What one replica has room for: KV tokens, requests at once, and prompt tokens ahead of a first one. Pure.

A request fits where all three hold, counted with it:

    in flight      <= most_in_flight        the engine's max_num_seqs, and what keeps the SLO's time per token (`pace`)
    kv_tokens      <= kv_budget_tokens      capacity * 0.95 / sharing
    queued_tokens  <= queued_budget_tokens  (the SLO's ttft_s / 2) / s_per_token; the other half is for the line

and always where nothing is running: what is too large for an idle engine is the engine's to refuse. `sharing` is real
over expected use: requests with a common prefix keep it once. Expected is prompts and half of the likely outputs, since
those that run are half done on average.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final, Protocol, TypeVar

from gateway.admission.pace import Pace
from gateway.config import Slo
from gateway.routing import Route

NO_BOUND: Final = float("inf")
_FILL: Final = 0.95
_SHARING: Final[tuple[float, ...]] = (0.1, 2.0)
_SHARING_WEIGHT: Final = 0.2
_LEAST_USE: Final = 0.1
"""Below this share of the capacity rounding to blocks and the age of the engine's figure say more than sharing does."""
_RECENT: Final = 64
_ENGINES_SHARE: Final = 0.5
_NEARLY_ALL: Final = 0.9


class Load(Protocol):
    """One replica: what is there now, as its reservations count it, and its bounds, which `Room` keeps."""

    slot: int
    in_flight: int
    kv_tokens: int
    output_tokens: int
    queued_tokens: int
    kv_capacity_tokens: int | None
    s_per_token: float
    is_closed: bool
    most_in_flight: float
    kv_budget_tokens: float
    queued_budget_tokens: float


L = TypeVar("L", bound=Load)


def with_room(candidates: Sequence[L], route: Route) -> list[L]:
    """Those on which a request fits now; where its prefix is has been looked up."""
    prompt, cached = route.prompt_tokens, route.cached_tokens
    tokens = prompt + route.output_tokens
    return [  # asked for every request: what is mostly true comes first, and nothing is called
        load
        for load in candidates
        if (
            load.kv_tokens + tokens <= load.kv_budget_tokens
            and load.in_flight < load.most_in_flight
            and (
                not load.queued_tokens
                or load.queued_tokens + prompt <= load.queued_budget_tokens
                or load.queued_tokens + prompt - cached.get(load.slot, 0) <= load.queued_budget_tokens
            )
        )
        or not (load.in_flight or load.is_closed)
    ]


class Room:
    """Keeps one replica's bounds, from what its engine says and how it answers."""

    __slots__ = ("_load", "_sharing", "_ttfts", "is_asleep", "max_num_seqs", "pace", "ttft_s", "used_tokens")

    def __init__(self, load: Load, max_num_seqs: int | None = None) -> None:
        self._load = load
        self.max_num_seqs = max_num_seqs
        self.pace = Pace()
        self.is_asleep = False
        self.used_tokens: int | None = None
        """Of the KV cache, as the engine stated it last."""
        self.ttft_s = 0.0
        """From being given a request to its first token, nine times in ten; 0 before the first."""
        self._ttfts: deque[float] = deque(maxlen=_RECENT)
        self._sharing = 1.0

    def learn(self, now_s: float, in_flight: float, ttft_s: float | None, tpot_s: float | None) -> None:
        """How an answer came, with so many requests there on average (itself among them)."""
        if ttft_s is not None:
            self._ttfts.append(ttft_s)
        if tpot_s is not None:
            self.pace.learn(now_s, in_flight, tpot_s)

    def saw_usage(self, ratio: float | None) -> None:
        """The engine stated how much of its KV cache is in use, 0 to 1."""
        load, capacity = self._load, self._load.kv_capacity_tokens
        self.used_tokens = None
        if ratio is None or not capacity:
            return
        self.used_tokens = int(ratio * capacity)
        expected = load.kv_tokens - load.output_tokens / 2
        if expected >= _LEAST_USE * capacity:
            low, high = _SHARING
            found = min(high, max(low, self.used_tokens / expected))
            self._sharing += (found - self._sharing) * _SHARING_WEIGHT

    def restarted(self) -> None:
        """Another process answers there now."""
        self.pace.forget()
        self._ttfts.clear()
        self.ttft_s, self._sharing, self.used_tokens = 0.0, 1.0, None

    def bound(self, slo: Slo | None) -> None:
        """Put the bounds in force that follow from all this."""
        load = self._load
        if self._ttfts:
            self.ttft_s = sorted(self._ttfts)[int(len(self._ttfts) * _NEARLY_ALL)]
        most: float = NO_BOUND if self.max_num_seqs is None else self.max_num_seqs
        if slo is not None and slo.tpot_s is not None:
            most = min(most, self.pace.most(slo.tpot_s))
        load.most_in_flight = 0 if self.is_asleep else most
        load.is_closed = self.is_asleep
        capacity = load.kv_capacity_tokens
        load.kv_budget_tokens = NO_BOUND if capacity is None else capacity * _FILL / self._sharing
        ttft_s = None if slo is None else slo.ttft_s
        load.queued_budget_tokens = NO_BOUND if ttft_s is None else ttft_s * _ENGINES_SHARE / load.s_per_token

    def headroom(self, tokens: float, prompt_tokens: float) -> float:
        """How many more requests of so many tokens each, so many of them prompt, fit; infinite without a bound."""
        load = self._load
        more = min(load.most_in_flight - load.in_flight, (load.kv_budget_tokens - load.kv_tokens) / max(tokens, 1.0))
        more = min(more, (load.queued_budget_tokens - load.queued_tokens) / max(prompt_tokens, 1.0))
        return max(0.0, more)


def strictest(slos: Iterable[Slo]) -> Slo | None:
    """What keeps all of them; None for none."""
    found = tuple(slos)
    if not found:
        return None
    ttfts = [slo.ttft_s for slo in found if slo.ttft_s is not None]
    tpots = [slo.tpot_s for slo in found if slo.tpot_s is not None]
    return Slo(min(ttfts, default=None), min(tpots, default=None))
