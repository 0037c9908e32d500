"""What may change while engines run, and what needs a restart."""

from typing import Any

import pytest

from serving.change import compare
from serving.config import ModelSection, StackConfig
from serving.errors import ConfigError

OLD: dict[str, Any] = {"models": [{"model": "a/x", "name": "x", "replicas": 2}, {"model": "a/y", "name": "y"}]}


def _config(**changes: object) -> StackConfig:
    return StackConfig.model_validate({**OLD, **changes})


def _models(*models: dict[str, object]) -> StackConfig:
    return StackConfig.model_validate({"models": models})


X: dict[str, object] = {"model": "a/x", "name": "x", "replicas": 2}
Y: dict[str, object] = {"model": "a/y", "name": "y"}


def test_the_same_again_changes_nothing() -> None:
    change = compare(_config(), _config())
    assert (change.lines, change.added, change.removed) == ((), (), ())


def test_settings_of_the_door_are_named_and_not_shown() -> None:
    new = _config(gateway={"keys": [{"caller": "eve", "sha256": "0" * 64}], "max_in_flight": 7, "max_body_mib": 1})
    change = compare(_config(), new)
    assert change.lines == ("gateway.keys changed", "gateway.max_in_flight changed", "gateway.max_body_mib changed")
    assert (change.added, change.removed) == ((), ())


def test_how_long_is_waited_and_whether_streams_are_continued_may_change() -> None:
    change = compare(_config(), _config(gateway={"timeouts": {"gap_s": 5}, "continue_streams": False}))
    assert change.lines == ("gateway.timeouts changed", "gateway.continue_streams changed")


@pytest.mark.parametrize(
    ("key", "value"), [("host", "::1"), ("port", 1), ("log_format", "json"), ("tracing", {"sample_ratio": 0.5})]
)
def test_what_was_opened_at_the_start_stays(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"gateway\.{key} cannot change while .*; restart berth"):
        compare(_config(), _config(gateway={key: value}))


def test_replicas_come_and_go() -> None:
    more = compare(_models(X, Y), _models({**X, "replicas": 5}, Y))
    assert more.added == (ModelSection.model_validate({**X, "replicas": 3}),)
    assert (more.removed, more.lines) == ((), ("x: 5 replicas, were 2",))
    fewer = compare(_models(X, Y), _models({**X, "replicas": 1}, Y))
    assert (fewer.added, fewer.removed, fewer.lines) == ((), (("x", 1),), ("x: 1 replicas, were 2",))


def test_models_come_and_go() -> None:
    change = compare(_models(X), _models(Y))
    assert change.added == (ModelSection.model_validate(Y),)
    assert change.removed == (("x", 2),)
    assert change.lines == ("x: 0 replicas, were 2", "y: 1 replicas, were 0")


@pytest.mark.parametrize(
    ("key", "value"), [("max_model_len", 1024), ("model", "a/z"), ("extra_args", ["--seed=1"]), ("dtype", "float32")]
)
def test_an_engines_own_settings_stay(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"models\.x: {key} cannot change while its engines run"):
        compare(_models(X, Y), _models({**X, key: value, "replicas": 3}, Y))


def test_what_is_for_later_starts_is_said_to_be() -> None:
    change = compare(_config(), _config(start_timeout_s=5, calibrate=False))
    assert change.lines == (
        "start_timeout_s changed, for engines started from now on",
        "calibrate changed, for engines started from now on",
    )
