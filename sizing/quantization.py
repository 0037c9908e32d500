"""Which of a model's weights a quantization takes, and in which format."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from sizing.ggml import Mixture
from sizing.held import Weight
from sizing.number_format import NumberFormat

Match = Literal["module", "substring", "wildcard", "target"]


@dataclass(frozen=True)
class Quantization:
    """One way of packing a model's linear layers.

    Embeddings, norms, routers and convolutions stay in the served type everywhere; the output layer does unless
    `takes_output` is set or the mixture has a type for it.
    """

    method: str
    """As vLLM names it."""
    groups: tuple[tuple[tuple[str, ...], NumberFormat], ...]
    """Targets and their format; the first that fits is taken. No targets: every linear layer."""
    ignore: tuple[str, ...] = ()
    match: Match = "module"
    experts_only: bool = False
    takes_output: bool = False
    mixture: Mixture | None = None
    """Of GGUF types, which then says for each weight what it is."""
    assumed: str | None = None
    """What the config leaves open and was filled in, in a sentence."""

    def format_of(self, weight: Weight) -> NumberFormat | None:
        """None where that weight stays in the served type."""
        if not weight.linear and not (self.takes_output and weight.split == "output"):
            return None
        if self.experts_only and weight.split != "experts":
            return None
        spellings = _spellings(weight.name)
        if any(_fits(pattern, spellings, self.match) for pattern in self.ignore):
            return None
        for targets, number_format in self.groups:
            if not targets or any(targeted(target, spellings) for target in targets):
                return number_format
        return None


def _spellings(name: str) -> tuple[str, ...]:
    """The module as its own class names it, and as the wrappers around it do."""
    inner = name.removeprefix("model.")
    return (name, f"language_model.{name}", f"model.language_model.{inner}")


def _fits(pattern: str, spellings: Sequence[str], match: Match) -> bool:
    if match == "target":
        return targeted(pattern, spellings)
    if match == "wildcard":  # ModelOpt's: a wildcard, or part of the name
        return any(fnmatchcase(name, pattern) or pattern in name for name in spellings)
    if match == "substring":
        return any(pattern in name for name in spellings)
    return any(name == pattern or name.startswith(f"{pattern}.") or _of_expert(name, pattern) for name in spellings)


def _of_expert(name: str, pattern: str) -> bool:
    """A list that names each expert names the first of them, which speaks for all."""
    return name.replace(".*.", ".0.") == pattern


def targeted(target: str, spellings: Sequence[str]) -> bool:
    """compressed-tensors: a module class, a regular expression after `re:`, or a name."""
    if target in ("Linear", "FusedMoE", "MoEGEMM"):
        return True
    if target.startswith("re:"):
        expression = re.compile(target.removeprefix("re:"))
        return any(expression.match(name.replace(".*.", ".0.")) for name in spellings)
    return any(name == target or name.endswith(f".{target}") or _of_expert(name, target) for name in spellings)
