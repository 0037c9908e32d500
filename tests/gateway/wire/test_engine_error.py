"""What engines say of their failures, of every shape that was seen, and what the caller is told."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import (
    DIALECTS,
    Dialect,
    EventSplitter,
    Fault,
    own_error_event,
    read_event,
    read_event_fault,
    read_fault,
)
from tests.gateway.harness import golden

RID = "req_1"


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
            _error(
                message="1 validation error:\n  {'type': 'missing', 'loc': 'body.max_tokens', 'msg': 'Field required',"
                " 'input': '<dict of 2 items>'}",
                type="Bad Request",
                param="body.max_tokens",
                code=400,
            ),
            Fault(400, "max_tokens: Field required", param="max_tokens"),
        ),
        (
            400,
            _error(
                message="2 validation errors:\n"
                "  {'type': 'string_type', 'loc': 'body.prompt', 'msg': 'Input should be a string', 'input': '5'}\n"
                "  {'type': 'x', 'loc': 'body.messages', 'msg': \"Don't\", 'input': '<dict of 2 items>'}",
                type="Bad Request",
                param="body.prompt",
                code=400,
            ),
            Fault(400, "prompt: Input should be a string; messages: Don't", param="prompt"),
        ),
        (
            400,
            _error(
                message="1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
                type="Bad Request",
                param=None,
                code=400,
            ),
            Fault(400, "1 validation error: Unsupported Media Type: Only 'application/json' is allowed"),
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
        (
            501,
            _error(message="The model does not support this API", type="NotImplementedError", param=None, code=501),
            Fault(501, "The model does not support this API", should_retry=False),
        ),
        (
            503,
            _error(message="engine is currently busy", code=503),
            Fault(503, "engine is currently busy", retry_after_s=1),
        ),
        # others
        (
            422,
            json.dumps(
                {"detail": [{"loc": ["body", "messages", 0], "msg": "Field required", "type": "missing"}]}
            ).encode(),
            Fault(422, "messages.0: Field required", param="messages.0"),
        ),
        (422, b'{"detail":[]}', Fault(422, "the engine answered 422 without a reason")),
        (422, b'{"detail":[3,{"msg":"odd"}]}', Fault(422, "odd")),
        (400, b'{"detail":"plain words"}', Fault(400, "plain words")),
        (404, _error(message="no such thing"), Fault(404, "no such thing", code="not_found")),
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
        (500, b"Internal Server Error", Fault(500, "Internal Server Error")),
        (502, b"<html>\n<h1>Bad   gateway</h1>\n</html>", Fault(502, "<html> <h1>Bad gateway</h1> </html>")),
        (500, b"\xff\xfe", Fault(500, "\ufffd\ufffd")),
    ],
)
def test_engine_errors_of_every_shape_are_read(status: int, body: bytes, fault: Fault) -> None:
    assert read_fault(status, body) == fault


def test_an_api_that_the_engine_does_not_have_is_said_in_words() -> None:
    fault = read_fault(404, b'{"detail":"Not Found"}')  # vLLM has rerank, score or audio only for models of that kind
    assert (fault.status, fault.code) == (404, "unknown_url")
    assert "does not serve this API" in fault.message


def test_a_response_that_the_engine_did_not_keep_says_what_it_takes() -> None:
    fault = read_fault(404, _error(message="Response with id 'resp_x' not found.", param="response_id", code=404))
    assert fault.code == "response_not_found"
    assert fault.message.startswith("Response with id 'resp_x' not found; ")
    assert "VLLM_ENABLE_RESPONSES_API_STORE=1" in fault.message


def test_an_endless_error_page_is_cut_and_so_is_an_endless_list() -> None:
    assert len(read_fault(500, b"x" * 100_000).message) == 500
    rows = [{"loc": ["body", "input", i], "msg": "no"} for i in range(9)]
    fault = read_fault(400, json.dumps({"detail": rows}).encode())
    assert fault.message == "input.0: no; input.1: no; input.2: no; input.3: no; input.4: no; and 4 more"


@pytest.mark.parametrize(
    ("headers", "seconds", "again"),
    [
        ([], 1, None),
        ([(b"retry-after", b"17"), (b"x-should-retry", b"true")], 17, True),
        ([(b"retry-after", b"Wed, 21 Oct 2026 07:28:00 GMT"), (b"x-should-retry", b"maybe")], 1, None),
        ([(b"retry-after", b"-3")], 1, None),
    ],
)
def test_what_the_engine_says_about_coming_back_counts(
    headers: list[tuple[bytes, bytes]], seconds: int, again: bool | None
) -> None:
    fault = read_fault(503, b"", headers)
    assert (fault.retry_after_s, fault.should_retry) == (seconds, again)


# Inside a stream
@pytest.mark.parametrize("dialect", ["chat", "completions", "messages"])
def test_the_error_event_of_an_engine_that_died_is_the_dialects_own(dialect: Dialect) -> None:
    """Recorded from vLLM 0.32 whose EngineCore was killed; its responses stream just ends."""
    broken = [e for e in EventSplitter().feed(golden(f"{dialect}_died")) if read_event(dialect, e).error]
    (event,) = broken
    own = own_error_event(dialect, event, RID)
    payload = json.loads(own.partition(b"data: ")[2])
    if dialect == "messages":
        error = {"type": "api_error", "message": "the engine failed during the answer"}
        assert own.startswith(b"event: error\ndata: ")
        assert payload == {"type": "error", "error": error, "request_id": RID}
    else:
        assert own.startswith(b"data: ")
        assert (payload["error"]["type"], payload["error"]["code"]) == ("server_error", None)
        assert payload["error"]["message"].startswith("EngineCore encountered an issue.")
        assert payload["error"]["request_id"] == RID
    assert own.endswith(b"\n\n")
    assert own.count(b"\n\n") == 1


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        ({"error": {"message": "too long", "code": 400}}, Fault(400, "too long")),
        ({"error": {"message": "busy", "code": 503}}, Fault(503, "busy", retry_after_s=1)),
        ({"error": {"message": "x", "code": "server_error"}}, Fault(500, "x", code="server_error")),
        ({"error": "words"}, Fault(500, "words")),
        ({"type": "error", "message": "m", "code": "c", "param": "p"}, Fault(500, "m", code="c", param="p")),
        ({"type": "response.failed", "response": {"error": {"message": "m", "code": "c"}}}, Fault(500, "m", code="c")),
        ({"error": {"code": 7}}, Fault(500, "the engine answered 500 without a reason")),
    ],
)
def test_error_events_of_every_shape_are_read(payload: dict[str, Any], fault: Fault) -> None:
    assert read_event_fault(b"data: " + json.dumps(payload).encode() + b"\n\n") == fault


def test_an_openai_error_in_a_responses_stream_becomes_an_event_of_that_api() -> None:
    own = own_error_event("responses", b'data: {"error":{"message":"m","type":"T","param":null,"code":500}}\n\n', RID)
    assert own.startswith(b"event: error\ndata: ")
    assert json.loads(own.partition(b"data: ")[2]) == {
        "type": "error",
        "code": None,
        "message": "m",
        "param": None,
        "request_id": RID,
    }


def test_a_failed_response_is_that_apis_own_word_already() -> None:
    event = b'event: response.failed\ndata: {"type":"response.failed","response":{"error":{"message":"m"}}}\n\n'
    assert own_error_event("responses", event, RID) == event


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_we_write_our_own_reader_takes_for_an_error(dialect: Dialect) -> None:
    own = own_error_event(dialect, b'data: {"error":{"message":"m","code":500}}\n\n', RID)
    assert read_event(dialect, own).error == "m"


@given(
    st.integers(400, 599),
    st.binary(max_size=60) | st.text(alphabet='{}[]":,detailerromsg0', max_size=40).map(str.encode),
)
def test_no_bytes_whatever_make_reading_fail(status: int, body: bytes) -> None:
    fault = read_fault(status, body)
    assert fault.status == status
    assert fault.message
    assert "\n" not in fault.message
    read_event_fault(b"data: " + body + b"\n\n")
