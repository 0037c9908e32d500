"""One way to serve a model, how it ranks among the others, and why it comes after the best."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from sizing.gpu import Device
from sizing.islands import CardGroup
from sizing.question import Answer, Question
from sizing.variants import Variant, usual_len

_CROSSINGS = ("nothing", "NUMA nodes", "NVLink islands")


@dataclass(frozen=True)
class Want:
    """What is asked beside the question's own settings; None leaves it open."""

    concurrency: int = 1
    """Requests at once, by all replicas together."""
    request_tokens: int | None = None
    """How long each of them is, prompt and answer; None: the whole served context."""
    replicas: int | None = None
    """So many engines; None: as many as the concurrency needs and the cards hold."""
    pipeline_parallel_size: int | None = None
    enable_expert_parallel: bool | None = None
    """None: where experts cannot be cut."""


@dataclass(frozen=True)
class Expected:
    """What a forecast says of all engines of an option together, at the load that was asked for."""

    output_tokens_s: float
    missed: str | None = None
    """The SLO that would not be met; None where all are."""


Forecast = Callable[[Question, Answer, int], Expected | None]
"""Of one engine's question and answer, and how many such engines there are; None where the speed is not known."""


@dataclass(frozen=True)
class PlannedEngine:
    """One engine: its cards, and the question and answer it is started by."""

    group: CardGroup
    question: Question
    answer: Answer
    shorter_requests: int | None = None
    """Those of the wanted length that run at once; None: none shorter than the served context is wanted."""

    @property
    def seats(self) -> int:
        """Requests of the wanted length that run at once."""
        if self.shorter_requests is not None:
            return self.shorter_requests
        return min(self.answer.requests_fit, self.answer.settings.max_num_seqs)


@dataclass(frozen=True)
class Option:
    """One way that works: so many engines, alike but for the cards they are on."""

    engines: tuple[PlannedEngine, ...]
    variant: Variant
    want: Want
    expected: Expected | None = None

    @property
    def question(self) -> Question:
        return self.engines[0].question

    @property
    def answer(self) -> Answer:
        """Of the first engine; the others' cards may be a little fuller or emptier."""
        return self.engines[0].answer

    @cached_property
    def cards(self) -> tuple[Device, ...]:
        return tuple(card for engine in self.engines for card in engine.group.cards)

    @property
    def replicas(self) -> int:
        return len(self.engines)

    @cached_property
    def sure(self) -> bool:
        """Whether it fits at both ends of the terms' bands."""
        return all(engine.answer.certain for engine in self.engines)

    @cached_property
    def seats(self) -> int:
        return sum(engine.seats for engine in self.engines)

    @property
    def request_tokens(self) -> int:
        """How long the requests are that `seats` counts."""
        served = self.answer.settings.max_model_len
        return min(self.want.request_tokens or served, served)

    @cached_property
    def shortfall(self) -> str | None:
        """What was asked for and is not met; None where all is."""
        length = self.answer.settings.max_model_len
        wanted = self.variant.asked_len or max(usual_len(self.question), self.want.request_tokens or 0)
        if length < wanted:
            return f"serves {length:,} tokens of context, not {wanted:,}"
        if self.seats < self.want.concurrency:
            tokens, wanted = self.request_tokens, self.want.concurrency
            return f"holds {self.seats:,} requests of {tokens:,} tokens at once, not {wanted:,}"
        return self.expected.missed if self.expected else None

    @property
    def rank(self) -> tuple[bool, bool, int, int, bool, int, int, float, int, int]:
        """The smaller the better; in this order:

        1. it surely fits, before a close call; 2. it gives what was asked, before what falls short; 3. the model as it
        is, before one with fewer bits; 4. of those that fall short, the one with most requests at once; 5. an engine
        without pipeline stages, which delay every token, whose tensor parallelism stays inside an NVLink island and a
        NUMA node; 6. the fewest cards; 7. of what has to be crossed, NUMA nodes before islands; 8. most output tokens
        per second, where there is a forecast; 9. the fewest pipeline stages; 10. most KV tokens.
        """
        settings = self.answer.settings
        crossing = max(_CROSSINGS.index(engine.group.crossing) for engine in self.engines)
        return (
            not self.sure,
            self.shortfall is not None,
            len(self.variant.costs),
            -self.seats if self.shortfall else 0,
            settings.pipeline_parallel_size > 1 or crossing > 0,
            len(self.cards),
            crossing,
            -self.expected.output_tokens_s if self.expected else 0.0,
            settings.pipeline_parallel_size,
            -sum(engine.answer.kv_cache_tokens for engine in self.engines),
        )

    def __str__(self) -> str:
        settings = self.answer.settings
        text = layout_text(
            self.engines[0].group,
            settings.tensor_parallel_size,
            settings.pipeline_parallel_size,
            settings.enable_expert_parallel,
        )
        return ", ".join(
            [f"{self.replicas} engines on {text} each" if self.replicas > 1 else text, *self.variant.flags]
        )


@dataclass(frozen=True)
class Rejected:
    """One way that does not work, or not as well as the first."""

    what: str
    why: str


@dataclass(frozen=True)
class Options:
    """The ways that work, best first, and those that do not."""

    ranked: tuple[Option, ...]
    rejected: tuple[Rejected, ...]

    @property
    def best(self) -> Option | None:
        return self.ranked[0] if self.ranked else None

    @property
    def why_not(self) -> tuple[Rejected, ...]:
        """Every way but the first, with its reason in a line: those that work in their order, then the rest."""
        worse = (Rejected(str(option), beaten(option, self.ranked[0])) for option in self.ranked[1:])
        return (*worse, *self.rejected)


def beaten(option: Option, best: Option) -> str:
    """Why that option comes after the best one, in a line."""
    return next(_weaknesses(option, best), "as good as the first, but not better")


def _weaknesses(option: Option, best: Option) -> Iterator[str]:
    """In the order of `Option.rank`."""
    if option.sure != best.sure:
        yield "a close call: it fits only if what is not known turns out well"
    if option.shortfall and (not best.shortfall or option.seats < best.seats):
        yield option.shortfall
    if len(option.variant.costs) > len(best.variant.costs):
        yield f"{' and '.join(option.variant.costs)}, and it fits without"
    crossing, stages = option.engines[0].group.crossing, option.answer.settings.pipeline_parallel_size
    if crossing not in ("nothing", best.engines[0].group.crossing):
        yield f"tensor parallelism would cross {crossing}"
    if stages > 1 and best.answer.settings.pipeline_parallel_size == 1:
        yield "pipeline stages delay every token, and it fits without"
    if len(option.cards) > len(best.cards):
        yield f"takes {len(option.cards)} cards where {len(best.cards)} will do"
    if option.expected and best.expected and option.expected.output_tokens_s < best.expected.output_tokens_s:
        slower, faster = option.expected.output_tokens_s, best.expected.output_tokens_s
        yield f"{slower:,.0f} output tokens/s where the first gives {faster:,.0f}"
    yield from _smaller(option, best)


def _smaller(option: Option, best: Option) -> Iterator[str]:
    more_stages, stages = (each.answer.settings.pipeline_parallel_size for each in (option, best))
    if more_stages > stages:
        yield f"{more_stages} pipeline stages, each of which delays every token, where {stages} will do"
    less, more = (sum(engine.answer.kv_cache_tokens for engine in each.engines) for each in (option, best))
    if less < more:
        yield f"{less:,} KV tokens where the first has {more:,}"


def layout_text(group: CardGroup, tensor: int, pipeline: int, expert_parallel: bool) -> str:
    """`2 x H100, tensor_parallel_size 2`."""
    sizes = [
        f"tensor_parallel_size {tensor}" if tensor > 1 else "",
        f"pipeline_parallel_size {pipeline}" if pipeline > 1 else "",
        "expert parallel" if expert_parallel else "",
    ]
    return ", ".join([str(group), *(size for size in sizes if size)])
