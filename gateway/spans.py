"""One OpenTelemetry span for each finished request, under the names of the GenAI semantic conventions.

https://opentelemetry.io/docs/specs/semconv/gen-ai/ .
Needs the `otel` extra: nothing imports this module unless tracing is on.

Spans are made after the fact: their ids were given with the request (`gateway.tracing`), their times are in the
settlement. Prompts and answers are in none of them.
"""

from collections.abc import Sequence
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from gateway.settlement import NOBODY, Settlement
from gateway.tracing import Trace
from gateway.wire import Dialect

_OPERATIONS: dict[str, str] = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
Value = str | bool | int | float


class _GivenIds(IdGenerator):
    """Hands out the ids that the request already went by."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class Spans:
    """A reader of settlements; `processor` takes the spans on. Which are sampled was decided with the request."""

    def __init__(self, processor: SpanProcessor, version: str) -> None:
        self._ids = _GivenIds()
        resource = Resource.create({SERVICE_NAME: "berth-gateway", SERVICE_VERSION: version})
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("berth.gateway", version)

    def write(self, batch: Sequence[Settlement], offset_s: float) -> None:
        """Make the spans of a batch; `offset_s` turns the gateway's clock into seconds since 1970."""
        for done in batch:
            if done.trace is not None and done.trace.is_sampled:
                self._make(done, done.trace, offset_s)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _make(self, done: Settlement, trace: Trace, offset_s: float) -> None:
        self._ids.trace_id, self._ids.span_id = int(trace.trace_id, 16), int(trace.span_id, 16)
        parent = _context(trace.trace_id, trace.parent_id) if trace.parent_id else None
        operation = _operation(done.dialect)
        span = self._tracer.start_span(
            operation if done.model == NOBODY else f"{operation} {done.model}",
            context=set_span_in_context(NonRecordingSpan(parent)) if parent else None,
            kind=SpanKind.SERVER,
            attributes=attributes(done),
            start_time=_nanoseconds(done.arrived_s + offset_s),
        )
        _add_events(span, done, offset_s)
        if done.outcome == "broken" or (done.outcome != "client_gone" and done.status >= 500):
            span.set_status(Status(StatusCode.ERROR))
        span.end(_nanoseconds(done.ended_s + offset_s))


def attributes(done: Settlement) -> dict[str, Value]:
    """What a span says. What is not known is left out."""
    known = done.model != NOBODY
    host, port = _host_and_port(done.url) if done.url else (None, None)
    found: dict[str, Value | None] = {
        "gen_ai.operation.name": _operation(done.dialect),
        "gen_ai.provider.name": "berth",
        "gen_ai.request.model": done.model if known else None,
        "gen_ai.request.stream": done.stream if known else None,
        "gen_ai.usage.input_tokens": done.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": done.usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": done.usage.cached_tokens,
        "gen_ai.server.time_to_first_token": done.ttft_s,
        "gen_ai.server.time_per_output_token": done.tpot_s,
        "server.address": host,
        "server.port": port,
        "http.response.status_code": done.status,
        "error.type": None if done.outcome == "ok" else done.outcome,
        "berth.request_id": done.request_id,
        "berth.caller": done.caller or None,
        "berth.replica": None if done.replica == NOBODY else done.replica,
        "berth.outcome": done.outcome,
    }
    return {name: value for name, value in found.items() if value is not None}


def _operation(dialect: Dialect) -> str:
    """As the conventions call it; where they have no word, ours."""
    return _OPERATIONS.get(dialect, dialect)


def _add_events(span: Span, done: Settlement, offset_s: float) -> None:
    for move in done.moves:
        told: dict[str, Value] = {"berth.replica": move.replica, "error.message": move.reason}
        span.add_event(f"berth.{move.kind}", told, _nanoseconds(move.at_s + offset_s))
    if done.ttft_s is not None:
        span.add_event("berth.first_token", None, _nanoseconds(done.arrived_s + done.ttft_s + offset_s))


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _nanoseconds(wall_s: float) -> int:
    return round(wall_s * 1_000_000) * 1000  # a float of today's date is good for a microsecond


def _host_and_port(url: str) -> tuple[str | None, int | None]:
    """Of a Unix socket its path, as the conventions have it."""
    if url.startswith("unix:"):
        return url.removeprefix("unix:"), None
    parts = urlsplit(url)
    return parts.hostname, parts.port
