"""What the `extra_args` of a model say of LoRA adapters, so that its engines are placed with room for them."""

from collections.abc import Iterator, Mapping, Sequence

from sizing.adapter_settings import SETTINGS, Adapters, read_adapters
from sizing.errors import QuestionError

_LISTS = ("lora_target_modules",)
_WORDS = ("lora_dtype",)
_COUNTS = ("max_loras", "max_lora_rank")
_NOT_SIZED = ("enable_tower_connector_lora",)


def adapters_of(extra_args: Sequence[str]) -> Adapters | None:
    """The settings those flags make; None without `--enable-lora`, where vLLM looks at none of the others.

    Flags are read as vLLM's parser takes them: `--name=value` or `--name value`, with dashes or underscores, the last
    one said counts, and `--no-name` switches off.

    Raises:
        QuestionError: a value that vLLM refuses, or a setting whose memory is not sized.
    """
    values: dict[str, object] = {}
    for name, said in _flags(extra_args):
        switched_on = not name.startswith("no_")
        plain = name.removeprefix("no_")
        if plain in SETTINGS or plain in _NOT_SIZED:
            values[plain] = _value(plain, said) if switched_on else False
    if not values.get("enable_lora"):
        return None
    for name in _NOT_SIZED:
        if values.pop(name, False):
            raise QuestionError(f"adapters of an encoder are not sized yet; leave {_flag(name)} out")
    return read_adapters(values)


def _flags(extra_args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag's name, with underscores, and what is said behind it."""
    name, said = "", list[str]()
    for arg in (*extra_args, "--"):
        if not arg.startswith("--"):
            said.append(arg)
            continue
        if name:
            yield name, said
        flag, equals, value = arg.removeprefix("--").partition("=")
        name, said = flag.replace("-", "_"), [value] if equals else []


def _value(name: str, said: Sequence[str]) -> object:
    if name in _LISTS:
        return list(said)
    if name not in (*_WORDS, *_COUNTS):
        return True
    if len(said) != 1:
        raise QuestionError(f"{_flag(name)} takes one value; write such as {_EXAMPLES[name]}")
    if name in _WORDS:
        return said[0]
    try:
        return int(said[0])
    except ValueError as error:
        raise QuestionError(f"{_flag(name)} is {said[0]!r}, no whole number; write {_EXAMPLES[name]}") from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


_EXAMPLES: Mapping[str, str] = {
    "max_loras": "--max-loras=4",
    "max_lora_rank": "--max-lora-rank=32",
    "lora_dtype": "--lora-dtype=bfloat16",
}
