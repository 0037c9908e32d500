"""A load and the times that are asked of it, by which options are ranked."""

from dataclasses import dataclass

from sizing.cards import card
from sizing.errors import QuestionError, SizingError
from sizing.forecast import forecast, setup
from sizing.question import Answer, Question
from sizing.ranking import Expected


@dataclass(frozen=True)
class Goal:
    """So many requests in flight over all replicas, and the mean times they may take; None: any."""

    prompt_tokens: float
    output_tokens: float
    concurrency: float
    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "concurrency"):
            value = getattr(self, name)
            if not value >= 1:
                raise QuestionError(f"{name} is {value}; it has to be at least 1")

    def expected(self, question: Question, answer: Answer, replicas: int) -> Expected | None:
        """A `sizing.options.Forecast`. Of unlike cards the slowest stage's speaks for all."""
        settings = answer.settings
        try:
            found = forecast(
                setup(
                    question.model,
                    card(question.device.name),
                    question.device.link,
                    tensor_parallel_size=settings.tensor_parallel_size,
                    pipeline_parallel_size=settings.pipeline_parallel_size,
                    replicas=replicas,
                    max_num_seqs=settings.max_num_seqs,
                    max_num_batched_tokens=settings.max_num_batched_tokens,
                    kv_cache_tokens=max(1, answer.kv_cache_tokens),
                    kv_cache_dtype=settings.kv_cache_dtype,
                ),
                prompt_tokens=self.prompt_tokens,
                output_tokens=self.output_tokens,
                concurrency=self.concurrency,
            ).speed
        except SizingError:  # a card or a model whose speed is not known
            return None
        tpot_s = found.tpot_s.value if found.tpot_s else None
        return Expected(found.output_tokens_s.value, self._missed(found.ttft_s.value, tpot_s))

    def _missed(self, ttft_s: float, tpot_s: float | None) -> str | None:
        if self.ttft_s is not None and ttft_s > self.ttft_s:
            return f"time to first token would be {ttft_s:.2f} s, not {self.ttft_s:g} s"
        if self.tpot_s is not None and tpot_s is not None and tpot_s > self.tpot_s:
            return f"time per output token would be {tpot_s * 1000:.1f} ms, not {self.tpot_s * 1000:g} ms"
        return None
