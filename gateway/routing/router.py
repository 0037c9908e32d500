"""Chooses a replica for each request, and learns from the answer whether it knew enough."""

from collections.abc import Sequence
from typing import Final, Generic, Literal, TypeVar

from gateway.routing.fate import NOTHING, Expected, Fate, fates
from gateway.routing.index import PrefixIndex
from gateway.routing.load import PUSH_OUT_WEIGHT, Load
from gateway.routing.lost import Loss
from gateway.routing.policies import Policy
from gateway.routing.route import HOT, NO_HITS, Route

L = TypeVar("L", bound=Load)

_UNKNOWN_CAPACITY_TOKENS: Final = 400_000
_EVERY: Final = 8
"""Picks, until peers are looked at again for those whose speed nobody knows."""
_SURE: Final = 0.8
"""Of what was expected in the cache, so much has to be there: some text makes fewer tokens than most."""


class Pick(Generic[L]):
    """One request's place on a replica. All of it is synchronous, and harmless when repeated."""

    __slots__ = (
        "_ahead_tokens",
        "_router",
        "_sure_before",
        "_tick",
        "_ttft_s",
        "_used",
        "expected",
        "is_open",
        "is_trial",
        "is_waiting",
        "load",
        "predicted_tokens",
        "route",
        "shared_tokens",
        "uncached_tokens",
    )  # fmt: skip

    def __init__(self, router: "Router[L]", route: Route, load: L, tick: int) -> None:
        self._router = router
        self.route = route
        self.load = load
        self._tick = tick
        cached = route.cached_tokens.get(load.slot, 0)
        self.predicted_tokens = cached - cached % load.block_tokens
        """Prompt tokens that we expect in its KV cache, whole blocks of it."""
        self.uncached_tokens = route.prompt_tokens - self.predicted_tokens
        self._ahead_tokens = load.queued_tokens
        self._ttft_s: float | None = None
        self._used: Sequence[tuple[int, int]] = ()
        self._sure_before = tick
        self.expected: Expected | None = None
        self.is_open = self.is_waiting = True
        self.shared_tokens = self.predicted_tokens if route.used_ago <= HOT else 0
        self.is_trial = load.take(self.uncached_tokens, route.prompt_tokens, route.output_tokens, self.shared_tokens)

    def first_token(self, elapsed_s: float) -> None:
        """It came `elapsed_s` after the request was sent: the prompt is computed."""
        if self.is_waiting:
            self.is_waiting = False
            self._ttft_s = elapsed_s
            self.load.prefilled(self.uncached_tokens, elapsed_s)
            self._router.prefilled(self)

    def computed(self) -> None:
        """The prompt is, or must be by now, though nobody saw its first token: answers that are not streamed."""
        if self.is_waiting:
            self.is_waiting = False
            self.load.prefilled(self.uncached_tokens, None)
            self._router.prefilled(self)

    def answered(self) -> None:
        """In full, and `release` follows at once: that the prompt is computed need not be told apart."""
        if self.is_waiting:
            self.is_waiting = False
            self.load.prefilled(self.uncached_tokens, None)

    def settle(self, prompt_tokens: int, cached_tokens: int | None) -> dict[Fate, int]:
        """What the engine says of the prompt; None where it does not say what was cached. Returns the fate of each
        token, as far as it is known."""
        if self._ttft_s is not None:
            uncached = self.uncached_tokens if cached_tokens is None else prompt_tokens - cached_tokens
            self.load.learn(self._ahead_tokens + uncached, self._ttft_s)
            self._ttft_s = None
        expected, self.expected = self.expected, None
        if cached_tokens is None or expected is None:
            return {}
        if expected is NOTHING and not cached_tokens:
            return {"no_reuse": prompt_tokens}  # as fates() would say, of nearly every prompt without a history
        scaled = expected.of(prompt_tokens, self.route.prompt_tokens)
        sure_tokens = _SURE * min(expected.here_tokens, scaled.here_tokens)  # some text makes fewer tokens than most
        is_less = cached_tokens + self.slack_tokens < sure_tokens
        loss: Fate = self._router.correct(self, prompt_tokens, cached_tokens) if is_less else "no_reuse"
        return fates(scaled, prompt_tokens, cached_tokens, loss)

    @property
    def expected_wait_s(self) -> float:
        """How long the prompt should have taken, with those that were ahead of it."""
        return (self._ahead_tokens + self.uncached_tokens) * self.load.s_per_token

    @property
    def slack_tokens(self) -> int:
        """So many fewer tokens than expected are only the rounding to whole blocks, the last token's block with it."""
        return 2 * self.load.block_tokens

    def release(self) -> None:
        """The request is no longer there. One that had no token has left nothing in the cache."""
        if not self.is_open:
            return
        self.is_open = False
        is_abandoned = self.is_waiting
        self.give_back()
        if is_abandoned:
            self._router.abandoned(self)
        else:
            self._router.left(self)

    def give_back(self) -> None:
        """What was charged to its replica."""
        if self.is_waiting:
            self.is_waiting = False
            self.load.prefilled(self.uncached_tokens, None)
        route = self.route
        prompt, output = route.prompt_tokens, route.output_tokens
        self.load.give_back(self.uncached_tokens, prompt, output, self.shared_tokens, is_trial=self.is_trial)


class Router(Generic[L]):
    """All replicas' index, and the policy over it."""

    def __init__(self, policy: Policy[L]) -> None:
        self.policy = policy
        self.index = PrefixIndex()
        self._ticks = self._picks = 0
        self._unrated: set[int] = set()
        """Slots of those whose speed nobody knows yet."""
        self._first = 0
        self._oldest: dict[int, int] = {}
        """By slot, when it last used what its KV cache would lose next; 0 where there is room."""
        self._pending: dict[int, dict[int, bool]] = {}
        self._emptied: dict[int, int] = {}
        """By slot, when its cache was last empty, as far as we know."""

    def add(self, load: L) -> None:
        """One more replica."""
        load.slot = self.index.add()
        self._weigh(load, 0)
        self._pending[load.slot] = {}
        self._emptied[load.slot] = self._ticks
        if not load.is_rated:
            self._unrated.add(load.slot)

    def remove(self, load: L) -> None:
        """It is gone."""
        self.index.remove(load.slot)
        del self._pending[load.slot], self._emptied[load.slot], self._oldest[load.slot]
        self._first = min(self._oldest.values(), default=0)
        self._unrated.discard(load.slot)
        load.slot = -1

    def restarted(self, load: L) -> None:
        """Its KV cache is empty now."""
        if load.slot >= 0:
            self.index.forget(load.slot, "restarted")
            self._pending[load.slot].clear()  # whoever was there has nothing more to say of its blocks
            self._emptied[load.slot] = self._ticks
            self._weigh(load, 0)

    # Where engines say themselves what they hold (`precise.Believer`)
    def found(self, slot: int, texts: Sequence[int]) -> None:
        """The replica at `slot` holds these."""
        self.index.found(slot, texts)

    def lost(self, slot: int, texts: Sequence[int]) -> None:
        """It does not, unless a request that waits there is about to have them computed."""
        self.index.dropped(slot, texts)

    def cleared(self, slot: int) -> None:
        """It held nothing a moment ago."""
        oldest = next(iter(self._pending[slot]), self._ticks + 1)  # since then it may have been computed anew
        self.index.emptied(slot, oldest)
        self._emptied[slot] = oldest - 1

    def unsure(self, slot: int, texts: Sequence[int]) -> None:
        """It held these, and will not say when it does not any more."""
        self.index.unsaid(slot, texts)

    def look(self, route: Route) -> None:
        """Find out who holds the route's prefix."""
        found, tick = self.index.match(route.chain.hashes)
        if not found:
            route.cached_tokens = NO_HITS  # which an earlier look may have had
            route.used_ago = route.most_blocks = 0
            return
        slots, depth = found[0]
        cached = route.cached_tokens = dict.fromkeys(slots, route.tokens_of(depth))
        for slots, depth in found[1:]:
            cached.update(dict.fromkeys(slots, route.tokens_of(depth)))
        route.used_ago = self._ticks + 1 - tick
        route.most_blocks = depth if route.most_blocks is None else min(depth, route.most_blocks)

    def pick(self, route: Route, candidates: Sequence[L], policy: Policy[L] | None = None) -> Pick[L]:
        """Choose, charge and remember, all at once: whoever is next sees it. `candidates` is not empty; `policy` is
        another one than usual."""
        self.look(route)
        if self._unrated and not self._picks % _EVERY:
            self._compare(candidates)
        return self.place(route, (policy or self.policy)(route, candidates))

    def _compare(self, candidates: Sequence[L]) -> None:
        """Those that have not shown yet how fast they are count as fast as their peers in the mean: a guess would have
        all go to those that have, or all to those that have not."""
        rates = [load.s_per_token for load in candidates if load.is_rated]
        if not rates:
            return
        mean = sum(rates) / len(rates)
        for load in candidates:
            if load.is_rated:
                self._unrated.discard(load.slot)
            else:
                load.use_rate(mean)

    def place(self, route: Route, load: L) -> Pick[L]:
        """The same for a replica that is chosen already; `look` comes first."""
        self._ticks += 1
        self._picks += 1
        pick = Pick(self, route, load, self._ticks)
        load.tick = self._picks
        chain = route.chain
        if chain.hashes and load.slot >= 0:
            try:
                self._remember(pick, load)
            except Exception:
                pick.give_back()  # a bug must not keep a replica busy with a request that is not there
                raise
        return pick

    def _remember(self, pick: Pick[L], load: L) -> None:
        route, tick, pending = pick.route, pick._tick, self._pending[load.slot]
        hashes, ends, _ = route.chain
        anywhere = route.most_blocks or 0
        once, loss = self.index.once(hashes, anywhere)
        if once:
            tokens, once_tokens, block_tokens = route.tokens_of(anywhere), route.tokens_of(once), load.block_tokens
            tokens, once_tokens = tokens - tokens % block_tokens, once_tokens - once_tokens % block_tokens
            pick.expected = Expected(pick.predicted_tokens, tokens, once_tokens, loss)
        else:
            pick.expected = NOTHING
        if pending:
            pick._sure_before = next(iter(pending))
        pending[tick] = True
        capacity = _capacity(load, route)
        pick._used = self.index.touch(load.slot, hashes, ends, tick, capacity)
        self._weigh(load, self.index.oldest(load.slot, capacity))

    # Called by a pick
    def prefilled(self, pick: Pick[L]) -> None:
        """Its blocks are there."""
        if self._was_pending(pick):
            self.index.computed(pick.load.slot, pick.route.chain.hashes)

    def abandoned(self, pick: Pick[L]) -> None:
        """Its new blocks are not, nor will they be."""
        if self._was_pending(pick):
            self.index.forget_new(pick.load.slot, pick.route.chain.hashes, pick._tick)

    def left(self, pick: Pick[L]) -> None:
        """It is no longer there; its blocks are, and could not be pushed out as long as it was."""
        load, route = pick.load, pick.route
        slot = load.slot
        if slot < 0:
            return
        self._pending[slot].pop(pick._tick, None)
        if pick._tick <= self._emptied[slot]:
            return  # its cache has been emptied since
        self._ticks += 1
        hashes, ends, size = route.chain
        rest = size - (ends[len(hashes) - 1] if hashes else 0) + int(route.output_tokens / route.tokens_per_unit)
        capacity = _capacity(load, route)
        self.index.left(slot, hashes, ends, self._ticks, capacity, rest)
        self._weigh(load, self.index.oldest(load.slot, capacity))

    def _weigh(self, load: L, oldest: int) -> None:
        """It used what it would lose next at `oldest` (0: it has room): how far is that from where that is longest ago,
        on the way to now?"""
        before = self._oldest.get(load.slot, 0)
        self._oldest[load.slot] = oldest
        if oldest < self._first:
            self._first = oldest
        elif before == self._first != oldest:
            self._first = min(self._oldest.values())
        first = self._first
        load.own_weight = 1.0 + PUSH_OUT_WEIGHT * (oldest - first) / (self._ticks + 1 - first)

    def _was_pending(self, pick: Pick[L]) -> bool:
        """Whether its replica is still the one it was placed on; it is pending no more."""
        return self._pending.get(pick.load.slot, {}).pop(pick._tick, False)

    def correct(self, pick: Pick[L], prompt_tokens: int, cached_tokens: int) -> Loss | Literal["no_reuse"]:
        """The replica had less than we believed: so it has lost all that it used no later than the missing block.
        no_reuse: it may only not have computed it yet."""
        slot = pick.load.slot
        route = pick.route
        missing = _first_missing(route, prompt_tokens, cached_tokens + pick.slack_tokens)
        tick = next((tick for end, tick in pick._used if end > missing), None)  # the latest
        if slot < 0 or tick is None or tick >= pick._sure_before:
            return "no_reuse"  # what was expected may not have been computed yet when this request looked for it
        self.index.forget_older(slot, tick, "evicted")
        capacity_tokens = pick.load.kv_capacity_tokens
        if missing == 0 and capacity_tokens and self.index.units(slot) * route.tokens_per_unit < capacity_tokens / 2:
            # too little has come since to have pushed it out: everything is gone
            self.index.forget_older(slot, pick._sure_before - 1, "restarted")
            self._emptied[slot] = pick._sure_before - 1
            self._weigh(pick.load, 0)
            return "restarted"
        return "evicted"


def _capacity(load: Load, route: Route) -> int:
    """Of its KV cache, in units of the route's text."""
    return int((load.kv_capacity_tokens or _UNKNOWN_CAPACITY_TOKENS) / route.tokens_per_unit)


def _first_missing(route: Route, prompt_tokens: int, found_tokens: int) -> int:
    """The first block that reaches beyond what was found."""
    hashes, ends, size = route.chain
    units = found_tokens * size / prompt_tokens if prompt_tokens else 0
    for at in range(len(hashes)):
        if ends[at] * _SURE > units:
            return at
    return len(hashes)
