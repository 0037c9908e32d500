"""The engines as the gateway sees them: their models, their health, and the work it has given them."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gateway import hedging
from gateway.breaker import Breaker, BreakerConfig, BreakerState, FailureKind
from gateway.config import Health, Hedge, Remote, Step
from gateway.errors import ConfigError, RefusedError
from gateway.outliers import Standing, ejections
from gateway.retry_budget import RetryBudget
from gateway.routing import Load, Router
from gateway.routing.policies import prefix
from gateway.upstream import Upstream
from gateway.wire import Fault

_log = logging.getLogger("berth.gateway")
State = Literal["starting", "ready", "unhealthy", "draining"]
Kind = Literal["engine", "remote"]
_RETRY_AFTER_S: Final = 5
_NEVER_S: Final = float("inf")
_NO_BOUND: Final = float("inf")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A public model name and the longest request it takes (prompt + output, in tokens), when known."""

    name: str
    max_model_len: int | None = None
    is_adapter: bool = False
    """A LoRA adapter over another model of the same engine, which names its KV blocks by it."""


class Replica(Load):
    """One upstream engine, or (`kind` "remote") a provider elsewhere. `url` is `http://host:port`, `https://...` or
    `unix:/path/to.sock`.

    One rule says whether it gets requests (`is_in`): its process is there, which `state` says and probes and the
    supervisor set, and its breaker lets them through, which is made of how its requests ended. A broken connection says
    something of both: it counts against the breaker, and the process is not believed to be there until a probe says so.
    """

    __slots__ = (
        "_heeded", "_models", "_on_change", "_state", "api_key", "breaker", "is_closed", "is_in", "is_suspect", "kind",
        "kv_budget_tokens", "max_num_seqs", "missed_probes", "most_in_flight", "predicted_kv_tokens", "probed_s",
        "probes", "queued_budget_tokens", "tells_models", "trouble", "url",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        url: str,
        models: tuple[ModelCard, ...] = (),
        api_key: str | None = None,
        predicted_kv_tokens: int | None = None,
        state: State = "starting",
        *,
        kind: Kind = "engine",
        max_num_seqs: int | None = None,
    ) -> None:
        super().__init__(name, predicted_kv_tokens)
        self.url = url
        self.api_key = api_key
        self.predicted_kv_tokens = predicted_kv_tokens
        self.kind = kind
        self.tells_models = not models
        """Whether its models are those that it says, and may be others later: it was started elsewhere. Of one of ours
        the adapters are."""
        self.max_num_seqs = max_num_seqs
        """How many requests the engine runs at once, where that is known."""
        self.is_closed = False
        """Whether it takes nothing at all now: it is asleep."""
        self.most_in_flight = self.kv_budget_tokens = self.queued_budget_tokens = _NO_BOUND
        """What it has room for; kept by `admission.room`."""
        self.missed_probes = 0
        self.probes = 0
        self.probed_s: float | None = None
        """When its health was last asked, by time.monotonic."""
        self.trouble: str | None = None
        """Why that did not find it healthy, in words."""
        self.is_suspect = False
        self.breaker = Breaker(BreakerConfig(), time.monotonic)
        self._heeded: BreakerState = "closed"
        self._models = models
        self._state = state
        self.is_in = state == "ready"
        self._on_change: Callable[[Replica], None] = lambda _: None

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """What it serves; empty until it was asked, when it was started elsewhere."""
        return self._models

    @models.setter
    def models(self, models: tuple[ModelCard, ...]) -> None:
        self._models = models
        self._on_change(self)

    @property
    def state(self) -> State:
        """Whether its process is there and may be used."""
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        if state == self._state and not self.is_suspect:
            return
        if state == "ready" and not self.is_suspect:
            self.breaker.restarted()
        self._state = state
        self.is_suspect = False
        self._on_change(self)

    def join(self, breaker: Breaker, on_change: "Callable[[Replica], None]") -> None:
        """Become part of a pool, which lends its clock and settings and hears of every change."""
        self.breaker = breaker
        self._on_change = on_change
        on_change(self)

    def serves(self, model: str) -> bool:
        """Whether this engine serves the public name `model`."""
        for card in self._models:  # noqa: SIM110  (a generator would cost more than the rest)
            if card.name == model:
                return True
        return False

    def is_adapter(self, model: str) -> bool:
        """Whether `model` is an adapter here."""
        return any(card.is_adapter for card in self._models if card.name == model)

    def take(self, uncached_tokens: int, prompt_tokens: int, output_tokens: int, shared_tokens: int = 0) -> bool:
        """As any load; while the breaker is not closed, the request is a trial."""
        super().take(uncached_tokens, prompt_tokens, output_tokens, shared_tokens)
        if self.breaker.state == "closed":
            return False
        self.breaker.trials += 1
        self.heed()
        return True

    def give_back(
        self, uncached_tokens: int, prompt_tokens: int, output_tokens: int, shared_tokens: int = 0, *, is_trial: bool
    ) -> None:
        """As any load; a trial of which nothing was said (the client left) is just given back."""
        super().give_back(uncached_tokens, prompt_tokens, output_tokens, shared_tokens, is_trial=is_trial)
        if is_trial:
            self.breaker.trials -= 1
            self.heed()

    def succeeded(self, ttft_s: float | None = None) -> None:
        """A request was answered in full, or got its first token after `ttft_s`: once per request, at the earlier of
        the two, before its reservation is released. An answer that refuses the request itself (4xx) is one too."""
        self.breaker.succeeded(ttft_s)
        if self._heeded != "closed":
            self.heed()

    def failed(self, kind: FailureKind) -> None:
        """A request failed here by the replica's own fault (`breaker.failure_kind`), before or during its answer."""
        self.breaker.failed()
        if kind == "error":
            self.heed()
        else:
            self.suspect()

    def was_late(self, waited_s: float) -> None:
        """A request was taken elsewhere after `waited_s` without a first token."""
        self.breaker.was_late(waited_s)

    def suspect(self) -> None:
        """Its connection broke: no requests until a probe says that the process is there, unless there is no other."""
        if self._state == "ready" and self.kind == "engine":
            _log.warning("%s is unhealthy: no requests go there until its /health answers", self.name)
            self._state = "unhealthy"
            self.is_suspect = True
            self._on_change(self)
        else:
            self.heed()

    def heed(self) -> None:
        """Let the pool know if the breaker has changed its mind."""
        if self.breaker.state != self._heeded or self.is_in != self.may_be_in:
            self._on_change(self)

    @property
    def may_be_in(self) -> bool:
        """The rule behind `is_in`, which the pool keeps so that nobody has to ask for each request."""
        return self._state == "ready" and self.breaker.lets_through

    def settle_in(self) -> bool:
        """For the pool: take over what `state` and the breaker say; whether it has come in by that."""
        was_in, self.is_in = self.is_in, self.may_be_in
        self._heeded = self.breaker.state
        self.use_share(self.breaker.share())
        return self.is_in and not was_in


class Pool:
    """All replicas, by model. Membership changes only through `add` and `remove`."""

    def __init__(
        self,
        upstream: Upstream,
        replicas: Sequence[Replica] = (),
        *,
        health: Health | None = None,
        clock: Callable[[], float] = time.monotonic,
        router: Router[Replica] | None = None,
    ) -> None:
        self._upstream = upstream
        self.router = router or Router(prefix)
        self._health = health or Health()
        self._clock = clock
        self.before_removal: Callable[[Replica], Awaitable[None]] = _nothing
        """Called when a replica gets no more requests, and before its slot is free for another one."""
        self.on_suspect: Callable[[], None] = _nobody
        """Called when the connection to an engine broke."""
        self.other_names: tuple[str, ...] = ()
        """What may be asked for by everybody, beside the models served: who asks for what is not there is told."""
        self.backed: frozenset[str] = frozenset()
        """Models that others stand in for: one that no engine serves is away, and not unknown."""
        self.retry_budget = RetryBudget(self._health.retry_budget, clock)
        self._replicas: list[Replica] = []
        self._remotes: dict[str, Replica] = {}
        self._candidates: dict[str, tuple[Replica, ...]] = {}
        self._hedge_after_s: dict[str, float | None] = {}
        self._changes_at_s = _NEVER_S
        for replica in replicas:
            self.add(replica)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All engines, whatever their state."""
        return tuple(self._replicas)

    @property
    def remotes(self) -> tuple[Replica, ...]:
        """All providers elsewhere; they are never probed, and stand in only where a chain names them."""
        return tuple(self._remotes.values())

    def add(self, replica: Replica) -> None:
        """Take a replica in; an engine gets no request before a probe has found it healthy. Raises ConfigError."""
        if any(known.name == replica.name for known in (*self._replicas, *self._remotes.values())):
            raise ConfigError(f"two replicas are named '{replica.name}': logs and metrics could not tell them apart")
        if replica.kind == "remote":
            self._remotes[replica.name] = replica
        else:
            self._replicas.append(replica)
            self.router.add(replica)
        replica.join(Breaker(self._health.breaker, self._clock), self._changed)

    def use_remotes(self, remotes: Sequence[Remote]) -> None:
        """Have these providers stand in from now on; one that was known keeps its record, one that is not named any
        more gets no further request."""
        known = dict(self._remotes)
        for remote in remotes:
            replica = known.pop(remote.name, None)
            if replica is None:
                self.add(Replica(remote.name, remote.base_url, (), remote.api_key, state="ready", kind="remote"))
                continue
            replica.url, replica.api_key = remote.base_url, remote.api_key
            if replica.state == "draining":
                replica.state = "ready"
        for gone in known.values():
            gone.state = "draining"

    async def remove(self, replica: Replica) -> None:
        """Forget a replica and close its idle connections."""
        if replica.kind == "remote":
            del self._remotes[replica.name]
        else:
            self._replicas.remove(replica)
        self._candidates.clear()
        if replica.kind == "engine":
            await self.before_removal(replica)
            self.router.remove(replica)
        await self._upstream.forget(replica.url)

    def cards(self) -> list[ModelCard]:
        """Every model served, once, in the order of the replicas."""
        return list({card.name: card for replica in self._replicas for card in replica.models}.values())

    def candidates(self, model: str) -> tuple[Replica, ...]:
        """The replicas that can take a request for `model` now; RefusedError 404 or 503 when there is none.

        When all are out and some only because of how their requests ended, those are tried all the same: refusing
        everybody would be worse, and would never find out that they are well again.
        """
        if self._changes_at_s < _NEVER_S and self._clock() >= self._changes_at_s:
            self.refresh()
        found = self._candidates.get(model)
        if found is None:
            found = self._find(model)
            self._candidates[model] = found
        return found

    def is_panicking(self, model: str) -> bool:
        """Whether `candidates` would return replicas that are out; a stand-in from the model's chain may do better."""
        try:
            return not self.candidates(model)[0].is_in
        except RefusedError:
            return False

    def stand_ins(self, step: Step) -> tuple[Replica, ...]:
        """Who can take a request at this step of a chain; empty when nobody is in."""
        if step.remote is None:
            return tuple(replica for replica in self._replicas if replica.is_in and replica.serves(step.name))
        self.refresh()
        remote = self._remotes.get(step.name)
        return (remote,) if remote is not None and remote.is_in else ()

    def hedge_after_s(self, model: str, hedge: Hedge) -> float | None:
        """How long to wait for a first token of `model` before a second replica is asked; None: not at all."""
        if model not in self._hedge_after_s:
            replicas = [replica for replica in self._replicas if replica.serves(model)]
            ttfts = [ttft_s for replica in replicas for ttft_s in replica.breaker.recent_ttfts()]
            self._hedge_after_s[model] = hedging.hedge_after_s(ttfts, hedge)
        return self._hedge_after_s[model]

    def refresh(self) -> None:
        """Let time do its work: open breakers become half open, shares grow."""
        self._changes_at_s = _NEVER_S
        for replica in (*self._replicas, *self._remotes.values()):
            replica.breaker.advance()
            self._changed(replica)

    def sweep(self) -> None:
        """Take out the replicas that are far worse than their peers; to be called at equal intervals."""
        self._hedge_after_s.clear()
        for card in self.cards():
            peers = [replica for replica in self._replicas if replica.serves(card.name)]
            standings = [Standing(not r.is_in, r.breaker.error_rate(), r.breaker.ttft_s()) for r in peers]
            for place, reason in ejections(standings, self._health.outliers):
                _log.warning("%s is far from its peers (%s) and gets no requests for now", peers[place].name, reason)
                peers[place].breaker.eject(reason)
                peers[place].heed()

    def _changed(self, replica: Replica) -> None:
        was_in = replica.is_in
        if replica.state == "starting":
            self.router.restarted(replica)
        if replica.settle_in():  # whoever comes (back) in queues up last, instead of taking all turns it missed
            replica.turn = max(known.turn for known in (replica, *self._replicas))
        if was_in and replica.is_suspect:
            self.on_suspect()
        if was_in and (replica.is_suspect or replica.breaker.state == "open"):
            self.retry_budget.grant(replica.in_flight)  # the one that found it broken is still among them
        self._changes_at_s = min(self._changes_at_s, replica.breaker.changes_at_s())
        self._candidates.clear()

    def _find(self, model: str) -> tuple[Replica, ...]:
        serving = [replica for replica in self._replicas if replica.serves(model)]
        found = [replica for replica in serving if replica.is_in]
        if found:
            return tuple(found)
        found = [replica for replica in serving if replica.state == "ready" or replica.is_suspect]
        if found:
            _log.warning("every replica of '%s' is out; those that may be there are tried all the same", model)
            return tuple(found)
        is_early = any(replica.state == "starting" and not replica.models for replica in self._replicas)
        if serving or is_early or model in self.backed:
            nobody = "engines still starting" if is_early else "no engine serves it now"
            states = ", ".join(f"{replica.name} {replica.state}" for replica in serving) or nobody
            fault = Fault(
                503, f"no replica of '{model}' is ready ({states})", code="not_ready", retry_after_s=_RETRY_AFTER_S
            )
            raise RefusedError(fault)
        names = ", ".join((*(card.name for card in self.cards()), *self.other_names)) or "none"
        message = f"model '{model}' is not served here; available: {names}"
        raise RefusedError(Fault(404, message, code="model_not_found", param="model", should_retry=False))

    def unready_models(self) -> list[str]:
        """The models that no replica can answer for now, but for those that leave with their last one; ["(unknown)"]
        while nothing has been discovered."""
        staying = [replica for replica in self._replicas if replica.state != "draining"]
        names = list(dict.fromkeys(card.name for replica in staying for card in replica.models))
        if not names:
            return ["(unknown)"]
        return [
            name for name in names if not any((r.state == "ready" or r.is_suspect) and r.serves(name) for r in staying)
        ]


def _nobody() -> None:
    """Nobody has to be told."""


async def _nothing(_: Replica) -> None:
    """Nobody has to be told."""
