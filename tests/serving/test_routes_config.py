"""`routes` and `isolate_caches` in berth.yaml, and what is refused there."""

from pathlib import Path

import pytest

from gateway.canary import RollbackConfig
from gateway.config import GatewayConfig
from gateway.rules import Mirror, Rule, When
from serving.change import compare
from serving.config import StackConfig, load_stack
from serving.door_config import gateway_config
from serving.environment import Environment
from serving.errors import ConfigError

ENVIRONMENT = Environment(api_key=None)
HASH = "ff62d8da646e3a1529acbf4181d47a3dadb48439ad1c4683276f6fe23bb09fbc"
MODELS = "models: [{model: a/v1, name: v1}, {model: a/v2, name: v2}, {model: a/long, name: long}]\n"
WHOLE = f"""{MODELS}
routes:
  - name: chat
    when: {{prompt_tokens: {{over: 8000}}, headers: {{X-Tier: "gold*"}}, metadata: {{team: a}}, caller: "team-*"}}
    to: long
  - name: chat
    split: {{v1: 95, v2: 5}}
    rollback: {{min_requests: 20, ttft_factor: 2, retry_after_s: 600}}
    mirror: {{to: long, share: 0.1}}
  - when: {{model: "v*"}}
    mirror: {{to: long, max_in_flight: 2}}
"""


def _load(tmp_path: Path, text: str) -> StackConfig:
    file = tmp_path / "berth.yaml"
    file.write_text(text)
    return load_stack(str(file), ENVIRONMENT, {})


def _gateway(config: StackConfig) -> GatewayConfig:
    return gateway_config(config.gateway, ENVIRONMENT, config.models, config.remotes, config.routes)


def test_all_of_it(tmp_path: Path) -> None:
    long, split, mirror = _gateway(_load(tmp_path, WHOLE)).rules
    assert long == Rule(
        When(None, "team-*", (("x-tier", "gold*"),), (("team", "a"),), over_tokens=8000), (("long", 1.0),), "chat"
    )
    assert split == Rule(
        name="chat",
        split=(("v1", 95.0), ("v2", 5.0)),
        rollback=RollbackConfig(min_requests=20, ttft_factor=2, retry_after_s=600),
        mirror=Mirror("long", 0.1),
    )
    assert mirror == Rule(When(model="v*"), mirror=Mirror("long", max_in_flight=2))


def test_a_split_is_watched_unless_it_is_said_not_to_be(tmp_path: Path) -> None:
    text = MODELS + "routes: [{name: chat, split: {v1: 1, v2: 1}, sticky: false}]"
    (rule,) = _gateway(_load(tmp_path, text)).rules
    assert (rule.rollback, rule.sticky) == (RollbackConfig(), False)
    (rule,) = _gateway(_load(tmp_path, text.replace("sticky", "rollback"))).rules
    assert rule.rollback is None


def test_a_side_of_weight_0_is_no_side(tmp_path: Path) -> None:
    (rule,) = _gateway(_load(tmp_path, MODELS + "routes: [{name: chat, split: {v1: 1, v2: 0}}]")).rules
    assert (rule.split, rule.rollback) == ((("v1", 1.0),), None)


def _routes(route: str) -> str:
    return f"{MODELS}routes: [{route}]"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (_routes("{name: chat, to: lon}"), "routes.0: no model is named 'lon'; did you mean 'long'?"),
        (_routes("{name: chat, to: zzzz}"), "routes.0: no model is named 'zzzz'; served: v1, v2, long"),
        (_routes("{name: chat, split: {v1: 1, zzzz: 1}}"), "no model is named 'zzzz'"),
        (_routes("{name: v1, mirror: {to: zzzz}}"), "no model is named 'zzzz'"),
        (_routes("{name: chat}"), "routes.0: it leads nowhere: give it 'to', 'split' or 'mirror'"),
        (_routes("{name: chat, to: v1, split: {v1: 1}}"), "'to' and 'split' both say where to"),
        (_routes("{name: chat, split: {v1: 0}}"), "every weight of its split is 0"),
        (_routes("{name: chat, split: {v1: -1}}"), "routes.0.split.v1"),
        (_routes("{name: chat, mirror: {to: v1}}"), "'chat' is no model here, so the rule needs 'to' or 'split'"),
        (_routes("{name: chat, when: {model: v1}, to: v1}"), "leave 'model' out of 'when'"),
        (_routes("{name: chat, to: v1, sticky: false}"), "'sticky' and 'rollback' are about a split"),
        (_routes("{when: {headers: {Authorization: x}}, to: v1}"), "use 'caller' instead of 'Authorization'"),
        (_routes("{when: {prompt_tokens: {}}, to: v1}"), "say 'over', 'under' or both"),
        (_routes("{when: {prompt_tokens: {over: 9, under: 10}}, to: v1}"), "no prompt is over 9 and under 10"),
        (_routes("{when: {modle: v1}, to: v1}"), "routes.0.when.modle: unknown key; did you mean 'model'?"),
        (_routes("{name: chat, mirror: {to: v1, share: 0}}"), "routes.0.mirror.share"),
        (_routes("{name: c, split: {v1: 1, v2: 1}, rollback: {ttft_factor: 0.5}}"), "ttft_factor"),
        (_routes("{name: chat, to: v1}, {name: chat, to: v2}"), "routes.1: no request reaches it, because routes.0"),
        (_routes("{to: v1}, {when: {caller: bob}, to: v2}"), "routes.1: no request reaches it, because routes.0"),
        (
            _routes("{name: far, to: v1}") + "\nremotes: [{name: far, base_url: 'https://x.example/v1', model: m}]",
            "routes.0: 'far' is the name of a remote",
        ),
        (
            _routes("{name: chat, to: far}") + "\nremotes: [{name: far, base_url: 'https://x.example/v1', model: m}]",
            "routes.0: 'far' is a remote: those only stand in, in a model's 'fallbacks'",
        ),
        (MODELS + "gateway: {isolate_caches: maybe}", "gateway.isolate_caches"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _load(tmp_path, text)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_conditions_before_a_catch_all_are_fine(tmp_path: Path) -> None:
    text = _routes("{name: chat, when: {caller: bob}, to: v1}, {name: chat, to: v2}, {name: other, to: v1}")
    assert len(_load(tmp_path, text).routes) == 3


# Isolated callers
KEYS = f"keys: [{{caller: alice, sha256: {HASH}}}, {{caller: bob, sha256: {HASH[::-1]}}}]"


@pytest.mark.parametrize(
    ("wanted", "isolated"), [("true", {"alice", "bob"}), ("[bob]", {"bob"}), ("false", set()), ("[]", set())]
)
def test_who_is_isolated(tmp_path: Path, wanted: str, isolated: set[str]) -> None:
    text = f"{MODELS}gateway: {{isolate_caches: {wanted}, {KEYS}}}"
    assert _gateway(_load(tmp_path, text)).isolated == isolated


@pytest.mark.parametrize(
    ("gateway", "complaint"),
    [
        ("isolate_caches: true", "without keys all callers are one; add gateway.keys, or leave it out"),
        (f"isolate_caches: [eve], {KEYS}", "no key is for a caller named 'eve'"),
    ],
)
def test_isolation_needs_somebody(tmp_path: Path, gateway: str, complaint: str) -> None:
    config = _load(tmp_path, f"{MODELS}gateway: {{{gateway}}}")
    with pytest.raises(ConfigError, match=rf"gateway\.isolate_caches: {complaint}"):
        _gateway(config)


@pytest.mark.parametrize(
    "origin",
    ["app.example.com", "https://app.example.com/", "https://App.example.com", "https://*.example.com", "null", ""],
)
def test_a_web_page_is_named_as_browsers_name_it(tmp_path: Path, origin: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _load(tmp_path, f"{MODELS}gateway: {{cors_origins: ['{origin}']}}")
    assert f"gateway.cors_origins: '{origin}' is not like https://app.example.com" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("origin", ["https://app.example.com", "http://localhost:3000", "http://[::1]:80", "app://x"])
def test_which_web_pages_may_call(tmp_path: Path, origin: str) -> None:
    config = _load(tmp_path, f"{MODELS}gateway: {{cors_origins: ['{origin}']}}")
    assert _gateway(config).origins == (origin,)


def test_every_web_page_only_with_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.cors_origins: without keys '\*' lets every web page"):
        _gateway(_load(tmp_path, MODELS + "gateway: {cors_origins: ['*']}"))
    assert _gateway(_load(tmp_path, f"{MODELS}gateway: {{cors_origins: ['*'], {KEYS}}}")).origins == ("*",)


def test_both_can_be_reloaded(tmp_path: Path) -> None:
    before, after = _load(tmp_path, MODELS), _load(tmp_path, WHOLE + f"gateway: {{isolate_caches: true, {KEYS}}}")
    assert compare(before, after).lines == ("gateway.keys changed", "gateway.isolate_caches changed", "routes changed")
