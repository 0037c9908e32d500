"""Engines that share cards: the least each starts with, and what is left of a card by need."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from sizing.errors import SizingError
from sizing.explicit import useful_bytes, with_kv_bytes
from sizing.gpu import GIB, Device
from sizing.islands import CardGroup, choose, kinds, shapes
from sizing.options import Answers, on_cards
from sizing.overheads import OVERHEADS
from sizing.plan import SHORTEST_USEFUL_LEN
from sizing.question import Question
from sizing.ranking import PlannedEngine, Want
from sizing.variants import Variant, usual_len

CardKey = tuple[int | None, str | None]
Order = Callable[[Iterable[Device]], list[Device]]
_CONTEXT_BYTES = int(OVERHEADS.cuda_context_gib * GIB)
_SEQS = (None, 64, 16)
_ROUNDS = 3


@dataclass(frozen=True)
class Asked:
    """One engine to be placed."""

    name: str
    number: int
    question: Question
    want: Want


@dataclass(frozen=True)
class Claim:
    """One engine and what it was asked as, with the least KV cache that it starts with."""

    asked: Asked
    engine: PlannedEngine

    @property
    def variant(self) -> Variant:
        return Variant(self.engine.question, asked_len=self.asked.question.max_model_len)


def least(
    asked: Sequence[Asked], cards: Sequence[Device], order: Order, answers: Answers
) -> tuple[list[Claim], list[Asked]]:
    """Every engine in turn on the first cards that hold one request of it, and those for which there are none.

    All at the usual context and batch, or at smaller batches, or at half the context and so on: the first step at
    which everyone finds a place. What was asked for is not cut.
    """
    ladders = [list(_steps(each.question)) for each in asked]
    longest = max((len(ladder) for ladder in ladders), default=1)
    smallest = _at_step(asked, ladders, longest - 1, cards, order, answers)
    if smallest[1]:
        return smallest
    for step in range(longest - 1):
        found = _at_step(asked, ladders, step, cards, order, answers)
        if not found[1]:
            return found
    return smallest


def remaining(claims: Sequence[Claim], cards: Sequence[Device]) -> list[Device]:
    """The cards as those engines leave them."""
    left = {card_key(card): card for card in cards}
    for claim in claims:
        _take(claim.engine, left)
    return list(left.values())


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


def _take(engine: PlannedEngine, left: dict[CardKey, Device]) -> None:
    for key, taken in reserved_bytes(engine).items():
        left[key] = replace(left[key], free_bytes=left[key].free_bytes - taken)


def _at_step(
    asked: Sequence[Asked],
    ladders: Sequence[Sequence[Question]],
    step: int,
    cards: Sequence[Device],
    order: Order,
    answers: Answers,
) -> tuple[list[Claim], list[Asked]]:
    left = {card_key(card): card for card in cards}
    claims: list[Claim] = []
    left_out: list[Asked] = []
    for each, ladder in zip(asked, ladders, strict=True):
        own = {key for claim in claims if claim.asked.name == each.name for key in reserved_bytes(claim.engine)}
        question = ladder[min(step, len(ladder) - 1)]
        engine = _on_first(question, each.want, order(card for key, card in left.items() if key not in own), answers)
        if engine is None:
            left_out.append(each)
            continue
        claims.append(Claim(each, engine))
        _take(engine, left)
    return claims, left_out


def _on_first(question: Question, want: Want, cards: Sequence[Device], answers: Answers) -> PlannedEngine | None:
    for group, sized in _groups(question, want, cards):
        engine = _with_least_kv(on_cards(sized, group), group, answers)
        if engine is not None:
            return engine
    return None


def _with_least_kv(question: Question, group: CardGroup, answers: Answers) -> PlannedEngine | None:
    try:
        found = answers.settled(question)
        if question.gpu_memory_utilization is None and question.kv_cache_memory_bytes is None:
            question = replace(question, kv_cache_memory_bytes=found.needed_kv_bytes)
            found = answers.settled(question)
    except SizingError:
        return None
    engine = PlannedEngine(group, question, found)
    free = {card_key(card): card.free_bytes for card in group.cards}
    held = all(taken <= free[key] for key, taken in reserved_bytes(engine).items())
    return engine if found.fits and held else None


def by_need(claims: Sequence[Claim], cards: Sequence[Device], answers: Answers) -> list[PlannedEngine]:
    """What is left of each card goes to the engines on it, in proportion to what each could still use."""
    engines = [claim.engine for claim in claims]
    extra = _shares(engines, {card_key(card): card.free_bytes for card in remaining(claims, cards)})
    reserved = [
        {key: taken + more for key, taken in reserved_bytes(engine).items()}
        for engine, more in zip(engines, extra, strict=True)
    ]
    free = {card_key(card): card.free_bytes for card in cards}
    grown = []
    for me, (engine, more) in enumerate(zip(engines, extra, strict=True)):
        others = [taken for at, taken in enumerate(reserved) if at != me]
        left = {key: size - sum(taken.get(key, 0) for taken in others) for key, size in free.items()}
        grown.append(_grown(engine, more, left, answers))
    return grown


def _grown(engine: PlannedEngine, more: int, left: dict[CardKey, int], answers: Answers) -> PlannedEngine:
    """The engine with more KV bytes, on its cards as the others leave them; it fits, since all was reserved."""
    group = CardGroup(
        tuple(tuple(replace(card, free_bytes=left[card_key(card)]) for card in stage) for stage in engine.group.stages)
    )
    question = on_cards(engine.question, group)
    given = engine.answer.settings.kv_cache_memory_bytes
    if given is None:  # a share was asked for
        return PlannedEngine(group, question, answers.settled(question))
    plain = replace(question, kv_cache_memory_bytes=None)
    question, found = with_kv_bytes(plain, engine.answer, given + more, answers.settled)
    return PlannedEngine(group, question, replace(found, certain=True))


def emptiest_first(cards: Iterable[Device]) -> list[Device]:
    """Spreads the engines, which leaves each of them most."""
    return sorted(cards, key=lambda card: -card.free_bytes)


def fullest_first(cards: Iterable[Device]) -> list[Device]:
    """Keeps large holes for those that need them."""
    return sorted(cards, key=lambda card: card.free_bytes)


def _steps(question: Question) -> Iterator[Question]:
    """The usual context with the usual batch, then with smaller batches, then half the context and so on."""
    length = question.max_model_len or usual_len(question)
    least = question.max_model_len or min(length, SHORTEST_USEFUL_LEN)
    while length >= least:
        for seqs in _SEQS if question.max_num_seqs is None else (question.max_num_seqs,):
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
