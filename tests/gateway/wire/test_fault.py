import json

import pytest

from gateway.wire import DIALECTS, Dialect, Fault, fault_body, fault_event, fault_headers, read_event

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
        (402, "invalid_request_error", "billing_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (502, "server_error", "api_error"),
        (503, "server_error", "overloaded_error"),
        (504, "server_error", "timeout_error"),
        (529, "server_error", "overloaded_error"),
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
    assert b'"request_id":"req_1"' in event


def test_headers_say_when_and_whether_to_retry() -> None:
    assert fault_headers(_FAULT) == []
    assert fault_headers(Fault(503, "x", retry_after_s=5)) == [(b"retry-after", b"5")]
    assert fault_headers(Fault(413, "x", should_retry=False)) == [(b"x-should-retry", b"false")]
