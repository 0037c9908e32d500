"""Several models on one machine: every engine gets cards of its own, or, where there are too few, a part of one.

Nothing is claimed twice: what the engines on a card take, at the bad end of their bands and with a CUDA context each,
is never more than what is free on it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sizing.errors import SizingError
from sizing.explicit import useful_bytes, with_kv_bytes
from sizing.gpu import GIB, Device
from sizing.islands import CardGroup, choose, kinds, shapes
from sizing.options import Answers, Forecast, Option, Options, PlannedEngine, Rejected, Want, on_cards, options
from sizing.overheads import OVERHEADS
from sizing.plan import SHORTEST_USEFUL_LEN, Question, answer
from sizing.remedy import here_only
from sizing.variants import Quantized, Variant, usual_len

CardKey = tuple[int | None, str | None]
_CONTEXT_BYTES = int(OVERHEADS.cuda_context_gib * GIB)
_SHARED_SEQS = (None, 64, 16)
_ROUNDS = 3


@dataclass(frozen=True)
class Wanted:
    """A model to serve: its question, whose device is not looked at, and by how many engines."""

    name: str
    question: Question
    replicas: int = 1
    want: Want = field(default_factory=Want)
    """Of one engine; its replicas are not looked at."""


@dataclass(frozen=True)
class Placed:
    """One engine on its cards."""

    name: str
    number: int
    """Of the replica, from 0."""
    engine: PlannedEngine
    variant: Variant
    shares: bool
    """Whether another engine is on one of its cards."""
    options: Options | None
    """What else there was, where it has its cards to itself."""


@dataclass(frozen=True)
class Unplaced:
    """One engine that found no place, and why in a line."""

    name: str
    number: int
    why: str
    alone: bool
    """Whether it would find one with the machine to itself."""


@dataclass(frozen=True)
class Packing:
    """Who is where, in the order asked; who is nowhere; and the cards nobody is on."""

    placed: tuple[Placed, ...]
    unplaced: tuple[Unplaced, ...]
    idle: tuple[Device, ...]


def pack(
    wanted: Sequence[Wanted],
    cards: Sequence[Device],
    *,
    quantized: Quantized | None = None,
    forecast: Forecast | None = None,
) -> Packing:
    """Place every engine, the largest first, or say why not.

    Each gets the first option on the cards still free; where that leaves one without a place, the smallest that fits;
    where that does too, engines share cards, each with KV bytes of its own. Replicas of one model never share one.

    Raises:
        QuestionError: settings that contradict each other or the model.
    """
    packer = _Packer(wanted, tuple(cards), Answers(), quantized, forecast)
    ways = [packer.apart(_first), packer.apart(_smallest)]
    if any(way.unplaced for way in ways) and sum(want.replicas for want in wanted) > 1:
        ways += [packer.together(_emptiest_first), packer.together(_fullest_first)]
    return min(ways, key=lambda way: len(way.unplaced))


def card_key(card: Device) -> CardKey:
    """What tells two cards of a machine apart."""
    return card.index, card.mig_uuid


def reserved_bytes(engine: PlannedEngine) -> dict[CardKey, int]:
    """What the engine may come to take of each of its cards, its CUDA context included."""
    found = {}
    for stage, budget in zip(engine.group.stages, engine.answer.budgets, strict=True):
        more = budget.more_bytes if budget.kv_cache_given else 0
        for card in stage:
            found[card_key(card)] = budget.claimed_bytes + more + _CONTEXT_BYTES
    return found


def _first(found: Options) -> Option | None:
    return found.best


def _smallest(found: Options) -> Option | None:
    """The fewest cards that will do, whatever context they leave where none was asked for."""
    return min(found.ranked, key=_size, default=None)


def _size(option: Option) -> tuple[object, ...]:
    return not option.sure, len(option.variant.costs), len(option.cards), option.rank


@dataclass
class _Packer:
    """One call of `pack`."""

    wanted: Sequence[Wanted]
    cards: tuple[Device, ...]
    answers: Answers
    quantized: Quantized | None
    forecast: Forecast | None

    @property
    def _lendable(self) -> tuple[Device, ...]:
        """The cards, of unified ones without the part that is the system's."""
        share = OVERHEADS.cpu_safety_share
        return tuple(
            replace(card, free_bytes=card.free_bytes - int(share * card.memory_bytes)) if card.unified else card
            for card in self.cards
        )

    def _largest_first(self) -> Iterator[tuple[Wanted, int]]:
        for want in sorted(self.wanted, key=lambda want: -want.question.model.weights_bytes):
            for number in range(want.replicas):
                yield want, number

    def _options(self, want: Wanted, cards: Sequence[Device]) -> Options:
        return options(
            want.question,
            cards,
            replace(want.want, replicas=1),
            quantized=self.quantized,
            forecast=self.forecast,
            answers=self.answers,
        )

    def apart(self, pick: Callable[[Options], Option | None]) -> Packing:
        """No two engines on one card."""
        free = list(self.cards)
        placed: list[Placed] = []
        unplaced: list[Unplaced] = []
        for want, number in self._largest_first():
            found = self._options(want, free) if free else None
            option = pick(found) if found else None
            if option is None:
                unplaced.append(self._left_out(want, number, free))
                continue
            placed.append(Placed(want.name, number, option.engines[0], option.variant, False, found))
            taken = {card_key(card) for card in option.cards}
            free = [card for card in free if card_key(card) not in taken]
        return self._packing(placed, unplaced)

    def _left_out(self, want: Wanted, number: int, free: Sequence[Device]) -> Unplaced:
        found = self._options(want, self.cards)
        alone = found.best
        if alone is None:
            return Unplaced(want.name, number, _impossible(want.question, self.cards, found.rejected), alone=False)
        fewer = "ask for fewer replicas or a shorter context"
        if free:
            left = f"of {len(self.cards)} GPUs the engines before it leave {len(free)}, in part or whole"
            return Unplaced(want.name, number, f"{left}, and it takes {alone} by itself; {fewer}", alone=True)
        taken = f"all {len(self.cards)} GPUs are taken by the replicas before it"
        return Unplaced(want.name, number, f"{taken}; {fewer}", alone=True)

    def together(self, order: Callable[[Iterable[Device]], list[Device]]) -> Packing:
        """Engines on one card where it holds them: each the least it starts with, then what is left by need."""
        left = {card_key(card): card for card in self._lendable}
        minimal: list[tuple[Wanted, int, PlannedEngine, Variant]] = []
        unplaced: list[Unplaced] = []
        for want, number in self._largest_first():
            own = {key for other, _, engine, _ in minimal if other.name == want.name for key in reserved_bytes(engine)}
            found = self._least(want, order(card for key, card in left.items() if key not in own))
            if found is None:
                unplaced.append(self._left_out(want, number, list(left.values())))
                continue
            minimal.append((want, number, *found))
            for key, taken in reserved_bytes(found[0]).items():
                left[key] = replace(left[key], free_bytes=left[key].free_bytes - taken)
        hosts = [set(reserved_bytes(engine)) for _, _, engine, _ in minimal]
        shared = [any(mine & other for at, other in enumerate(hosts) if at != me) for me, mine in enumerate(hosts)]
        alone = [
            self._alone(want, number, engine, variant)
            for (want, number, engine, variant), shares in zip(minimal, shared, strict=True)
            if not shares
        ]
        sharing = [entry for entry, shares in zip(minimal, shared, strict=True) if shares]
        engines = self._by_need([engine for _, _, engine, _ in sharing], left)
        pairs = zip(sharing, engines, strict=True)
        together = [
            Placed(want.name, number, engine, variant, True, None) for (want, number, _, variant), engine in pairs
        ]
        return self._packing([*alone, *together], unplaced)

    def _least(self, want: Wanted, cards: Sequence[Device]) -> tuple[PlannedEngine, Variant] | None:
        """The engine on the first cards that hold one request, of the usual context where none was asked for."""
        shorter = list(_shorter(want.question))
        if self._on_first(shorter[-1], want.want, cards) is None:  # not even the least of them
            return None
        for question in shorter:
            engine = self._on_first(question, want.want, cards)
            if engine is not None:
                return engine, Variant(question, asked_len=want.question.max_model_len)
        return None

    def _on_first(self, question: Question, want: Want, cards: Sequence[Device]) -> PlannedEngine | None:
        for group, sized in _groups(question, want, cards):
            engine = self._with_least_kv(on_cards(sized, group), group)
            if engine is not None:
                return engine
        return None

    def _with_least_kv(self, question: Question, group: CardGroup) -> PlannedEngine | None:
        try:
            found = self.answers.settled(question)
            if question.gpu_memory_utilization is None and question.kv_cache_memory_bytes is None:
                question = replace(question, kv_cache_memory_bytes=found.needed_kv_bytes)
                found = self.answers.settled(question)
        except SizingError:
            return None
        engine = PlannedEngine(group, question, found)
        free = {card_key(card): card.free_bytes for card in group.cards}
        held = all(taken <= free[key] for key, taken in reserved_bytes(engine).items())
        return engine if found.fits and held else None

    def _alone(self, want: Wanted, number: int, engine: PlannedEngine, variant: Variant) -> Placed:
        """An engine that nobody came to share with is served as if there were no others."""
        keys = set(reserved_bytes(engine))
        found = self._options(want, [card for card in self.cards if card_key(card) in keys])
        if found.best is None:
            return Placed(want.name, number, engine, variant, False, None)
        return Placed(want.name, number, found.best.engines[0], found.best.variant, False, found)

    def _by_need(self, engines: Sequence[PlannedEngine], left: dict[CardKey, Device]) -> list[PlannedEngine]:
        """What is left of each card goes to the engines on it, in proportion to what each could still use."""
        extra = _shares(engines, {key: card.free_bytes for key, card in left.items()})
        reserved = [
            {key: taken + more for key, taken in reserved_bytes(engine).items()}
            for engine, more in zip(engines, extra, strict=True)
        ]
        grown = []
        for me, (engine, more) in enumerate(zip(engines, extra, strict=True)):
            others = [taken for at, taken in enumerate(reserved) if at != me]
            grown.append(self._grown(engine, more, others))
        return grown

    def _grown(self, engine: PlannedEngine, more: int, others: Sequence[dict[CardKey, int]]) -> PlannedEngine:
        """The engine with more KV bytes, on its cards as the others leave them."""
        free = {card_key(card): card.free_bytes for card in self._lendable}
        stages = tuple(
            tuple(
                replace(card, free_bytes=free[key] - sum(taken.get(key, 0) for taken in others))
                for card in stage
                for key in (card_key(card),)
            )
            for stage in engine.group.stages
        )
        group = CardGroup(stages)
        question = on_cards(engine.question, group)
        given = engine.answer.settings.kv_cache_memory_bytes
        if given is None:  # a share was asked for
            return PlannedEngine(group, question, self.answers.settled(question))
        plain = replace(question, kv_cache_memory_bytes=None)
        question, found = with_kv_bytes(plain, engine.answer, given + more, self.answers.settled)
        return PlannedEngine(group, question, found)

    def _packing(self, placed: Sequence[Placed], unplaced: Sequence[Unplaced]) -> Packing:
        order = {want.name: at for at, want in enumerate(self.wanted)}
        taken = {key for each in placed for key in reserved_bytes(each.engine)}
        return Packing(
            tuple(sorted(placed, key=lambda each: (order[each.name], each.number))),
            tuple(sorted(unplaced, key=lambda each: (order[each.name], each.number))),
            tuple(card for card in self.cards if card_key(card) not in taken),
        )


def _impossible(question: Question, cards: Sequence[Device], rejected: Sequence[Rejected]) -> str:
    """Why not even all cards of one kind will do, with the settings that would, as far as this machine has them."""
    roomiest = max(kinds(cards).values(), key=lambda of_kind: sum(card.free_bytes for card in of_kind))
    fullest = min(roomiest, key=lambda card: card.free_bytes)
    try:
        found = answer(replace(question, device=fullest, count=len(roomiest), stage_devices=()))
    except SizingError as error:
        return str(error)
    if found.fits:  # by memory alone; what stands in the way is how the cards may be used
        return f"{rejected[-1].what}: {rejected[-1].why}"
    return f"{found.reason}{here_only(found.way_out)}"


def _emptiest_first(cards: Iterable[Device]) -> list[Device]:
    """Spreads the engines, which leaves each of them most."""
    return sorted(cards, key=lambda card: -card.free_bytes)


def _fullest_first(cards: Iterable[Device]) -> list[Device]:
    """Keeps large holes for those that need them."""
    return sorted(cards, key=lambda card: card.free_bytes)


def _shorter(question: Question) -> Iterator[Question]:
    """The usual context with the usual batch, then with smaller batches, then half the context and so on."""
    length = question.max_model_len or usual_len(question)
    least = question.max_model_len or min(length, SHORTEST_USEFUL_LEN)
    while length >= least:
        for seqs in _SHARED_SEQS if question.max_num_seqs is None else (question.max_num_seqs,):
            yield replace(question, max_model_len=length, max_num_seqs=seqs)
        length //= 2


def _groups(question: Question, want: Want, cards: Sequence[Device]) -> Iterator[tuple[CardGroup, Question]]:
    """Cards for one engine, fewest first and in their order; several only of those that choose each other."""
    sizes = sorted(shapes(len(cards), question.model.num_hidden_layers), key=lambda size: (size[0] * size[1], size[1]))
    for tensor, pipeline in sizes:
        if question.tensor_parallel_size not in (None, tensor) or want.pipeline_parallel_size not in (None, pipeline):
            continue
        expert_parallel = bool(want.enable_expert_parallel)
        sized = replace(
            question,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            enable_expert_parallel=expert_parallel,
        )
        if tensor * pipeline == 1:
            yield from ((CardGroup(((card,),)), sized) for card in cards)
            continue
        for of_kind in kinds(cards).values():
            group = choose(of_kind, tensor, pipeline)
            if group is not None:
                yield group, sized


def _shares(engines: Sequence[PlannedEngine], free: dict[CardKey, int]) -> list[int]:
    """More KV bytes for each engine: of every card it is on a part as large as its need among those on it.

    Over several rounds, since an engine on two cards takes no more of one than of the other.
    """
    needs = [
        0 if engine.answer.settings.kv_cache_memory_bytes is None else useful_bytes(engine.answer) for engine in engines
    ]
    needs = [max(0, need - engine.answer.kv_cache_bytes) for need, engine in zip(needs, engines, strict=True)]
    on = [set(reserved_bytes(engine)) for engine in engines]
    extra = [0] * len(engines)
    for _ in range(_ROUNDS):
        left = {key: size - sum(extra[at] for at in range(len(engines)) if key in on[at]) for key, size in free.items()}
        wanting = {key: sum(needs[at] - extra[at] for at in range(len(engines)) if key in on[at]) for key in free}
        granted = [
            min(left[key] * (needs[at] - extra[at]) // max(1, wanting[key]) for key in on[at])
            for at in range(len(engines))
        ]
        extra = [min(needs[at], extra[at] + max(0, granted[at])) for at in range(len(engines))]
    return extra
