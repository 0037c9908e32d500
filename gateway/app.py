"""Wiring: the data-plane paths go to the lane, everything else to a FastAPI application. No logic of its own."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, cast

import orjson
from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway import figures
from gateway.access_log import write_lines
from gateway.admin import check_admin
from gateway.admission.door import Admission
from gateway.admission.gate import Gate
from gateway.admission.rates import Accounts
from gateway.admission_metrics import AdmissionMetrics
from gateway.cache_salt import Salts
from gateway.capacity import measuring
from gateway.config import GatewayConfig, Step
from gateway.cost import Cost
from gateway.errors import ConfigError, RefusedError
from gateway.headers import RequestIds, read_head, request_id_headers
from gateway.health_metrics import ReplicaHealth
from gateway.identity import Keyring
from gateway.junction import Junction
from gateway.lane import LaneProtocol
from gateway.ledger import Ledger, Reader
from gateway.metrics import Metrics
from gateway.mirror import Mirrors
from gateway.origins import Origins
from gateway.overview import page
from gateway.patience import Patience
from gateway.precise import Precise
from gateway.probes import probing
from gateway.relay import Relay
from gateway.replica import ModelCard, Pool, Replica
from gateway.routing import POLICIES, Estimates, Router
from gateway.status import (
    ReplicaStatus,
    Status,
    admission_status,
    config_digest,
    replica_status,
    route_status,
)
from gateway.tracing import Tracing
from gateway.upstream import Upstream
from gateway.watch import Watch
from gateway.wire import ENDPOINTS, Dialect, Fault, allowed_method, fault_body, fault_headers, page_of, unknown_path

VERSION = version("berth")
_RELOAD = "/admin/reload"
_FIRST_SEEN = datetime.now(UTC)  # what /v1/models shows as the creation date: engines do not know a model's own

Reload = Callable[[], Awaitable[Sequence[str]]]
"""Reads the configuration again and puts it in force: what changed, a line each. Raises ConfigError, and then nothing
did."""


class Gateway:
    """One door: an ASGI application for the control plane, the HTTP protocol (`protocol`) that keeps the data plane to
    itself, and the state the operator's side needs (`pool`, `admission`)."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        clock: Callable[[], float] = time.perf_counter,
        readers: Sequence[Reader] = (),
        tracing: Tracing | None = None,
        luck: random.Random | None = None,
    ) -> None:
        self.config = config
        self.reload: Reload | None = None
        self._made_s = time.monotonic()
        self._server_state: ServerState | None = None
        self.upstream = Upstream(config.timeouts)
        self.pool = Pool(self.upstream, health=config.health, router=Router(POLICIES[config.routing]))
        self.admission = Admission(config.max_in_flight)
        self.gate = Gate(lambda: self.pool.replicas, self.pool.candidates, clock, config.queue, config.slos)
        self.clock = clock
        self.metrics = Metrics(VERSION)
        self.metrics.registry.register(ReplicaHealth(self.pool))
        self.metrics.registry.register(AdmissionMetrics(self.gate, self.pool))
        self.pool.use_remotes(config.remotes)
        self.cost = Cost(self.client_connections, self.upstream.states)
        self.metrics.registry.register(self.cost)
        self._ledger = Ledger((write_lines(config.log_format), *readers), clock)
        self.request_ids = RequestIds()
        keyring = Keyring(config.keys)
        self.accounts = Accounts(keyring.limits, clock())
        watch, luck = Watch(clock), luck or random.Random()  # noqa: S311  (it shares out traffic)
        estimates = Estimates()
        self._mirrors = Mirrors(self.pool, self.upstream, watch, estimates, config.timeouts, clock, luck)
        self._junction = Junction(self._is_there, self._mirrors, clock, luck)
        self.metrics.registry.register(self._mirrors)
        self.metrics.registry.register(self._junction)
        self._precise = Precise(self.pool, self.upstream)
        self.pool.before_removal = self._precise.leave
        self.metrics.registry.register(self._precise)
        self._relay = Relay(
            config=config,
            pool=self.pool,
            upstream=self.upstream,
            admission=self.admission,
            gate=self.gate,
            accounts=self.accounts,
            metrics=self.metrics,
            clock=clock,
            keyring=keyring,
            request_ids=self.request_ids,
            ledger=self._ledger,
            cost=self.cost,
            tracing=tracing,
            watch=watch,
            estimates=estimates,
            junction=self._junction,
        )
        self._use_rules(config)
        self._patience = Patience(config.timeouts.client_s)
        self._control_plane = _control_plane(self)
        self._use_origins(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry: the lifespan, and every path that is not the data plane's. HEAD is GET, of which uvicorn leaves
        out the body: load balancers and watchdogs ask so."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._control(scope, receive, send)

    @property
    def protocol(self) -> type[asyncio.Protocol]:
        """What uvicorn is to be given as `http`."""
        return cast(type[asyncio.Protocol], self._protocol)

    def _protocol(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> LaneProtocol:
        self._server_state = server_state
        return LaneProtocol(self._relay, self._patience, config, server_state, app_state, _loop)

    def client_connections(self) -> int:
        """How many callers are connected, idle ones too."""
        return 0 if self._server_state is None else len(self._server_state.connections)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Own the connections and the health probes for as long as the server runs."""
        async with AsyncExitStack() as stack:
            stack.callback(self._ledger.flush)
            await stack.enter_async_context(self.upstream)
            await stack.enter_async_context(
                self._precise.running(lambda: self.config.kv_events, lambda: self.config.timeouts.probe_s)
            )
            stack.enter_context(self.cost.watching(asyncio.get_running_loop()))
            stack.enter_context(self._relay.watch.ticking(asyncio.get_running_loop()))
            await stack.enter_async_context(
                probing(self.pool, self.upstream, self.config.probe_interval_s, lambda: self.config.timeouts.probe_s)
            )
            await stack.enter_async_context(
                measuring(self.pool, self.gate, self.upstream, lambda: self.config.timeouts.probe_s)
            )
            yield

    def add(self, replica: Replica) -> None:
        """Take in a replica; requests reach it once its own /health says so. Raises ConfigError."""
        self.pool.add(replica)

    def reconfigure(self, config: GatewayConfig) -> None:
        """Put other settings in force. Requests in flight go on, under the new limits on waiting and size.
        `log_format`, `health` and the probe interval stay as they were."""
        self.config = self._relay.config = config
        self._relay.keyring = keyring = Keyring(config.keys)
        self.accounts.use(keyring.limits, self.clock())
        self.gate.use(config.queue, config.slos)
        self.admission.max_in_flight = config.max_in_flight
        self.pool.router.policy = POLICIES[config.routing]
        self.pool.use_remotes(config.remotes)
        self._use_rules(config)
        self._use_origins(config)
        self.upstream.use(config.timeouts)
        self._patience.use(config.timeouts.client_s)

    def _use_rules(self, config: GatewayConfig) -> None:
        self._relay.precise = self._precise if config.kv_events else None
        self._relay.salts = Salts(config.keys, config.isolated)
        self._mirrors.timeouts = config.timeouts
        self._junction.use(config.rules)
        self.pool.other_names = tuple(card.name for card in self._junction.cards(()))
        self.pool.backed = frozenset(config.chains)

    def _use_origins(self, config: GatewayConfig) -> None:
        self._relay.origins = origins = Origins(config.origins)
        self._control = origins.around(self._control_plane)

    def _is_there(self, model: str) -> bool:
        return bool(self.pool.stand_ins(Step(model)))

    def cards(self, caller: str) -> list[ModelCard]:
        """Every name that `caller` may ask for."""
        return self._junction.cards(self.pool.cards(), caller)

    def identify(self, request: Request) -> str:
        """The caller behind a control-plane request. Raises RefusedError."""
        return self._relay.keyring.identify(read_head(request.scope["headers"]).key)

    def check_admin(self, request: Request) -> None:
        """Raises RefusedError unless the request may change something."""
        check_admin(self._relay.keyring, request.scope["headers"], request.client.host if request.client else None)

    async def status(self) -> Status:
        """What `/status` answers; the engines are asked for their figures."""
        now_s = time.monotonic()
        replicas = self.pool.replicas
        found = await figures.read_all(replicas, self.upstream, self.config.timeouts.probe_s)
        rows = replica_status(replicas, found, self.metrics, self.pool.router, self._precise, now_s)
        return Status(
            version=VERSION,
            uptime_s=now_s - self._made_s,
            config_digest=config_digest(self.config),
            draining=self.admission.is_draining,
            in_flight=self.admission.in_flight,
            max_in_flight=self.admission.max_in_flight,
            client_connections=self.client_connections(),
            models=admission_status(self.gate, self.pool),
            routes=route_status(self._junction.sides(), now_s=self._relay.clock()),
            replicas=[*rows, *self._remote_status(now_s)],
        )

    def _remote_status(self, now_s: float) -> list[ReplicaStatus]:
        remotes = self.pool.remotes
        nothing = [None] * len(remotes)
        return replica_status(remotes, nothing, self.metrics, self.pool.router, self._precise, now_s)


def _control_plane(gateway: Gateway) -> FastAPI:
    # FastAPI's own pages are scripts of somebody else's servers: blank where those cannot be reached
    app = FastAPI(title="Berth gateway", version=VERSION, lifespan=gateway.lifespan, docs_url=None, redoc_url=None)
    app.state.gateway = gateway
    app.get("/health", summary="Alive: the process answers")(_health)
    app.get("/ready", summary="Ready: every model has a healthy replica", responses=_says(503))(_ready)
    status = "What the gateway believes about itself and each replica"
    app.get("/status", summary=status, responses=_says(401))(_status)
    reload = "Read the configuration file again: admin keys, or this machine"
    app.post(_RELOAD, summary=reload, responses=_says(403, 409))(_reload)
    app.get("/metrics", summary="Prometheus exposition", response_class=PlainTextResponse)(_metrics)
    app.get("/v1/models", summary="The models served, in the caller's dialect", responses=_says(401))(_models)
    app.get("/v1/models/{name:path}", summary="One model, in the caller's dialect", responses=_says(401, 404))(_model)
    app.get("/docs", include_in_schema=False, response_class=HTMLResponse)(_docs)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(404, _no_such_path)
    app.add_exception_handler(405, _wrong_method)
    return app


def _says(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: what else a path may answer with."""
    return {status: {"description": HTTPStatus(status).phrase} for status in statuses}


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


Door = Annotated[Gateway, Depends(_gateway)]


async def _health() -> dict[str, str]:
    return {"status": "ok", "version": VERSION}


async def _ready(gateway: Door) -> Response:
    unready = ["(shutting down)"] if gateway.admission.is_draining else gateway.pool.unready_models()
    return JSONResponse({"ready": not unready, "waiting_for": unready}, status_code=503 if unready else 200)


async def _status(request: Request, gateway: Door) -> Status:
    gateway.identify(request)
    return await gateway.status()


async def _reload(request: Request, gateway: Door) -> dict[str, Any]:
    gateway.check_admin(request)
    if gateway.reload is None:
        message = "this gateway was started without a file that could be read again"
        raise RefusedError(Fault(409, message, code="nothing_to_reload", should_retry=False))
    try:
        changes = await gateway.reload()
    except ConfigError as error:
        message = f"the old configuration stays in force: {error}"
        raise RefusedError(Fault(409, message, code="reload_refused", should_retry=False)) from None
    return {"changes": list(changes), "config_digest": config_digest(gateway.config)}


async def _metrics(gateway: Door) -> Response:
    for replica in gateway.pool.replicas:
        for card in replica.models:  # known only once the engine was asked, when it was started elsewhere
            gateway.metrics.expect(card.name, replica.name)
    own = generate_latest(gateway.metrics.registry)
    engines = await figures.exposition(gateway.pool.replicas, gateway.upstream, gateway.config.timeouts.probe_s)
    return Response(own + engines, media_type=CONTENT_TYPE_LATEST)


async def _docs(request: Request) -> Response:
    control_plane: FastAPI = request.app
    return HTMLResponse(page(control_plane.openapi()))


async def _models(request: Request, gateway: Door) -> Response:
    cards = gateway.cards(gateway.identify(request))
    if not _is_anthropic(request):
        return _json({"object": "list", "data": [_openai_card(card) for card in cards]})
    page = page_of([card.name for card in cards], request.query_params)
    if isinstance(page, Fault):
        raise RefusedError(page)
    rows = [_anthropic_card(card) for card in cards if card.name in page.names]
    ends = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
    return _json({"data": rows, "has_more": page.has_more, **ends})


async def _model(name: str, request: Request, gateway: Door) -> Response:
    cards = gateway.cards(gateway.identify(request))
    for card in cards:
        if card.name == name:
            return _json(_anthropic_card(card) if _is_anthropic(request) else _openai_card(card))
    names = ", ".join(card.name for card in cards) or "none"
    raise RefusedError(Fault(404, f"model '{name}' is not served here; available: {names}", code="model_not_found"))


def _openai_card(card: ModelCard) -> dict[str, Any]:
    created = int(_FIRST_SEEN.timestamp())
    row = {"id": card.name, "object": "model", "created": created, "owned_by": "berth"}
    return row if card.max_model_len is None else {**row, "max_model_len": card.max_model_len}


def _anthropic_card(card: ModelCard) -> dict[str, Any]:
    created = _FIRST_SEEN.isoformat(timespec="seconds").replace("+00:00", "Z")
    row = {"id": card.name, "type": "model", "display_name": card.name, "created_at": created, "lifecycle": "active"}
    return row if card.max_model_len is None else {**row, "max_input_tokens": card.max_model_len}


def _json(payload: dict[str, Any]) -> Response:
    return Response(orjson.dumps(payload), media_type="application/json")


def _is_anthropic(request: Request) -> bool:
    """The two SDKs ask for different shapes under one path; only Anthropic's sends this header."""
    return "anthropic-version" in request.headers


def _dialect(request: Request) -> Dialect:
    endpoint = ENDPOINTS.get(request.url.path)
    if endpoint is not None:
        return endpoint.dialect
    if request.url.path.startswith("/v1/messages"):
        return "messages"
    return "messages" if _is_anthropic(request) else "chat"


def _fault(request: Request, fault: Fault) -> Response:
    request_id = _gateway(request).request_ids.new()
    pairs = [*fault_headers(fault), *request_id_headers(request_id)]
    headers = {name.decode(): value.decode() for name, value in pairs}
    body = fault_body(_dialect(request), fault, request_id)
    return Response(body, fault.status, headers, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)  # noqa: S101  (registered for this type only)
    return _fault(request, error.fault)


async def _no_such_path(request: Request, error: Exception) -> Response:
    if allowed_method(request.url.path):  # FastAPI knows nothing of the data plane
        return await _wrong_method(request, error)
    return _fault(request, unknown_path(request.method, request.url.path))


async def _wrong_method(request: Request, _: Exception) -> Response:
    takes = allowed_method(request.url.path) or ("POST" if request.url.path == _RELOAD else "GET")
    message = f"{request.url.path} takes {takes}, not {request.method}"
    response = _fault(request, Fault(405, message, code="method_not_allowed", should_retry=False))
    response.headers["allow"] = takes
    return response
