"""The Prometheus files: valid, right on worked examples, and about series that the gateway really exports."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.exposition import LiveGateway, exported_series
from tests.fake_engine import FakeEngine

DeployFile = Callable[[str], Path]

_FROM_PROMETHEUS = {"up": {"job", "instance"}}
_TARGET_LABELS = {"job", "instance", "service"}
_WORDS = frozenset(["histogram_quantile", "sum", "max", "rate", "round", "by", "and", "or", "on", "without"])
_GROUPING = re.compile(r"\b(?:by|on|without)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([A-Za-z_:][\w:]*)\s*\{([^}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"[^\"]*\"")
_NAME = re.compile(r"(?<![\w.\[])[A-Za-z_:][\w:]*")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("check", "config"), "prometheus/prometheus.yml"),
        (("check", "rules"), "prometheus/rules.yml"),
        (("test", "rules"), "prometheus/rules.test.yml"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else None,
)
def test_promtool_accepts(promtool: Path, deploy_file: DeployFile, command: tuple[str, ...], name: str) -> None:
    path = deploy_file(name)
    done = subprocess.run(
        [promtool, *command, path.name], cwd=path.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_about_series_the_gateway_exports(fake: FakeEngine, deploy_file: DeployFile) -> None:
    exported = exported_series(LiveGateway(fake).scrape()) | _FROM_PROMETHEUS
    recorded = {rule["record"] for rule in _rules(deploy_file) if "record" in rule}
    for rule in _rules(deploy_file):
        used = _series_in(rule["expr"])
        assert used, f"no series found in {rule['expr']}"
        assert used.keys() <= exported.keys() | recorded, f"{_name_of(rule)} uses {used.keys() - exported.keys()}"
        for series, labels in used.items():
            if series in exported:
                assert labels <= exported[series] | _TARGET_LABELS, f"{_name_of(rule)}: {series} has no {labels}"


def test_the_reader_of_expressions_tells_series_from_words() -> None:
    assert _series_in('sum by (model) (rate(a_total{s!~"4.."}[5m])) / 0.5 or b:c:d > 1e-3') == {
        "a_total": {"s"},
        "b:c:d": set(),
    }


def test_every_rule_has_a_unit_test(deploy_file: DeployFile) -> None:
    tests = deploy_file("prometheus/rules.test.yml").read_text()
    untested = {_name_of(rule) for rule in _rules(deploy_file) if _name_of(rule) not in tests}
    plain = {  # variations of a tested percentile, and plain rates that tested rules build on
        "model:berth_time_per_output_token_seconds:p50_5m",
        "model:berth_time_per_output_token_seconds:p99_5m",
        "model:berth_requests:rate_5m",
        "model:berth_output_tokens:rate_5m",
    }
    assert untested == plain


def test_alerts_say_what_happened_and_how_bad_it_is(deploy_file: DeployFile) -> None:
    alerts = [rule for rule in _rules(deploy_file) if "alert" in rule]
    assert len(alerts) >= 4
    for alert in alerts:
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"]["summary"]
        assert alert["for"]


def test_the_gateway_is_scraped_every_5_to_15_seconds_without_secrets(deploy_file: DeployFile) -> None:
    text = deploy_file("prometheus/prometheus.yml").read_text()
    config = yaml.safe_load(text)
    assert 5 <= int(config["global"]["scrape_interval"].removesuffix("s")) <= 15
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["berth"]["static_configs"][0]["targets"] == ["berth:8000"]  # the name and port of the compose service
    assert not re.search(r"password|credentials|bearer|authorization", text.replace("No credentials", ""))


def _rules(deploy_file: DeployFile) -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(deploy_file("prometheus/rules.yml").read_text())["groups"]:
        yield from group["rules"]


def _name_of(rule: dict[str, Any]) -> str:
    name: str = rule.get("record") or rule["alert"]
    return name


def _series_in(expression: str) -> dict[str, set[str]]:
    """The series an expression reads, with the labels it matches on. Whatever is no known word must be a series."""
    matched = {name: set(_MATCHER.findall(matchers)) for name, matchers in _SELECTOR.findall(expression)}
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", _GROUPING.sub(" ", expression))
    names = {name for name in _NAME.findall(bare) if name not in _WORDS and not re.fullmatch(r"e\d*", name)}
    return {name: matched.get(name, set()) for name in names}
