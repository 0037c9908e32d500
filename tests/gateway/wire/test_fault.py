import json
from typing import Any

import pytest

from gateway.wire import DIALECTS, Dialect, Fault, fault_body, fault_event, fault_headers, read_event, read_fault

_FAULT = Fault(400, "what is wrong", code="some_code", param="some.param")


@pytest.mark.parametrize(
    ("status", "openai", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (403, "permission_error", "permission_error"),
        (404, "not_found_error", "not_found_error"),
        (405, "invalid_request_error", "invalid_request_error"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (502, "server_error", "api_error"),
        (503, "server_error", "overloaded_error"),
    ],
)
def test_error_types_by_status(status: int, openai: str, anthropic: str) -> None:
    fault = Fault(status, "x")
    assert json.loads(fault_body("chat", fault, "req_1"))["error"]["type"] == openai
    assert json.loads(fault_body("messages", fault, "req_1"))["error"]["type"] == anthropic


@pytest.mark.parametrize("dialect", [d for d in DIALECTS if d != "messages"])
def test_openai_body(dialect: Dialect) -> None:
    assert json.loads(fault_body(dialect, _FAULT, "req_1")) == {
        "error": {
            "message": "what is wrong",
            "type": "invalid_request_error",
            "param": "some.param",
            "code": "some_code",
        }
    }


def test_anthropic_body() -> None:
    assert json.loads(fault_body("messages", _FAULT, "req_1")) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "what is wrong"},
        "request_id": "req_1",
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_event_that_ends_a_broken_stream_is_read_as_an_error_by_our_own_reader(dialect: Dialect) -> None:
    event = fault_event(dialect, _FAULT, "req_1")
    assert event.endswith(b"\n\n")
    assert read_event(dialect, event).error == "what is wrong"


def test_headers_say_when_and_whether_to_retry() -> None:
    assert fault_headers(_FAULT) == []
    assert fault_headers(Fault(503, "x", retry_after_s=5)) == [(b"retry-after", b"5")]
    assert fault_headers(Fault(413, "x", should_retry=False)) == [(b"x-should-retry", b"false")]


def _error(**fields: Any) -> bytes:
    return json.dumps({"error": fields}).encode()


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        # as a real vLLM 0.32 sends them
        (
            400,
            _error(message="temperature must be non-negative", type="BadRequestError", param="temperature", code=400),
            Fault(400, "temperature must be non-negative", param="temperature"),
        ),
        (
            400,
            _error(message="1 validation error", type="Bad Request", param="body.temperature", code=400),
            Fault(400, "1 validation error", param="temperature"),
        ),
        (
            400,
            _error(message="This model's maximum context length is 2048 tokens.", param="input_tokens", code=400),
            Fault(
                400,
                "This model's maximum context length is 2048 tokens.",
                code="context_length_exceeded",
                param="input_tokens",
            ),
        ),
        (
            400,
            _error(message="max_tokens=5000 cannot be greater than max_model_len=2048.", param="max_tokens", code=400),
            Fault(
                400,
                "max_tokens=5000 cannot be greater than max_model_len=2048.",
                code="context_length_exceeded",
                param="max_tokens",
            ),
        ),
        (
            404,
            _error(message="The model `x` does not exist.", type="NotFoundError", param="model", code=404),
            Fault(404, "The model `x` does not exist.", code="model_not_found", param="model"),
        ),
        (
            400,
            json.dumps({"type": "error", "error": {"type": "BadRequestError", "message": "no"}}).encode(),
            Fault(400, "no"),
        ),
        (401, b'{"error":"Unauthorized"}', Fault(401, "Unauthorized")),
        (404, b'{"detail":"Not Found"}', Fault(404, "Not Found", code="not_found")),
        (
            503,
            _error(message="engine is currently busy", code=503),
            Fault(503, "engine is currently busy", retry_after_s=1),
        ),
        # others
        (
            429,
            _error(message="slow down", code="rate_limit_exceeded"),
            Fault(429, "slow down", "rate_limit_exceeded", retry_after_s=1),
        ),
        (400, _error(message=None, param=3, code="400"), Fault(400, "the engine answered 400 without a reason")),
        (500, b'{"error":null,"message":"flat"}', Fault(500, "flat")),
        (500, b"{}", Fault(500, "the engine answered 500 without a reason")),
        (500, b"[]", Fault(500, "the engine answered 500 without a reason")),
        (500, b"", Fault(500, "the engine answered 500 without a reason")),
        (502, b"<html>\n<h1>Bad   gateway</h1>\n</html>", Fault(502, "<html> <h1>Bad gateway</h1> </html>")),
        (500, b"\xff\xfe", Fault(500, "\ufffd\ufffd")),
    ],
)
def test_engine_errors_of_every_shape_are_read(status: int, body: bytes, fault: Fault) -> None:
    assert read_fault(status, body) == fault


def test_an_endless_error_page_is_cut() -> None:
    assert len(read_fault(500, b"x" * 100_000).message) == 500
