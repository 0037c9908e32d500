"""What a configuration read again changes, and what it must not while engines run. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.config import GatewaySection, ModelSection, StackConfig
from serving.errors import ConfigError
from serving.front import EngineSection, FrontConfig
from serving.sections import HandlingSection, Section

_FIXED_IN_GATEWAY = {
    "host": "the port is open",
    "port": "the port is open",
    "log_format": "the log is open",
    "tracing": "the exporter is running",
    "health": "the breakers keep their records",
}
_FREE_IN_MODEL = {"replicas", *HandlingSection.model_fields}


@dataclass(frozen=True, slots=True)
class Change:
    """From one configuration to the next."""

    lines: tuple[str, ...]
    """What changed, for people: names and numbers, never a value that could be a secret."""
    added: tuple[ModelSection, ...]
    """Engines to start: sections whose `replicas` is how many more."""
    removed: tuple[tuple[str, int], ...]
    """Engines to end: models, and how many fewer of each."""


def compare(old: StackConfig, new: StackConfig) -> Change:
    """How to get from `old` to `new` without a restart. Raises ConfigError for what needs one."""
    before = {model.name: model for model in old.models}
    after = {model.name: model for model in new.models}
    for name in before.keys() & after.keys():
        _check_model(before[name], after[name])
    counts = {
        name: (before[name].replicas if name in before else 0, after[name].replicas if name in after else 0)
        for name in before | after
    }
    return Change(
        lines=(*_gateway_lines(old.gateway, new.gateway), *_stack_lines(old, new), *_model_lines(counts)),
        added=tuple(
            after[name].model_copy(update={"replicas": now - was}) for name, (was, now) in counts.items() if now > was
        ),
        removed=tuple((name, was - now) for name, (was, now) in counts.items() if now < was),
    )


def compare_front(old: FrontConfig, new: FrontConfig) -> tuple[str, ...]:
    """What changes from `old` to `new`, for people, as `Change.lines`. Raises ConfigError for what needs a restart."""
    before = {engine.url: engine for engine in old.engines}
    after = {engine.url: engine for engine in new.engines}
    for url in before.keys() & after.keys():
        if before[url].name != after[url].name:
            raise ConfigError(f"engines: the name of {url} cannot change while its requests are counted; restart berth")
    rest = (f"{key} changed" for key in ("models", "remotes", "routes") if getattr(old, key) != getattr(new, key))
    return (*_gateway_lines(old.gateway, new.gateway), *rest, *_engine_lines(before, after))


def _engine_lines(before: dict[str, EngineSection], after: dict[str, EngineSection]) -> Iterator[str]:
    for url, engine in (before | after).items():
        if url not in before:
            yield f"engine {engine.name} added"
        elif url not in after:
            yield f"engine {engine.name} removed"
        else:
            yield from (f"engine {engine.name}: {key} changed" for key in _differing(before[url], engine))


def _check_model(old: ModelSection, new: ModelSection) -> None:
    for key in _differing(old, new):
        if key not in _FREE_IN_MODEL:
            raise ConfigError(
                f"models.{old.name}: {key} cannot change while its engines run; restart berth, or add the model under "
                "another name"
            )


def _gateway_lines(old: GatewaySection, new: GatewaySection) -> Iterator[str]:
    for key in _differing(old, new):
        if key in _FIXED_IN_GATEWAY:
            raise ConfigError(f"gateway.{key} cannot change while {_FIXED_IN_GATEWAY[key]}; restart berth")
        yield f"gateway.{key} changed"


def _stack_lines(old: StackConfig, new: StackConfig) -> Iterator[str]:
    for key in _differing(old, new):
        if key not in ("models", "gateway"):
            yield (
                f"{key} changed" if key in ("remotes", "routes") else f"{key} changed, for engines started from now on"
            )


def _model_lines(counts: dict[str, tuple[int, int]]) -> Iterator[str]:
    for name, (was, now) in counts.items():
        if was != now:
            yield f"{name}: {now} replicas, were {was}"


def _differing(old: Section, new: Section) -> list[str]:
    return [key for key in type(old).model_fields if getattr(old, key) != getattr(new, key)]
