"""Several models on one machine: every engine gets cards of its own, or, where there are too few, a part of one.

Nothing is claimed twice: what the engines on a card take, with a CUDA context each, is never more than what is free on
it. For engines that share a card that holds at the bad end of their bands; one by itself may be a close call.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sizing.errors import SizingError
from sizing.gpu import Device
from sizing.islands import kinds
from sizing.options import Answers, options
from sizing.overheads import OVERHEADS
from sizing.plan import answer
from sizing.question import Question
from sizing.ranking import Forecast, Option, Options, PlannedEngine, Rejected, Want
from sizing.remedy import here_only
from sizing.sharing import (
    Asked,
    Claim,
    Order,
    by_need,
    card_key,
    emptiest_first,
    fullest_first,
    least,
    remaining,
    reserved_bytes,
)
from sizing.variants import Quantized, Variant


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
        ways += [packer.together(emptiest_first), packer.together(fullest_first)]
    return min(ways, key=lambda way: len(way.unplaced))


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

    def together(self, order: Order) -> Packing:
        """Engines on one card where it holds them: each the least it starts with, then what is left by need."""
        asked = [Asked(want.name, number, want.question, want.want) for want, number in self._largest_first()]
        claims, left_out = least(asked, self._lendable, order, self.answers)
        by_name = {want.name: want for want in self.wanted}
        unplaced = [
            self._left_out(by_name[each.name], each.number, remaining(claims, self._lendable)) for each in left_out
        ]
        hosts = [set(reserved_bytes(claim.engine)) for claim in claims]
        shared = [any(mine & other for at, other in enumerate(hosts) if at != me) for me, mine in enumerate(hosts)]
        alone = [
            self._alone(by_name[claim.asked.name], claim)
            for claim, shares in zip(claims, shared, strict=True)
            if not shares
        ]
        sharing = [claim for claim, shares in zip(claims, shared, strict=True) if shares]
        grown = by_need(sharing, self._lendable, self.answers)
        together = [
            Placed(claim.asked.name, claim.asked.number, engine, claim.variant, True, None)
            for claim, engine in zip(sharing, grown, strict=True)
        ]
        return self._packing([*alone, *together], unplaced)

    def _alone(self, want: Wanted, claim: Claim) -> Placed:
        """An engine that nobody came to share with is served as if there were no others."""
        keys = set(reserved_bytes(claim.engine))
        found = self._options(want, [card for card in self.cards if card_key(card) in keys])
        if found.best is None:
            return Placed(want.name, claim.asked.number, claim.engine, claim.variant, False, None)
        return Placed(want.name, claim.asked.number, found.best.engines[0], found.best.variant, False, found)

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
