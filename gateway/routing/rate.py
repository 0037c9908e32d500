"""How fast a replica computes prompts, learnt from its own answers."""

from collections import deque
from typing import Final

_KEPT: Final = 64
_LEAST: Final = 8
_QUANTILE: Final = 0.9
_LEAST_WORK_TOKENS: Final = 32
_LEAST_S: Final = 1e-6
_EVERY: Final = 8


class PrefillRate:
    """Seconds per uncached prompt token: the 90th percentile of recent `work / elapsed`, as its inverse.

    Work is what stood before a request's first token: uncached tokens of those ahead of it, and its own. Most samples
    are too slow (decodes, a queue that was not counted, a fixed cost before any token), hardly one is too fast: hence
    a high percentile and no mean. The idea is vllm-router's `smetric`.
    """

    __slots__ = ("_fresh", "_rates", "s_per_token")

    def __init__(self, s_per_token: float) -> None:
        self.s_per_token = s_per_token
        self._rates: deque[float] = deque(maxlen=_KEPT)
        self._fresh = 0

    def learn(self, work_tokens: int, elapsed_s: float) -> bool:
        """One request had its first token after `elapsed_s`; too little work says nothing. True when the rate moved."""
        if work_tokens < _LEAST_WORK_TOKENS or elapsed_s < _LEAST_S:
            return False
        self._rates.append(work_tokens / elapsed_s)
        self._fresh += 1
        if len(self._rates) < _LEAST or (self._fresh < _EVERY and len(self._rates) > _LEAST):
            return False
        self._fresh = 0
        ranked = sorted(self._rates)
        self.s_per_token = 1 / ranked[int(_QUANTILE * (len(ranked) - 1))]
        return True
