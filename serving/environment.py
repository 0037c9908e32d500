"""The variables Berth itself reads, and those that a configuration names, without what is needed to read one."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from serving.errors import ConfigError


def _text(variable: str) -> str | None:
    return os.environ.get(variable) or None


def _path(variable: str) -> Path | None:
    text = _text(variable)
    return None if text is None else Path(text)


@dataclass(frozen=True)
class Environment:
    """Engines and huggingface-hub read variables of their own (HF_TOKEN, HF_HOME, VLLM_...)."""

    api_key: str | None = field(default_factory=lambda: _text("BERTH_API_KEY"), repr=False)
    otlp_endpoint: str | None = field(default_factory=lambda: _text("OTEL_EXPORTER_OTLP_ENDPOINT"))
    cache_dir: Path | None = field(default_factory=lambda: _path("BERTH_CACHE_DIR"))
    state_dir: Path | None = field(default_factory=lambda: _path("BERTH_STATE_DIR"))

    def cache(self) -> Path:
        """Where converted models are kept: BERTH_CACHE_DIR, else the XDG cache."""
        return self.cache_dir or _xdg("XDG_CACHE_HOME", ".cache")

    def state(self) -> Path:
        """Where engine logs and the calibration table go: BERTH_STATE_DIR, else the XDG state folder."""
        return self.state_dir or _xdg("XDG_STATE_HOME", ".local/state")


def _xdg(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / fallback) / "berth"


def named_key(variable: str | None, whose: str) -> str | None:
    """The key in the variable that a section names; None when it names none. Raises ConfigError."""
    api_key = os.environ.get(variable) if variable else None
    if variable and not api_key:
        raise ConfigError(f"{whose}: its key is to be in {variable}, which is not set")
    return api_key
