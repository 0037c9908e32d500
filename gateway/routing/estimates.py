"""What a request is likely to cost in tokens, learnt from the answers to earlier ones of its model."""

from typing import Final

_TOKENS_PER_UNIT: Final = 0.25  # English text, per byte
_OUTPUT_TOKENS: Final = 256
_LEAST_WEIGHT: Final = 0.02
_LEAST_UNITS: Final = 64
_MOST_TOKENS_PER_UNIT: Final = 1.0
"""More are not its text's: a picture, a long chat template, a conversation the engine keeps."""


class Estimate:
    """Of one model."""

    __slots__ = ("_answers", "output_tokens", "tokens_per_unit")

    def __init__(self) -> None:
        self.tokens_per_unit = _TOKENS_PER_UNIT
        """Prompt tokens for each unit of a chain."""
        self.output_tokens = float(_OUTPUT_TOKENS)
        """The mean of recent outputs."""
        self._answers = 0

    def learn(self, units: int, prompt_tokens: int, output_tokens: int | None) -> None:
        """One request is answered; chat templates add tokens, so a short prompt says nothing about its text. The first
        answers make a plain mean, what was assumed before them is forgotten at once."""
        self._answers += 1
        weight = max(1 / self._answers, _LEAST_WEIGHT)
        if units >= _LEAST_UNITS and prompt_tokens > 0:
            seen = min(prompt_tokens / units, _MOST_TOKENS_PER_UNIT)
            self.tokens_per_unit += weight * (seen - self.tokens_per_unit)
        if output_tokens is not None and output_tokens >= 0:
            self.output_tokens += weight * (output_tokens - self.output_tokens)

    def likely_output(self, most_tokens: int | None) -> int:
        """How much a request will put out that may put out `most_tokens`."""
        likely = int(self.output_tokens) + 1
        return likely if most_tokens is None or likely < most_tokens else most_tokens


class Estimates:
    """By model; bounded by the number of models served."""

    def __init__(self) -> None:
        self._models: dict[str, Estimate] = {}

    def of(self, model: str) -> Estimate:
        """The same one each time."""
        estimate = self._models.get(model)
        if estimate is None:
            estimate = self._models[model] = Estimate()
        return estimate
