"""A real Prometheus with the shipped configuration scrapes a real exposition and records the rules."""

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from tests.deploy.exposition import MODEL, LiveGateway, serving
from tests.fake_engine import FakeEngine

_PATIENCE_S = 20.0


def test_a_real_prometheus_records_the_rules(
    prometheus: Path, fake: FakeEngine, deploy_file: Callable[[str], Path], tmp_path: Path
) -> None:
    with serving(LiveGateway(fake)) as target:
        _hurried(deploy_file("prometheus/prometheus.yml"), target, tmp_path)
        shutil.copy(deploy_file("prometheus/rules.yml"), tmp_path)
        with _running(prometheus, tmp_path) as api:
            assert _first(api, 'up{job="berth", service="gateway"}') == 1
            expected = {
                "model:berth_time_to_first_token_seconds:p50_5m": pytest.approx(0.03, abs=0.01),  # bucket 0.02..0.04
                "model:berth_time_per_output_token_seconds:p90_5m": pytest.approx(0.0125, abs=0.0025),
                "model:berth_request_errors:ratio_5m": pytest.approx(0.25),
                "model:berth_engine_prefix_cache_hits:ratio_5m": pytest.approx(0.5),
                "model:berth_engine_kv_cache_usage_ratio:max": 0.25,
                "replica:berth_engine_kv_cache_tokens:actual_over_predicted": 1.0,
            }
            for series, value in expected.items():
                assert _first(api, f'{series}{{model="{MODEL}"}}') == value, series
            # a quarter of the requests break; the alert waits for five minutes of that
            assert _first(api, 'ALERTS{alertname="BerthErrorRatioHigh", alertstate="pending"}') == 1
            _until(lambda: {rule["health"] for rule in _rules(api)} == {"ok"}, lambda: f"unhealthy: {_rules(api)}")
            states = {rule["name"]: rule["state"] for rule in _rules(api) if rule["type"] == "alerting"}
            assert states.pop("BerthErrorRatioHigh") == "pending"
            assert set(states.values()) == {"inactive"}


def _hurried(shipped: Path, target: str, folder: Path) -> None:
    """The shipped configuration with another target, and no time to lose."""
    config = yaml.safe_load(shipped.read_text())
    config["global"] |= {"scrape_interval": "200ms", "scrape_timeout": "200ms", "evaluation_interval": "200ms"}
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "berth"]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


@contextmanager
def _running(prometheus: Path, folder: Path) -> Iterator[str]:
    """Prometheus on a free loopback port, gone when the block ends; yields its `host:port`."""
    api = f"127.0.0.1:{_free_port()}"
    command = [
        str(prometheus),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={api}",
    ]
    with (folder / "log").open("w+") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _until(lambda: _answers(api, process), lambda: (folder / "log").read_text()[-2000:])
            yield api
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(api: str, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        pytest.fail(f"Prometheus ended with status {process.returncode}")
    try:
        return _request(api, "/-/ready")[0] == 200
    except OSError:
        return False


def _first(api: str, query: str) -> float:
    """The value of the one series that answers, waited for."""
    rows: list[dict[str, Any]] = []

    def answered() -> bool:
        rows[:] = _get(api, "/api/v1/query?" + urlencode({"query": query}))["result"]
        return bool(rows)

    _until(answered, lambda: f"no value for {query}")
    assert len(rows) == 1, rows
    return float(rows[0]["value"][1])


def _rules(api: str) -> list[dict[str, Any]]:
    return [rule for group in _get(api, "/api/v1/rules")["groups"] for rule in group["rules"]]


def _get(api: str, path: str) -> dict[str, Any]:
    status, body = _request(api, path)
    assert status == 200, body
    data: dict[str, Any] = json.loads(body)["data"]
    return data


def _request(api: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(api, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def _until(condition: Callable[[], bool], reason: Callable[[], str]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(reason())
        time.sleep(0.1)
