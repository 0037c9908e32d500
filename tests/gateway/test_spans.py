"""Spans as a collector gets them, through OpenTelemetry's own SDK."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.replica import Replica
from gateway.settlement import NOBODY, Move, Outcome, Settlement
from gateway.spans import Spans, attributes
from gateway.tracing import Tracing, parent_of
from gateway.wire import DIALECTS, Usage
from tests.fake_engine import FakeEngine, Script, chat_stream
from tests.gateway.harness import PATHS, Door, body_for, opened, wait_until
from tests.gateway.settling import DONE, TRACE, settled

CALLERS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WALL_S = 1_700_000_000.0


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[Spans]:
    made = Spans(SimpleSpanProcessor(exporter), "1.2.3")
    yield made
    made.close()


def _one(spans: Spans, exporter: InMemorySpanExporter, done: Settlement) -> ReadableSpan:
    spans.write([done], WALL_S)
    (span,) = exporter.get_finished_spans()
    return span


def test_a_span_has_the_ids_and_times_of_its_request(spans: Spans, exporter: InMemorySpanExporter) -> None:
    span = _one(spans, exporter, settled(trace=TRACE))
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}") == (TRACE.trace_id, TRACE.span_id)
    assert f"{span.parent.span_id:016x}" == TRACE.parent_id
    assert span.parent.is_remote
    assert (span.start_time, span.end_time) == (1_700_000_100_000_000_000, 1_700_000_102_500_000_000)
    assert (span.name, span.kind, span.status.status_code) == ("chat m", SpanKind.SERVER, StatusCode.UNSET)
    assert span.resource.attributes["service.name"] == "berth-gateway"
    assert [(event.name, event.timestamp) for event in span.events] == [
        ("berth.first_token", 1_700_000_100_500_000_000)
    ]


def test_the_first_span_of_a_trace_has_no_parent(spans: Spans, exporter: InMemorySpanExporter) -> None:
    assert _one(spans, exporter, settled(trace=TRACE._replace(parent_id=None))).parent is None


def test_what_is_not_sampled_or_not_traced_makes_no_span(spans: Spans, exporter: InMemorySpanExporter) -> None:
    spans.write([DONE, settled(trace=TRACE._replace(is_sampled=False))], WALL_S)
    assert exporter.get_finished_spans() == ()


def test_moves_are_events(spans: Spans, exporter: InMemorySpanExporter) -> None:
    moves = (Move("retry", 100.25, "m/1", "no answer"), Move("continuation", 101.0, "m/2", "gone"))
    events = _one(spans, exporter, settled(trace=TRACE, moves=moves, ttft_s=None)).events
    assert [(event.name, event.timestamp, dict(event.attributes or {})) for event in events] == [
        ("berth.retry", 1_700_000_100_250_000_000, {"berth.replica": "m/1", "error.message": "no answer"}),
        ("berth.continuation", 1_700_000_101_000_000_000, {"berth.replica": "m/2", "error.message": "gone"}),
    ]


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        ("ok", 200, StatusCode.UNSET),
        ("broken", 200, StatusCode.ERROR),
        ("engine_error", 400, StatusCode.UNSET),
        ("engine_error", 503, StatusCode.ERROR),
        ("refused", 401, StatusCode.UNSET),
        ("refused", 503, StatusCode.ERROR),
        ("client_gone", 499, StatusCode.UNSET),
    ],
)
def test_an_error_is_ours_not_the_callers(
    spans: Spans, exporter: InMemorySpanExporter, outcome: Outcome, status: int, code: StatusCode
) -> None:
    span = _one(spans, exporter, settled(trace=TRACE, outcome=outcome, status=status))
    assert span.status.status_code is code
    assert (span.attributes or {}).get("error.type") == (None if outcome == "ok" else outcome)


def test_attributes_by_the_names_of_the_conventions() -> None:
    assert attributes(DONE) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "berth",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": True,
        "gen_ai.usage.input_tokens": 70,
        "gen_ai.usage.output_tokens": 9,
        "gen_ai.usage.cache_read.input_tokens": 64,
        "gen_ai.server.time_to_first_token": 0.5,
        "gen_ai.server.time_per_output_token": 0.25,
        "server.address": "10.0.0.5",
        "server.port": 8001,
        "http.response.status_code": 200,
        "berth.request_id": "req_1",
        "berth.caller": "alice",
        "berth.replica": "m/0",
        "berth.outcome": "ok",
    }


def test_what_is_not_known_is_left_out() -> None:
    nothing = settled(
        caller="",
        model=NOBODY,
        replica=NOBODY,
        url="",
        ttft_s=None,
        tpot_s=None,
        usage=Usage(),
        outcome="refused",
        status=401,
    )
    assert attributes(nothing) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "berth",
        "http.response.status_code": 401,
        "error.type": "refused",
        "berth.request_id": "req_1",
        "berth.outcome": "refused",
    }


def test_an_engine_on_a_unix_socket_is_addressed_by_its_path() -> None:
    found = attributes(settled(url="unix:/run/berth/0.sock"))
    assert found["server.address"] == "/run/berth/0.sock"
    assert "server.port" not in found


def test_every_dialect_has_an_operation() -> None:
    named = {dialect: attributes(settled(dialect=dialect))["gen_ai.operation.name"] for dialect in DIALECTS}
    assert named["completions"] == "text_completion"
    assert named["messages"] == named["responses"] == named["chat"] == "chat"
    assert named["embeddings"] == "embeddings"


def test_the_engine_is_told_of_our_span_and_the_caller_is_its_parent(
    fake: FakeEngine, second: FakeEngine, spans: Spans, exporter: InMemorySpanExporter
) -> None:
    gateway = Gateway(GatewayConfig(probe_interval_s=0.05), readers=[spans.write], tracing=Tracing())
    gateway.add(Replica("e0", fake.url))
    gateway.add(Replica("e1", second.url))
    fake.enqueue(Script(ending="drop"))
    second.enqueue(chat_stream())
    with opened(gateway) as door:
        door.wait_ready()
        answer = door.post(PATHS["chat"], body_for("chat", stream=True), traceparent=CALLERS, tracestate="a=b")
        assert answer.status_code == 200
        _traced(door, fake, second, exporter)


def _traced(door: Door, first: FakeEngine, second: FakeEngine, exporter: InMemorySpanExporter) -> None:
    wait_until(exporter.get_finished_spans)
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    assert span.parent is not None
    for engine in (first, second):  # the retry goes by the same span
        told = {name.lower(): value for name, value in engine.seen[0].headers.items()}
        parent = parent_of([(b"traceparent", told["traceparent"].encode())])
        assert parent is not None
        assert int(parent.span_id, 16) == span.context.span_id
        assert told["tracestate"] == "a=b"
    assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == CALLERS[3:-3]
    assert [event.name for event in span.events] == ["berth.retry", "berth.first_token"]
    assert (span.attributes or {})["server.address"] == "127.0.0.1"


def test_without_tracing_the_callers_headers_go_on_as_they_came(fake: FakeEngine, door: Door) -> None:
    door.post(PATHS["chat"], body_for("chat"), traceparent=CALLERS, tracestate="a=b")
    told = {name.lower(): value for name, value in fake.seen[0].headers.items()}
    assert (told["traceparent"], told["tracestate"]) == (CALLERS, "a=b")


def test_a_request_that_is_refused_has_its_span_too(exporter: InMemorySpanExporter, spans: Spans) -> None:
    gateway = Gateway(GatewayConfig(), readers=[spans.write], tracing=Tracing())
    with opened(gateway) as door:
        assert door.post(PATHS["messages"], content=b"{").status_code == 400
        wait_until(exporter.get_finished_spans)
    (span,) = exporter.get_finished_spans()
    assert (span.name, (span.attributes or {})["http.response.status_code"]) == ("chat", 400)
