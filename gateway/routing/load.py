"""One replica as routing sees it: what it has been given and not yet done, and how fast it is."""

from typing import Final

from gateway.routing.rate import PrefillRate

_S_PER_TOKEN: Final = 1 / 8000  # a card of today and 8 billion parameters; until the first answers, a peer's or its own
_TTFT_WEIGHT: Final = 0.1
OUTPUT_WEIGHT: Final = 0.5
"""How much one likely output token in flight counts beside one prompt token: both are computed once, but decodes share
their steps."""
KV_WEIGHT: Final = 1 / 32
"""And how much one token in the KV cache of a request in flight does: decodes read it in every step."""
FULL_WEIGHT: Final = 1 / 8
"""And how much more it does where all of the KV cache is held, in proportion below that: it is missing to the prefixes
that others come back for, and sooner or later to the next request, which waits until one goes."""

PUSH_OUT_WEIGHT: Final = 2
"""And how much more one token does that pushes out of a KV cache what was used only now."""


class Load:
    """Charged when a request is placed, before anything else happens; given back by its `Pick`."""

    __slots__ = (
        "_rate", "ahead_tokens", "block_tokens", "in_flight", "is_rated", "kv_capacity_tokens", "kv_tokens", "name",
        "output_tokens", "own_weight", "picks", "queued_tokens", "s_per_token", "share", "shared_tokens", "slot",
        "tick", "token_s", "ttft_s", "turn", "waiting", "work_tokens",
    )  # fmt: skip

    def __init__(self, name: str, kv_capacity_tokens: int | None = None) -> None:
        self.name = name
        self.slot = -1
        """Its place in the router's index; -1 while it is in none."""
        self.share = 1.0
        """In (0, 1]: how much of a peer's load it should get; below 1 after a start or a recovery."""
        self.turn = 0.0
        """Grows by 1 / share with each request it is given: the lowest one has waited longest."""
        self.tick = 0
        """When it was last given a request, by the router's count of them."""
        self.in_flight = self.picks = 0
        self.waiting = 0
        """Requests there without a first token."""
        self.queued_tokens = 0
        """Their uncached prompt tokens: what stands before the next one."""
        self.output_tokens = 0
        """Likely output tokens of all requests in flight."""
        self.work_tokens = 0
        """Uncached prompt and likely output tokens of all requests in flight."""
        self.kv_tokens = self.shared_tokens = 0
        """Prompt and likely output tokens of all requests in flight, what decodes read of the KV cache; and how many of
        them are not held once more, since others in flight hold the same."""
        self.kv_capacity_tokens = kv_capacity_tokens
        self.block_tokens = 16
        """Of the engine's KV cache: it finds whole blocks only."""
        self.own_weight = 1.0
        """How much one more uncached prompt token counts beside one that is ahead of it: up to PUSH_OUT_WEIGHT more,
        the more recently its KV cache used what it would lose next; no more while there is room."""
        self._rate = PrefillRate(_S_PER_TOKEN)
        self.s_per_token = self.token_s = _S_PER_TOKEN
        """Prefill seconds per uncached token, learnt from its own answers; and for its share."""
        self.is_rated = False
        """Whether it was learnt so."""
        self.ahead_tokens = 0.0
        """What a new request waits for: uncached tokens of those that wait, OUTPUT_WEIGHT of all likely output, and
        KV_WEIGHT of `kv_tokens`, with as much of FULL_WEIGHT as they are of the capacity, what is shared left out."""
        self.ttft_s: float | None = None
        """Its recent times to first token, later ones counting more."""

    def take(self, uncached_tokens: int, prompt_tokens: int, output_tokens: int, shared_tokens: int = 0) -> bool:
        """One more request; whether it is a trial, which `give_back` is to be told (never, for a plain load).
        `shared_tokens`: of the prompt, which others in flight hold too."""
        self.in_flight += 1
        self.picks += 1
        self.turn += 1 / self.share
        self.waiting += 1
        self.queued_tokens += uncached_tokens
        self.output_tokens += output_tokens
        self.work_tokens += uncached_tokens + output_tokens
        self.kv_tokens += prompt_tokens + output_tokens
        self.shared_tokens += shared_tokens
        self._look_ahead()
        return False

    def prefilled(self, uncached_tokens: int, elapsed_s: float | None) -> None:
        """A request has its first token (after `elapsed_s`), or will have none."""
        self.waiting -= 1
        self.queued_tokens -= uncached_tokens
        self.ahead_tokens -= uncached_tokens
        if elapsed_s is not None:
            known_s = self.ttft_s
            self.ttft_s = elapsed_s if known_s is None else known_s + _TTFT_WEIGHT * (elapsed_s - known_s)

    def give_back(
        self, uncached_tokens: int, prompt_tokens: int, output_tokens: int, shared_tokens: int = 0, *, is_trial: bool
    ) -> None:
        """A request is no longer there; it was `prefilled` before."""
        self.in_flight -= 1
        self.output_tokens -= output_tokens
        self.work_tokens -= uncached_tokens + output_tokens
        self.kv_tokens -= prompt_tokens + output_tokens
        self.shared_tokens -= shared_tokens
        self._look_ahead()

    def _look_ahead(self) -> None:
        """From the counts each time, so that rounding adds up to nothing."""
        kv_tokens, capacity = self.kv_tokens, self.kv_capacity_tokens
        weight = KV_WEIGHT
        if capacity:
            weight += FULL_WEIGHT * min((kv_tokens - self.shared_tokens) / capacity, 1.0)
        self.ahead_tokens = self.queued_tokens + OUTPUT_WEIGHT * self.output_tokens + weight * kv_tokens

    def learn(self, work_tokens: int, elapsed_s: float) -> None:
        """What stood before a first token that took `elapsed_s`."""
        if self._rate.learn(work_tokens, elapsed_s):
            self.is_rated = True
            self.use_rate(self._rate.s_per_token)

    def use_rate(self, s_per_token: float) -> None:
        """It is so fast, as far as one knows."""
        self.s_per_token = s_per_token
        self.token_s = s_per_token / self.share

    def use_share(self, share: float) -> None:
        """Give it so much of a peer's load from now on."""
        self.share = share
        self.token_s = self.s_per_token / share
