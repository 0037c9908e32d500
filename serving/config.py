"""What `berth serve` is told: `berth.yaml`, flags and variables, checked and frozen."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from serving.door_config import DoorConfig
from serving.environment import Environment
from serving.errors import ConfigError
from serving.quantity import token_count
from serving.reading import apply_flags, read_yaml, said, validated
from serving.routes import check_routes
from serving.sections import Count, HandlingSection
from sizing.errors import SizingError
from sizing.speculation import read_speculation

DEMO_MODEL = "demo"
"""The model name that stands for the embedded one."""


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
