"""Turns tracing on when it was asked for and the `otel` extra is installed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from gateway.app import VERSION
from gateway.ledger import Reader
from gateway.tracing import Tracing
from serving.door_config import TracingSection
from serving.environment import Environment
from serving.errors import ConfigError

_log = logging.getLogger("berth.serving")
_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
_EXPORT_S = 3.0  # a collector that is away holds up the end of the process for twice as long at most
_REMEDY = "needs the otel extra: pip install 'berth[otel]'"


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What a gateway is given for it: both empty without."""

    tracing: Tracing | None = None
    readers: tuple[Reader, ...] = ()


@contextmanager
def telemetry(section: TracingSection, environment: Environment) -> Iterator[Telemetry]:
    """Tracing while the block runs; what is left is sent at its end. Raises ConfigError when it cannot be had."""
    endpoint = section.endpoint or environment.otlp_endpoint
    if endpoint is None:
        yield Telemetry()
        return
    if not _is_installed():
        if section.endpoint:
            raise ConfigError(f"gateway.tracing.endpoint {_REMEDY}")
        _log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but tracing %s", _REMEDY)
        yield Telemetry()
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from gateway.spans import Spans

    address = f"{endpoint.rstrip('/')}/v1/traces" if section.endpoint else None  # else the exporter reads its variables
    exporter = OTLPSpanExporter(endpoint=address, timeout=_EXPORT_S)
    spans = Spans(BatchSpanProcessor(exporter), VERSION)
    try:
        yield Telemetry(Tracing(section.sample_ratio), (spans.write,))
    finally:
        spans.close()


def _is_installed() -> bool:
    try:
        return all(find_spec(module) is not None for module in _NEEDED)
    except ModuleNotFoundError:  # a parent of one
        return False
