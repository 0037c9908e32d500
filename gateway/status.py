"""`GET /status`: what the gateway believes about itself and each replica; the schema is part of /openapi.json."""

import hashlib
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, Field

from gateway.admission.gate import Gate
from gateway.admission.line import PRIORITIES
from gateway.admission.room import NO_BOUND
from gateway.breaker import BreakerState
from gateway.canary import Reason
from gateway.config import GatewayConfig
from gateway.figures import EngineFigures
from gateway.junction import Side
from gateway.metrics import Metrics
from gateway.precise import Precise
from gateway.replica import Kind, Pool, Replica, State
from gateway.routing import Router

_USAGE = "berth_engine_kv_cache_usage_ratio"
_WAITING = "berth_engine_requests_waiting"
_DIGEST_CHARS = 12


class KvCacheStatus(BaseModel):
    """A replica's KV cache."""

    capacity_tokens: int | None = Field(description="as the engine states it; null when it does not answer")
    predicted_tokens: int | None = Field(description="as sizing predicted it; null for an engine started elsewhere")
    usage_ratio: float | None = Field(description="share in use, 0 to 1, as the engine states it now")


class RoutingStatus(BaseModel):
    """What the router believes of a replica."""

    prefix_blocks: int = Field(description="prompt blocks thought to be in its KV cache")
    prefix_bytes: int = Field(description="and how much text they are")
    precise: bool = Field(
        description="whether its engine says itself what its KV cache holds, and none of it was missed"
    )
    said_blocks: int = Field(description="prompt blocks of which its engine says so")
    kv_blocks: int | None = Field(description="KV blocks that its engine says it holds; null where it says nothing")
    queued_tokens: int = Field(description="uncached prompt tokens of requests there without a first token")
    output_tokens: int = Field(description="likely output tokens of all requests there")
    prefill_tokens_per_s: float = Field(description="how fast it computes prompts, learnt from its own answers")
    expected_wait_s: float = Field(description="until a new request's own prompt would be begun")
    ttft_s: float | None = Field(description="recent times to first token, later ones counting more; null before any")


class ModelStatus(BaseModel):
    """One model at the door: who waits, and for what there is room."""

    name: str = Field(description="as requests give it")
    waiting: dict[str, int] = Field(description="requests in the gateway's line, by priority")
    waiting_tokens: int = Field(description="prompt and likely output tokens of these")
    refused: dict[str, int] = Field(description="requests that were given no place, by reason")
    budget_tokens: int | None = Field(
        description="KV tokens its replicas may be promised together; null where one is not known"
    )
    expected_tokens: int = Field(description="of these, what the requests there are expected to need")
    used_tokens: int | None = Field(description="what the engines stated last; null where one did not")
    headroom: int | None = Field(
        description="requests like the last ones that would still be served within the SLO; null for no bound"
    )


class ReplicaStatus(BaseModel):
    """One engine as the gateway sees it."""

    name: str = Field(description="as in metrics, logs and the `x-berth-replica` header")
    url: str = Field(description="where it listens: http://host:port or unix:/path")
    models: list[str] = Field(description="the public names it serves; empty until it was asked")
    state: State = Field(description="requests go to `ready` ones only")
    trouble: str | None = Field(description="why its health was not found when it was last asked; null where it was")
    kind: Kind = Field(description="an engine of ours, or a remote provider that only stands in")
    breaker: BreakerState = Field(description="closed: trusted; open: out for how it answered; half_open: on trial")
    share: float = Field(description="0 to 1: how much of a peer's load it gets; below 1 after a start or a recovery")
    ejections: dict[str, int] = Field(description="how often its breaker opened, by reason")
    in_flight: int = Field(description="requests there now, by the gateway's own count")
    work_tokens: int = Field(description="estimated tokens of these requests, by which the next one is placed")
    routing: RoutingStatus | None = Field(description="what the router believes of it; null for a remote provider")
    requests: int = Field(description="requests it was given since the gateway started, retries included")
    errors: int = Field(description="of these, how many it answered with an error, broke or lost to another replica")
    waiting: int | None = Field(description="requests queued inside the engine, as it states now")
    kv_cache: KvCacheStatus = Field(description="its KV cache")
    probe_age_s: float | None = Field(description="seconds since its health was last asked; null before the first time")


class RouteStatus(BaseModel):
    """One model of a split."""

    route: str = Field(description="the public name the split is for; a further rule of the same name has a number")
    model: str = Field(description="who answers")
    weight: float = Field(description="of its split, now; 0: taken back")
    is_stable: bool = Field(description="whether the others are measured against it")
    requests: int = Field(description="that ended over the rollback window")
    error_rate: float = Field(description="share of these that failed, 0 to 1")
    ttft_s: float | None = Field(description="median time to first token of these; null without streams")
    taken_back: Reason | None = Field(description="why it gets nothing now; null while it does")
    taken_back_s: float | None = Field(description="seconds since then")


class Status(BaseModel):
    """The gateway as a whole."""

    version: str = Field(description="of Berth")
    uptime_s: float = Field(description="seconds since the gateway was made")
    config_digest: str = Field(description="changes when the gateway's settings do: which ones a reload left in force")
    draining: bool = Field(description="shutting down: new requests get 503")
    in_flight: int = Field(description="requests inside the gateway now")
    max_in_flight: int | None = Field(description="the most it takes; null for no limit")
    client_connections: int = Field(description="connections of callers, idle ones too")
    models: list[ModelStatus] = Field(description="every model served: who waits for it, and what there is room for")
    routes: list[RouteStatus] = Field(description="every model of every split")
    replicas: list[ReplicaStatus] = Field(description="every engine known, whatever its state")


def config_digest(config: GatewayConfig) -> str:
    """A short name for settings: equal for equal ones. Keys are in it as the hashes they are stored as."""
    return hashlib.sha256(repr(config).encode()).hexdigest()[:_DIGEST_CHARS]


def route_status(sides: Iterable[Side], now_s: float) -> list[RouteStatus]:
    """One row for each model of each split; `now_s` is of the clock that the splits have."""
    return [_route(side, now_s) for side in sides]


def _route(side: Side, now_s: float) -> RouteStatus:
    standing, back = side.split.standing(side.model), side.split.rolled_back(side.model)
    return RouteStatus(
        route=side.route,
        model=side.model,
        weight=side.weight,
        is_stable=side.model == side.split.stable,
        requests=standing.requests,
        error_rate=standing.error_rate,
        ttft_s=standing.ttft_s(0.5),
        taken_back=None if back is None else back.reason,
        taken_back_s=None if back is None else now_s - back.at_s,
    )


def replica_status(
    replicas: Sequence[Replica],
    figures: Sequence[EngineFigures | None],
    metrics: Metrics,
    router: Router[Replica],
    precise: Precise,
    now_s: float,
) -> list[ReplicaStatus]:
    """One row for each replica; `figures` are what its engine answered now, in the same order."""
    return [
        _row(replica, found, metrics, _routing(replica, router, precise), now_s)
        for replica, found in zip(replicas, figures, strict=True)
    ]


def admission_status(gate: Gate, pool: Pool) -> list[ModelStatus]:
    """One row for each model that is served."""
    return [_model(card.name, gate, pool) for card in pool.cards()]


def _model(name: str, gate: Gate, pool: Pool) -> ModelStatus:
    desk, serving = gate.desk(name), [replica for replica in pool.replicas if replica.serves(name)]
    budget = sum(replica.kv_budget_tokens for replica in serving)
    used = [gate.room(replica).used_tokens for replica in serving]
    return ModelStatus(
        name=name,
        waiting={priority: desk.line.waiting(priority) for priority in PRIORITIES},
        waiting_tokens=desk.line.tokens,
        refused={str(reason): count for reason, count in desk.refused.items()},
        budget_tokens=None if budget == NO_BOUND else int(budget),
        expected_tokens=sum(replica.kv_tokens for replica in serving),
        used_tokens=None if None in used else sum(tokens for tokens in used if tokens is not None),
        headroom=gate.headroom(name),
    )


def _routing(replica: Replica, router: Router[Replica], precise: Precise) -> RoutingStatus | None:
    if replica.slot < 0:
        return None
    return RoutingStatus(
        prefix_blocks=router.index.blocks(replica.slot),
        prefix_bytes=router.index.units(replica.slot),
        precise=precise.is_complete(replica),
        said_blocks=router.index.said(replica.slot),
        kv_blocks=precise.blocks(replica),
        queued_tokens=replica.queued_tokens,
        output_tokens=replica.output_tokens,
        prefill_tokens_per_s=round(1 / replica.s_per_token, 1),
        expected_wait_s=round(replica.ahead_tokens * replica.token_s, 4),
        ttft_s=replica.ttft_s,
    )


def _row(
    replica: Replica, figures: EngineFigures | None, metrics: Metrics, routing: RoutingStatus | None, now_s: float
) -> ReplicaStatus:
    values = figures.values if figures else {}
    waiting = values.get(_WAITING)
    return ReplicaStatus(
        name=replica.name,
        url=replica.url,
        models=[card.name for card in replica.models],
        state=replica.state,
        trouble=replica.trouble,
        kind=replica.kind,
        breaker=replica.breaker.state,
        share=replica.share,
        ejections={str(reason): count for reason, count in replica.breaker.ejections.items()},
        in_flight=replica.in_flight,
        work_tokens=replica.work_tokens,
        routing=routing,
        requests=replica.picks,
        errors=metrics.errors_of(replica.name),
        waiting=None if waiting is None else int(waiting),
        kv_cache=KvCacheStatus(
            capacity_tokens=figures.kv_cache_tokens if figures else None,
            predicted_tokens=replica.predicted_kv_tokens,
            usage_ratio=values.get(_USAGE),
        ),
        probe_age_s=None if replica.probed_s is None else max(0.0, now_s - replica.probed_s),
    )
