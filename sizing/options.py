"""Every way to serve one model on the cards there are, best first, and why not for each of the others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from sizing.division import indivisible
from sizing.engine_cache import Caches
from sizing.errors import SizingError
from sizing.explicit import on_uneven_stages, with_explicit_kv
from sizing.gpu import Device
from sizing.islands import CardGroup, choose, choose_unlike, kinds, shapes
from sizing.model import ModelShape
from sizing.plan import SHORTEST_USEFUL_LEN, settle
from sizing.question import Answer, Question, check
from sizing.variants import Quantized, Variant, usual_len, variants

_LEN_STEP = 512
_CROSSINGS = ("nothing", "NUMA nodes", "NVLink islands")
_VARIED = (
    *("block_size", "enforce_eager", "gpu_memory_utilization", "max_num_batched_tokens", "release"),
    *("speculative", "enable_prefix_caching"),
    *("device", "stage_devices", "tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel"),
    *("max_model_len", "max_num_seqs", "kv_cache_memory_bytes", "kv_cache_dtype"),
)
"""What tells two questions of one plan apart, beside their model."""


class Answers:
    """The answers of one plan, each worked out once; its questions may differ in their model, cards and settings."""

    def __init__(self) -> None:
        self._caches: dict[int, Caches] = {}
        self._found: dict[tuple[object, ...], Answer] = {}

    def settled(self, question: Question) -> Answer:
        """`sizing.plan.settle`, remembered. Raises what it raises."""
        caches = self._caches.setdefault(id(question.model), Caches(question.model))  # which keeps the model alive
        key = (id(question.model), *(getattr(question, name) for name in _VARIED))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = settle(replace(question, caches=caches))
        return found


@dataclass(frozen=True)
class Want:
    """What is asked beside the question's own settings; None leaves it open."""

    concurrency: int = 1
    """Requests of the served context at once, by all replicas together."""
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

    @property
    def seats(self) -> int:
        """Requests of the served context that run at once."""
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

    @cached_property
    def shortfall(self) -> str | None:
        """What was asked for and is not met; None where all is."""
        length = self.answer.settings.max_model_len
        wanted = usual_len(self.question) if self.variant.asked_len is None else self.variant.asked_len
        if length < wanted:
            return f"serves {length:,} tokens of context, not {wanted:,}"
        if self.seats < self.want.concurrency:
            return f"holds {self.seats:,} requests of {length:,} tokens at once, not {self.want.concurrency:,}"
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
        text = _layout(
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


def options(
    question: Question,
    cards: Sequence[Device],
    want: Want | None = None,
    *,
    quantized: Quantized | None = None,
    forecast: Forecast | None = None,
    answers: Answers | None = None,
) -> Options:
    """Rank every layout of the model over those cards.

    What the question leaves open is decided; its device, count and stage devices are not looked at. Cards of one kind
    are tried first; an engine over unlike cards only where nothing else fits. Tensor-parallel groups stay in one NVLink
    island, or one NUMA node, where one is large enough. `quantized` makes a shape of fewer bits where weights do not
    fit; `forecast` ranks by speed and checks an SLO; `answers` are those of an earlier call about the same model.

    Raises:
        QuestionError: settings that contradict each other or the model.
    """
    want = want or Want()
    check(replace(question, count=1, pipeline_parallel_size=1, stage_devices=()))
    search = _Search(question, want, quantized, forecast, answers or Answers())
    found = search.over(_layouts(question, cards, want))
    if found.ranked or want.pipeline_parallel_size == 1 or len(kinds(cards)) == 1:
        return found
    unlike = search.over(_unlike_layouts(question, cards, want))
    return replace(unlike, rejected=found.rejected + unlike.rejected)


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


@dataclass(frozen=True)
class _Layout:
    """One engine's parallel sizes, and the cards that it and its replicas choose from."""

    cards: tuple[Device, ...]
    tensor: int
    pipeline: int
    choose: Callable[[Sequence[Device], int, int], CardGroup | None] = choose

    def group(self, cards: Sequence[Device]) -> CardGroup | None:
        return self.choose(cards, self.tensor, self.pipeline)


def _layouts(question: Question, cards: Sequence[Device], want: Want) -> Iterator[_Layout]:
    for of_kind in kinds(cards).values():
        for tensor, pipeline in _shapes(question, want, len(of_kind)):
            yield _Layout(tuple(of_kind), tensor, pipeline)


def _unlike_layouts(question: Question, cards: Sequence[Device], want: Want) -> Iterator[_Layout]:
    for tensor, pipeline in _shapes(question, want, len(cards)):
        layout = _Layout(tuple(cards), tensor, pipeline, choose_unlike)
        if pipeline > 1 and layout.group(cards) is not None:
            yield layout


def _shapes(question: Question, want: Want, count: int) -> Iterator[tuple[int, int]]:
    """What is pinned is yielded even where the cards are too few, so that there is a reason to give."""
    asked = (question.tensor_parallel_size, want.pipeline_parallel_size)
    found = [
        shape
        for shape in shapes(count, question.model.num_hidden_layers)
        if all(pinned in (None, size) for pinned, size in zip(asked, shape, strict=True))
    ]
    yield from found or [(asked[0] or 1, asked[1] or 1)]


@dataclass
class _Search:
    """One call of `options`: what was worked out for one layout is there for the next."""

    question: Question
    want: Want
    quantized: Quantized | None
    forecast: Forecast | None
    _answers: Answers
    _shapes: dict[str, ModelShape] = field(default_factory=dict)

    def over(self, layouts: Iterable[_Layout]) -> Options:
        """What those layouts come to."""
        tried = [self.tried(layout) for layout in layouts]
        return Options(
            tuple(sorted((option for works, _ in tried for option in works), key=lambda option: option.rank)),
            tuple(rejected for _, refused in tried for rejected in refused),
        )

    def tried(self, layout: _Layout) -> tuple[list[Option], list[Rejected]]:
        """What works with that layout: as asked, and each variant that works where those before it do not."""
        first = layout.group(layout.cards)
        if first is None:
            return [], [_too_few(layout)]
        expert_parallel, why = self._split(layout.tensor)
        what = _layout(first, layout.tensor, layout.pipeline, expert_parallel)
        if why is not None:
            return [], [Rejected(what, f"tensor_parallel_size {layout.tensor} {why}")]
        asked = replace(
            self.question,
            tensor_parallel_size=layout.tensor,
            pipeline_parallel_size=layout.pipeline,
            enable_expert_parallel=expert_parallel,
            count=layout.tensor * layout.pipeline,
        )
        works: list[Option] = []
        refused: list[tuple[str, str]] = []
        for variant in variants(asked, first, self.want.concurrency, self.quantized, self._shapes):
            if works and works[-1].shortfall is None:
                break
            found = self._option(layout, variant)
            if isinstance(found, Option):
                if not works or found.shortfall is None:
                    works.append(found)
            else:
                refused.append((" ".join(variant.flags), found))
        return works, [] if works else [Rejected(what, _all_refused(refused))]

    def _split(self, tensor: int) -> tuple[bool, str | None]:
        """Whether the experts stay whole, and why the model cannot be divided so."""
        pinned, model = self.want.enable_expert_parallel, self.question.model
        if pinned and not model.num_moe_layers:
            return True, "with expert parallelism: the model has no experts"
        cut = indivisible(model, tensor, release=self.question.release)
        whole = indivisible(model, tensor, enable_expert_parallel=True, release=self.question.release)
        expert_parallel = pinned if pinned is not None else bool(model.num_moe_layers and cut and not whole)
        return expert_parallel, whole if expert_parallel else cut

    def _option(self, layout: _Layout, variant: Variant) -> Option | str:
        """As many engines as are wanted, or why not even one."""
        left, engines = list(layout.cards), list[PlannedEngine]()
        enough = self.want.replicas or 1
        while len(engines) < enough:
            group = layout.group(left)
            planned = self._engine(group, variant) if group is not None else None
            if isinstance(planned, str) and not engines:
                return planned
            if group is None or not isinstance(planned, PlannedEngine):
                break
            engines.append(planned)
            left = [card for card in left if card not in group.cards]
            if self.want.replicas is None:
                enough = -(-self.want.concurrency // max(1, engines[0].seats))
        if self.want.replicas is not None and len(engines) < self.want.replicas:
            return f"there are cards for {len(engines)} such engines, not for {self.want.replicas}"
        expected = None
        if self.forecast is not None:
            expected = self.forecast(engines[0].question, engines[0].answer, len(engines))
        return Option(tuple(engines), variant, self.want, expected)

    def _engine(self, group: CardGroup, variant: Variant) -> PlannedEngine | str:
        question = on_cards(variant.question, group)
        try:
            found = self._answers.settled(question)
            uneven = None if found.fits else on_uneven_stages(question, self._answers.settled)
            if uneven is not None:
                return PlannedEngine(group, *uneven)
            if not found.fits:
                close = "" if found.certain else " (a close call)"
                return f"{found.reason}{close}"
            if not found.certain and question.max_model_len is None:
                question, found = self._surely(question, found)
            question, found = with_explicit_kv(question, found, self._answers.settled)
        except SizingError as error:
            return str(error)
        return PlannedEngine(group, question, found)

    def _surely(self, question: Question, found: Answer) -> tuple[Question, Answer]:
        """A context that nobody asked for, cut to what the bad end of the bands holds; as it was where that is little.

        The longest context that fits by the sum is always a close call.
        """
        tokens, longest = found.kv_cache_tokens_range.low, found.settings.max_model_len
        length = longest * tokens // max(1, found.kv_cache_tokens) // _LEN_STEP * _LEN_STEP
        if length < min(question.model.max_model_len, SHORTEST_USEFUL_LEN):
            return question, found
        surer = self._answers.settled(replace(question, max_model_len=length))
        if not (surer.fits and surer.certain):
            return question, found
        return replace(question, max_model_len=length), replace(
            surer,
            note=f"the model's own context of {question.model.max_model_len:,} tokens does not surely fit; "
            f"{length:,} does",
        )


def on_cards(question: Question, group: CardGroup) -> Question:
    """The question about those cards, as what they are to the arithmetic: neither numbered nor placed."""
    stages = tuple(replace(device, index=None, island=None, numa_node=None) for device in group.stage_devices)
    smallest = min(stages, key=lambda device: (device.memory_bytes, device.free_bytes))
    return replace(question, device=smallest, count=len(group.cards), stage_devices=() if group.alike else stages)


def _layout(group: CardGroup, tensor: int, pipeline: int, expert_parallel: bool) -> str:
    sizes = [
        f"tensor_parallel_size {tensor}" if tensor > 1 else "",
        f"pipeline_parallel_size {pipeline}" if pipeline > 1 else "",
        "expert parallel" if expert_parallel else "",
    ]
    return ", ".join([str(group), *(size for size in sizes if size)])


def _all_refused(refused: Sequence[tuple[str, str]]) -> str:
    """The reason of the first, and what did not help."""
    tried = [flags for flags, _ in refused if flags]
    return refused[0][1] + (f"; nor with {' or '.join(tried[-3:])}" if tried else "")


def _too_few(layout: _Layout) -> Rejected:
    needed, here = layout.tensor * layout.pipeline, len(layout.cards)
    name = layout.cards[0].name
    if layout.cards[0].mig_uuid is not None:
        return Rejected(f"{needed} x {name}", "a process can use one MIG instance only")
    return Rejected(f"{needed} x {name}", f"there are {here}")
