"""What a configuration read again changes, and what it must not while engines run. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from serving.config import ModelSection, StackConfig
from serving.door_change import differing, gateway_lines
from serving.errors import ConfigError
from serving.sections import HandlingSection

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
        lines=(*gateway_lines(old.gateway, new.gateway), *_stack_lines(old, new), *_model_lines(counts)),
        added=tuple(
            after[name].model_copy(update={"replicas": now - was}) for name, (was, now) in counts.items() if now > was
        ),
        removed=tuple((name, was - now) for name, (was, now) in counts.items() if now < was),
    )


def _check_model(old: ModelSection, new: ModelSection) -> None:
    for key in differing(old, new):
        if key not in _FREE_IN_MODEL:
            raise ConfigError(
                f"models.{old.name}: {key} cannot change while its engines run; restart berth, or add the model under "
                "another name"
            )


def _stack_lines(old: StackConfig, new: StackConfig) -> Iterator[str]:
    for key in differing(old, new):
        if key not in ("models", "gateway"):
            yield (
                f"{key} changed" if key in ("remotes", "routes") else f"{key} changed, for engines started from now on"
            )


def _model_lines(counts: dict[str, tuple[int, int]]) -> Iterator[str]:
    for name, (was, now) in counts.items():
        if was != now:
            yield f"{name}: {now} replicas, were {was}"
