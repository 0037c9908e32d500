"""What an engine says of its failures, whole answers and events of a stream alike -> Fault.

vLLM sends int codes and types such as "BadRequestError", OpenAI envelopes on `/v1/messages`, `{"error": "text"}` from
its key check, `{"detail": ...}` from FastAPI, Python's own notation of validation errors, and 503 without Retry-After.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from gateway.wire.dialect import Dialect
from gateway.wire.fault import Fault, fault_event
from gateway.wire.sse import event_data

_CONTEXT_MARKS: Final[tuple[str, ...]] = (
    *("maximum context length", "max_model_len", "longer than the maximum model length"),
)
_VALIDATION: Final = re.compile(r"\d+ validation errors?:\s")
_ONE_ERROR: Final = re.compile(r"""'loc': '([^']*)', 'msg': (?:'([^']*)'|"([^"]*)")""")
_MOST_TOLD: Final = 5
_INNER_CRASH: Final = re.compile(r"validation errors? for \w+StreamResponse")
_NO_ROUTE: Final = (
    "the engine of this model does not serve this API (it needs a model of another kind, or another engine option)"
)
_NOT_KEPT: Final = (
    "; an engine keeps responses in its memory, until it restarts, and only when it was started with"
    " VLLM_ENABLE_RESPONSES_API_STORE=1 (off by default) and the response was not made with store=false"
)


@dataclass(frozen=True, slots=True)
class _Told:
    """What can be read in an error, as far as it is there and of the right type."""

    message: str = ""
    param: str | None = None
    code: str | None = None
    status: int | None = None


def read_fault(status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> Fault:
    """Read an engine's error answer, whatever its shape; `headers` of it, in lower case, say when to come back."""
    return _fault(status, _told(body), headers)


def read_event_fault(event: bytes) -> Fault:
    """Read the event with which an engine gave up its stream; the status is the one it would have answered with."""
    told = _told(event_data(event) or b"")
    if _INNER_CRASH.search(told.message):  # vLLM's messages API trips over the error of its own chat API
        told = _Told("the engine failed during the answer", status=500)
    return _fault(told.status or 500, told)


def own_error_event(dialect: Dialect, event: bytes, request_id: str) -> bytes:
    """An engine's error event as the dialect's SDKs raise it; an event that is the dialect's own stays as it is.

    vLLM sends int codes into chat streams and types that Anthropic does not have into those of messages.
    """
    if dialect == "responses" and b"response.failed" in event:
        return event
    return fault_event(dialect, read_event_fault(event), request_id)


def _fault(status: int, told: _Told, headers: Iterable[tuple[bytes, bytes]] = ()) -> Fault:
    message, code, param = told.message or f"the engine answered {status} without a reason", told.code, told.param
    if status == 404 and message == "Not Found":
        message, code = _NO_ROUTE, code or "unknown_url"
    elif status == 404 and param == "response_id":
        message, code = message.rstrip(".") + _NOT_KEPT, code or "response_not_found"
    elif status == 404:
        code = code or ("model_not_found" if param == "model" else "not_found")
    elif status == 400 and any(mark in message for mark in _CONTEXT_MARKS):
        code = code or "context_length_exceeded"
    retry_after_s = 1 if status in (429, 503) else None
    should_retry = False if status == 501 else None  # SDKs repeat every 5xx, but what is not there will not come
    for name, value in headers:
        if name == b"retry-after" and value.isdigit():
            retry_after_s = int(value[:6])
        elif name == b"x-should-retry" and value in (b"true", b"false"):
            should_retry = value == b"true"
    return Fault(status, message, code, param, retry_after_s, should_retry)


def _told(body: bytes) -> _Told:
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError:
        return _Told(" ".join(body[:500].decode("utf-8", "replace").split()))
    if not isinstance(payload, dict):
        return _Told()
    detail = payload.get("detail")
    if isinstance(detail, list):
        return _of_fastapi(detail)
    response = payload.get("response")
    error = payload.get("error") or (response.get("error") if isinstance(response, dict) else None) or detail
    if not isinstance(error, dict):
        if error or not payload.get("message"):
            return _Told(str(error or ""))
        error = payload  # the Responses API's own event carries everything at its top
    param, code, status = error.get("param"), error.get("code"), error.get("code")
    return _Told(
        _in_plain_words(str(error.get("message") or "")),
        param.removeprefix("body.") if isinstance(param, str) else None,
        code if isinstance(code, str) and not code.isdecimal() else None,
        status if isinstance(status, int) and status in range(400, 600) else None,
    )


def _of_fastapi(errors: list[Any]) -> _Told:
    """FastAPI's list of validation errors: `{"loc": ["body", "model"], "msg": "Field required"}` and so on."""
    told = []
    for error in errors:
        if isinstance(error, dict):
            loc = error.get("loc")
            where = ".".join(str(part) for part in loc) if isinstance(loc, list) else ""
            told.append((where.removeprefix("body."), str(error.get("msg") or "")))
    return _Told(_listed(told), param=told[0][0] or None if told else None)


def _in_plain_words(message: str) -> str:
    """One line; of vLLM's Python dictionaries only where and what."""
    if _VALIDATION.match(message):
        found = [(where.removeprefix("body."), one or other) for where, one, other in _ONE_ERROR.findall(message)]
        if found:
            return _listed(found)
    return " ".join(message.split())


def _listed(told: list[tuple[str, str]]) -> str:
    words = [f"{where}: {what}" if where else what for where, what in told[:_MOST_TOLD]]
    more = [f"and {len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else []
    return "; ".join(words + more)
