"""What `berth gateway` was told, by file and by flag, and what is refused there."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.config import GatewayConfig, Hedge, Slo, Step
from serving.config import ModelSection, load_stack
from serving.door_change import compare_front
from serving.door_config import door_settings
from serving.elsewhere import engine_keys
from serving.environment import Environment
from serving.errors import ConfigError
from serving.front import FrontConfig, load_front
from serving.sections import HandlingSection

ENVIRONMENT = Environment(api_key=None)
ENGINES = "engines: [{url: 'http://a:8000'}, {url: 'unix:/run/b.sock'}]\n"
WHOLE = """
engines:
  - {url: "http://a:8000/v1/", name: big-0, api_key_env: A_KEY, kv_events: true}
  - url: unix:/run/b.sock
models:
  - name: big
    fallbacks: [small, cloud]
    fallback_on: [failed]
    hedge: {quantile: 0.9}
    slo: {ttft_s: 2}
    routing: session
remotes: [{name: cloud, base_url: "https://cloud.example/v1", model: large}]
routes: [{name: chat, split: {big: 9, small: 1}}]
gateway: {port: 9000, max_in_flight: 5}
"""


def _load(
    tmp_path: Path, text: str, upstreams: Sequence[str] = (), *, kv_events: bool = False, **flags: object
) -> FrontConfig:
    file = tmp_path / "front.yaml"
    file.write_text(text)
    overrides = {f"gateway.{key}": value for key, value in flags.items()}
    return load_front(str(file), upstreams, overrides, kv_events=kv_events)


def _engines(config: FrontConfig) -> list[tuple[str, str]]:
    return [(engine.name, engine.url) for engine in config.engines]


def test_all_of_it(tmp_path: Path) -> None:
    config = _load(tmp_path, WHOLE)
    assert _engines(config) == [("big-0", "http://a:8000"), ("b.sock", "unix:/run/b.sock")]
    assert (config.gateway.port, config.gateway.max_in_flight) == (9000, 5)
    settings = door_settings(config, ENVIRONMENT)
    (remote,) = settings.remotes
    chain = settings.chains["big"]
    assert (chain.steps, chain.on) == ((Step("small"), Step("cloud", remote)), frozenset({"failed"}))
    assert (settings.hedges, settings.slos) == ({"big": Hedge(quantile=0.9)}, {"big": Slo(ttft_s=2)})
    assert settings.routings == {"big": "session"}
    assert settings.rules[0].split == (("big", 9.0), ("small", 1.0))
    assert settings.kv_events


def test_engines_alone_are_enough(tmp_path: Path) -> None:
    assert door_settings(_load(tmp_path, ENGINES), ENVIRONMENT) == GatewayConfig()


def test_how_a_model_is_handled_is_said_as_in_a_file_of_berth_serve() -> None:
    assert set(HandlingSection.model_fields) < set(ModelSection.model_fields)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://10.0.0.5:8000", "10.0.0.5:8000"),
        ("https://engines.example/v1", "engines.example"),
        ("http://[::1]:8000/", "[::1]:8000"),
        ("unix:/run/vllm/v1", "v1"),
    ],
)
def test_an_engine_is_named_after_its_address(url: str, name: str) -> None:
    assert [engine.name for engine in load_front(None, [url], {}).engines] == [name]


# Keys of engines
def test_a_key_is_in_its_own_variable_or_in_that_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "a-secret")
    keys = engine_keys(_load(tmp_path, WHOLE).engines, "for-all")
    assert keys == {"http://a:8000": "a-secret", "unix:/run/b.sock": "for-all"}


@pytest.mark.parametrize("value", [None, ""])
def test_a_key_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("A_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("A_KEY", value)
    with pytest.raises(ConfigError, match="engine 'big-0': its key is to be in A_KEY, which is not set"):
        engine_keys(_load(tmp_path, WHOLE).engines, "for-all")


# Flags
def test_flags_win_over_the_file(tmp_path: Path) -> None:
    config = _load(tmp_path, WHOLE, port=9001, host="::1", max_in_flight=None)
    assert (config.gateway.port, config.gateway.host, config.gateway.max_in_flight) == (9001, "::1", 5)


def test_flags_win_over_a_section_with_nothing_in_it(tmp_path: Path) -> None:
    assert _load(tmp_path, ENGINES + "gateway:\n", port=9001).gateway.port == 9001
    file = tmp_path / "berth.yaml"
    file.write_text("models: [demo]\ngateway:\n")
    assert load_stack(str(file), ENVIRONMENT, {"gateway.port": 9001}).gateway.port == 9001


def test_upstreams_take_the_place_of_the_files_engines(tmp_path: Path) -> None:
    config = _load(tmp_path, WHOLE, ["http://c:1", "http://c:1/v1", "http://d:1"])
    assert _engines(config) == [("c:1", "http://c:1"), ("d:1", "http://d:1")]
    assert [model.name for model in config.models] == ["big"]
    assert _engines(_load(tmp_path, "gateway: {port: 1}", ["http://c:1"])) == [("c:1", "http://c:1")]


def test_kv_events_is_every_engines(tmp_path: Path) -> None:
    assert [engine.kv_events for engine in _load(tmp_path, ENGINES, kv_events=True).engines] == [True, True]
    assert not _load(tmp_path, ENGINES).hears_caches


@pytest.mark.parametrize(
    ("file", "upstreams", "complaint"),
    [
        (None, [], "no engines: give --upstream http://host:port or unix:/path/to.sock, or a file with 'engines'"),
        ("http://a:1", [], "http://a:1 is an address and no file: give it as --upstream http://a:1"),
        ("nowhere.yaml", [], "nowhere.yaml: no such file"),
        (None, ["a:1"], "--upstream a:1: expected http://host:port or unix:/path/to.sock"),
        (None, ["http://me:secret@a:1"], "--upstream a:1: expected http"),
        (None, ["http://a:1", "https://a:1"], "engines: two engines are named 'a:1': give one of them another 'name'"),
    ],
)
def test_what_cannot_be_asked_for(file: str | None, upstreams: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_front(file, upstreams, {})
    assert str(refused.value).startswith(complaint)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


# Files
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- a", "expected a mapping with 'engines', found a list"),
        ("a", "expected a mapping with 'engines', found a single value"),
        ("", "expected a mapping with 'engines', found nothing"),
        ("gateway: {port: 1}", "engines: missing"),
        ("engines: []", "engines: the list is empty"),
        ("engines: {url: 'http://a:1'}", "engines: a list is wanted, as in [a, b], found {'url': 'http://a:1'}"),
        ("engines: ['http://a:1']", "engines.0: a mapping is wanted, as in {key: value}, found 'http://a:1'"),
        ("engine: [{url: 'http://a:1'}]", "engine: unknown key; did you mean 'engines'? (and 1 more)"),
        ("engines: [{urls: 'http://a:1'}]", "engines.0.urls: unknown key; did you mean 'url'? (and 1 more)"),
        (
            ENGINES + "gateway: {cors_origins: 'https://a.example'}",
            "gateway.cors_origins: a list is wanted, as in [a, b], found 'https://a.example'",
        ),
        (
            ENGINES + "gateway: {tracing: {endpoint: 'a:4318'}}",
            "gateway.tracing.endpoint: 'a:4318' is not like http://127.0.0.1:4318",
        ),
        (
            ENGINES + "gateway: {keys: [{caller: a, sha256: berth-secret}]}",
            "gateway.keys.0.sha256: 64 hex digits are wanted, as `berth keys new CALLER` prints them",
        ),
        (
            ENGINES + f"gateway: {{keys: [{{caller: a, sha256: {'a' * 64}}}, {{caller: b, sha256: {'a' * 64}}}]}}",
            "gateway.keys: the key of 'a' is there twice: each stands for one caller",
        ),
        (
            "engines: [{url: 'http://a:1', api_key: sk-1}]",
            "engines.0.api_key: unknown key; did you mean 'api_key_env'?",
        ),
        ("engines: [{url: 'a:1'}]", "engines.0.url: 'a:1' is not like http://host:port or unix:/path/to.sock"),
        ("engines: [{url: 'http://a:99999'}]", "engines.0.url: 'http://a:99999' is not like"),
        ("engines: [{url: 'http://a:1/engine'}]", "engines.0.url: 'http://a:1/engine' is not like"),
        ("engines: [{url: 'unix:b.sock'}]", "engines.0.url: 'unix:b.sock' is not like"),
        ("engines: [{url: 'unix:/'}]", "engines.0.url: 'unix:/' is not like"),
        ("engines: [{url: 'http://me:secret@a:1'}]", "engines.0.url: no user or password here: name a variable"),
        ("engines: [{url: 'http://a:1'}, {url: 'http://a:1/v1'}]", "engines: http://a:1 is there twice"),
        (
            "engines: [{url: 'unix:/a/x'}, {url: 'unix:/b/x'}]",
            "engines: two engines are named 'x': give one of them an",
        ),
        (ENGINES + "models: [{name: m}, {name: m}]", "models: 'm' is there twice"),
        (ENGINES + "models: [{name: ''}]", "models.0.name: "),
        (ENGINES + "models: [{name: m, replicas: 2}]", "models.0.replicas: unknown key; known: name, fallbacks, "),
        (ENGINES + "models: [{name: m, fallbacks: [m]}]", "fallbacks of 'm': a model cannot stand in for itself"),
        (ENGINES + "models: [{name: m, fallbacks: [n, n]}]", "fallbacks of 'm': 'n' is there twice"),
        (ENGINES + "models: [{name: m, ttft_deadline_s: 1}]", "say when to use 'fallbacks', and there are none"),
        (ENGINES + "calibrate: false", "calibrate: unknown key; known: "),
        (ENGINES + "gateway: {prot: 1}", "gateway.prot: unknown key; did you mean 'port'?"),
        (ENGINES + "routes: [{name: a, to: b}, {name: a, to: c}]", "routes.1: no request reaches it"),
        (
            ENGINES + "remotes: [{name: far, base_url: 'https://x/v1', model: m}]\nroutes: [{name: a, to: far}]",
            "routes.0: 'far' is a remote: those only stand in, in a model's 'fallbacks'",
        ),
        (
            ENGINES + "remotes: [{name: 'a:8000', base_url: 'https://x/v1', model: m}]",
            "remote 'a:8000' has the name of an engine",
        ),
        (
            ENGINES + "remotes: [{name: m, base_url: 'https://x/v1', model: m}]\nmodels: [{name: m}]",
            "remote 'm' has the name of another remote or model",
        ),
        ("models: [demo]", "models.0: a model to start is for berth serve "),
        (ENGINES + "models: [{name: m}, {model: demo}]", "models.1: a model to start is for berth serve "),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _load(tmp_path, text)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'front.yaml'}: ")
    assert complaint in message
    assert "\n" not in message
    assert message.endswith("more)") == complaint.endswith("more)")


def test_berth_serve_sends_who_has_engines_to_berth_gateway(tmp_path: Path) -> None:
    file = tmp_path / "front.yaml"
    file.write_text(ENGINES + "models: [demo]")
    with pytest.raises(ConfigError, match=r"front\.yaml: engines: those run already.*use berth gateway .*front\.yaml"):
        load_stack(str(file), ENVIRONMENT, {})


# Names that only engines can confirm
def test_names_that_are_nobodys_are_told_with_their_place(tmp_path: Path) -> None:
    config = _load(tmp_path, WHOLE)
    assert config.unserved(frozenset({"big", "small"})) == []
    assert config.unserved(frozenset({"big"})) == ["'small' (fallbacks of 'big')", "'small' (routes.0)"]
    assert config.unserved(frozenset({"small"})) == ["'big' (models)", "'big' (routes.0)"]


def test_a_routes_own_name_is_nobodys_by_right(tmp_path: Path) -> None:
    routes = "routes: [{name: own, to: m}, {name: alone, mirror: {to: m}}, {when: {model: 'x*'}, to: m}]"
    assert _load(tmp_path, ENGINES + routes).unserved(frozenset({"m"})) == ["'alone' (routes.1)"]


# What a reload changes
def test_what_is_told_of_a_reload(tmp_path: Path) -> None:
    old = _load(tmp_path, WHOLE)
    new = _load(tmp_path, "engines: [{url: 'http://c:1'}, {url: 'unix:/run/b.sock', api_key_env: B_KEY}]")
    assert compare_front(old, old) == ()
    assert compare_front(old, new.model_copy(update={"gateway": old.gateway})) == (
        "models changed",
        "remotes changed",
        "routes changed",
        "engine big-0 removed",
        "engine b.sock: api_key_env changed",
        "engine c:1 added",
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "engines: [{url: 'http://a:8000', name: x}]",
            "the name of http://a:8000 cannot change while its requests are",
        ),
        ("engines: [{url: 'http://a:8000'}]\ngateway: {port: 1}", "gateway.port cannot change while the port is open"),
    ],
)
def test_what_needs_a_restart(tmp_path: Path, text: str, complaint: str) -> None:
    old = _load(tmp_path, ENGINES)
    with pytest.raises(ConfigError, match=complaint):
        compare_front(old, _load(tmp_path, text))
