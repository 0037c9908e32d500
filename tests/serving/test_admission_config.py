"""berth.yaml on callers' limits, the line, and what is promised."""

import pytest

from gateway.admission.rates import CallerLimits
from gateway.config import Queue, Slo
from serving.change import compare
from serving.config import ModelSection, StackConfig
from serving.door_config import GatewaySection, gateway_config
from serving.environment import Environment
from serving.errors import ConfigError
from serving.reading import validated

ENVIRONMENT = Environment(api_key=None)
KEY = {"caller": "ann", "sha256": "0" * 64}


def test_limits_priority_line_and_slo_reach_the_gateway() -> None:
    key = {**KEY, "priority": "low", "requests_per_minute": 60, "tokens_per_minute": 10_000, "max_in_flight": 2}
    section = GatewaySection.model_validate({"keys": [key], "queue": {"max_waiting": 5, "max_wait_s": 3}})
    models = [ModelSection.model_validate({"model": "demo", "name": "m", "slo": {"ttft_s": 0.5, "tpot_s": 0.05}})]
    config = gateway_config(section, ENVIRONMENT, models)
    assert (config.keys[0].priority, config.keys[0].limits) == ("low", CallerLimits(60, 10_000, 2))
    assert config.queue == Queue(max_waiting=5, max_wait_s=3.0)
    assert config.slos == {"m": Slo(0.5, 0.05)}


def test_the_defaults_are_the_gateways() -> None:
    assert gateway_config(GatewaySection(), ENVIRONMENT).queue == Queue()
    assert not gateway_config(
        GatewaySection.model_validate({"queue": {"enabled": False}}), ENVIRONMENT
    ).queue.is_enabled


def test_the_keys_of_one_caller_have_one_limit() -> None:
    same = [{**KEY, "max_in_flight": 2}, {**KEY, "sha256": "1" * 64, "max_in_flight": 2, "priority": "high"}]
    assert len(validated(GatewaySection, {"keys": same}, "").keys) == 2
    with pytest.raises(ConfigError, match="the keys of 'ann' have different limits: they share one"):
        validated(GatewaySection, {"keys": [same[0], {**same[1], "max_in_flight": 3}]}, "")


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({"keys": [{**KEY, "priority": "urgent"}]}, "keys.0.priority: Input should be 'high', 'normal' or 'low'"),
        ({"keys": [{**KEY, "max_in_flight": 0}]}, "keys.0.max_in_flight"),
        ({"queue": {"max_wait": 3}}, "queue.max_wait: unknown key"),
        ({"queue": {"max_wait_s": 0}}, "queue.max_wait_s"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(raw: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validated(GatewaySection, raw, "")
    assert str(refused.value).startswith(complaint)
    assert "\n" not in str(refused.value)


def test_an_empty_promise_is_none() -> None:
    with pytest.raises(ValueError, match="give ttft_s, tpot_s or both"):
        ModelSection.model_validate({"model": "demo", "slo": {}})


def test_all_of_it_may_change_while_engines_run() -> None:
    old = StackConfig.model_validate({"models": ["demo"]})
    new = StackConfig.model_validate(
        {"models": [{"model": "demo", "slo": {"ttft_s": 1}}], "gateway": {"queue": {"max_waiting": 1}}}
    )
    assert compare(old, new).lines == ("gateway.queue changed",)
