"""Web pages of configured origins can call from a browser; others, and all where none is configured, cannot."""

import json
from contextlib import ExitStack
from dataclasses import replace

import httpx2
import pytest

from gateway.identity import hash_key
from tests.fake_engine import FakeEngine, Script, event
from tests.gateway.harness import CONFIG, PATHS, STREAMING, Door, body_for, door_before, receive_until, request_bytes

PAGE = "https://app.example.com"
ALLOWED = "access-control-allow-origin"


@pytest.fixture
def door(fake: FakeEngine, stack: ExitStack) -> Door:
    """One that the page may call."""
    return stack.enter_context(door_before(fake, origins=(PAGE, "http://localhost:3000")))


def _preflight(door: Door, path: str, origin: str = PAGE) -> httpx2.Response:
    asks = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    with door.client(**asks) as client:
        return client.options(path)


@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/responses/resp_1/cancel", "/v1/models", "/status"])
def test_a_preflight_is_answered_without_a_key_and_without_an_engine(
    fake: FakeEngine, stack: ExitStack, path: str
) -> None:
    door = stack.enter_context(door_before(fake, origins=(PAGE,), keys=(hash_key("alice", "k"),)))
    answer = _preflight(door, path)
    assert answer.status_code == 200
    assert answer.headers[ALLOWED] == PAGE
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
    assert answer.headers["access-control-allow-methods"] == "GET, POST"
    assert "access-control-allow-credentials" not in answer.headers
    assert fake.seen == []


@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize("stream", [True, False])
def test_every_answer_of_the_data_plane_may_be_read(door: Door, dialect: str, stream: bool) -> None:
    answer = door.post(PATHS[dialect], body_for(dialect, stream=stream), origin=PAGE)  # type: ignore[arg-type, index]
    assert answer.status_code == 200
    assert (answer.headers[ALLOWED], answer.headers["vary"]) == (PAGE, "Origin")
    assert answer.headers["access-control-expose-headers"] == "*"


def test_errors_and_the_control_plane_too(door: Door) -> None:
    with door.client(origin=PAGE) as client:
        refused = client.post(PATHS["chat"], json={"model": "nobody", "messages": []})
        models, nowhere = client.get("/v1/models"), client.get("/v1/nothing")
    assert [answer.status_code for answer in (refused, models, nowhere)] == [404, 200, 404]
    assert [answer.headers.get_list(ALLOWED) for answer in (refused, models, nowhere)] == [[PAGE]] * 3


@pytest.mark.parametrize("origin", ["https://evil.example", "null", PAGE + ".evil.example", "http://app.example.com"])
def test_other_pages_are_told_nothing(door: Door, origin: str) -> None:
    assert ALLOWED not in door.post(PATHS["chat"], body_for("chat"), origin=origin).headers
    assert ALLOWED not in door.get("/v1/models", origin=origin).headers
    assert (_preflight(door, PATHS["chat"], origin).status_code, _preflight(door, "/v1/models", origin).text) == (
        400,
        "Disallowed CORS origin",
    )


def test_by_default_nobody_may_and_a_reload_changes_that(fake: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake))
    assert ALLOWED not in door.post(PATHS["chat"], body_for("chat"), origin=PAGE).headers
    assert _preflight(door, PATHS["chat"]).status_code == 405
    with door.client(origin=PAGE) as client:  # one connection: what is known of its headers is asked anew
        assert ALLOWED not in client.post(PATHS["chat"], json=body_for("chat")).headers
        door.do(lambda: door.gateway.reconfigure(replace(CONFIG, origins=("*",))))
        assert client.post(PATHS["chat"], json=body_for("chat")).headers[ALLOWED] == "*"
        assert client.get("/v1/models").headers[ALLOWED] == "*"
    assert _preflight(door, PATHS["chat"]).headers[ALLOWED] == "*"


def test_what_an_engine_says_of_it_is_left_out(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(chunks=((0.0, b"{}"),), content_type="application/json", headers=((ALLOWED, "*"),)))
    answer = door.post(PATHS["chat"], body_for("chat"), origin=PAGE)
    assert answer.headers.get_list(ALLOWED) == [PAGE]
    assert "origin" not in {name.lower() for name in fake.seen[0].headers}


def test_a_stream_that_began_with_a_sign_of_life_too(fake: FakeEngine, stack: ExitStack) -> None:
    timeouts = replace(CONFIG.timeouts, keep_alive_s=0.1)
    door = stack.enter_context(door_before(fake, origins=(PAGE,), timeouts=timeouts))
    fake.enqueue(Script(chunks=((0.0, event({"choices": []})),), delay_s=3))
    with door.connection() as sock:
        body = json.dumps(body_for("chat", stream=True)).encode()
        sock.sendall(request_bytes(PATHS["chat"], body, f"Origin: {PAGE}"))
        assert b"\r\naccess-control-allow-origin: https://app.example.com\r\n" in receive_until(sock, b"\r\n\r\n")
