"""What `berth serve` is told and what every door is: `berth.yaml`, flags and variables, checked and frozen."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from gateway.access_log import LogFormat
from gateway.admission.line import Priority
from gateway.admission.rates import CallerLimits
from gateway.config import TROUBLES, Chain, GatewayConfig, Hedge, Remote, Slo, Step
from gateway.identity import KeyHash, hash_key
from gateway.kv_events.source import require_extra
from gateway.routing import PolicyName
from serving.environment import Environment
from serving.errors import ConfigError
from serving.quantity import token_count
from serving.reading import apply_flags, read_yaml, said, validated
from serving.routes import RouteSection, check_routes
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
from sizing.errors import SizingError
from sizing.speculation import read_speculation

DEMO_MODEL = "demo"
"""The model name that stands for the embedded one."""

_MIB = 2**20
_DEFAULTS = GatewayConfig()


def _token_count(value: object) -> object:
    """A written number of tokens as an int; anything else is left for the validator to refuse."""
    found = token_count(value) if isinstance(value, str) else None
    return value if found is None else found


TokenCount = Annotated[int, BeforeValidator(_token_count), Field(gt=0)]


_OUR_FLAGS = frozenset(
    "--" + name
    for name in (
        *("uds", "host", "port", "api-key", "served-model-name", "max-model-len", "max-num-seqs", "dtype"),
        *("max-num-batched-tokens", "gpu-memory-utilization", "kv-cache-memory-bytes", "kv-cache-dtype"),
        *("tensor-parallel-size", "pipeline-parallel-size", "enable-expert-parallel", "quantization"),
        *("shutdown-timeout", "enforce-eager", "speculative-config", "spec-method", "spec-model", "spec-tokens"),
    )
)
"""What placement decides: given twice, the engine would not be the one that was sized."""


class ModelSection(HandlingSection):
    """One model to serve. Engine settings are spelt as vLLM's flags; what is not set is left to sizing."""

    model: str = Field(min_length=1)
    name: str = ""
    replicas: Count = 1
    tensor_parallel_size: Count | None = None
    pipeline_parallel_size: Count | None = None
    enable_expert_parallel: bool | None = None
    quantization: Literal["fp8"] | None = None
    """Made of 16-bit weights while they are loaded; a checkpoint that is quantized already needs nothing said."""
    max_model_len: TokenCount | None = None
    max_num_seqs: Count | None = None
    max_num_batched_tokens: TokenCount | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    kv_cache_memory_bytes: Count | None = None
    kv_cache_dtype: str = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    enforce_eager: bool | None = None
    speculative_config: Mapping[str, object] | None = None
    """What drafts tokens, under vLLM's own keys."""
    listen: Literal["unix", "tcp"] = "unix"
    kv_events: bool = False
    """Each engine says what is in its KV cache as it changes, so that the gateway knows instead of guessing."""
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        """`- Qwen/Qwen3-8B` is short for `- model: Qwen/Qwen3-8B`."""
        return {"model": value} if isinstance(value, str) else value

    @field_validator("speculative_config")
    @classmethod
    def _drafts(cls, value: Mapping[str, object] | None) -> Mapping[str, object] | None:
        try:
            if value is not None:
                read_speculation(dict(value))
        except SizingError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("extra_args")
    @classmethod
    def _not_ours(cls, extra_args: tuple[str, ...]) -> tuple[str, ...]:
        for flag in (arg.partition("=")[0] for arg in extra_args):
            if flag in _OUR_FLAGS:
                raise ValueError(f"{flag} is Berth's to give: use the key of that name, or leave it out")
        return extra_args

    @model_validator(mode="after")
    def _kv_events_can_be_had(self) -> "ModelSection":
        if not self.kv_events:
            return self
        if any(arg.startswith("--kv-events-config") for arg in self.extra_args):
            raise ValueError("kv_events and --kv-events-config say the same: leave one of them out")
        if any(arg.startswith(("--data-parallel", "-dp")) for arg in self.extra_args):
            raise ValueError("kv_events needs engines of one data-parallel rank: use 'replicas' for more of them")
        return self

    @model_validator(mode="after")
    def _default_name(self) -> "ModelSection":
        if not self.name:
            object.__setattr__(self, "name", _public_name(self.model))
        return self


class KeySection(Section):
    """One virtual key as stored: `berth keys new CALLER` prints it."""

    caller: str = Field(min_length=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    admin: bool = False
    """Whether it may also reload the configuration."""
    priority: Priority = "normal"
    """The highest that its requests may have."""
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Prompt and output together."""
    max_in_flight: Count | None = None

    def limits(self) -> CallerLimits:
        """As the gateway takes them; they are its caller's, over all keys of the same name."""
        return CallerLimits(self.requests_per_minute, self.tokens_per_minute, self.max_in_flight)


class TracingSection(Section):
    """Where spans go, and how many."""

    endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """An OTLP/HTTP collector's address, without /v1/traces; default: OTEL_EXPORTER_OTLP_ENDPOINT, else no tracing."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0


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
    drain_timeout_s: Annotated[float, Field(ge=0)] = 30.0
    health: HealthSection = HealthSection()
    queue: QueueSection = QueueSection()
    log_format: LogFormat = "text"
    tracing: TracingSection = TracingSection()

    @field_validator("keys")
    @classmethod
    def _one_limit_for_each_caller(cls, keys: tuple[KeySection, ...]) -> tuple[KeySection, ...]:
        limits: dict[str, CallerLimits] = {}
        for key in keys:
            if limits.setdefault(key.caller, key.limits()) != key.limits():
                raise ValueError(f"the keys of '{key.caller}' have different limits: they share one, give all the same")
        return keys


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


class StackConfig(DoorConfig):
    """Everything `berth serve` was told."""

    models: tuple[ModelSection, ...] = Field(min_length=1)
    start_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """How long one engine may take to become healthy; a 400 GB checkpoint from a cold disk takes a while."""
    calibrate: bool = True
    """Keep what the engines measure at start, for the next answer of sizing."""

    @field_validator("models")
    @classmethod
    def _distinct_names(cls, models: tuple[ModelSection, ...]) -> tuple[ModelSection, ...]:
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two models are named '{name}': give one of them another 'name', or use 'replicas'")
        return models

    @model_validator(mode="after")
    def _names_exist(self) -> "StackConfig":
        models, remotes = [model.name for model in self.models], [remote.name for remote in self.remotes]
        for model in self.models:
            for name in model.fallbacks:
                _check_fallback(model, name, [*models, *remotes])
        check_routes(self.routes, models, remotes)
        return self

    @property
    def hears_caches(self) -> bool:
        """Whether engines publish what their KV caches hold."""
        return any(model.kv_events for model in self.models)


def _check_fallback(model: ModelSection, name: str, names: Sequence[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
        raise ValueError(f"fallbacks of '{model.name}': neither a model nor a remote is named '{name}'; {hint}")


def child_environment(overrides: Mapping[str, str], secrets: frozenset[str] = frozenset()) -> dict[str, str]:
    """What an engine process gets: our own environment, without our secrets and those `secrets` names, and `overrides`
    on top."""
    ours = {name for name in os.environ if name.startswith("BERTH_")} | secrets
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    inherited.pop("VLLM_API_KEY", None)  # the engine would ask our own gateway for it
    return {**inherited, "PYTHONSAFEPATH": "1", **overrides}


def visible_gpus() -> tuple[int, ...] | None:
    """The GPU numbers CUDA_VISIBLE_DEVICES leaves us; None when it is not set. Raises ConfigError for UUIDs."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if parts[:1] == ["-1"]:
        return ()
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"CUDA_VISIBLE_DEVICES={text}: cards are named by UUID; give their numbers (nvidia-smi -L)")
    return tuple(int(part) for part in parts)


def load_stack(target: str | None, environment: Environment, overrides: Mapping[str, object]) -> StackConfig:
    """What `berth serve [TARGET]` means: a YAML file, else one model (folder, Hub id, or the embedded one).

    `overrides` are flags given, by their key in `models[0]` or `gateway.<key>`. Raises ConfigError.
    """
    if target is not None and target.endswith((".yaml", ".yml")):
        source, raw = target, read_yaml(Path(target), "models")
        if "engines" in raw:
            way_out = f"use berth gateway {source}, or leave them out"
            raise said(source, f"engines: those run already, and berth serve starts its own; {way_out}")
    else:
        source, raw = "", {"models": [{"model": target or DEMO_MODEL}]}
    apply_flags(raw, overrides, source)
    config = validated(StackConfig, raw, source)
    base = Path(source).parent if source == target else Path()
    models = tuple(_located(model, base, source) for model in config.models)
    return config.model_copy(update={"models": models})


def key_variables(config: StackConfig) -> frozenset[str]:
    """The variables that hold the keys of remotes: no engine's business."""
    return frozenset(remote.api_key_env for remote in config.remotes if remote.api_key_env)


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
    ConfigError for a public address without keys, a remote's key that is not in the environment, or isolated callers
    that no key is for; the gateway's own where engines publish KV events (`kv_events`) and what reads them is not
    installed."""
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
        isolated=_isolated(section.isolate_caches, [key.caller for key in keys]),
        log_format=section.log_format,
    )


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


def named_key(variable: str | None, whose: str) -> str | None:
    """The key in the variable that a section names; None when it names none. Raises ConfigError."""
    api_key = os.environ.get(variable) if variable else None
    if variable and not api_key:
        raise ConfigError(f"{whose}: its key is to be in {variable}, which is not set")
    return api_key


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


def _public_name(model: str) -> str:
    if model == DEMO_MODEL:
        return "smollm2"
    return Path(model).expanduser().resolve().name if _is_path(model) else model


def _is_path(model: str) -> bool:
    return model in (".", "..") or model.startswith(("/", "./", "../", "~"))


def _located(model: ModelSection, base: Path, source: str) -> ModelSection:
    """Local folders become absolute (relative ones: to the file they stand in) and must exist."""
    if model.model == DEMO_MODEL:
        return model
    model = _located_draft(model, base)
    folder = base / Path(model.model).expanduser()
    if folder.is_dir():
        return model.model_copy(update={"model": str(folder.resolve())})
    if _is_path(model.model) or model.model.count("/") != 1:
        raise said(source, f"model '{model.model}': no such folder, and not a Hub id (those look like Qwen/Qwen3-8B)")
    return model


def _located_draft(model: ModelSection, base: Path) -> ModelSection:
    """The same for the folder of a draft model; what is none is left to the Hub."""
    drafts = model.speculative_config or {}
    folder = base / Path(str(drafts.get("model") or "")).expanduser()
    if not drafts.get("model") or not folder.is_dir():
        return model
    return model.model_copy(update={"speculative_config": {**drafts, "model": str(folder.resolve())}})
