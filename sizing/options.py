"""Every way to serve one model on the cards there are, best first, and why not for each of the others."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sizing.division import indivisible
from sizing.engine_cache import Caches
from sizing.errors import SizingError
from sizing.explicit import on_uneven_stages, with_explicit_kv
from sizing.gpu import Device
from sizing.islands import CardGroup, choose, choose_unlike, kinds, shapes
from sizing.model import ModelShape
from sizing.plan import requests_at_once, settle
from sizing.question import Answer, Question, check
from sizing.ranking import Forecast, Option, Options, PlannedEngine, Rejected, Want, layout_text
from sizing.variants import Quantized, Variant, variants

_VARIED = (
    *("block_size", "enforce_eager", "gpu_memory_utilization", "max_num_batched_tokens", "release"),
    *("speculative", "adapters", "enable_prefix_caching"),
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
        key = (id(question.model), *(getattr(question, name) for name in _VARIED))
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = settle(self._with_caches(question))
        return found

    def requests(self, engine: PlannedEngine, request_tokens: int) -> int:
        """`sizing.plan.requests_at_once` of that engine."""
        return requests_at_once(self._with_caches(engine.question), engine.answer, request_tokens)

    def _with_caches(self, question: Question) -> Question:
        caches = self._caches.setdefault(id(question.model), Caches(question.model))  # which keeps the model alive
        return replace(question, caches=caches)


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
        what = layout_text(first, layout.tensor, layout.pipeline, expert_parallel)
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
            engines.append(self._counted(planned))
            left = [card for card in left if card not in group.cards]
            if self.want.replicas is None:
                enough = -(-self.want.concurrency // max(1, engines[0].seats))
        if self.want.replicas is not None and len(engines) < self.want.replicas:
            return f"there are cards for {len(engines)} such engines, not for {self.want.replicas}"
        expected = None
        if self.forecast is not None:
            expected = self.forecast(engines[0].question, engines[0].answer, len(engines))
        return Option(tuple(engines), variant, self.want, expected)

    def _counted(self, engine: PlannedEngine) -> PlannedEngine:
        tokens = self.want.request_tokens
        return engine if tokens is None else replace(engine, shorter_requests=self._answers.requests(engine, tokens))

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
            question, found = with_explicit_kv(question, found, self._answers.settled)
        except SizingError as error:
            return str(error)
        return PlannedEngine(group, question, found)


def on_cards(question: Question, group: CardGroup) -> Question:
    """The question about those cards, as what they are to the arithmetic: neither numbered nor placed."""
    stages = tuple(replace(device, index=None, island=None, numa_node=None) for device in group.stage_devices)
    smallest = min(stages, key=lambda device: (device.memory_bytes, device.free_bytes))
    return replace(question, device=smallest, count=len(group.cards), stage_devices=() if group.alike else stages)


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
