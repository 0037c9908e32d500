"""What every door is told, whoever starts the engines behind it, checked and frozen; the gateway's settings of it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from gateway.access_log import LogFormat
from gateway.admission.line import Priority
from gateway.admission.rates import CallerLimits
from gateway.config import TROUBLES, Chain, GatewayConfig, Hedge, Remote, Slo, Step
from gateway.identity import KeyHash, hash_key
from gateway.kv_events.source import require_extra
from gateway.origins import ANY
from gateway.routing import PolicyName
from serving.environment import Environment, named_key
from serving.errors import ConfigError
from serving.routes import RouteSection
from serving.sections import (
    Count,
    HandlingSection,
    HealthSection,
    QueueSection,
    RemoteSection,
    Section,
    TimeoutsSection,
    is_loopback,
)

_MIB = 2**20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?")
_DEFAULTS = GatewayConfig()


class KeySection(Section):
    """One virtual key as stored: `berth keys new CALLER` prints it."""

    caller: str = Field(min_length=1)
    sha256: str
    admin: bool = False
    """Whether it may also reload the configuration."""
    priority: Priority = "normal"
    """The highest that its requests may have."""
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Prompt and output together."""
    max_in_flight: Count | None = None

    @field_validator("sha256")
    @classmethod
    def _is_a_hash(cls, sha256: str) -> str:
        if not _SHA256.fullmatch(sha256):  # nor said: it may be the key itself
            raise ValueError("64 hex digits are wanted, as `berth keys new CALLER` prints them, never the key itself")
        return sha256

    def limits(self) -> CallerLimits:
        """As the gateway takes them; they are its caller's, over all keys of the same name."""
        return CallerLimits(self.requests_per_minute, self.tokens_per_minute, self.max_in_flight)


class TracingSection(Section):
    """Where spans go, and how many."""

    endpoint: str | None = None
    """An OTLP/HTTP collector's address, without /v1/traces; default: OTEL_EXPORTER_OTLP_ENDPOINT, else no tracing."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"'{endpoint}' is not like http://127.0.0.1:4318")
        return endpoint


class GatewaySection(Section):
    """The door."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    keys: tuple[KeySection, ...] = ()
    max_in_flight: Count | None = None
    max_body_mib: Count = _DEFAULTS.max_body_bytes // _MIB
    max_answer_mib: Count = _DEFAULTS.max_answer_bytes // _MIB
    max_event_mib: Count = _DEFAULTS.max_event_bytes // _MIB
    timeouts: TimeoutsSection = TimeoutsSection()
    continue_streams: bool = _DEFAULTS.continue_streams
    routing: PolicyName = _DEFAULTS.routing
    isolate_caches: bool | tuple[str, ...] = False
    """Whether callers share no cached prefixes with each other; or the callers for whom that holds."""
    cors_origins: tuple[str, ...] = ()
    """The web pages whose scripts may call from a browser; "*": all."""
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    health: HealthSection = HealthSection()
    queue: QueueSection = QueueSection()
    log_format: LogFormat = "text"
    tracing: TracingSection = TracingSection()

    @field_validator("keys")
    @classmethod
    def _one_limit_for_each_caller(cls, keys: tuple[KeySection, ...]) -> tuple[KeySection, ...]:
        limits: dict[str, CallerLimits] = {}
        times = Counter(key.sha256 for key in keys)
        for key in keys:
            if times[key.sha256] > 1:
                raise ValueError(f"the key of '{key.caller}' is there twice: each stands for one caller")
            if limits.setdefault(key.caller, key.limits()) != key.limits():
                raise ValueError(f"the keys of '{key.caller}' have different limits: they share one, give all the same")
        return keys

    @field_validator("cors_origins")
    @classmethod
    def _as_browsers_say_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != ANY and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"'{origin}' is not like https://app.example.com or http://localhost:3000")
        return origins


class DoorConfig(Section):
    """What there is to say about a door, whoever starts the engines behind it."""

    models: tuple[HandlingSection, ...] = ()
    remotes: tuple[RemoteSection, ...] = ()
    routes: tuple[RouteSection, ...] = ()
    gateway: GatewaySection = GatewaySection()

    @field_validator("gateway", mode="before")
    @classmethod
    def _empty_section(cls, value: object) -> object:
        """`gateway:` with nothing below it is null in YAML."""
        return {} if value is None else value

    @model_validator(mode="after")
    def _stand_ins_make_sense(self) -> Self:
        names = [*(model.name for model in self.models), *(remote.name for remote in self.remotes)]
        for remote in self.remotes:
            if names.count(remote.name) > 1:
                raise ValueError(f"remote '{remote.name}' has the name of another remote or model")
        for model in self.models:
            where = f"fallbacks of '{model.name}'"
            if model.name in model.fallbacks:
                raise ValueError(f"{where}: a model cannot stand in for itself")
            for name in model.fallbacks:
                if model.fallbacks.count(name) > 1:
                    raise ValueError(f"{where}: '{name}' is there twice")
        return self

    @property
    def hears_caches(self) -> bool:
        """Whether engines are asked what their KV caches hold."""
        return False


def door_settings(config: DoorConfig, environment: Environment) -> GatewayConfig:
    """The gateway's own settings out of all that a file says. Raises as `gateway_config` does."""
    return gateway_config(
        config.gateway, environment, config.models, config.remotes, config.routes, kv_events=config.hears_caches
    )


def gateway_config(
    section: GatewaySection,
    environment: Environment,
    models: Sequence[HandlingSection] = (),
    remotes: Sequence[RemoteSection] = (),
    routes: Sequence[RouteSection] = (),
    *,
    kv_events: bool = False,
) -> GatewayConfig:
    """The gateway's own settings, with who stands in for which of `models` and which requests are led elsewhere. Raises
    ConfigError for a public address or every web page without keys, a remote's key that is not in the environment, or
    isolated callers that no key is for; the gateway's own where engines publish KV events (`kv_events`) and what reads
    them is not installed."""
    if kv_events:
        require_extra()
    keys = [KeyHash(key.caller, key.sha256, key.admin, key.priority, key.limits()) for key in section.keys]
    if environment.api_key:
        keys.append(hash_key("default", environment.api_key))
    if not keys and not is_loopback(section.host):
        raise ConfigError(
            f"refusing to listen on {section.host} without API keys: set BERTH_API_KEY, add gateway.keys "
            "(berth keys new CALLER makes one), or listen on 127.0.0.1"
        )
    there = {remote.name: _remote(remote) for remote in remotes}
    return GatewayConfig(
        keys=tuple(keys),
        max_body_bytes=section.max_body_mib * _MIB,
        max_answer_bytes=section.max_answer_mib * _MIB,
        max_event_bytes=section.max_event_mib * _MIB,
        max_in_flight=section.max_in_flight,
        timeouts=section.timeouts.parsed(),
        continue_streams=section.continue_streams,
        health=section.health.parsed(),
        remotes=tuple(there.values()),
        chains={model.name: _chain(model, there) for model in models if model.fallbacks},
        hedges={model.name: Hedge(**model.hedge.model_dump()) for model in models if model.hedge},
        queue=section.queue.parsed(),
        slos={model.name: Slo(**model.slo.model_dump()) for model in models if model.slo},
        routing=section.routing,
        routings={model.name: model.routing for model in models if model.routing},
        kv_events=kv_events,
        rules=tuple(route.parsed() for route in routes),
        origins=_origins(section.cors_origins, has_keys=bool(keys)),
        isolated=_isolated(section.isolate_caches, [key.caller for key in keys]),
        log_format=section.log_format,
    )


def _origins(wanted: tuple[str, ...], *, has_keys: bool) -> tuple[str, ...]:
    if ANY in wanted and not has_keys:
        raise ConfigError(
            "gateway.cors_origins: without keys '*' lets every web page that is opened here ask these models; name the"
            " pages, or add gateway.keys"
        )
    return wanted


def _isolated(wanted: bool | tuple[str, ...], callers: Sequence[str]) -> frozenset[str]:
    if wanted is False:
        return frozenset()
    if not callers:
        raise ConfigError("gateway.isolate_caches: without keys all callers are one; add gateway.keys, or leave it out")
    named = callers if wanted is True else wanted
    for caller in named:
        if caller not in callers:
            raise ConfigError(f"gateway.isolate_caches: no key is for a caller named '{caller}'")
    return frozenset(named)


def _remote(section: RemoteSection) -> Remote:
    return Remote(
        name=section.name,
        base_url=section.base_url,
        model=section.model,
        api_key=named_key(section.api_key_env, f"remote '{section.name}'"),
        input_usd=section.input_usd,
        output_usd=section.output_usd,
        speaks=frozenset(section.speaks),
    )


def _chain(model: HandlingSection, remotes: Mapping[str, Remote]) -> Chain:
    return Chain(
        steps=tuple(Step(name, remotes.get(name)) for name in model.fallbacks),
        on=TROUBLES if model.fallback_on is None else frozenset(model.fallback_on),
        ttft_deadline_s=model.ttft_deadline_s,
    )
