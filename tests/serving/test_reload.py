"""A configuration that is read again, on a running gateway; engines are stood in for by their supervisors' outside."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import httpx2
import pytest

from gateway.app import Gateway
from gateway.config import Timeouts
from gateway.errors import ConfigError as GatewayConfigError
from gateway.identity import new_key
from gateway.patience import Patience
from gateway.replica import ModelCard, Replica
from gateway.upstream import Upstream
from serving.config import StackConfig, load_stack
from serving.door_config import gateway_config
from serving.environment import Environment
from serving.errors import PlacementError, StartError
from serving.fleet import Fleet, numbered_apart
from serving.placement import Folders, Placement
from serving.reload import Reloader
from serving.signals import Signals
from serving.supervisor import Supervisor
from tests.fake_engine import FakeEngine, Script, chat_stream, running
from tests.gateway.harness import CONFIG, PATHS, Door, body_for, opened, receive_rest, receive_until, request_bytes
from tests.gateway.placing import placed
from tests.serving.rereading import opened_to_reload

CHAT = PATHS["chat"]
ENVIRONMENT = Environment(api_key=None)


# Settings, over HTTP and by signal
@dataclass
class Served:
    """A gateway with the settings of a file, and the file."""

    door: Door
    file: Path
    reloader: Reloader

    def post(self, key: str) -> int:
        return self.door.post(CHAT, body_for("chat", stream=True), x_api_key=key).status_code

    def reload(self, **headers: str) -> httpx2.Response:
        return self.door.post("/admin/reload", None, None, **headers)


@contextmanager
def _served(file: Path, *fakes: FakeEngine) -> Iterator[Served]:
    def again() -> StackConfig:
        return load_stack(str(file), ENVIRONMENT, {})

    def place(wanted: StackConfig, folders: Folders) -> list[Placement]:
        raise PlacementError("x/1 does not fit: no card is free")

    config = again()
    gateway = Gateway(replace(gateway_config(config.gateway, ENVIRONMENT), probe_interval_s=CONFIG.probe_interval_s))
    for number, fake in enumerate(fakes):
        gateway.add(Replica(f"e{number}", fake.url))
    reloader = Reloader(config, again, ENVIRONMENT, gateway, Folders(file.parent, file.parent), place)
    with opened_to_reload(gateway, reloader, again) as door:
        yield Served(door, file, reloader)


def _write(file: Path, *keys: str, replicas: int = 1, more: str = "") -> None:
    stored = "".join(f"    - {key}\n" for key in keys)
    file.write_text(
        f"gateway:\n  keys:\n{stored}{more}models:\n  - model: demo\n    name: x\n    replicas: {replicas}\n"
    )


def _key(caller: str, *, admin: bool = False) -> tuple[str, str]:
    key, stored = new_key(caller)
    return key, f"{{caller: {caller}, sha256: {stored.sha256}, admin: {str(admin).lower()}}}"


def test_a_stream_goes_on_over_a_reload_and_a_removed_key_is_refused_from_then_on(
    fake: FakeEngine, tmp_path: Path
) -> None:
    (alice, alices), (bob, bobs) = _key("alice"), _key("bob")
    _write(tmp_path / "berth.yaml", alices, bobs)
    gate = threading.Event()
    script = Script(chunks=chat_stream().chunks, gates={1: gate})
    with _served(tmp_path / "berth.yaml", fake) as served:
        fake.enqueue(script)
        before = served.door.get("/status", x_api_key=bob).json()["config_digest"]
        with served.door.connection() as sock:
            body = b'{"model":"fake","stream":true,"stream_options":{"include_usage":true}}'
            sock.sendall(request_bytes(CHAT, body, f"x-api-key: {alice}", "connection: close"))
            receive_until(sock, b"role")
            _write(served.file, bobs, more="  max_in_flight: 1\n")
            answer = served.reload()
            assert (answer.status_code, answer.json()["changes"]) == (
                200,
                ["gateway.keys changed", "gateway.max_in_flight changed"],
            )
            assert served.post(alice) == 401
            assert served.post(bob) == 503  # the new limit counts the stream that began before it
            gate.set()
            assert receive_rest(sock).endswith(script.chunks[-1][1] + b"\r\n0\r\n\r\n")
        assert served.post(bob) == 200
        after = served.door.get("/status", x_api_key=bob).json()
        assert after["config_digest"] == answer.json()["config_digest"] != before
        assert after["max_in_flight"] == 1


def test_a_stream_that_has_begun_is_held_to_the_new_limits(fake: FakeEngine, tmp_path: Path) -> None:
    alice, alices = _key("alice")
    _write(tmp_path / "berth.yaml", alices)
    fake.enqueue(chat_stream(ending="hang"))
    with _served(tmp_path / "berth.yaml", fake) as served, served.door.connection() as sock:
        body = b'{"model":"fake","stream":true,"stream_options":{"include_usage":true}}'
        sock.sendall(request_bytes(CHAT, body, f"x-api-key: {alice}", "connection: close"))
        receive_until(sock, b" there")
        _write(served.file, alices, more="  timeouts: {gap_s: 0.1, total_s: 3600}\n")
        assert served.reload().json()["changes"] == ["gateway.timeouts changed"]
        assert b"nothing came for 0.1 s" in receive_rest(sock)


def test_whoever_keeps_a_limit_of_its_own_is_told(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(Patience, "use", lambda _, timeout_s: told.append(timeout_s))
    monkeypatch.setattr(Upstream, "use", lambda _, timeouts: told.append(timeouts))
    _write(tmp_path / "berth.yaml", _key("alice")[1])
    with _served(tmp_path / "berth.yaml", fake) as served:
        _write(served.file, _key("alice")[1], more="  timeouts: {client_s: 7, probe_s: 8}\n")
        served.reload()
    assert told == [Timeouts(client_s=7, probe_s=8), 7]


def test_streams_are_continued_only_while_the_file_says_so(fake: FakeEngine, tmp_path: Path) -> None:
    alice, alices = _key("alice")
    _write(tmp_path / "berth.yaml", alices, more="  continue_streams: false\n")
    with running(FakeEngine()) as second, _served(tmp_path / "berth.yaml", fake, second) as served:
        fake.default = second.default = chat_stream(ending="drop")  # what it answers to /tokenize is no answer either
        assert served.post(alice) == 200
        assert [seen.path for seen in fake.seen + second.seen] == [CHAT]
        _write(served.file, alices)
        assert served.reload().json()["changes"] == ["gateway.continue_streams changed"]
        served.door.wait_ready()
        served.post(alice)
        paths = [seen.path for seen in fake.seen + second.seen]
        assert "/tokenize" in paths  # to go on; a healthy engine is asked again as soon as it has said that it is
        assert paths.count(CHAT) >= 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models: [", "not valid YAML"),
        ("models: []\n", "models"),
        ("gateway: {keyz: []}\nmodels: [demo]\n", "did you mean 'keys'"),
        ("gateway: {port: 1}\nmodels: [{model: demo, name: x}]\n", "gateway.port cannot change"),
        ("models: [{model: demo, name: x, replicas: 2}]\n", "x/1 does not fit"),
        ("models: [{model: demo, name: x, max_num_seqs: 2}]\n", "max_num_seqs cannot change"),
    ],
)
def test_what_cannot_be_is_one_line_and_the_old_configuration_stays(
    fake: FakeEngine, tmp_path: Path, text: str, complaint: str
) -> None:
    alice, alices = _key("alice", admin=True)
    _write(tmp_path / "berth.yaml", alices)
    with _served(tmp_path / "berth.yaml", fake) as served:
        config = served.door.gateway.config
        served.file.write_text(text)
        answer = served.reload()
        message = answer.json()["error"]["message"]
        assert answer.status_code == 409
        assert complaint in message
        assert "\n" not in message
        assert served.door.gateway.config is config
        assert served.post(alice) == 200


def test_who_may_reload(fake: FakeEngine, tmp_path: Path) -> None:
    (root, roots), (alice, alices) = _key("root", admin=True), _key("alice")
    _write(tmp_path / "berth.yaml", roots, alices)
    with _served(tmp_path / "berth.yaml", fake) as served:
        assert served.reload().status_code == 200  # from this machine
        assert served.reload(x_forwarded_for="203.0.113.7", x_api_key=root).status_code == 200
        for headers in (
            {"x_forwarded_for": "203.0.113.7"},
            {"x_forwarded_for": "203.0.113.7", "x_api_key": alice},
            {"origin": "https://evil.example"},
            {"forwarded": "for=203.0.113.7", "authorization": "Bearer guessed"},
        ):
            answer = served.reload(**headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_only")
        assert served.door.get("/admin/reload").headers["allow"] == "POST"


def test_without_a_file_there_is_nothing_to_reload(fake: FakeEngine) -> None:
    gateway = Gateway(CONFIG)
    gateway.add(Replica("e0", fake.url))
    with opened(gateway) as door:
        answer = door.post("/admin/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "nothing_to_reload")


async def test_a_hangup_reloads_and_a_mistake_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="berth.serving")
    file = tmp_path / "berth.yaml"
    _write(file, _key("alice")[1])

    def again() -> StackConfig:
        return load_stack(str(file), ENVIRONMENT, {})

    config = again()
    gateway = Gateway(gateway_config(config.gateway, ENVIRONMENT))
    reloader = Reloader(config, again, ENVIRONMENT, gateway, Folders(tmp_path, tmp_path), lambda *_: [])
    with reloader.listening():
        for is_open, text, said in (
            (False, file.read_text(), "still starting"),
            (True, file.read_text(), "nothing changed"),
            (True, "nonsense", "stays in force"),
        ):
            reloader.is_open = is_open
            file.write_text(text)
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(20):
                while said not in caplog.text:  # noqa: ASYNC110  (a log has no event to wait for)
                    await asyncio.sleep(0.002)
    assert gateway.reload is None
    assert len(gateway.config.keys) == 1


# Engines
class _Keeper:
    """A supervisor as the fleet sees it, without an engine."""

    def __init__(self, gateway: Gateway, name: str, *, fails: bool = False) -> None:
        model = name.partition("/")[0]
        self.placement = _placement(name)
        self.replica = Replica(name, "unix:/nowhere", (ModelCard(model),), state="ready")
        self.calls: list[str] = []
        self._fails = fails
        self._stopped = asyncio.Event()
        gateway.add(self.replica)

    async def run(self) -> None:
        if self._fails:
            raise StartError("it did not start", log_path=Path("log"), last_lines=())
        await self._stopped.wait()

    def retire(self) -> None:
        self.calls.append("retire")
        self.replica.state = "draining"

    async def stop(self) -> None:
        self.calls.append(f"stop with {self.replica.in_flight} in flight")
        self._stopped.set()

    def kill(self) -> None:
        self.calls.append("kill")


def _placement(name: str) -> Placement:
    @dataclass
    class Spec:
        name: str
        served_model_name: str

    @dataclass
    class Placed:
        spec: Spec

    return cast(Placement, Placed(Spec(name, name.partition("/")[0])))


class _Company:
    """A fleet of keepers, by name."""

    def __init__(self, *failing: str) -> None:
        self.gateway = Gateway(CONFIG)
        self.keepers: dict[str, _Keeper] = {}
        self.fleet = Fleet(self.gateway, self._keep)
        self.signals = Signals(asyncio.Event(), asyncio.Event())
        self._failing = failing

    def _keep(self, placement: Placement) -> Supervisor:
        name = placement.spec.name
        self.keepers[name] = _Keeper(self.gateway, name, fails=name in self._failing)
        return cast(Supervisor, self.keepers[name])

    def start(self, *names: str) -> None:
        self.fleet.take(_placement(name) for name in names)
        self.fleet.start()

    def grow(self, *names: str) -> None:
        self.fleet.grow(_placement(name) for name in names)

    @property
    def routed(self) -> list[str]:
        return [replica.name for replica in self.gateway.pool.replicas]

    async def until_routed(self, *names: str) -> None:
        async with asyncio.timeout(20):
            while self.routed != list(names):  # noqa: ASYNC110  (membership has no event)
                await asyncio.sleep(0.002)


async def test_a_replica_that_is_taken_away_answers_what_it_has_first() -> None:
    company = _Company()
    company.start("x/0", "x/1", "y/0")
    leaving = company.keepers["x/1"]
    place = placed(leaving.replica, 100)
    assert company.fleet.shrink("x", 1, patience_s=60) == ["x/1"]
    assert [replica.name for replica in company.gateway.pool.candidates("x")] == ["x/0"]
    await asyncio.sleep(0.25)  # time enough to stop it too early
    assert leaving.calls == ["retire"]
    place.release()
    await company.until_routed("x/0", "y/0")
    assert leaving.calls == ["retire", "stop with 0 in flight"]
    assert company.fleet.names() == {"x/0", "y/0"}
    await company.fleet.end(company.signals)


async def test_patience_ends() -> None:
    company = _Company()
    company.start("x/0")
    placed(company.keepers["x/0"].replica, 100)
    company.fleet.shrink("x", 1, patience_s=0)
    await company.until_routed()
    assert company.keepers["x/0"].calls == ["retire", "stop with 1 in flight"]


async def test_an_added_engine_that_does_not_start_is_left_out_and_the_rest_serves_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    company = _Company("x/1")
    company.start("x/0")
    serving = asyncio.create_task(company.fleet.serve(company.signals))
    company.grow("x/1", "x/2")
    await company.until_routed("x/0", "x/2")
    assert "x/1 is left out: it did not start" in caplog.text
    assert not serving.done()
    company.signals.stop.set()
    await serving
    await company.fleet.end(company.signals)
    assert company.keepers["x/2"].calls == ["stop with 0 in flight"]


async def test_an_engine_the_service_stands_on_ends_it() -> None:
    company = _Company("x/1")
    company.start("x/0", "x/1")
    with pytest.raises(StartError):
        await company.fleet.serve(company.signals)
    await company.fleet.end(company.signals)


async def test_the_end_takes_those_that_are_leaving_along() -> None:
    company = _Company()
    company.start("x/0", "x/1")
    placed(company.keepers["x/1"].replica, 100)
    company.fleet.shrink("x", 1, patience_s=3600)
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await company.fleet.end(company.signals)
    assert company.keepers["x/1"].calls == ["retire", "stop with 1 in flight"]


def test_added_replicas_get_numbers_that_are_free() -> None:
    placements = [_placement("x/0"), _placement("x/1"), _placement("z/0")]
    names = [name for _, name in numbered_apart(placements, {"x/0", "x/2", "y/0"})]
    assert names == ["x/1", "x/3", "z/0"]


async def test_a_reload_that_is_refused_says_so_to_whoever_asked() -> None:
    config = StackConfig.model_validate({"models": ["demo"]})
    gateway = Gateway(CONFIG)
    reloader = Reloader(config, None, ENVIRONMENT, gateway, Folders(Path(), Path()), lambda *_: [])
    with pytest.raises(GatewayConfigError, match="still starting"):
        await reloader.reload(lambda: config)
