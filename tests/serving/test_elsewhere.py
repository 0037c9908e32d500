"""Engines that others started, and a file about them that is read again while requests run."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2
import pytest

from gateway.app import Gateway
from gateway.identity import new_key
from gateway.replica import ModelCard
from serving import elsewhere
from serving.door_config import door_settings
from serving.elsewhere import Elsewhere
from serving.environment import Environment
from serving.front import FrontConfig, load_front
from tests.fake_engine import FakeEngine, Script, chat_stream, running
from tests.gateway.harness import (
    CONFIG,
    PATHS,
    Door,
    body_for,
    receive_rest,
    receive_until,
    request_bytes,
    wait_until,
)
from tests.gateway.placing import placed
from tests.serving.rereading import opened_to_reload

CHAT = PATHS["chat"]
ENVIRONMENT = Environment(api_key=None)
STREAM = b'{"model":"fake","stream":true,"stream_options":{"include_usage":true}}'


def _gateway(config: FrontConfig) -> Gateway:
    return Gateway(replace(door_settings(config, ENVIRONMENT), probe_interval_s=CONFIG.probe_interval_s))


@dataclass
class Front:
    """A gateway before engines of a file, and the file."""

    door: Door
    file: Path

    def ask(self, key: str = "") -> httpx2.Response:
        return self.door.post(CHAT, body_for("chat", stream=True), x_api_key=key)

    def reload(self, text: str) -> httpx2.Response:
        self.file.write_text(text)
        return self.door.post("/admin/reload")

    @property
    def names(self) -> list[str]:
        return [replica.name for replica in self.door.gateway.pool.replicas]


@contextmanager
def _fronted(file: Path, text: str, api_key: str | None = None) -> Iterator[Front]:
    file.write_text(text)

    def again() -> FrontConfig:
        return load_front(str(file), (), {})

    config = again()
    gateway = _gateway(config)
    engines = Elsewhere(config, again, ENVIRONMENT, gateway, api_key)
    with opened_to_reload(gateway, engines, again) as door:
        yield Front(door, file)


@pytest.fixture
def second() -> Iterator[FakeEngine]:
    """Another engine of the same model."""
    with running(FakeEngine()) as engine:
        yield engine


def _engines(*fakes: FakeEngine, more: str = "") -> str:
    rows = "".join(f"  - {{url: '{fake.url}', name: e{fake.url[-5:]}}}\n" for fake in fakes)
    return f"engines:\n{rows}{more}"


def _name(fake: FakeEngine) -> str:
    return f"e{fake.url[-5:]}"


def test_engines_come_and_go_under_a_running_stream(fake: FakeEngine, second: FakeEngine, tmp_path: Path) -> None:
    gate = threading.Event()
    script = Script(chunks=chat_stream().chunks, gates={1: gate})
    fake.enqueue(script)
    with _fronted(tmp_path / "front.yaml", _engines(fake)) as front, front.door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM, "connection: close"))
        receive_until(sock, b"role")
        answer = front.reload(_engines(second))
        assert answer.json()["changes"] == [f"engine {_name(fake)} removed", f"engine {_name(second)} added"]
        front.door.wait_ready(1)
        assert front.ask().headers["x-berth-replica"] == _name(second)
        assert front.names == [_name(fake), _name(second)]  # the first has something to answer yet
        gate.set()
        assert receive_rest(sock).endswith(script.chunks[-1][1] + b"\r\n0\r\n\r\n")
        wait_until(lambda: front.names == [_name(second)])
        assert front.door.is_at_rest


def test_a_model_that_leaves_with_its_engine_is_not_waited_for(fake: FakeEngine, tmp_path: Path) -> None:
    gate = threading.Event()
    with running(FakeEngine(models=("other",))) as other, _fronted(tmp_path / "f.yaml", _engines(fake, other)) as front:
        fake.enqueue(Script(chunks=chat_stream().chunks, gates={1: gate}))
        with front.door.connection() as sock:
            sock.sendall(request_bytes(CHAT, STREAM, "connection: close"))
            receive_until(sock, b"role")
            front.reload(_engines(other))
            assert front.names == [_name(fake), _name(other)]
            assert front.door.get("/ready").json() == {"ready": True, "waiting_for": []}
            gate.set()
            receive_rest(sock)


def test_an_engine_that_comes_back_while_it_is_leaving_stays(fake: FakeEngine, tmp_path: Path) -> None:
    gate = threading.Event()
    with running(FakeEngine()) as second, _fronted(tmp_path / "front.yaml", _engines(fake, second)) as front:
        second.healthy = False
        wait_until(lambda: front.door.gateway.pool.replicas[1].state == "unhealthy")
        fake.enqueue(Script(chunks=chat_stream().chunks, gates={1: gate}))
        with front.door.connection() as sock:
            sock.sendall(request_bytes(CHAT, STREAM, "connection: close"))
            receive_until(sock, b"role")
            front.reload(_engines(second))
            refused = front.reload(f"engines: [{{url: '{fake.url}', name: other}}]")
            assert "give it that 'name'" in refused.json()["error"]["message"]
            assert front.reload(_engines(second, fake)).json()["changes"] == [f"engine {_name(fake)} added"]
            wait_until(lambda: front.door.gateway.pool.replicas[0].state == "ready")
            gate.set()
            receive_rest(sock)
        assert front.ask().headers["x-berth-replica"] == _name(fake)
        assert front.names == [_name(fake), _name(second)]


def test_what_holds_for_callers_is_read_again_too(fake: FakeEngine, tmp_path: Path) -> None:
    key, stored = new_key("alice")
    keys = f"gateway: {{keys: [{{caller: alice, sha256: {stored.sha256}}}]}}\n"
    with _fronted(tmp_path / "front.yaml", _engines(fake)) as front:
        assert front.ask().status_code == 200
        assert front.reload(_engines(fake, more=keys)).json()["changes"] == ["gateway.keys changed"]
        assert (front.ask().status_code, front.ask(key).status_code) == (401, 200)


def test_engines_are_asked_with_their_keys(fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_KEY", "own")
    text = f"engines: [{{url: '{fake.url}'}}]"
    own = f"engines: [{{url: '{fake.url}', api_key_env: OWN_KEY}}]"
    with _fronted(tmp_path / "front.yaml", text, api_key="for-all") as front:
        front.ask()
        front.reload(own)
        front.ask()
    assert [seen.headers["Authorization"] for seen in fake.seen] == ["Bearer for-all", "Bearer own"]


def test_a_mistake_changes_nothing(fake: FakeEngine, second: FakeEngine, tmp_path: Path) -> None:
    with _fronted(tmp_path / "front.yaml", _engines(fake)) as front:
        config = front.door.gateway.config
        for text, complaint in (
            ("engines: [{url: 3}]", "engines.0.url"),
            (f"engines: [{{url: '{second.url}', name: '{_name(fake)}'}}]", f"give {second.url} another 'name'"),
            (f"engines: [{{url: '{fake.url}'}}]", "cannot change while its requests are counted"),
            (f"engines: [{{url: '{second.url}', api_key_env: NO_SUCH_KEY}}]", "NO_SUCH_KEY, which is not set"),
            (
                f"engines: [{{url: '{second.url}'}}]\n"
                f"remotes: [{{name: '{_name(fake)}', base_url: 'https://x.example/v1', model: m}}]",
                f"'{_name(fake)}' is an engine's name",
            ),
        ):
            answer = front.reload(text)
            assert answer.status_code == 409
            assert complaint in answer.json()["error"]["message"]
            assert front.door.gateway.config is config
            assert front.names == [_name(fake)]


def test_a_name_that_was_a_remotes_is_not_given_to_an_engine(fake: FakeEngine, tmp_path: Path) -> None:
    remote = "remotes: [{name: far, base_url: 'https://x.example/v1', model: m}]"
    with _fronted(tmp_path / "front.yaml", _engines(fake, more=remote)) as front:
        named = f"{_engines(fake)}  - {{url: 'http://127.0.0.1:9', name: far}}\n"
        assert "'far' was a remote" in front.reload(named).json()["error"]["message"]


def test_a_model_whose_engine_never_came_has_its_stand_ins(fake: FakeEngine, tmp_path: Path) -> None:
    models = "models: [{name: absent, fallbacks: [fake]}, {name: alone}]\n"
    with _fronted(tmp_path / "front.yaml", _engines(fake, more=models)) as front:
        assert front.door.post(CHAT, body_for("chat", model="absent")).headers["x-berth-replica"] == _name(fake)
        assert front.door.post(CHAT, body_for("chat", model="alone")).status_code == 404
        front.reload(_engines(fake, more=models.replace("[fake]", "[alone]")))
        answer = front.door.post(CHAT, body_for("chat", model="absent"))
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            503,
            "no replica of 'absent' is ready (no engine serves it now)",
        )


# Names that are nobody's
async def _until(caplog: pytest.LogCaptureFixture, said: str) -> None:
    async with asyncio.timeout(20):
        while said not in caplog.text:  # noqa: ASYNC110  (a log has no event to wait for)
            await asyncio.sleep(0.002)


def _unwatched(text: str, tmp_path: Path) -> tuple[Elsewhere, Gateway]:
    file = tmp_path / "front.yaml"
    file.write_text(text)
    config = load_front(str(file), (), {})
    gateway = _gateway(config)
    return Elsewhere(config, None, ENVIRONMENT, gateway, None), gateway


TWO = "engines: [{url: 'http://127.0.0.1:9', name: a}, {url: 'http://127.0.0.1:10', name: b}]\n"


async def test_they_are_said_once_all_engines_have_been_seen_and_again_after_a_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="berth.serving")
    engines, gateway = _unwatched(TWO + "models: [{name: y}, {name: ghost}]", tmp_path)
    first, second = gateway.pool.replicas
    async with engines.watched():
        first.models = (ModelCard("x"),)
        await asyncio.sleep(0.5)  # time enough to say it too early: the second may have it
        assert caplog.text == ""
        second.models = (ModelCard("y"),)
        await _until(caplog, "no engine serves 'ghost' (models), as the configuration has it; served: x, y")
        (tmp_path / "front.yaml").write_text(TWO + "models: [{name: spook}]")
        engines.is_open = True
        await engines.reload(lambda: load_front(str(tmp_path / "front.yaml"), (), {}))
        await _until(caplog, "no engine serves 'spook' (models)")
    assert caplog.text.count("no engine serves") == 2


async def test_an_engine_that_does_not_come_holds_nothing_up_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "_SEEN_BY_S", 0.0)
    engines, gateway = _unwatched(TWO + "models: [{name: y}]", tmp_path)
    async with engines.watched():
        await asyncio.sleep(0.5)  # nobody has been seen: of nobody is nothing said
        assert caplog.text == ""
        gateway.pool.replicas[0].models = (ModelCard("x"),)
        await _until(caplog, "no engine serves 'y' (models), as the configuration has it; served: x")


async def test_who_leaves_is_not_counted_and_the_end_waits_for_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engines, gateway = _unwatched(TWO + "models: [{name: y}]", tmp_path)
    first, second = gateway.pool.replicas
    first.models, second.models = (ModelCard("x"),), (ModelCard("y"),)
    second.state = "ready"
    placed(second, 100)
    (tmp_path / "front.yaml").write_text("engines: [{url: 'http://127.0.0.1:9', name: a}]\nmodels: [{name: y}]")
    engines.is_open = True
    async with asyncio.timeout(20), engines.watched():
        await engines.reload(lambda: load_front(str(tmp_path / "front.yaml"), (), {}))
        await _until(caplog, "no engine serves 'y' (models), as the configuration has it; served: x")
        assert (second.state, second.in_flight) == ("draining", 1)
