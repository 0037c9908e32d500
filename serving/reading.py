"""A configuration file as a raw mapping, flags over it, and what is wrong with it in one line."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from serving.errors import ConfigError

S = TypeVar("S", bound=BaseModel)


def read_yaml(path: Path, needed: str) -> dict[str, Any]:
    """The mapping in a file; `needed` is the key that it cannot do without, for who left everything out. Raises
    ConfigError."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506  (a SafeLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else "a list" if isinstance(raw, list) else "a single value"
        raise ConfigError(f"{path}: expected a mapping with '{needed}', found {found}")
    return raw


def apply_flags(raw: dict[str, Any], overrides: Mapping[str, object], source: str) -> None:
    """Flags win over the file; a flag about a model needs exactly one model to be about. Raises ConfigError."""
    for key, value in overrides.items():
        if value is None:
            continue
        section, _, name = key.rpartition(".")
        if section:
            if raw.get(section) is None:
                raw[section] = {}
            target = raw[section]
        else:
            models = raw.get("models")
            if not isinstance(models, list) or len(models) != 1:
                flag = "--" + name.replace("_", "-")
                raise said(source, f"{flag} needs exactly one model; set '{name}' under the model it is for")
            models[0] = {"model": models[0]} if isinstance(models[0], str) else models[0]
            target = models[0]
        if isinstance(target, dict):
            target[name] = value


def validated(kind: type[S], raw: Mapping[str, object], source: str) -> S:
    """The mapping as a `kind`. Raises ConfigError for the first thing wrong."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise said(source, _first_complaint(kind, error)) from None


def said(source: str, complaint: str) -> ConfigError:
    """A complaint with the file it is about; what came from flags needs no place."""
    return ConfigError(f"{source}: {complaint}" if source else complaint)


_WANTED: Final = {
    "tuple_type": "a list is wanted, as in [a, b]",
    "too_short": "the list is empty",
    "model_type": "a mapping is wanted, as in {key: value}",
    "model_attributes_type": "a mapping is wanted, as in {key: value}",
    "dict_type": "a mapping is wanted, as in {key: value}",
}
"""What pydantic says in Python's words, by its type of error."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, with a key given twice as the mistake it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _first_complaint(kind: type[BaseModel], error: ValidationError) -> str:
    """One line for the first thing wrong: key, reason, and the nearest key that exists."""
    errors = error.errors()
    places = [each["loc"] for each in errors]
    unknown = [each for each in errors if each["type"] == "extra_forbidden"]
    first = errors[0]
    if unknown and first["type"] == "missing":  # most likely the one that is missing, misspelt
        first = unknown[0]
    # a list of one that is wrong is also too short: what follows from what is below it is not said
    own = [loc for loc in places if not any(loc != below and loc == below[: len(loc)] for below in places)]
    where = ".".join(str(part) for part in first["loc"]) or "(top level)"
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _keys_at(kind, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        reason = f"unknown key; did you mean '{near[0]}'?" if near else f"unknown key; known: {', '.join(known)}"
    elif first["type"] == "missing":
        reason = "missing"
    elif first["type"] == "too_short":
        reason = _WANTED["too_short"]
    elif first["type"] not in ("value_error", "string_pattern_mismatch"):
        reason = f"{_WANTED.get(first['type'], reason)}, found {first['input']!r}"
    more = f" (and {len(own) - 1} more)" if len(own) > 1 else ""
    return f"{where}: {reason}{more}"


def _keys_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed in the section at `location` of a `kind`."""
    section = kind
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_of(arg))), None)
