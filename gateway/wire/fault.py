"""Faults in each dialect's own shape.

Shapes: https://platform.openai.com/docs/guides/error-codes and https://docs.anthropic.com/en/api/errors. Both SDKs obey
`x-should-retry` before their own rules and wait `retry-after` seconds, so each fault says both where it matters.
"""

from dataclasses import dataclass
from typing import Final

import orjson

from gateway.wire.dialect import Dialect

_OPENAI_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One refusal or failure, dialect-free. `message` is one line: what, where, and the way out."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None
    should_retry: bool | None = None


def _openai_error(fault: Fault) -> dict[str, object]:
    kind = _OPENAI_TYPES.get(fault.status, "server_error" if fault.status >= 500 else "invalid_request_error")
    return {"message": fault.message, "type": kind, "param": fault.param, "code": fault.code}


def _anthropic_error(fault: Fault) -> dict[str, object]:
    kind = _ANTHROPIC_TYPES.get(fault.status, "api_error" if fault.status >= 500 else "invalid_request_error")
    return {"type": kind, "message": fault.message}


def fault_body(dialect: Dialect, fault: Fault, request_id: str) -> bytes:
    """The JSON body of an unstreamed error answer."""
    if dialect == "messages":
        return orjson.dumps({"type": "error", "error": _anthropic_error(fault), "request_id": request_id})
    return orjson.dumps({"error": _openai_error(fault)})


def fault_event(dialect: Dialect, fault: Fault, request_id: str) -> bytes:
    """The event that ends a stream which broke after its first byte, as the dialect's SDK raises it.

    The request id is in each: an exception raised from within a stream has no headers to look it up in.
    """
    if dialect == "messages":
        return b"event: error\ndata: " + fault_body(dialect, fault, request_id) + b"\n\n"
    payload: dict[str, object]
    if dialect == "responses":
        payload = {"type": "error", "code": fault.code, "message": fault.message, "param": fault.param}
        return b"event: error\ndata: " + orjson.dumps({**payload, "request_id": request_id}) + b"\n\n"
    payload = {"error": {**_openai_error(fault), "request_id": request_id}}
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def fault_headers(fault: Fault) -> list[tuple[bytes, bytes]]:
    """The headers that tell an SDK whether and when to try again."""
    headers = []
    if fault.retry_after_s is not None:
        headers.append((b"retry-after", str(fault.retry_after_s).encode()))
    if fault.should_retry is not None:
        headers.append((b"x-should-retry", b"true" if fault.should_retry else b"false"))
    return headers
