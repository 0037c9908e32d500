"""The only reader of files and the environment: `berth.yaml`, flags and variables -> a checked, frozen StackConfig."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, field_validator, model_validator

from gateway.access_log import LogFormat
from gateway.admission.line import Priority
from gateway.admission.rates import CallerLimits
from gateway.config import TROUBLES, Chain, GatewayConfig, Hedge, Remote, Slo, Step, Trouble
from gateway.identity import KeyHash, hash_key
from gateway.kv_events.source import require_extra
from gateway.routing import PolicyName
from serving.environment import Environment
from serving.errors import ConfigError
from serving.quantity import token_count
from serving.routes import RouteSection, check_routes
from serving.sections import (
    Count,
    HealthSection,
    HedgeSection,
    QueueSection,
    RemoteSection,
    Seconds,
    Section,
    SloSection,
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


class ModelSection(Section):
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
    fallbacks: tuple[str, ...] = ()
    """Who stands in, in this order, before the first byte has gone out: other models here, or `remotes`, by name."""
    fallback_on: tuple[Trouble, ...] | None = None
    ttft_deadline_s: Seconds | None = None
    hedge: HedgeSection | None = None
    slo: SloSection | None = None
    routing: PolicyName | None = None
    """Other than the gateway's."""

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
    def _fallbacks_make_sense(self) -> "ModelSection":
        late = self.fallback_on is None or "late" in self.fallback_on
        if not self.fallbacks and (self.fallback_on is not None or self.ttft_deadline_s is not None):
            raise ValueError("fallback_on and ttft_deadline_s say when to use 'fallbacks', and there are none")
        if self.ttft_deadline_s is not None and not late:
            raise ValueError("ttft_deadline_s is only used with 'late' in fallback_on")
        if self.fallback_on is not None and late and self.ttft_deadline_s is None:
            raise ValueError("fallback_on 'late' needs ttft_deadline_s to say when that is")
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


class StackConfig(Section):
    """Everything `berth serve` was told."""

    models: tuple[ModelSection, ...] = Field(min_length=1)
    remotes: tuple[RemoteSection, ...] = ()
    routes: tuple[RouteSection, ...] = ()
    gateway: GatewaySection = GatewaySection()
    start_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """How long one engine may take to become healthy; a 400 GB checkpoint from a cold disk takes a while."""
    calibrate: bool = True
    """Keep what the engines measure at start, for the next answer of sizing."""

    @field_validator("gateway", mode="before")
    @classmethod
    def _empty_section(cls, value: object) -> object:
        """`gateway:` with nothing below it is null in YAML."""
        return {} if value is None else value

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
        names = [*(model.name for model in self.models), *(remote.name for remote in self.remotes)]
        for remote in self.remotes:
            if names.count(remote.name) > 1:
                raise ValueError(f"remote '{remote.name}' has the name of another remote or model")
        for model in self.models:
            for name in model.fallbacks:
                _check_fallback(model, name, names)
        check_routes(self.routes, [model.name for model in self.models], [remote.name for remote in self.remotes])
        return self


def _check_fallback(model: ModelSection, name: str, names: Sequence[str]) -> None:
    where = f"fallbacks of '{model.name}'"
    if name == model.name:
        raise ValueError(f"{where}: a model cannot stand in for itself")
    if model.fallbacks.count(name) > 1:
        raise ValueError(f"{where}: '{name}' is there twice")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
        raise ValueError(f"{where}: neither a model nor a remote is named '{name}'; {hint}")


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
        source, raw = target, _read_yaml(Path(target))
    else:
        source, raw = "", {"models": [{"model": target or DEMO_MODEL}]}
    _apply(raw, overrides, source)
    config = _validated(raw, source)
    base = Path(source).parent if source == target else Path()
    models = tuple(_located(model, base, source) for model in config.models)
    return config.model_copy(update={"models": models})


def key_variables(config: StackConfig) -> frozenset[str]:
    """The variables that hold the keys of remotes: no engine's business."""
    return frozenset(remote.api_key_env for remote in config.remotes if remote.api_key_env)


def gateway_config(
    section: GatewaySection,
    environment: Environment,
    models: Sequence[ModelSection] = (),
    remotes: Sequence[RemoteSection] = (),
    routes: Sequence[RouteSection] = (),
    *,
    kv_events: bool = False,
) -> GatewayConfig:
    """The gateway's own settings, with who stands in for which of `models` and which requests are led elsewhere. Raises
    ConfigError for a public address without keys, a remote's key that is not in the environment, or isolated callers
    that no key is for; the gateway's own where engines publish KV events (`kv_events`: engines started elsewhere) and
    what reads them is not installed."""
    hears_caches = kv_events or any(model.kv_events for model in models)
    if hears_caches:
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
        kv_events=hears_caches,
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


def _remote(section: RemoteSection) -> Remote:
    variable = section.api_key_env
    api_key = os.environ.get(variable) if variable else None
    if variable and not api_key:
        raise ConfigError(f"remote '{section.name}': its key is to be in {variable}, which is not set")
    return Remote(
        name=section.name,
        base_url=section.base_url,
        model=section.model,
        api_key=api_key,
        input_usd=section.input_usd,
        output_usd=section.output_usd,
        speaks=frozenset(section.speaks),
    )


def _chain(model: ModelSection, remotes: Mapping[str, Remote]) -> Chain:
    return Chain(
        steps=tuple(Step(name, remotes.get(name)) for name in model.fallbacks),
        on=TROUBLES if model.fallback_on is None else frozenset(model.fallback_on),
        ttft_deadline_s=model.ttft_deadline_s,
    )


def gateway_section(raw: Mapping[str, object]) -> GatewaySection:
    """The section from flags alone (`berth gateway`). Raises ConfigError."""
    try:
        return GatewaySection.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigError(_first_complaint(error)) from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, with a key given twice as the mistake it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506  (a SafeLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping with 'models', found {type(raw).__name__}")
    return raw


def _apply(raw: dict[str, Any], overrides: Mapping[str, object], source: str) -> None:
    """Flags win over the file; a flag about a model needs exactly one model to be about."""
    for key, value in overrides.items():
        if value is None:
            continue
        section, _, name = key.rpartition(".")
        if section:
            target = raw.setdefault(section, {})
        else:
            models = raw.get("models")
            if not isinstance(models, list) or len(models) != 1:
                flag = "--" + name.replace("_", "-")
                raise _said(source, f"{flag} needs exactly one model; set '{name}' under the model it is for")
            models[0] = {"model": models[0]} if isinstance(models[0], str) else models[0]
            target = models[0]
        if isinstance(target, dict):
            target[name] = value


def _validated(raw: dict[str, Any], source: str) -> StackConfig:
    try:
        return StackConfig.model_validate(raw)
    except ValidationError as error:
        raise _said(source, _first_complaint(error)) from None


def _first_complaint(error: ValidationError) -> str:
    """One line for the first thing wrong: key, reason, and the nearest key that exists."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "(top level)"
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _keys_at(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        reason = f"unknown key; did you mean '{near[0]}'?" if near else f"unknown key; known: {', '.join(known)}"
    elif first["type"] == "missing":
        reason = "missing"
    elif first["type"] not in ("value_error", "string_pattern_mismatch"):
        reason = f"{reason}, found {first['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {reason}{more}"


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed in the section at `location`."""
    section: type[BaseModel] = StackConfig
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_of(arg))), None)


def _public_name(model: str) -> str:
    if model == DEMO_MODEL:
        return "smollm2"
    return Path(model).expanduser().resolve().name if _is_path(model) else model


def _said(source: str, complaint: str) -> ConfigError:
    """A complaint with the file it is about; what came from flags needs no place."""
    return ConfigError(f"{source}: {complaint}" if source else complaint)


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
        raise _said(source, f"model '{model.model}': no such folder, and not a Hub id (those look like Qwen/Qwen3-8B)")
    return model


def _located_draft(model: ModelSection, base: Path) -> ModelSection:
    """The same for the folder of a draft model; what is none is left to the Hub."""
    drafts = model.speculative_config or {}
    folder = base / Path(str(drafts.get("model") or "")).expanduser()
    if not drafts.get("model") or not folder.is_dir():
        return model
    return model.model_copy(update={"speculative_config": {**drafts, "model": str(folder.resolve())}})
