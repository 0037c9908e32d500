"""Every refusal, in the caller's own dialect, with the status, code and headers its SDK acts on."""

import json
import threading
from contextlib import ExitStack
from typing import Any

import httpx2
import psutil
import pytest

from gateway.identity import new_key
from gateway.wire import ENDPOINTS, Dialect
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, chat_stream, json_answer
from tests.gateway.harness import (
    PATHS,
    STREAMING,
    Door,
    body_for,
    door_before,
    receive_rest,
    receive_until,
    request_bytes,
    wait_until,
)

CHAT = PATHS["chat"]
JSON = [path for path, endpoint in ENDPOINTS.items() if endpoint.body == "json"]


def _check(answer: httpx2.Response, path: str, status: int, code: str | None = None) -> dict[str, Any]:
    """The error object, after checking that its shape is the dialect's."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"] == answer.headers["request-id"]
    assert answer.headers["x-request-id"].startswith("req_")
    body: dict[str, Any] = answer.json()
    error: dict[str, Any] = body["error"]
    assert error["message"]
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert body["request_id"] == answer.headers["request-id"]
        assert error.keys() == {"type", "message"}
    else:
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["code"] == code
    return error


@pytest.mark.parametrize("path", JSON)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_type"),
        (b"{}", None),
        (b'{"model":5}', None),
        (b'{"model":"fake","stream":"yes"}', None),
    ],
)
def test_a_body_that_cannot_be_read(fake: FakeEngine, door: Door, path: str, body: bytes, code: str | None) -> None:
    answer = door.post(path, content=body)
    _check(answer, path, 400, code)
    assert fake.seen == []
    assert door.is_at_rest


@pytest.mark.parametrize("path", JSON)
def test_an_unknown_model_is_a_404_that_lists_the_known_ones(fake: FakeEngine, door: Door, path: str) -> None:
    answer = door.post(path, {"model": "gpt-9"})
    error = _check(answer, path, 404, "model_not_found")
    assert "gpt-9" in error["message"]
    assert "available: fake" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert fake.seen == []


def test_stream_options_of_a_wrong_type(door: Door) -> None:
    error = _check(door.post(CHAT, {"model": "fake", "stream": True, "stream_options": 3}), CHAT, 400)
    assert error["param"] == "stream_options"


# 100 MB where 1 MB is allowed
_HUGE = 100 * 2**20


@pytest.mark.parametrize("path", [CHAT, PATHS["messages"]])
def test_a_body_announced_as_too_large_is_refused_before_it_is_sent(door: Door, path: str) -> None:
    with door.connection() as sock:
        sock.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {_HUGE}\r\n\r\n".encode())
        head = receive_until(sock, b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert b"x-should-retry: false" in head
    wait_until(lambda: door.is_at_rest)


@pytest.mark.parametrize("announced", [True, False], ids=["with its length", "chunked, without"])
def test_a_100_mb_body_is_refused_in_the_dialect_and_kept_nowhere(
    fake: FakeEngine, stack: ExitStack, announced: bool
) -> None:
    door = stack.enter_context(door_before(fake, max_body_bytes=2**20))
    process = psutil.Process()
    before, peak, piece = process.memory_info().rss, 0, b"x" * 2**16

    def pieces() -> Any:
        nonlocal peak
        for i in range(_HUGE // len(piece)):
            if i % 64 == 0:
                peak = max(peak, process.memory_info().rss)
            yield piece

    headers = {"content-length": str(_HUGE)} if announced else {}
    with door.client() as client:
        answer = client.post(PATHS["messages"], content=pieces(), headers=headers)
        error = _check(answer, PATHS["messages"], 413)
        assert error["type"] == "request_too_large"
        assert "max_body_mib" in error["message"]
        assert client.post(CHAT, json=body_for("chat", stream=True)).status_code == 200  # the connection lives on
    assert peak - before < 32 * 2**20
    assert len(fake.seen) == 1


def test_a_body_just_within_the_limit_is_taken(fake: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, max_body_bytes=2**20))
    head, tail = b'{"model":"fake","pad":"', b'"}'
    body = head + b"x" * (2**20 - len(head + tail)) + tail
    assert door.post(CHAT, content=body).status_code == 200
    assert fake.seen[0].body == body
    assert door.post(CHAT, content=body + b" ").status_code == 413


def test_a_large_body_reaches_the_engine_intact(fake: FakeEngine, door: Door) -> None:
    body = json.dumps({**body_for("chat"), "pad": "0123456789" * 2_000_000}).encode()
    assert door.post(CHAT, content=body).status_code == 200
    assert fake.seen[0].body == body
    assert fake.seen[0].headers["Content-Length"] == str(len(body))


# Keys
@pytest.mark.parametrize("path", JSON)
def test_keys_are_asked_for_and_taken_from_either_header(fake: FakeEngine, stack: ExitStack, path: str) -> None:
    key, stored = new_key("alice")
    door = stack.enter_context(door_before(fake, keys=(stored,)))
    body = body_for("chat")
    _check(door.post(path, body), path, 401, "missing_api_key")
    _check(door.post(path, body, authorization="Bearer wrong"), path, 401, "invalid_api_key")
    _check(door.post(path, body, x_api_key="wrong"), path, 401, "invalid_api_key")
    _check(door.post(path, body, authorization=f"Basic {key}"), path, 401, "missing_api_key")
    assert fake.seen == []
    assert door.post(path, body, authorization=f"Bearer {key}").status_code == 200
    assert door.post(path, body, authorization=f"bearer  {key}").status_code == 200
    assert door.post(path, body, x_api_key=key).status_code == 200


def test_without_a_key_nothing_of_the_body_is_read(fake: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, keys=(new_key("alice")[1],)))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, b"x" * 1000)[:-500])
        assert receive_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/fake", "/status"])
def test_the_control_plane_asks_for_keys_too(fake: FakeEngine, stack: ExitStack, path: str) -> None:
    key, stored = new_key("alice")
    door = stack.enter_context(door_before(fake, keys=(stored,)))
    _check(door.get(path), path, 401, "missing_api_key")
    _check(door.get(path, authorization="Bearer wrong", anthropic_version="2023-06-01"), "/v1/messages", 401)
    assert door.get(path, x_api_key=key).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_need_no_key(fake: FakeEngine, stack: ExitStack, path: str) -> None:
    door = stack.enter_context(door_before(fake, keys=(new_key("alice")[1],)))
    assert door.get(path).status_code == 200


# Paths and methods
@pytest.mark.parametrize("path", ["/", "/v1", "/v1/chat", "/v1/chat/completions/", "/v1/audio/speech", "/pause"])
def test_an_unknown_path_is_a_404_that_names_the_known_ones(door: Door, path: str) -> None:
    error = _check(door.post(path, {}), path, 404, "unknown_url")
    assert "/v1/chat/completions" in error["message"]


def test_an_unknown_path_is_answered_to_anthropic_in_its_own_shape(door: Door) -> None:
    answer = door.post("/v1/complete", {}, anthropic_version="2023-06-01")
    assert _check(answer, "/v1/messages", 404)["type"] == "not_found_error"


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_is_a_405_in_the_dialect_of_the_path(door: Door, path: str, method: str) -> None:
    with door.client() as client:
        answer = client.request(method, path)
    error = _check(answer, path, 405, "method_not_allowed")
    assert f"takes POST, not {method}" in error["message"]
    assert answer.headers["allow"] == "POST"


def test_posting_to_a_page_that_is_only_read(door: Door) -> None:
    answer = door.post("/v1/models", {})
    _check(answer, "/v1/models", 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


def test_head_has_no_body(door: Door) -> None:
    with door.connection() as sock:
        sock.sendall(b"HEAD /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = receive_rest(sock)
    assert answer.startswith(b"HTTP/1.1 405")
    assert answer.endswith(b"\r\n\r\n")


# What engines say, in the caller's dialect
def _engine_says(status: int, message: str, **fields: Any) -> Script:
    return json_answer({"error": {"message": message, "type": "BadRequestError", "code": status, **fields}}, status)


@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_context_that_is_too_long(fake: FakeEngine, door: Door, dialect: Dialect, stream: bool) -> None:
    message = "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049"
    fake.enqueue(_engine_says(400, message, param="input_tokens"))
    answer = door.post(PATHS[dialect], body_for(dialect, stream=stream))
    error = _check(answer, PATHS[dialect], 400, "context_length_exceeded")
    assert error["message"] == message
    assert error["type"] == "invalid_request_error"
    assert door.total("berth_requests_total", outcome="engine_error") == 1
    assert door.total("berth_request_errors_total", status="400", model="fake") == 1


@pytest.mark.parametrize("dialect", STREAMING)
def test_an_engine_that_is_full_says_when_to_come_back(fake: FakeEngine, door: Door, dialect: Dialect) -> None:
    fake.enqueue(_engine_says(503, "engine is currently busy"))
    answer = door.post(PATHS[dialect], body_for(dialect, stream=True))
    error = _check(answer, PATHS[dialect], 503)
    assert answer.headers["retry-after"] == "1"
    assert error["type"] == ("overloaded_error" if dialect == "messages" else "server_error")


@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize(
    "body", [b"<html>oops</html>", b"", b"[]", b"\xff\xfe\x00"], ids=["html", "none", "list", "junk"]
)
def test_an_engine_error_that_is_not_json(fake: FakeEngine, door: Door, dialect: Dialect, body: bytes) -> None:
    fake.enqueue(Script(chunks=((0.0, body),), status=500, content_type="text/html"))
    _check(door.post(PATHS[dialect], body_for(dialect)), PATHS[dialect], 500)


def test_an_answer_that_is_not_json_is_passed_on(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(chunks=((0.0, b"plain words"),), content_type="text/plain"))
    answer = door.post(CHAT, body_for("chat"))
    assert (answer.status_code, answer.text) == (200, "plain words")


def test_an_engine_that_refuses_the_gateways_own_key_is_not_the_callers_fault(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(json_answer({"error": "Unauthorized"}, 401))
    answer = door.post(CHAT, body_for("chat"))
    error = _check(answer, CHAT, 502, "engine_refused_key")
    assert "e0" in error["message"]
    assert answer.headers["x-should-retry"] == "false"


# Not now
def test_a_full_house(fake: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, max_in_flight=1))
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate}))
    held = threading.Thread(target=door.post, args=(CHAT, body_for("chat")))
    held.start()
    wait_until(lambda: fake.running == 1)
    answer = door.post(PATHS["messages"], body_for("messages"))
    assert _check(answer, PATHS["messages"], 503)["type"] == "overloaded_error"
    assert answer.headers["retry-after"] == "1"
    _check(door.post(CHAT, body_for("chat")), CHAT, 503, "overloaded")
    gate.set()
    held.join()
    wait_until(lambda: door.is_at_rest)
    assert door.post(CHAT, body_for("chat")).status_code == 200


def test_a_draining_gateway_finishes_what_it_has_and_takes_nothing_new(fake: FakeEngine, door: Door) -> None:
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={2: gate}))
    body = body_for("chat", stream=True)
    with door.client() as client, client.stream("POST", CHAT, json=body) as held:
        pieces = held.iter_raw()
        next(pieces)
        door.gateway.admission.is_draining = True
        answer = door.post(CHAT, body)
        _check(answer, CHAT, 503, "shutting_down")
        assert answer.headers["retry-after"] == "1"
        assert door.get("/ready").status_code == 503
        assert door.get("/health").status_code == 200
        gate.set()
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def test_while_no_engine_is_ready_the_caller_is_told_when_to_come_back(fake: FakeEngine, stack: ExitStack) -> None:
    fake.healthy = False
    door = stack.enter_context(door_before(fake, wait=False))
    answer = door.post(CHAT, body_for("chat"))
    _check(answer, CHAT, 503, "not_ready")
    assert answer.headers["retry-after"] == "5"
    assert door.get("/ready").json() == {"ready": False, "waiting_for": ["(unknown)"]}


def test_an_error_of_our_own_making_is_a_500_with_the_id_that_the_log_has(
    fake: FakeEngine, door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(door.gateway.pool, "candidates", broken)
    answer = door.post(CHAT, body_for("chat"))
    error = _check(answer, CHAT, 500)
    assert "ZeroDivision" not in error["message"]
    assert answer.headers["x-request-id"] in error["message"]
    assert answer.headers["x-request-id"] in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text
    assert door.is_at_rest
