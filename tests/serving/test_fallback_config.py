"""Stand-ins, remotes and health in `berth.yaml`, and what is refused there."""

from pathlib import Path

import pytest

from gateway.config import TROUBLES, GatewayConfig, Hedge, Step
from serving.config import StackConfig, child_environment, key_variables, load_stack
from serving.door_config import gateway_config
from serving.environment import Environment
from serving.errors import ConfigError

ENVIRONMENT = Environment(api_key=None)
WHOLE = """
models:
  - model: org/big
    name: big
    fallbacks: [small, far]
    fallback_on: [failed, late]
    ttft_deadline_s: 2.5
    hedge: {quantile: 0.9}
  - {model: org/small, name: small, fallbacks: [big]}
remotes:
  - name: far
    base_url: https://far.example/v1/
    api_key_env: FAR_KEY
    model: far-large
    input_usd: 0.25
    output_usd: 2
    speaks: [chat]
gateway:
  health: {consecutive_failures: 3, open_s: 1, max_ejection_percent: 25, retry_share: 0.1}
"""


def _load(tmp_path: Path, text: str) -> StackConfig:
    file = tmp_path / "berth.yaml"
    file.write_text(text)
    return load_stack(str(file), ENVIRONMENT, {})


def _gateway(config: StackConfig) -> GatewayConfig:
    return gateway_config(config.gateway, ENVIRONMENT, config.models, config.remotes)


def test_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "far-secret")
    config = _gateway(_load(tmp_path, WHOLE))
    (remote,) = config.remotes
    assert (remote.base_url, remote.model, remote.api_key) == ("https://far.example/v1", "far-large", "far-secret")
    assert (remote.input_usd, remote.output_usd, list(remote.speaks)) == (0.25, 2.0, ["chat"])
    assert config.chains["big"].steps == (Step("small"), Step("far", remote))
    assert (sorted(config.chains["big"].on), config.chains["big"].ttft_deadline_s) == (["failed", "late"], 2.5)
    assert (config.chains["small"].steps, config.chains["small"].on) == ((Step("big"),), TROUBLES)
    assert config.hedges == {"big": Hedge(quantile=0.9)}
    assert (config.health.breaker.consecutive_failures, config.health.breaker.open_s) == (3, 1.0)
    assert (config.health.outliers.max_ejection_percent, config.health.retry_budget.share) == (25, 0.1)


def test_without_any_of_it_nothing_changes(tmp_path: Path) -> None:
    config = _gateway(_load(tmp_path, "models: [org/big]"))
    assert config == GatewayConfig()


def test_the_key_shows_nowhere_and_no_engine_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", "far-secret")
    stack = _load(tmp_path, WHOLE)
    assert "far-secret" not in repr(_gateway(stack))
    assert "FAR_KEY" not in child_environment({}, key_variables(stack))
    assert "FAR_KEY" in child_environment({})


@pytest.mark.parametrize("value", [None, ""])
def test_a_key_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("FAR_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("FAR_KEY", value)
    stack = _load(tmp_path, WHOLE)  # a file can be checked without its keys
    with pytest.raises(ConfigError, match="remote 'far': its key is to be in FAR_KEY, which is not set"):
        _gateway(stack)


def _remote(**changes: str) -> str:
    fields = {"name": "far", "base_url": "https://far.example/v1", "model": "m", **changes}
    inside = ", ".join(f"{name}: '{value}'" for name, value in fields.items())
    return f"models: [{{model: org/big, name: big, fallbacks: [far]}}]\nremotes: [{{{inside}}}]"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models: [{model: org/big, fallbacks: [org/big]}]", "fallbacks of 'org/big': a model cannot stand in for it"),
        (WHOLE.replace("[small, far]", "[small, small]"), "fallbacks of 'big': 'small' is there twice"),
        (WHOLE.replace("[small, far]", "[smal]"), "is named 'smal'; did you mean 'small'?"),
        (WHOLE.replace("[small, far]", "[zzz]"), "is named 'zzz'; known: big, small, far"),
        (WHOLE.replace("name: far", "name: big"), "remote 'big' has the name of another remote or model"),
        (WHOLE.replace("[failed, late]", "[never]"), "models.0.fallback_on.0"),
        (WHOLE.replace("[failed, late]", "[failed]"), "ttft_deadline_s is only used with 'late'"),
        (WHOLE.replace("ttft_deadline_s: 2.5", ""), "fallback_on 'late' needs ttft_deadline_s"),
        ("models: [{model: org/big, ttft_deadline_s: 1}]", "say when to use 'fallbacks', and there are none"),
        ("models: [{model: org/big, hedge: {quantile: 1}}]", "models.0.hedge.quantile"),
        ("models: [org/big]\ngateway: {health: {open_s: 200}}", "open_max_s (120) is less than open_s (200)"),
        ("models: [org/big]\ngateway: {health: {open: 2}}", "gateway.health.open: unknown key"),
        (WHOLE.replace("[chat]", "[telepathy]"), "remotes.0.speaks.0"),
        (WHOLE.replace("[chat]", "[]"), "remotes.0.speaks"),
        (_remote(base_url="ftp://x"), "'ftp://x' is not like https://api.example.com/v1"),
        (_remote(base_url="api.example.com/v1"), "is not like https://api.example.com/v1"),
        (
            _remote(base_url="https://user:pw@x/v1"),
            "no user or password here: name a variable",
        ),
        (_remote(base_url="http://far.example/v1", api_key_env="FAR_KEY"), "unencrypted: use https"),
        (_remote(api_key="sk-1"), "remotes.0.api_key: unknown key; did you mean 'api_key_env'?"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _load(tmp_path, text)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000/v1", "http://localhost/v1", "https://far.example/openai/v1"])
def test_urls_a_key_may_go_to(tmp_path: Path, url: str) -> None:
    assert _load(tmp_path, _remote(base_url=url, api_key_env="FAR_KEY")).remotes[0].base_url == url


def test_without_a_key_plain_http_is_fine(tmp_path: Path) -> None:
    assert _load(tmp_path, _remote(base_url="http://10.0.0.7:8000/v1")).remotes[0].api_key_env is None
