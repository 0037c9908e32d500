"""Wiring: the data-plane paths go to the lane, everything else to a FastAPI application. No logic of its own."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, cast

import orjson
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import Receive, Scope, Send

from gateway import figures
from gateway.admission import Admission
from gateway.config import GatewayConfig
from gateway.errors import RefusedError
from gateway.headers import RequestIds, request_id_headers
from gateway.identity import Keyring
from gateway.lane import LaneProtocol
from gateway.metrics import Metrics
from gateway.patience import Patience
from gateway.relay import Relay
from gateway.replica import ModelCard, Pool, Replica
from gateway.routing import Policy, least_work
from gateway.upstream import Upstream
from gateway.wire import ENDPOINTS, Dialect, Fault, fault_body, fault_headers

VERSION = version("berth")
_FIRST_SEEN = datetime.now(UTC)  # what /v1/models shows as the creation date: engines do not know a model's own


class Gateway:
    """One door: an ASGI application for the control plane, the HTTP protocol (`protocol`) that keeps the data plane to
    itself, and the state the operator's side needs (`pool`, `admission`)."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        policy: Policy[Replica] = least_work,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.upstream = Upstream(config.timeouts)
        self.pool = Pool(self.upstream)
        self.admission = Admission(config.max_in_flight)
        self.metrics = Metrics(VERSION)
        self.request_ids = RequestIds()
        self._keyring = Keyring(config.keys)
        self._relay = Relay(
            config=config,
            pool=self.pool,
            upstream=self.upstream,
            admission=self.admission,
            metrics=self.metrics,
            policy=policy,
            clock=clock,
            keyring=self._keyring,
            request_ids=self.request_ids,
        )
        self._patience = Patience(config.timeouts.client_s)
        self._control = _control_plane(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry: the lifespan, and every path that is not the data plane's."""
        await self._control(scope, receive, send)

    @property
    def protocol(self) -> type[asyncio.Protocol]:
        """What uvicorn is to be given as `http`."""
        return cast(type[asyncio.Protocol], partial(LaneProtocol, self._relay, self._patience))

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Own the connections and the health probes for as long as the server runs."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.upstream)
            timeouts = self.config.timeouts
            await stack.enter_async_context(self.pool.probing(self.config.probe_interval_s, timeouts.probe_s))
            yield

    def add(self, replica: Replica) -> None:
        """Take in a replica; requests reach it once its own /health says so. Raises ConfigError."""
        self.pool.add(replica)

    def identify(self, request: Request) -> str:
        """The caller behind a control-plane request. Raises RefusedError."""
        return self._keyring.identify(request.scope["headers"])


def _control_plane(gateway: Gateway) -> FastAPI:
    app = FastAPI(title="Berth gateway", version=VERSION, lifespan=gateway.lifespan)
    app.state.gateway = gateway
    app.get("/health", summary="Alive: the process answers")(_health)
    app.get("/ready", summary="Ready: every model has a healthy replica", responses=_says(503))(_ready)
    app.get("/status", summary="What the router believes about each replica", responses=_says(401))(_status)
    app.get("/metrics", summary="Prometheus exposition", response_class=PlainTextResponse)(_metrics)
    app.get("/v1/models", summary="The models served, in the caller's dialect", responses=_says(401))(_models)
    app.get("/v1/models/{name:path}", summary="One model, in the caller's dialect", responses=_says(401, 404))(_model)
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


async def _status(request: Request, gateway: Door) -> dict[str, Any]:
    gateway.identify(request)
    return {
        "version": VERSION,
        "in_flight": gateway.admission.in_flight,
        "draining": gateway.admission.is_draining,
        "replicas": [
            {
                "name": replica.name,
                "url": replica.url,
                "models": [card.name for card in replica.models],
                "state": replica.state,
                "in_flight": replica.in_flight,
                "work_tokens": replica.work_tokens,
                "requests": replica.picks,
            }
            for replica in gateway.pool.replicas
        ],
    }


async def _metrics(gateway: Door) -> Response:
    for replica in gateway.pool.replicas:
        for card in replica.models:  # known only once the engine was asked, when it was started elsewhere
            gateway.metrics.expect(card.name, replica.name)
    own = generate_latest(gateway.metrics.registry)
    engines = await figures.exposition(gateway.pool.replicas, gateway.upstream, gateway.config.timeouts.probe_s)
    return Response(own + engines, media_type=CONTENT_TYPE_LATEST)


async def _models(request: Request, gateway: Door) -> Response:
    gateway.identify(request)
    cards = gateway.pool.cards()
    if not _is_anthropic(request):
        return _json({"object": "list", "data": [_openai_card(card) for card in cards]})
    rows = [_anthropic_card(card) for card in cards]
    ends = {"first_id": rows[0]["id"] if rows else None, "last_id": rows[-1]["id"] if rows else None}
    return _json({"data": rows, "has_more": False, **ends})


async def _model(name: str, request: Request, gateway: Door) -> Response:
    gateway.identify(request)
    for card in gateway.pool.cards():
        if card.name == name:
            return _json(_anthropic_card(card) if _is_anthropic(request) else _openai_card(card))
    names = ", ".join(card.name for card in gateway.pool.cards()) or "none"
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
    if request.url.path in ENDPOINTS:  # FastAPI knows nothing of the data plane
        return await _wrong_method(request, error)
    paths = ", ".join(ENDPOINTS)
    message = f"{request.method} {request.url.path} is not served here; POST one of {paths}, or GET /v1/models"
    return _fault(request, Fault(404, message, code="unknown_url", should_retry=False))


async def _wrong_method(request: Request, _: Exception) -> Response:
    takes = "POST" if request.url.path in ENDPOINTS else "GET"
    message = f"{request.url.path} takes {takes}, not {request.method}"
    response = _fault(request, Fault(405, message, code="method_not_allowed", should_retry=False))
    response.headers["allow"] = takes
    return response
