"""What must not travel: keys, cookies, and the headers an engine would obey."""

import logging
from contextlib import ExitStack

import pytest

from gateway.app import Gateway
from gateway.config import GatewayConfig
from gateway.headers import read_head
from gateway.identity import Keyring, hash_key, new_key
from gateway.replica import Replica
from tests.fake_engine import FakeEngine, Script, chat_stream, json_answer
from tests.gateway.harness import PATHS, Door, body_for, door_before, opened, wait_until

CHAT = PATHS["chat"]


def test_keys_appear_in_no_log_no_repr_no_page_and_at_no_engine(
    fake: FakeEngine, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, stored = new_key("alice")
    gateway = Gateway(GatewayConfig(keys=(stored,), probe_interval_s=0.05))
    gateway.add(Replica("e0", fake.url, api_key="engine-secret"))
    door = stack.enter_context(opened(gateway))
    door.wait_ready()
    body = body_for("chat", stream=True)
    door.post(CHAT, body, authorization=f"Bearer {key}")
    door.post(CHAT, body, x_api_key=key)
    door.post(CHAT, body, authorization="Bearer guessed-key")
    pages = [door.get(path, x_api_key=key).text for path in ("/status", "/metrics", "/v1/models", "/openapi.json")]
    wait_until(lambda: "alice" in caplog.text)  # the caller's name is there, in the access log
    told = "\n".join([*pages, caplog.text, repr(gateway.config), repr(gateway.pool.replicas), repr(stored)])
    told += "".join(f"{seen.headers}{seen.body!r}" for seen in fake.seen).replace("Bearer engine-secret", "")
    for secret in (key, "engine-secret", "guessed-key"):
        assert secret not in told
    assert stored.sha256 not in "\n".join([*pages, caplog.text])


def test_an_engine_gets_its_own_key_and_never_the_callers(fake: FakeEngine, stack: ExitStack) -> None:
    gateway = Gateway(GatewayConfig(probe_interval_s=0.05))
    gateway.add(Replica("e0", fake.url, api_key="engine-secret"))
    door = stack.enter_context(opened(gateway))
    door.wait_ready()
    door.post(CHAT, body_for("chat"), authorization="Bearer caller", x_api_key="caller")
    headers = {name.lower(): value for name, value in fake.seen[0].headers.items()}
    assert headers["authorization"] == "Bearer engine-secret"
    assert "caller" not in str(headers)


def test_an_engine_without_a_key_gets_none(fake: FakeEngine, door: Door) -> None:
    door.post(CHAT, body_for("chat"), authorization="Bearer caller")
    assert "authorization" not in {name.lower() for name in fake.seen[0].headers}


def test_only_a_handful_of_headers_reaches_the_engine(fake: FakeEngine, door: Door) -> None:
    sent = {
        "x-request-id": "mine",
        "request-id": "mine",
        "x-vllm-priority": "-100",
        "x-data-parallel-rank": "3",
        "x-session-id": "s",
        "endpoint-load-metrics-format": "json",
        "cookie": "session=1",
        "forwarded": "for=1.2.3.4",
        "x-forwarded-for": "1.2.3.4",
        "accept-encoding": "gzip, br",
        "user-agent": "me",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "b",
    }
    with door.client(**sent) as client:
        answer = client.post(CHAT, json=body_for("chat"))
    headers = {name.lower(): value for name, value in fake.seen[0].headers.items()}
    assert headers.keys() == {
        "host",
        "accept",
        "content-type",
        "content-length",
        "traceparent",
        "anthropic-version",
        "anthropic-beta",
        "x-request-id",
    }
    assert headers["x-request-id"] == answer.headers["x-request-id"] != "mine"


def test_every_request_has_an_id_of_its_own(fake: FakeEngine, door: Door) -> None:
    ids = {door.post(CHAT, body_for("chat")).headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


def test_cookies_of_an_engine_are_not_kept_for_the_next_caller(fake: FakeEngine, stack: ExitStack) -> None:
    fake.url = fake.url.replace("127.0.0.1", "localhost")  # aiohttp keeps cookies of names, not of addresses
    door = stack.enter_context(door_before(fake))
    answer = Script(chunks=((0.0, b"{}"),), content_type="application/json", headers=(("set-cookie", "who=alice"),))
    fake.enqueue(answer, answer)
    door.post(CHAT, body_for("chat"))
    door.post(CHAT, body_for("chat"))
    assert "cookie" not in {name.lower() for name in fake.seen[1].headers}


def test_redirects_of_an_engine_are_not_followed(fake: FakeEngine, second: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(status=307, headers=(("location", f"{second.url}{CHAT}"),)))
    answer = door.post(CHAT, body_for("chat"))
    assert answer.status_code == 502
    assert second.seen == []


def test_headers_between_the_engine_and_us_stay_there(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(
        Script(
            chunks=((0.0, b"{}"),),
            content_type="application/json",
            headers=(("server", "engine"), ("x-request-id", "theirs"), ("keep-alive", "timeout=5"), ("x-other", "1")),
        )
    )
    headers = door.post(CHAT, body_for("chat")).headers
    assert headers.get_list("x-request-id") == [headers["request-id"]]
    assert headers["x-request-id"].startswith("req_")
    assert headers["x-other"] == "1"
    assert "keep-alive" not in headers
    assert headers.get("server") != "engine"


def test_the_access_log_has_one_line_a_request(fake: FakeEngine, door: Door, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="berth.access")
    fake.enqueue(chat_stream(), json_answer({"error": {"message": "no", "code": 400}}, 400))
    ids = [door.post(CHAT, body_for("chat", stream=True)).headers["x-request-id"] for _ in range(2)]
    ids.append(door.post(CHAT, {"model": "evil\nmodel outcome=ok"}).headers["x-request-id"])
    wait_until(lambda: len(_lines(caplog)) == 3)
    for line, request_id, outcome in zip(_lines(caplog), ids, ("ok", "engine_error", "refused"), strict=True):
        assert f" INFO berth.access {request_id} caller=anonymous " in line
        assert f" outcome={outcome} " in line
    assert "prompt_tokens=7 cached_tokens=None predicted_cached_tokens=0 output_tokens=2" in _lines(caplog)[0]


def _lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of the access log: a record holds a batch of them."""
    records = [record for record in caplog.records if record.name == "berth.access"]
    return [line for record in records for line in record.getMessage().split("\n")]


def test_keys_are_long_and_only_their_hash_is_kept() -> None:
    key, stored = new_key("alice")
    assert len(key) > 40
    assert new_key("alice")[0] != key
    assert key not in repr(stored)
    assert stored == hash_key("alice", key)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer k")],
        [(b"authorization", b"BEARER k")],
        [(b"x-api-key", b"k")],
        [(b"authorization", b"Basic dTpw"), (b"x-api-key", b"k")],
        [(b"x-api-key", b"other"), (b"authorization", b"Bearer k")],
    ],
)
def test_where_a_key_is_found(headers: list[tuple[bytes, bytes]]) -> None:
    assert Keyring([hash_key("alice", "k")]).identify(read_head(headers).key) == "alice"


def test_the_keyless_gateway_takes_any_key(fake: FakeEngine, door: Door) -> None:
    assert door.post(CHAT, body_for("chat"), authorization="Bearer whatever").status_code == 200


def test_a_failure_tells_the_caller_nothing_about_where_engines_are(
    fake: FakeEngine, door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    port = fake.url.rpartition(":")[2]
    fake.enqueue(Script(ending="drop"), chat_stream(ending="drop"))
    for _ in range(2):
        answer = door.post(CHAT, body_for("chat", stream=True))
        assert "the engine failed" in answer.text
        assert port not in answer.text
    assert port in caplog.text


@pytest.mark.parametrize("status", [401, 403])
def test_what_a_provider_says_of_our_key_is_not_for_the_caller(
    fake: FakeEngine, door: Door, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    told = "Incorrect API key provided: sk-proj-our-own"
    fake.enqueue(json_answer({"error": {"message": told, "code": "invalid_api_key"}}, status))
    answer = door.post(CHAT, body_for("chat"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_refused_key")
    assert "sk-proj" not in answer.text
    assert "sk-proj" not in caplog.text
