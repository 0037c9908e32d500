"""The pages beside the data plane, and what two gateways in one process must not share."""

import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace

import jsonschema
import pytest

from gateway.app import VERSION, Gateway
from gateway.config import GatewayConfig, Remote
from gateway.errors import ConfigError
from gateway.replica import ModelCard, Replica
from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script, chat_stream, json_answer, running
from tests.gateway.harness import CONFIG, PATHS, Door, body_for, door_before, opened, receive_rest, wait_until

CHAT = PATHS["chat"]


def test_health_is_about_the_process(fake: FakeEngine, door: Door) -> None:
    fake.healthy = False
    wait_until(lambda: door.gateway.pool.replicas[0].state == "unhealthy")
    assert door.get("/health").json() == {"status": "ok", "version": VERSION}


def test_ready_is_about_every_model(fake: FakeEngine, stack: ExitStack) -> None:
    other = stack.enter_context(running(FakeEngine(models=("other",))))
    door = stack.enter_context(door_before(fake, other))
    assert door.get("/ready").json() == {"ready": True, "waiting_for": []}
    other.healthy = False
    wait_until(lambda: door.get("/ready").status_code == 503)
    assert door.get("/ready").json() == {"ready": False, "waiting_for": ["other"]}


def test_status_tells_what_the_router_believes(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    gate = threading.Event()
    fake.enqueue(Script(chunks=chat_stream().chunks, gates={BEFORE_HEADERS: gate}))
    held = threading.Thread(target=pair.post, args=(CHAT, body_for("chat", stream=True)))
    held.start()
    wait_until(lambda: fake.running == 1)
    status = pair.get("/status").json()
    assert (status["version"], status["in_flight"], status["draining"]) == (VERSION, 1, False)
    assert status["client_connections"] >= 2  # the held one, and the one that asks
    first, other = status["replicas"]
    assert first["work_tokens"] > 0
    believed = first["routing"]
    assert (believed["prefix_blocks"], believed["queued_tokens"] > 0, believed["ttft_s"]) == (0, True, None)
    assert believed["expected_wait_s"] > 0
    assert first["probe_age_s"] < 60
    assert 0 < first["share"] <= 1
    assert {**first, "work_tokens": 0, "probe_age_s": 0} == {
        "name": "e0",
        "url": fake.url,
        "models": ["fake"],
        "kind": "engine",
        "state": "ready",
        "trouble": None,
        "breaker": "closed",
        "share": first["share"],
        "ejections": {},
        "in_flight": 1,
        "work_tokens": 0,
        "routing": believed,
        "requests": 1,
        "errors": 0,
        "waiting": None,
        "kv_cache": {"capacity_tokens": None, "predicted_tokens": None, "usage_ratio": None},
        "probe_age_s": 0,
    }
    assert (other["in_flight"], other["work_tokens"], other["requests"]) == (0, 0, 0)
    gate.set()
    held.join()


def test_status_shows_the_kv_caches_and_the_errors_of_each_replica(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.metrics_text = (
        'vllm:kv_cache_usage_perc{engine="0"} 0.5\nvllm:num_requests_waiting{engine="0"} 3\n'
        'vllm:cache_config_info{kv_cache_size_tokens="4096"} 1\n'
    )
    pair.gateway.pool.replicas[0].predicted_kv_tokens = 4000
    fake.enqueue(json_answer({"error": {"message": "full", "code": 503}}, 503))
    second.enqueue(json_answer({"error": {"message": "no", "code": 400}}, 400))
    assert pair.post(CHAT, body_for("chat")).status_code == 400  # e0 lost it to e1, which refused it
    wait_until(lambda: pair.in_flight == 0)
    first, other = pair.get("/status").json()["replicas"]
    assert first["kv_cache"] == {"capacity_tokens": 4096, "predicted_tokens": 4000, "usage_ratio": 0.5}
    assert first["waiting"] == 3
    assert (first["errors"], other["errors"]) == (1, 1)


def test_status_is_what_its_published_schema_says(pair: Door) -> None:
    document = pair.get("/openapi.json").json()
    answer = document["paths"]["/status"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(pair.get("/status").json(), {**answer, "components": document["components"]})
    schemas = document["components"]["schemas"]
    for name in ("Status", "ModelStatus", "ReplicaStatus", "KvCacheStatus"):
        assert schemas[name]["required"] == list(schemas[name]["properties"])
        assert all(told["description"] for told in schemas[name]["properties"].values())


def test_models_of_all_replicas_are_listed_once(fake: FakeEngine, second: FakeEngine, stack: ExitStack) -> None:
    third = stack.enter_context(running(FakeEngine(models=("other",), max_model_len=128)))
    door = stack.enter_context(door_before(fake, second, third))
    rows = door.get("/v1/models").json()["data"]
    assert [(row["id"], row["max_model_len"]) for row in rows] == [("fake", 4096), ("other", 128)]
    page = door.get("/v1/models", anthropic_version="2026-10-21").json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("fake", "other", False)


def test_before_anything_is_known_the_list_is_empty(fake: FakeEngine, stack: ExitStack) -> None:
    fake.healthy = False
    door = stack.enter_context(door_before(fake, wait=False))
    assert door.get("/v1/models").json() == {"object": "list", "data": []}
    page = door.get("/v1/models", anthropic_version="2023-06-01").json()
    assert page == {"data": [], "has_more": False, "first_id": None, "last_id": None}


def test_two_gateways_in_one_process_share_nothing(fake: FakeEngine, second: FakeEngine, stack: ExitStack) -> None:
    one = stack.enter_context(door_before(fake))
    two = stack.enter_context(door_before(second, max_in_flight=1))
    for _ in range(3):
        assert one.post(CHAT, body_for("chat", stream=True)).status_code == 200
    wait_until(lambda: one.total("berth_requests_total") == 3)
    assert two.total("berth_requests_total") == 0
    assert two.gateway.pool.replicas[0].picks == 0
    assert second.seen == []
    one.gateway.admission.is_draining = True
    assert two.post(CHAT, body_for("chat")).status_code == 200
    assert one.gateway.metrics.registry is not two.gateway.metrics.registry


def test_providers_elsewhere_come_and_go_with_the_settings() -> None:
    one, two = Remote("one", "https://a.example/v1", "m", api_key="k1"), Remote("two", "https://b.example/v1", "m")
    gateway = Gateway(GatewayConfig(remotes=(one,)))
    (kept,) = gateway.pool.remotes
    gateway.reconfigure(GatewayConfig(remotes=(replace(one, api_key="k2"), two)))
    assert [(remote.name, remote.state) for remote in gateway.pool.remotes] == [("one", "ready"), ("two", "ready")]
    assert (gateway.pool.remotes[0], kept.api_key) == (kept, "k2")
    gateway.reconfigure(GatewayConfig(remotes=(two,)))
    assert [remote.is_in for remote in gateway.pool.remotes] == [False, True]
    gateway.reconfigure(GatewayConfig(remotes=(one, two)))
    assert [remote.is_in for remote in gateway.pool.remotes] == [True, True]


def test_two_replicas_of_one_name_are_refused() -> None:
    gateway = Gateway(GatewayConfig())
    gateway.add(Replica("same", "unix:/a/engine.sock"))
    with pytest.raises(ConfigError, match="same"):
        gateway.add(Replica("same", "unix:/b/engine.sock"))


@pytest.mark.parametrize(
    "module",
    [
        "gateway.app",
        "gateway.wire",
        "sizing.plan",
        "sizing.hub",
        "sizing.report",
        "benchmarks.run",
        "benchmarks.report",
    ],
)
def test_rooms_of_the_light_install_load_no_engine_stack(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'vllm', 'transformers', 'safetensors', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models"])
def test_head_is_get_without_a_body(door: Door, path: str) -> None:
    with door.connection() as sock:
        sock.sendall(f"HEAD {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = receive_rest(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) > 0
    assert body == b""


def test_an_engine_that_comes_back_with_another_model_is_asked_for_it(fake: FakeEngine, door: Door) -> None:
    fake.healthy = False
    wait_until(lambda: door.gateway.pool.replicas[0].state == "unhealthy")
    fake.models, fake.healthy = ("newer",), True
    wait_until(lambda: door.gateway.pool.replicas[0].state == "ready")
    assert [row["id"] for row in door.get("/v1/models").json()["data"]] == ["newer"]
    assert door.post(CHAT, body_for("chat", model="newer")).status_code == 200
    assert door.post(CHAT, body_for("chat")).status_code == 404


def test_names_that_were_given_stay(fake: FakeEngine) -> None:
    gateway = Gateway(CONFIG)
    gateway.add(Replica("e0", fake.url, (ModelCard("given", 100),)))
    with opened(gateway) as door:
        door.wait_ready()
        fake.healthy = False
        wait_until(lambda: gateway.pool.replicas[0].state == "unhealthy")
        fake.healthy = True
        door.wait_ready()
        assert gateway.pool.replicas[0].models == (ModelCard("given", 100),)
