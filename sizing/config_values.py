"""A `config.json` read key by key, every reading typed and every fault named."""

from collections.abc import Mapping
from dataclasses import dataclass

from sizing.errors import ModelFileError

_MOST = 2**40
_MOST_LAYERS = 1_000
_MOST_SHOWN = 100


@dataclass(frozen=True)
class ConfigValues:
    """The file's values, and the model's name for messages.

    Every reading raises ModelFileError where the key is missing or impossible.
    """

    name: str
    values: Mapping[str, object]

    def count(self, key: str, *, default: int | None = None) -> int:
        """A positive whole number; null is the same as absent, as Transformers takes it."""
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelFileError(f"{self.name}: config.json has no {key}; use the file as its publisher ships it")
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.impossible(key, "must be a positive whole number")
        if value > (_MOST_LAYERS if key.endswith(("_layers", "_modules")) else _MOST):
            raise self.impossible(key, "is more than any model has")
        return value

    def count_or_none(self, key: str) -> int | None:
        """A positive whole number, or None where the key is absent, null or 0."""
        return self.count(key) if self.values.get(key) else None

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.impossible(key, "must be true or false")
        return value

    def section(self, *keys: str) -> dict[str, object]:
        """The first of these that is there and not null; empty where none is."""
        for key in keys:
            value = self.values.get(key)
            if value is not None:
                if not isinstance(value, dict):
                    raise self.impossible(key, "must be an object")
                return value
        return {}

    def words(self, key: str) -> list[str] | None:
        """A list of words, one per layer; None where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise self.impossible(key, "must be a list of words")
        return value

    def numbers(self, key: str) -> list[int]:
        """A list of whole numbers; empty where the key is absent or null."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(number, int) for number in value):
            raise self.impossible(key, "must be a list of whole numbers")
        return value

    def impossible(self, key: str, why: str) -> ModelFileError:
        said = repr(self.values.get(key))
        if len(said) > _MOST_SHOWN:
            said = f"{said[:_MOST_SHOWN]}..."
        return ModelFileError(
            f"{self.name}: config.json says {key} = {said}, which {why}; use the file as its publisher ships it"
        )
