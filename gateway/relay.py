"""The path of one request: identify, admit, route, open, relay, settle. Raw ASGI; nothing is parsed twice.

Nobody awaits anything here while no one watches the client: from the last byte of its request on, a task waits for its
disconnect and cancels the request where it stands. Everything that must happen on the way out is synchronous.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.admission import Admission
from gateway.asgi import (
    Header,
    Receive,
    Scope,
    Send,
    Watch,
    cancelled_when_gone,
    new_request_id,
    read_body,
    request_id_headers,
)
from gateway.config import GatewayConfig
from gateway.errors import AnswerError, BrokenError, ClientGoneError, RefusedError, UpstreamError
from gateway.identity import Keyring
from gateway.meter import Meter
from gateway.metrics import Metrics, Outcome, Settlement
from gateway.replica import Pool, Replica
from gateway.routing import Policy
from gateway.upstream import Answer, Upstream
from gateway.wire import (
    ENDPOINTS,
    Call,
    Endpoint,
    Fault,
    Usage,
    fault_body,
    fault_event,
    fault_headers,
    parse_call,
    read_answer,
    read_fault,
)

_access = logging.getLogger("berth.access")
_log = logging.getLogger("berth.gateway")
_FORWARDED = {b"content-type", b"accept", b"traceparent", b"tracestate", b"anthropic-version", b"anthropic-beta"}
_NOT_RETURNED = {b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"date", b"server", b"vary"}
_ELSEWHERE = {500, 502, 503, 504}  # an engine that is dying, full or away: another replica may do
_CHARS_A_TOKEN = 4
_OUTPUT_GUESS_TOKENS = 256


@dataclass(slots=True)
class Exchange:
    """One request as it goes through, filled in on the way; `settle` reads it whatever the end was."""

    endpoint: Endpoint
    request_id: str
    arrived_s: float
    caller: str = ""
    model: str = ""
    replica: str = ""
    status: int = 0
    outcome: Outcome = "ok"
    usage: Usage = field(default_factory=Usage)
    ttft_s: float | None = None
    tpot_s: float | None = None
    response_started: bool = False

    def headers(self) -> list[Header]:
        """What every answer carries: the request id under both SDKs' names, and who answered."""
        who = [(b"x-berth-replica", self.replica.encode())] if self.replica else []
        return [*request_id_headers(self.request_id), *who]


class Relay:
    """The data plane: an ASGI application for every path in `gateway.wire.ENDPOINTS`."""

    def __init__(
        self,
        config: GatewayConfig,
        *,
        pool: Pool,
        upstream: Upstream,
        admission: Admission,
        metrics: Metrics,
        policy: Policy[Replica],
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._pool = pool
        self._upstream = upstream
        self._admission = admission
        self._metrics = metrics
        self._policy = policy
        self._clock = clock
        self._keyring = Keyring(config.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; on every path out it is settled exactly once."""
        exchange = Exchange(ENDPOINTS[scope["path"]], new_request_id(), self._clock())
        try:
            await self._admitted(exchange, scope, receive, send)
        except RefusedError as error:
            exchange.outcome = "refused"
            await _send_fault(exchange, error.fault, send)
        except ClientGoneError:
            exchange.outcome, exchange.status = "client_gone", 499
        except AnswerError as error:
            exchange.outcome = "engine_error"
            await _send_fault(exchange, error.fault, send)
        except UpstreamError as error:
            exchange.outcome = "broken"
            await _send_fault(exchange, _broken(exchange, error, "before it answered"), send)
        except asyncio.CancelledError:
            exchange.outcome, exchange.status = "client_gone", 499  # the server is going down hard
            raise
        except Exception:  # noqa: BLE001  (the outermost boundary: the caller gets a 500 with an id, the log the trace)
            exchange.outcome = "broken"
            _log.exception("%s: unexpected error", exchange.request_id)
            await _send_fault(
                exchange, Fault(500, f"internal error; the gateway's log has {exchange.request_id}"), send
            )
        finally:
            self._settle(exchange)

    async def _admitted(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        exchange.caller = self._keyring.identify(scope["headers"])
        ticket = self._admission.admit()
        try:
            body = await read_body(scope, receive, self._config.max_body_bytes)
            call = parse_call(exchange.endpoint, body)
            if isinstance(call, Fault):
                raise RefusedError(call)
            async with cancelled_when_gone(receive) as watch:
                await self._routed(exchange, call, _upstream_headers(exchange, scope["headers"]), watch, send)
        finally:
            ticket.settle()

    async def _routed(self, exchange: Exchange, call: Call, headers: dict[str, str], watch: Watch, send: Send) -> None:
        """Try replicas until one has delivered its first byte; from there on this answer is the answer."""
        tried: list[Replica] = []
        candidates = self._pool.candidates(call.model)
        while True:
            replica = self._policy(candidates)
            exchange.model, exchange.replica = call.model, replica.name
            tried.append(replica)
            try:
                await self._attempt(replica, exchange, call, headers, watch, send)
                return
            except UpstreamError as error:
                if exchange.response_started or not _worth_another(error) or len(tried) > self._config.retries:
                    raise
                candidates = self._others(call.model, tried)
                if not candidates:
                    raise  # the last replica standing is not shut out for one failure: its next request may do
                if not isinstance(error, AnswerError):
                    replica.suspect()
                _log.warning("%s: %s failed (%s), trying another replica", exchange.request_id, replica.name, error)
                self._metrics.retried(call.model)

    def _others(self, model: str, tried: list[Replica]) -> list[Replica]:
        try:
            return [replica for replica in self._pool.candidates(model) if replica not in tried]
        except RefusedError:
            return []

    async def _attempt(
        self, replica: Replica, exchange: Exchange, call: Call, headers: dict[str, str], watch: Watch, send: Send
    ) -> None:
        """One try on one replica, counted there while it lasts. Nothing is sent before the first byte is in hand."""
        dialect = exchange.endpoint.dialect
        if replica.api_key:
            headers = {**headers, "authorization": f"Bearer {replica.api_key}"}
        with replica.working(len(call.body) // _CHARS_A_TOKEN + _OUTPUT_GUESS_TOKENS):
            self._metrics.entered(call.model, replica.name, dialect)
            answer = None
            try:
                answer = await self._upstream.post(replica.url, exchange.endpoint.path, headers, call.body)
                if answer.status >= 400:
                    raise AnswerError(_engine_fault(replica, answer.status, await answer.read_all()))
                if call.stream and answer.is_event_stream:
                    await self._stream(answer, exchange, call, watch, send)
                else:
                    await self._whole(answer, exchange, watch, send)
            finally:
                if answer is not None:
                    answer.close()
                self._metrics.left(call.model, replica.name, dialect)

    async def _whole(self, answer: Answer, exchange: Exchange, watch: Watch, send: Send) -> None:
        body = await answer.read_all()
        if exchange.endpoint.generates:
            exchange.usage = read_answer(exchange.endpoint.dialect, body)
        headers = [*_returned(answer), (b"content-length", str(len(body)).encode())]
        await _start(exchange, answer.status, headers, send)
        watch.is_over = True
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, answer: Answer, exchange: Exchange, call: Call, watch: Watch, send: Send) -> None:
        meter = Meter(exchange.endpoint.dialect, strip_usage=call.strip_usage, clock=self._clock)
        try:
            first = await _first_bytes(answer, meter)
            _check_begun(first, meter)
            await _start(exchange, answer.status, _returned(answer), send)
            await send({"type": "http.response.body", "body": first, "more_body": True})
            await _relay_rest(answer, exchange, meter, watch, send)
        finally:
            exchange.usage = meter.usage_or_least
            exchange.tpot_s = meter.tpot_s
            if meter.first_token_s is not None:
                exchange.ttft_s = meter.first_token_s - exchange.arrived_s

    def _settle(self, exchange: Exchange) -> None:
        done = Settlement(
            model=exchange.model or "(none)",
            replica=exchange.replica or "(none)",
            dialect=exchange.endpoint.dialect,
            outcome=exchange.outcome,
            status=exchange.status,
            duration_s=self._clock() - exchange.arrived_s,
            generates=exchange.endpoint.generates,
            ttft_s=exchange.ttft_s,
            tpot_s=exchange.tpot_s,
            usage=exchange.usage,
        )
        self._metrics.settle(done)
        _access.info(
            "%s caller=%s model=%s replica=%s dialect=%s outcome=%s status=%d ttft_s=%s duration_s=%.3f"
            " prompt_tokens=%s output_tokens=%s",
            exchange.request_id,
            exchange.caller or "-",
            done.model,
            done.replica,
            done.dialect,
            done.outcome,
            done.status,
            "-" if done.ttft_s is None else f"{done.ttft_s:.3f}",
            done.duration_s,
            done.usage.prompt_tokens,
            done.usage.output_tokens,
        )


async def _relay_rest(answer: Answer, exchange: Exchange, meter: Meter, watch: Watch, send: Send) -> None:
    """Bytes go out as they come in. A failure now can only be told inside the stream."""
    try:
        while data := await answer.read_some():
            forward = meter.feed(data)
            if forward:
                await send({"type": "http.response.body", "body": forward, "more_body": True})
        if meter.error is not None:
            exchange.outcome = "broken"
        last = meter.rest()
    except UpstreamError as error:
        exchange.outcome = "broken"
        fault = _broken(exchange, error, "during the answer")
        # half an event that the meter still holds is dropped: glued to the error it would hide it from the SDK
        last = fault_event(exchange.endpoint.dialect, fault, exchange.request_id)
    watch.is_over = True
    await send({"type": "http.response.body", "body": last})


async def _first_bytes(answer: Answer, meter: Meter) -> bytes:
    while data := await answer.read_some():
        if forward := meter.feed(data):
            return forward
    return meter.rest()


def _check_begun(first: bytes, meter: Meter) -> None:
    """Raise UpstreamError for a stream that is empty or opens with an error: the caller has seen nothing of it yet."""
    if not first:
        raise BrokenError("its stream ended without a single event")
    if meter.error is None or meter.first_token_s is not None:
        return
    if meter.error_status is not None and meter.error_status < 500:
        raise AnswerError(Fault(meter.error_status, meter.error))
    raise BrokenError(meter.error)


def _engine_fault(replica: Replica, status: int, body: bytes) -> Fault:
    """An engine's refusal as the caller may see it; a refusal of our own key is not about the caller's."""
    fault = read_fault(status, body)
    if status in (401, 403):
        message = f"{replica.name} does not accept the key the gateway has for it (HTTP {status}: {fault.message})"
        return Fault(502, message, code="engine_refused_key", should_retry=False)
    return fault


def _broken(exchange: Exchange, error: UpstreamError, when: str) -> Fault:
    """What the caller is told; where the engine listens and how the connection ended is for the log."""
    _log.error("%s: %s failed %s: %s", exchange.request_id, exchange.replica, when, error)
    return Fault(502, f"the engine failed {when}", code="engine_failed", retry_after_s=1)


def _worth_another(error: UpstreamError) -> bool:
    return not isinstance(error, AnswerError) or error.fault.status in _ELSEWHERE


def _upstream_headers(exchange: Exchange, headers: list[Header]) -> dict[str, str]:
    """What the engine gets to see: never the caller's key, nor vLLM's own control headers (X-Vllm-Priority, ...)."""
    forwarded = {name.decode(): value.decode("latin-1") for name, value in headers if name in _FORWARDED}
    return {"content-type": "application/json", **forwarded, "x-request-id": exchange.request_id}


def _returned(answer: Answer) -> list[Header]:
    return [(name.lower(), value) for name, value in answer.headers if name.lower() not in _NOT_RETURNED]


async def _start(exchange: Exchange, status: int, headers: list[Header], send: Send) -> None:
    exchange.response_started = True
    exchange.status = status
    ours = exchange.headers()
    names = {name for name, _ in ours}
    kept = [(name, value) for name, value in headers if name not in names]
    if any(value.startswith(b"text/event-stream") for name, value in kept if name == b"content-type"):
        kept = [(name, value) for name, value in kept if name not in (b"cache-control", b"x-accel-buffering")]
        kept += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]  # proxies in front must not collect
    await send({"type": "http.response.start", "status": status, "headers": [*kept, *ours]})


async def _send_fault(exchange: Exchange, fault: Fault, send: Send) -> None:
    """Answer with an error in the caller's dialect; after the first byte there is only the connection to close."""
    if exchange.response_started:
        return
    body = fault_body(exchange.endpoint.dialect, fault, exchange.request_id)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await _start(exchange, fault.status, [*headers, *fault_headers(fault)], send)
    await send({"type": "http.response.body", "body": body})
