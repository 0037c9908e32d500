"""What compose.yaml promises: nothing public, nothing without a key, time to drain."""

import re
from typing import Any

import pytest
import yaml

from serving.door_config import GatewaySection
from tests.deploy.conftest import DEPLOY

_LONGEST_ENGINE_STOP_S = 25  # serving.supervisor: 5 s to drain, 20 s before it is killed


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return parsed


def test_it_follows_the_current_specification(compose: dict[str, Any]) -> None:
    known = {"name", "services", "volumes", "networks", "configs", "secrets", "include"}
    assert {key for key in compose if not key.startswith("x-")} <= known


def test_nothing_is_reachable_from_other_machines(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "network_mode" not in service, name
        assert "ipc" not in service, name
        assert "privileged" not in service, name
        assert all(str(port).startswith("127.0.0.1:") for port in service["ports"]), name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_every_image_is_named_and_pinned_or_built_here(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        _, _, tag = service["image"].rpartition(":")
        assert tag not in ("", "latest"), name
        if "build" in service:
            context = DEPLOY / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file(), name
        else:
            assert re.fullmatch(r"v\d+\.\d+\.\d+", tag), name


@pytest.mark.parametrize("name", ["berth", "berth-cuda"])
def test_a_gateway_starts_with_a_key_only_and_has_time_to_drain(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["environment"]["BERTH_API_KEY"].startswith("${BERTH_API_KEY:?")
    assert service["command"][-2:] == ["--host", "0.0.0.0"]
    assert service["ports"] == ["127.0.0.1:${BERTH_PORT:-8000}:8000"]
    assert "/ready" in service["healthcheck"]["test"][-1]
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True
    grace_s = int(service["stop_grace_period"].removesuffix("s"))
    assert grace_s > GatewaySection().drain_timeout_s + _LONGEST_ENGINE_STOP_S


def test_the_gpu_service_is_a_profile_and_the_cpu_one_the_default(compose: dict[str, Any]) -> None:
    assert "profiles" not in compose["services"]["berth"]
    cuda = compose["services"]["berth-cuda"]
    assert cuda["profiles"] == ["cuda"]
    (gpus,) = cuda["deploy"]["resources"]["reservations"]["devices"]
    assert gpus == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert cuda["shm_size"] == "16gb"
    assert cuda["networks"]["default"]["aliases"] == ["berth"]


def test_volumes_are_declared_and_mounted_files_exist(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], (
                name,
                source,
            )


def test_prometheus_reads_the_checked_files_and_keeps_its_data(compose: dict[str, Any]) -> None:
    service = compose["services"]["prometheus"]
    assert "./prometheus:/etc/prometheus:ro" in service["volumes"]
    assert "--config.file=/etc/prometheus/prometheus.yml" in service["command"]
    stored_at = next(arg.split("=")[1] for arg in service["command"] if arg.startswith("--storage.tsdb.path="))
    assert any(volume.endswith(f":{stored_at}") for volume in service["volumes"])
    assert service["healthcheck"]["test"]


def test_no_secret_is_written_down() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert not re.search(r"(hf_|sk-|berth-)[A-Za-z0-9_-]{16,}", text)
