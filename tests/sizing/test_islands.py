"""Which cards an engine gets: one island, one NUMA node, the emptiest; stages where no island is large enough."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizing.gpu import GIB, Device, gpu
from sizing.islands import CardGroup, choose, choose_unlike, like_cards


def numbers(group: CardGroup | None) -> list[list[int | None]]:
    assert group is not None
    return [[card.index for card in stage] for stage in group.stages]


def cards(name: str, islands: list[int | None], nodes: list[int | None] | None = None) -> list[Device]:
    nodes = nodes or [None] * len(islands)
    return [
        replace(gpu(name), index=index, island=island, numa_node=node)
        for index, (island, node) in enumerate(zip(islands, nodes, strict=True))
    ]


def test_tensor_parallel_stays_in_an_island_whatever_the_cards_order() -> None:
    """Two bridged pairs, crosswise: 0 with 3, 1 with 2."""
    pairs = cards("A100-80GB", [0, 1, 1, 0])
    group = choose(pairs, 2, 1)
    assert numbers(group) == [[0, 3]]
    assert group is not None
    assert group.crossing == "nothing"
    assert group.stage_devices[0].link == "nvlink"


def test_four_cards_of_two_islands_cross_and_talk_over_the_bus_but_two_stages_do_not() -> None:
    pairs = cards("A100-80GB", [0, 1, 1, 0])
    whole, staged = choose(pairs, 4, 1), choose(pairs, 2, 2)
    assert numbers(whole) == [[0, 1, 2, 3]]
    assert numbers(staged) == [[0, 3], [1, 2]]
    assert whole is not None
    assert staged is not None
    assert (whole.crossing, whole.stage_devices[0].link) == ("NVLink islands", "pcie")
    assert (staged.crossing, {device.link for device in staged.stage_devices}) == ("nothing", {"nvlink"})


def test_the_smallest_island_that_is_large_enough_leaves_the_larger_whole() -> None:
    assert numbers(choose(cards("H100", [0, 0, 0, 0, 1, 1]), 2, 1)) == [[4, 5]]
    assert numbers(choose(cards("H100", [0, 0, 0, 0, None]), 1, 1)) == [[4]]


def test_without_nvlink_one_numa_node_is_preferred() -> None:
    group = choose(cards("L40S", [None] * 4, [0, 1, 0, 1]), 2, 1)
    assert numbers(group) == [[0, 2]]
    crossing = choose(cards("L40S", [None] * 3, [0, 1, 1])[:2], 2, 1)
    assert crossing is not None
    assert crossing.crossing == "NUMA nodes"


def test_the_emptier_island_comes_before_the_smaller() -> None:
    used = cards("H100", [0, 0, 0, 1, 1])
    used[4] = replace(used[4], free_bytes=20 * GIB)
    assert numbers(choose(used, 2, 1)) == [[0, 1]]


def test_a_few_mebibytes_do_not_decide() -> None:
    used = cards("H100", [0, 0, 1, 1])
    used[0] = replace(used[0], free_bytes=used[0].free_bytes - 10 * 2**20)
    assert numbers(choose(used, 2, 1)) == [[0, 1]]


def test_the_fullest_card_of_a_stage_speaks_for_it() -> None:
    pair = cards("L40S", [None, None])
    pair[1] = replace(pair[1], free_bytes=30 * GIB)
    group = choose(pair, 2, 1)
    assert group is not None
    assert [device.free_bytes for device in group.stage_devices] == [30 * GIB]
    assert group.alike


@pytest.mark.parametrize(("tensor", "pipeline"), [(4, 1), (2, 2), (1, 4)])
def test_too_few_cards_are_no_group(tensor: int, pipeline: int) -> None:
    assert choose(like_cards(gpu("H100"), 3), tensor, pipeline) is None


def test_stages_of_unlike_cards_end_on_the_largest() -> None:
    mixed = [replace(card, index=index) for index, card in enumerate([gpu("H100"), gpu("RTX4090"), gpu("RTX4090")])]
    group = choose_unlike(mixed, 1, 3)
    assert numbers(group) == [[1], [2], [0]]
    assert group is not None
    assert str(group) == "2 x RTX4090 + 1 x H100"
    assert not group.alike
    assert choose_unlike(mixed, 2, 2) is None  # one H100 is not two
    assert choose_unlike(mixed[1:], 1, 2) is None  # both of a kind


def test_mig_instances_are_never_put_together() -> None:
    parts = [replace(gpu("H100"), index=0, mig_uuid=f"MIG-{n}") for n in range(2)]
    assert choose(parts, 1, 1) is not None
    assert choose(parts, 2, 1) is None
    assert choose(parts, 1, 2) is None


def test_a_catalogues_cards_come_linked_as_they_are_sold() -> None:
    assert {card.island for card in like_cards(gpu("H100"), 8)} == {0}
    assert {card.island for card in like_cards(gpu("L4"), 8)} == {None}
    assert [card.island for card in like_cards(gpu("H100"), 1)] == [None]


@given(
    islands=st.lists(st.sampled_from([None, 0, 1, 2]), min_size=1, max_size=8),
    nodes=st.lists(st.sampled_from([0, 1]), min_size=8, max_size=8),
    size=st.integers(1, 4),
)
def test_a_group_crosses_only_what_no_island_and_no_node_could_hold(
    islands: list[int | None], nodes: list[int | None], size: int
) -> None:
    pool = cards("H100", islands, nodes[: len(islands)])
    group = choose(pool, size, 1)
    assert (group is None) == (len(pool) < size)
    if group is None:
        return
    assert len({card.index for card in group.cards}) == size
    largest = max([0, *(islands.count(number) for number in set(islands) - {None})])
    if largest >= size > 1:
        assert len({card.island for card in group.cards}) == 1
        assert group.crossing != "NVLink islands"
    elif size > 1 and max(nodes[: len(islands)].count(node) for node in (0, 1)) >= size:
        assert len({card.numa_node for card in group.cards}) == 1
