"""Which of a machine's cards an engine gets: of one kind, one NVLink island, one NUMA node, and the emptiest."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from sizing.gpu import GIB, Device

Crossing = Literal["nothing", "NUMA nodes", "NVLink islands"]


@dataclass(frozen=True)
class CardGroup:
    """The cards of one engine: its pipeline stages in order, and in each the cards of its tensor-parallel ranks."""

    stages: tuple[tuple[Device, ...], ...]

    @cached_property
    def cards(self) -> tuple[Device, ...]:
        """In the order of vLLM's ranks, which count through a stage before the next."""
        return tuple(card for stage in self.stages for card in stage)

    @cached_property
    def crossing(self) -> Crossing:
        """What the all-reduces of tensor parallelism have to cross; pipeline stages talk far less, and do not count."""
        if any(_crosses_islands(stage) for stage in self.stages):
            return "NVLink islands"
        return "NUMA nodes" if any(len(_numa_nodes(stage)) > 1 for stage in self.stages) else "nothing"

    @cached_property
    def stage_devices(self) -> tuple[Device, ...]:
        """For each stage the card that speaks for its ranks, which are all alike to vLLM: the smallest and fullest."""
        talking = self.stages if len(self.stages[0]) > 1 else (self.cards,) * len(self.stages)
        return tuple(
            replace(
                min(stage, key=lambda card: card.free_bytes),
                memory_bytes=min(card.memory_bytes for card in stage),
                link=_link(together),
            )
            for stage, together in zip(self.stages, talking, strict=True)
        )

    @property
    def alike(self) -> bool:
        """Whether one device can speak for all stages."""
        return len({(device.name, device.memory_bytes, device.free_bytes) for device in self.stage_devices}) == 1

    def __str__(self) -> str:
        names = list(dict.fromkeys(card.name for card in self.cards))
        return " + ".join(f"{sum(card.name == name for card in self.cards)} x {name}" for name in names)


def like_cards(device: Device, count: int) -> tuple[Device, ...]:
    """So many of a catalogue's card, as they come in one box: linked to each other where the card has such a link."""
    island = 0 if device.link in ("nvlink", "xgmi") and count > 1 else None
    return tuple(replace(device, index=index, island=island) for index in range(count))


def kinds(cards: Iterable[Device]) -> dict[str, list[Device]]:
    """Cards by name, in the order of their first."""
    found: dict[str, list[Device]] = {}
    for card in cards:
        found.setdefault(card.name, []).append(card)
    return found


def choose(cards: Sequence[Device], tensor_parallel_size: int, pipeline_parallel_size: int) -> CardGroup | None:
    """The best cards, all of one kind, for an engine of that size; None where there are too few."""
    left = list(cards)
    stages = []
    for _ in range(pipeline_parallel_size):
        stage = _best_stage(left, tensor_parallel_size)
        if stage is None:
            return None
        stages.append(stage)
        left = [card for card in left if card not in stage]
    return CardGroup(tuple(stages)) if _usable_together(stages) else None


def choose_unlike(cards: Sequence[Device], tensor_parallel_size: int, pipeline_parallel_size: int) -> CardGroup | None:
    """Stages of unlike kinds, each of one kind; the largest card last, where the output layer and the sampler are.

    None where there are too few, or where they would all be of one kind.
    """
    left = {name: list(of_kind) for name, of_kind in kinds(cards).items()}
    stages: list[tuple[Device, ...]] = []
    for _ in range(pipeline_parallel_size):
        offers = [stage for of_kind in left.values() if (stage := _best_stage(of_kind, tensor_parallel_size))]
        if not offers:
            return None
        stage = max(offers, key=lambda offer: min(card.free_bytes for card in offer))
        stages.append(stage)
        left[stage[0].name] = [card for card in left[stage[0].name] if card not in stage]
    if len({stage[0].name for stage in stages}) == 1 or not _usable_together(stages):
        return None
    return CardGroup(tuple(sorted(stages, key=lambda stage: min(card.memory_bytes for card in stage))))


def _best_stage(cards: Sequence[Device], size: int) -> tuple[Device, ...] | None:
    """So many cards of one kind: of one island where one has as many, else of one NUMA node, else of any.

    Of several that will do, the one whose fullest card is emptiest to the GiB, then the smallest, which leaves the
    larger islands whole.
    """
    near = [_islands(cards), _nodes(cards)] if size > 1 else []  # one card has no one to be near
    for pools in (*near, [list(cards)]):
        offers = [(_emptiest(pool, size, cards), len(pool)) for pool in pools if len(pool) >= size]
        if offers:
            return min(offers, key=lambda offer: (-_least_free_gib(offer[0]), offer[1], _indices(offer[0])))[0]
    return None


def _islands(cards: Sequence[Device]) -> list[list[Device]]:
    numbers = sorted({card.island for card in cards if card.island is not None})
    return [[card for card in cards if card.island == number] for number in numbers]


def _nodes(cards: Sequence[Device]) -> list[list[Device]]:
    return [[card for card in cards if card.numa_node == node] for node in sorted(_numa_nodes(cards))]


def _emptiest(pool: Sequence[Device], size: int, cards: Sequence[Device]) -> tuple[Device, ...]:
    """In the driver's order. Among equally empty ones those that few others could have joined go first."""

    def rank(card: Device) -> tuple[int, int, int]:
        mates = sum(card.island is not None and other.island == card.island for other in cards)
        return -_free_gib(card), mates, card.index or 0

    return tuple(sorted(sorted(pool, key=rank)[:size], key=lambda card: card.index or 0))


def _least_free_gib(cards: Sequence[Device]) -> int:
    return min(_free_gib(card) for card in cards)


def _free_gib(card: Device) -> int:
    return round(card.free_bytes / GIB)


def _indices(cards: Sequence[Device]) -> tuple[int, ...]:
    return tuple(card.index or 0 for card in cards)


def _usable_together(stages: Sequence[Sequence[Device]]) -> bool:
    """A process sees one MIG instance at most."""
    cards = [card for stage in stages for card in stage]
    return len(cards) == 1 or all(card.mig_uuid is None for card in cards)


def _crosses_islands(stage: Sequence[Device]) -> bool:
    """Of cards that have NVLink; those without have nothing to cross."""
    linked = any(card.link in ("nvlink", "xgmi") for card in stage)
    return len(stage) > 1 and linked and not _one_island(stage)


def _one_island(cards: Sequence[Device]) -> bool:
    """Linked cards of which no island is known count as one: a driver that knows better says so (sizing.detect)."""
    islands = {card.island for card in cards}
    return len(islands) == 1 and (islands != {None} or all(card.link in ("nvlink", "xgmi") for card in cards))


def _numa_nodes(cards: Sequence[Device]) -> set[int]:
    return {card.numa_node for card in cards if card.numa_node is not None}


def _link(cards: Sequence[Device]) -> Literal["none", "pcie", "nvlink", "xgmi"]:
    """What those cards talk over: their own link where it reaches all of them, else the bus."""
    if len(cards) == 1 or _one_island(cards):
        return cards[0].link
    return "pcie"


def shapes(count: int, most_stages: int) -> Iterator[tuple[int, int]]:
    """Every (tensor_parallel_size, pipeline_parallel_size) that so many cards allow."""
    for tensor in range(1, count + 1):
        for pipeline in range(1, min(count // tensor, most_stages) + 1):
            yield tensor, pipeline
