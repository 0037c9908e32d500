"""Spans from a gateway to a collector that listens, and what happens where they cannot be had."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serving import telemetry as telemetry_module
from serving.door_config import TracingSection
from serving.environment import Environment
from serving.errors import ConfigError
from serving.telemetry import telemetry
from tests.gateway.settling import TRACE, settled


@contextmanager
def _collector() -> Iterator[tuple[str, list[str]]]:
    """An OTLP/HTTP collector on loopback: its address, and the names of the spans it got."""
    names: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/v1/traces":
                spans = [span for rows in request.resource_spans for scope in rows.scope_spans for span in scope.spans]
                names.extend(f"{span.name} {span.span_id.hex()}" for span in spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", names
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("by_variable", [False, True])
def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch, by_variable: bool) -> None:
    with _collector() as (endpoint, names):
        if by_variable:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        section = TracingSection() if by_variable else TracingSection(endpoint=endpoint + "/")
        with telemetry(section, Environment()) as told:
            assert told.tracing is not None
            (write,) = told.readers
            write([settled(trace=TRACE)], 1_700_000_000.0)
    assert names == [f"chat m {TRACE.span_id}"]


def test_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with telemetry(TracingSection(), Environment()) as told:
        assert (told.tracing, told.readers) == (None, ())


def test_without_the_extra_a_variable_is_a_warning_and_a_setting_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="berth.serving")
    monkeypatch.setattr(telemetry_module, "_NEEDED", ("opentelemetry.no.such.module",))
    with telemetry(TracingSection(), Environment(otlp_endpoint="http://127.0.0.1:1")) as told:
        assert (told.tracing, told.readers) == (None, ())
    assert "pip install 'berth[otel]'" in caplog.text
    with (
        pytest.raises(ConfigError, match=r"needs the otel extra"),
        telemetry(TracingSection(endpoint="http://127.0.0.1:1"), Environment()),
    ):
        pytest.fail("it was let in")
