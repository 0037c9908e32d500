"""What of a door a configuration read again changes, and what it must not while the door is open. Pure."""

from collections.abc import Iterator

from serving.door_config import GatewaySection
from serving.errors import ConfigError
from serving.front import EngineSection, FrontConfig
from serving.sections import Section

_FIXED_IN_GATEWAY = {
    "host": "the port is open",
    "port": "the port is open",
    "log_format": "the log is open",
    "tracing": "the exporter is running",
    "health": "the breakers keep their records",
}


def compare_front(old: FrontConfig, new: FrontConfig) -> tuple[str, ...]:
    """What changes from `old` to `new`, for people: a line each, never a value that could be a secret. Raises
    ConfigError for what needs a restart."""
    before = {engine.url: engine for engine in old.engines}
    after = {engine.url: engine for engine in new.engines}
    for url in before.keys() & after.keys():
        if before[url].name != after[url].name:
            raise ConfigError(f"engines: the name of {url} cannot change while its requests are counted; restart berth")
    rest = (f"{key} changed" for key in ("models", "remotes", "routes") if getattr(old, key) != getattr(new, key))
    return (*gateway_lines(old.gateway, new.gateway), *rest, *_engine_lines(before, after))


def _engine_lines(before: dict[str, EngineSection], after: dict[str, EngineSection]) -> Iterator[str]:
    for url, engine in (before | after).items():
        if url not in before:
            yield f"engine {engine.name} added"
        elif url not in after:
            yield f"engine {engine.name} removed"
        else:
            yield from (f"engine {engine.name}: {key} changed" for key in differing(before[url], engine))


def gateway_lines(old: GatewaySection, new: GatewaySection) -> Iterator[str]:
    """What changed, a line each. Raises ConfigError for what needs a restart."""
    for key in differing(old, new):
        if key in _FIXED_IN_GATEWAY:
            raise ConfigError(f"gateway.{key} cannot change while {_FIXED_IN_GATEWAY[key]}; restart berth")
        yield f"gateway.{key} changed"


def differing(old: Section, new: Section) -> list[str]:
    """The keys whose values are not the same."""
    return [key for key in type(old).model_fields if getattr(old, key) != getattr(new, key)]
