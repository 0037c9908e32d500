"""What `berth serve` was told, checked before anything is started."""

from pathlib import Path

import pytest

from gateway.config import GatewayConfig, Timeouts
from serving.config import DEMO_MODEL, child_environment, load_stack, visible_gpus
from serving.door_config import GatewaySection, KeySection, gateway_config
from serving.environment import Environment
from serving.errors import ConfigError
from serving.quantity import token_count
from serving.reading import validated
from serving.sections import is_loopback

ENVIRONMENT = Environment(api_key=None)


def test_without_a_target_the_embedded_model_is_served() -> None:
    config = load_stack(None, ENVIRONMENT, {})
    assert [(m.model, m.name, m.replicas) for m in config.models] == [(DEMO_MODEL, "smollm2", 1)]
    assert (config.gateway.host, config.gateway.port) == ("127.0.0.1", 8000)


def test_keys_may_be_allowed_to_reload_and_the_log_may_be_json() -> None:
    section = GatewaySection.model_validate(
        {"keys": [{"caller": "root", "sha256": "0" * 64, "admin": True}], "log_format": "json"}
    )
    config = gateway_config(section, Environment(api_key="secret"))
    assert [(key.caller, key.is_admin) for key in config.keys] == [("root", True), ("default", False)]
    assert config.log_format == "json"


@pytest.mark.parametrize(
    "raw", [{"log_format": "xml"}, {"tracing": {"sample_ratio": 1.5}}, {"tracing": {"endpoint": "localhost:4318"}}]
)
def test_what_telling_cannot_be(raw: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"log_format|sample_ratio|endpoint"):
        validated(GatewaySection, raw, "")


def test_limits_on_waiting_and_on_size() -> None:
    given = {
        "connect_s": 1,
        "first_token_s": 2,
        "gap_s": 3,
        "total_s": 4,
        "keep_alive_s": 5,
        "probe_s": 6,
        "client_s": 7,
    }
    sizes = {"max_body_mib": 1, "max_answer_mib": 2, "max_event_mib": 3}
    config = gateway_config(
        validated(GatewaySection, {"timeouts": given, "continue_streams": False, **sizes}, ""), ENVIRONMENT
    )
    assert config.timeouts == Timeouts(1, 2, 3, 4, 5, 6, 7)
    assert (config.max_body_bytes, config.max_answer_bytes, config.max_event_bytes) == (2**20, 2 * 2**20, 3 * 2**20)
    assert not config.continue_streams


def test_what_is_not_said_is_as_the_gateway_has_it() -> None:
    assert gateway_config(GatewaySection(), ENVIRONMENT) == GatewayConfig()
    some = validated(GatewaySection, {"timeouts": {"gap_s": 20, "total_s": None}}, "")
    assert gateway_config(some, ENVIRONMENT).timeouts == Timeouts(gap_s=20)


@pytest.mark.parametrize(
    "key", ["connect_s", "first_token_s", "gap_s", "total_s", "keep_alive_s", "probe_s", "client_s"]
)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "soon"])
def test_a_wait_is_a_number_of_seconds(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"^timeouts\.{key}: "):
        validated(GatewaySection, {"timeouts": {key: value}}, "")


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({"timeouts": {"first_tokens_s": 1}}, "timeouts.first_tokens_s: unknown key; did you mean 'first_token_s'?"),
        ({"timeouts": {"gap_s": None}}, "timeouts.gap_s: "),
        ({"max_event_mib": 0}, "max_event_mib: "),
        ({"max_answer_mib": 1.5}, "max_answer_mib: "),
        ({"continue_streams": "sometimes"}, "continue_streams: "),
    ],
)
def test_limits_that_cannot_be(raw: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_stack(None, ENVIRONMENT, {f"gateway.{key}": value for key, value in raw.items()})
    assert str(refused.value).startswith(f"gateway.{complaint}")


def test_a_hub_id_is_its_own_public_name() -> None:
    assert load_stack("Qwen/Qwen3-8B", ENVIRONMENT, {}).models[0].name == "Qwen/Qwen3-8B"


def test_a_folder_is_named_after_itself_and_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    model = load_stack("./my-model", ENVIRONMENT, {}).models[0]
    assert (model.name, model.model) == ("my-model", str(tmp_path / "my-model"))


def test_a_folder_in_a_file_is_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    config = tmp_path / "berth.yaml"
    config.write_text("models: [./models/tiny, {model: Qwen/Qwen3-8B, name: qwen, replicas: 2, max_model_len: 32K}]\n")
    first, second = load_stack(str(config), ENVIRONMENT, {}).models
    assert first.model == str(tmp_path / "models" / "tiny")
    assert (second.name, second.replicas, second.max_model_len) == ("qwen", 2, 32_768)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "berth.yaml"
    config.write_text("models: [demo]\ngateway: {port: 9000, host: 127.0.0.2}\n")
    loaded = load_stack(str(config), ENVIRONMENT, {"gateway.port": 9001, "replicas": 3, "name": None})
    assert (loaded.gateway.port, loaded.gateway.host) == (9001, "127.0.0.2")
    assert loaded.models[0].replicas == 3


def test_a_flag_about_one_model_is_refused_for_two(tmp_path: Path) -> None:
    config = tmp_path / "berth.yaml"
    config.write_text("models: [demo, Qwen/Qwen3-8B]\n")
    with pytest.raises(ConfigError, match="--max-model-len needs exactly one model"):
        load_stack(str(config), ENVIRONMENT, {"max_model_len": "8k"})


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such file"):
        load_stack("nowhere.yaml", ENVIRONMENT, {})
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read"):
        load_stack(str(binary), ENVIRONMENT, {})


@pytest.mark.parametrize("name", ["gpt2", "a/b/c", "/no/such/folder"])
def test_neither_a_folder_nor_a_hub_id(name: str) -> None:
    with pytest.raises(ConfigError, match="no such folder, and not a Hub id"):
        load_stack(name, ENVIRONMENT, {})


def test_only_loopback_needs_no_keys() -> None:
    assert gateway_config(GatewaySection(host="::1"), ENVIRONMENT).keys == ()
    with pytest.raises(ConfigError, match=r"refusing to listen on 0\.0\.0\.0 without API keys"):
        gateway_config(GatewaySection(host="0.0.0.0"), ENVIRONMENT)
    with_key = gateway_config(GatewaySection(host="0.0.0.0"), Environment(api_key="secret"))
    assert [key.caller for key in with_key.keys] == ["default"]
    assert "secret" not in repr(with_key)
    assert "secret" not in repr(Environment(api_key="secret"))


def test_keys_from_the_file() -> None:
    section = GatewaySection(host="0.0.0.0", keys=(KeySection(caller="alice", sha256="0" * 64),))
    assert gateway_config(section, ENVIRONMENT).keys[0].caller == "alice"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("gpu", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_uuid_in_cuda_visible_devices_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f2c")
    with pytest.raises(ConfigError, match="give their numbers"):
        visible_gpus()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models: [demo]\nmodels: [demo]\n", "'models' is given twice"),
        ("models: [{model: demo, extra_args: [--max-model-len=9]}]\n", "--max-model-len is Berth's to give"),
        (
            "models: [{model: demo, kv_events: true, extra_args: ['--kv-events-config={}']}]\n",
            "kv_events and --kv-events-config say the same",
        ),
        (
            "models: [{model: demo, kv_events: true, extra_args: [--data-parallel-size=2]}]\n",
            "kv_events needs engines of one data-parallel rank: use 'replicas'",
        ),
    ],
)
def test_what_would_be_silently_lost_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    config = tmp_path / "berth.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_stack(str(config), ENVIRONMENT, {})


def test_an_empty_section_means_its_defaults(tmp_path: Path) -> None:
    config = tmp_path / "berth.yaml"
    config.write_text("models: [demo]\ngateway:\n")
    assert load_stack(str(config), ENVIRONMENT, {}).gateway.port == 8000


def test_the_current_folder_is_named_after_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tuned"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert [load_stack(here, ENVIRONMENT, {}).models[0].name for here in (".", "./")] == ["tuned", "tuned"]


def test_engines_do_not_inherit_our_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTH_API_KEY", "secret")
    monkeypatch.setenv("VLLM_API_KEY", "the engine would ask the gateway for it")
    monkeypatch.setenv("HF_TOKEN", "for-the-engine")
    environment = child_environment({"CUDA_VISIBLE_DEVICES": "1"})
    assert "BERTH_API_KEY" not in environment
    assert "VLLM_API_KEY" not in environment
    assert environment["HF_TOKEN"] == "for-the-engine"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(("value", "expected"), [(None, None), ("0,2", (0, 2)), (" 1 ", (1,)), ("", ()), ("-1", ())])
def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, value: str | None, expected: tuple[int, ...] | None) -> None:
    if value is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == expected


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("8192", 8192), ("32k", 32_000), ("32K", 32_768), ("1.5k", 1500), ("8_192", 8192), ("k", None), ("-1", None)],
)
def test_token_counts_as_vllm_reads_them(text: str, tokens: int | None) -> None:
    assert token_count(text) == tokens
