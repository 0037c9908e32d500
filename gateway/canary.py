"""When a new version of a model that gets a part of its traffic is taken back. Pure, the clock is injected.

The stable side of a split is the one with the largest weight (the first of equals); each other one is a canary,
measured against it over the same window. One that fails more often, or is slower to its first token, gets nothing any
more.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple, get_args

Reason = Literal["errors", "ttft"]
REASONS: tuple[Reason, ...] = get_args(Reason)
_MOST_KEPT = 2000
"""Endings of each side; of a busy model they span less than its window."""
_JUDGED_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class RollbackConfig:
    """How much worse is worse, over how long.

    Errors: a share of more than `error_factor` times the stable one's, and more than `error_margin` above it: of a side
    without errors every multiple is nothing. First token: its `ttft_quantile` more than `ttft_factor` times the stable
    one's and more than `ttft_margin_s` above it.
    """

    window_s: float = 300.0
    min_requests: int = 50
    """On both sides; times to first token are counted apart, since only streams have one."""
    error_factor: float = 2.0
    error_margin: float = 0.05
    ttft_factor: float = 1.5
    ttft_margin_s: float = 0.1
    ttft_quantile: float = 0.9
    retry_after_s: float | None = None
    """After so long a canary that was taken back is tried again, with nothing held against it; None: it is not."""


class Ending(NamedTuple):
    """How one request ended; `ttft_s` is None where nobody waited for a first token."""

    at_s: float
    is_error: bool
    ttft_s: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """One side over the window."""

    requests: int
    errors: int
    ttfts_s: tuple[float, ...]

    @property
    def error_rate(self) -> float:
        """Share of requests that failed; 0 without any."""
        return self.errors / self.requests if self.requests else 0.0

    def ttft_s(self, quantile: float) -> float | None:
        """The time to first token that `quantile` of the streams did not exceed; None without any."""
        if not self.ttfts_s:
            return None
        return sorted(self.ttfts_s)[ceil(quantile * len(self.ttfts_s)) - 1]


def verdict(canary: Standing, stable: Standing, config: RollbackConfig) -> Reason | None:
    """Why `canary` is to be taken back; None while it is as good, or while too little is known of one of the two."""
    least = config.min_requests
    if min(canary.requests, stable.requests) >= least:
        limit = max(stable.error_rate * config.error_factor, stable.error_rate + config.error_margin)
        if canary.error_rate > limit:
            return "errors"
    if min(len(canary.ttfts_s), len(stable.ttfts_s)) >= least:
        slow, usual = canary.ttft_s(config.ttft_quantile), stable.ttft_s(config.ttft_quantile)
        if slow is not None and usual is not None:
            return "ttft" if slow > max(usual * config.ttft_factor, usual + config.ttft_margin_s) else None
    return None


class Rollback(NamedTuple):
    """A canary that was taken back, when and why."""

    model: str
    at_s: float
    reason: Reason


class Split:
    """The sides of one split and what is known of each. `weights`: model -> weight, not empty, all above 0."""

    def __init__(self, weights: Mapping[str, float], config: RollbackConfig | None, clock: Callable[[], float]) -> None:
        self._weights = dict(weights)
        self._config = config
        self._clock = clock
        self.stable = max(self._weights, key=lambda model: self._weights[model])
        self._endings: dict[str, deque[Ending]] = {model: deque(maxlen=_MOST_KEPT) for model in self._weights}
        self._back: dict[str, Rollback] = {}
        self._judged_s = float("-inf")
        self.rollbacks: dict[tuple[str, Reason], int] = {}
        """How often so far, by model and reason."""

    def weights(self) -> list[tuple[str, float]]:
        """Every side with what it gets now: 0 for one that was taken back."""
        if self._back:
            self._forgive()
        return [(model, 0.0 if model in self._back else weight) for model, weight in self._weights.items()]

    def rolled_back(self, model: str) -> Rollback | None:
        """When and why, if `model` is a canary that gets nothing now."""
        return self._back.get(model)

    def standing(self, model: str) -> Standing:
        """What is known of one side over the window."""
        endings = self._endings[model]
        since_s = self._clock() - (self._config.window_s if self._config else RollbackConfig().window_s)
        while endings and endings[0].at_s < since_s:
            endings.popleft()
        ttfts = tuple(ending.ttft_s for ending in endings if ending.ttft_s is not None)
        return Standing(len(endings), sum(ending.is_error for ending in endings), ttfts)

    def ended(self, model: str, *, is_error: bool, ttft_s: float | None) -> Sequence[Rollback]:
        """One request that was led to `model` is over; returns the canaries that are taken back by that."""
        now_s = self._clock()
        self._endings[model].append(Ending(now_s, is_error, ttft_s))
        if self._config is None or now_s - self._judged_s < _JUDGED_EVERY_S:
            return ()
        self._judged_s = now_s
        return self._judge(self._config, now_s)

    def _judge(self, config: RollbackConfig, now_s: float) -> list[Rollback]:
        stable, found = self.standing(self.stable), []
        for model in self._weights:
            if model == self.stable or model in self._back:
                continue
            reason = verdict(self.standing(model), stable, config)
            if reason is not None:
                found.append(Rollback(model, now_s, reason))
                self._back[model] = found[-1]
                self.rollbacks[model, reason] = self.rollbacks.get((model, reason), 0) + 1
        return found

    def _forgive(self) -> None:
        after_s = self._config.retry_after_s if self._config else None
        if after_s is None:
            return
        now_s = self._clock()
        for model, back in list(self._back.items()):
            if now_s - back.at_s >= after_s:
                del self._back[model]
                self._endings[model].clear()
