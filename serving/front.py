"""What `berth gateway` is told: engines that run already and how requests for them are handled, checked and frozen."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from serving.door_config import DoorConfig
from serving.errors import ConfigError
from serving.reading import apply_flags, read_yaml, said, validated
from serving.routes import check_routes
from serving.sections import HandlingSection, Section

_SHAPE = "http://host:port or unix:/path/to.sock"


class EngineSection(Section):
    """One engine that was started elsewhere."""

    url: str
    name: str = ""
    """In logs and metrics; default: host and port, or the name of the socket."""
    api_key_env: str | None = Field(default=None, min_length=1)
    """The variable that holds the key it asks for; default: BERTH_UPSTREAM_API_KEY."""
    kv_events: bool = False
    """It publishes what is in its KV cache. Once one does, all are asked, and those that do not are known by what they
    were sent."""

    @field_validator("url")
    @classmethod
    def _is_an_engines(cls, url: str) -> str:
        if url.startswith("unix:"):
            if not url.startswith("unix:/") or url.endswith("/"):
                raise ValueError(f"'{url}' is not like {_SHAPE}")
            return url
        url = url.rstrip("/").removesuffix("/v1").rstrip("/")
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("no user or password here: name a variable in api_key_env")
        if parts.scheme not in ("http", "https") or not _has_host_and_port(url) or parts[2:] != ("", "", ""):
            raise ValueError(f"'{url}' is not like {_SHAPE}")
        return url

    @model_validator(mode="after")
    def _default_name(self) -> Self:
        if not self.name:
            object.__setattr__(self, "name", self.url.rpartition("/")[2])
        return self


class FrontConfig(DoorConfig):
    """Everything `berth gateway` was told. Which models there are the engines say, so that names are taken as they
    are; `unserved` has those that turned out to be nobody's."""

    engines: tuple[EngineSection, ...] = Field(min_length=1)

    @field_validator("engines")
    @classmethod
    def _each_is_one(cls, engines: tuple[EngineSection, ...]) -> tuple[EngineSection, ...]:
        urls, names = [engine.url for engine in engines], [engine.name for engine in engines]
        for engine in engines:
            if urls.count(engine.url) > 1:
                raise ValueError(f"{engine.url} is there twice")
            if names.count(engine.name) > 1:
                raise ValueError(f"two engines are named '{engine.name}': give one of them another 'name'")
        return engines

    @field_validator("models")
    @classmethod
    def _each_is_said_once(cls, models: tuple[HandlingSection, ...]) -> tuple[HandlingSection, ...]:
        names = [model.name for model in models]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"'{name}' is there twice")
        return models

    @model_validator(mode="after")
    def _names_are_one_things(self) -> Self:
        remotes = [remote.name for remote in self.remotes]
        for engine in self.engines:
            if engine.name in remotes:
                raise ValueError(f"remote '{engine.name}' has the name of an engine: give one of them another")
        check_routes(self.routes, None, remotes)
        return self

    @property
    def hears_caches(self) -> bool:
        """Whether engines are asked what their KV caches hold."""
        return any(engine.kv_events for engine in self.engines)

    def unserved(self, served: frozenset[str]) -> list[str]:
        """The names here that are neither a model in `served` nor a remote, each with where it stands."""
        there = served | {remote.name for remote in self.remotes}
        return list(dict.fromkeys(f"'{name}' ({where})" for name, where in self._names() if name not in there))

    def _names(self) -> Iterator[tuple[str, str]]:
        for model in self.models:
            yield model.name, "models"
            yield from ((name, f"fallbacks of '{model.name}'") for name in model.fallbacks)
        for at, route in enumerate(self.routes):
            if route.name is not None and not (route.to or route.split):
                yield route.name, f"routes.{at}"
            yield from ((name, f"routes.{at}") for name in route.targets())


def load_front(
    file: str | None, upstreams: Sequence[str], overrides: Mapping[str, object], *, kv_events: bool = False
) -> FrontConfig:
    """What `berth gateway [FILE]` means. `upstreams`, if there are any, take the place of the file's engines;
    `overrides` are flags given, by `gateway.<key>`; `kv_events` is every engine's. Raises ConfigError."""
    source, raw = "", {}
    if file is not None:
        if "://" in file or file.startswith("unix:"):
            raise ConfigError(f"{file} is an address and no file: give it as --upstream {file}")
        source, raw = file, read_yaml(Path(file), "engines")
        _refuse_models_to_start(raw, source)
    elif not upstreams:
        raise ConfigError(f"no engines: give --upstream {_SHAPE}, or a file with 'engines'")
    if upstreams:
        raw["engines"] = [{"url": url} for url in dict.fromkeys(map(_flag_url, upstreams))]
    apply_flags(raw, overrides, source)
    config = validated(FrontConfig, raw, source)
    if not kv_events:
        return config
    engines = tuple(engine.model_copy(update={"kv_events": True}) for engine in config.engines)
    return config.model_copy(update={"engines": engines})


def _refuse_models_to_start(raw: Mapping[str, object], source: str) -> None:
    """A file of `berth serve` would open a door with nobody behind it."""
    models = raw.get("models")
    for at, model in enumerate(models if isinstance(models, list) else ()):
        if isinstance(model, str) or (isinstance(model, dict) and "model" in model):
            raise said(
                source,
                f"models.{at}: a model to start is for berth serve {source}; here 'engines' run already, and "
                "'models' says by 'name' how requests are handled",
            )


def _flag_url(url: str) -> str:
    try:
        return EngineSection(url=url).url
    except ValidationError:
        shown = url.rpartition("@")[2]  # what is before it could be a password
        raise ConfigError(f"--upstream {shown}: expected {_SHAPE}, and keys in --upstream-api-key") from None


def _has_host_and_port(url: str) -> bool:
    """A port may be left out, and be no number."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
