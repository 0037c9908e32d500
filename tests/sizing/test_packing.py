"""Several models on one machine: nothing is claimed twice, and whoever finds no place is told why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizing.gpu import GIB, Device, gpu
from sizing.islands import like_cards
from sizing.memory import default_utilization, usable_bytes
from sizing.model import ModelShape
from sizing.packing import Packing, Wanted, pack
from sizing.question import Question
from sizing.ranking import Want
from sizing.sharing import card_key, reserved_bytes
from tests.sizing.models import published

SMALL = published("Qwen/Qwen3-0.6B")
EIGHT = published("meta-llama/Llama-3.1-8B-Instruct")
SEVENTY = published("meta-llama/Llama-3.1-70B-Instruct")


def wanted(name: str, model: ModelShape, replicas: int = 1, want: Want | None = None, **changes: object) -> Wanted:
    question = Question(model=model, device=gpu("H100"))
    return Wanted(name, replace(question, **changes), replicas, want or Want())  # type: ignore[arg-type]  # by name


def box(*parts: tuple[str, int]) -> tuple[Device, ...]:
    """Catalogue cards with the numbers a driver would give them."""
    cards = [card for name, count in parts for card in like_cards(gpu(name), count)]
    return tuple(replace(card, index=index) for index, card in enumerate(cards))


def check_nothing_is_oversold(packing: Packing, cards: Sequence[Device]) -> None:
    """At the bad end of the terms' bands too, but for an engine by itself whose answer says it is a close call."""
    claimed: Counter[tuple[int | None, str | None]] = Counter()
    for placed in packing.placed:
        answer = placed.engine.answer
        assert answer.certain or not placed.shares
        more = (
            0 if answer.certain else max((each.more_bytes for each in answer.budgets if each.kv_cache_given), default=0)
        )
        claimed.update({key: taken - more for key, taken in reserved_bytes(placed.engine).items()})
    hosts = Counter(key for placed in packing.placed for key in reserved_bytes(placed.engine))
    for card in cards:
        assert claimed[card_key(card)] <= card.free_bytes, card
    for placed in packing.placed:
        shares = any(hosts[key] > 1 for key in reserved_bytes(placed.engine))
        assert placed.shares == shares
        assert placed.engine.answer.fits
        if shares:
            given = placed.engine.answer.settings
            assert given.kv_cache_memory_bytes
            # vLLM's check at start, however many of the others are up by then
            others = claimed.copy()
            others.subtract(reserved_bytes(placed.engine))
            for card in placed.engine.group.cards:
                whole = next(each for each in cards if card_key(each) == card_key(card))
                free = whole.free_bytes - others[card_key(card)]
                assert (given.gpu_memory_utilization or 0) * whole.memory_bytes <= usable_bytes(
                    replace(whole, free_bytes=free)
                )


def test_each_model_gets_cards_of_its_own_where_there_are_enough() -> None:
    cards = box(("H100", 8))
    packing = pack([wanted("small", EIGHT), wanted("big", SEVENTY)], cards)
    small, big = packing.placed
    assert (small.name, big.name) == ("small", "big")
    assert not small.shares
    assert small.engine.answer.settings.gpu_memory_utilization == 0.92
    assert small.engine.answer.settings.kv_cache_memory_bytes is None
    assert len(big.engine.group.cards) > 1
    assert len(packing.idle) == 8 - 1 - len(big.engine.group.cards)
    check_nothing_is_oversold(packing, cards)


def test_two_small_models_share_one_card_by_need() -> None:
    """Both start, and what is left goes to both: more to the one whose requests are larger."""
    cards = box(("L40S", 1))
    packing = pack([wanted("0.6B", SMALL, max_model_len=8192), wanted("8B", EIGHT, max_model_len=32768)], cards)
    first, second = packing.placed
    assert first.shares
    assert second.shares
    check_nothing_is_oversold(packing, cards)
    kv = [placed.engine.answer.kv_cache_bytes for placed in packing.placed]
    assert kv[1] > kv[0] > 2 * GIB
    used = sum(sum(reserved_bytes(placed.engine).values()) for placed in packing.placed)
    assert used > cards[0].free_bytes - 64 * 2**20  # hardly anything is left over


def test_replicas_of_one_model_never_share_a_card() -> None:
    cards = box(("L40S", 2))
    packing = pack([wanted("8B", EIGHT, 3)], cards)
    assert len(packing.placed) == 2
    (left_out,) = packing.unplaced
    assert left_out.alone
    assert left_out.why.startswith("all 2 GPUs are taken by the replicas before it; ask for fewer replicas")


def test_a_large_model_beside_small_ones_that_share_the_rest() -> None:
    """Four cards: the 70B takes two, and three small ones share the others."""
    cards = box(("A100-80GB", 3))
    models = [wanted("a", SMALL), wanted("b", EIGHT), wanted("big", SEVENTY, max_model_len=4096)]
    packing = pack(models, cards)
    assert not packing.unplaced
    assert {placed.name for placed in packing.placed if placed.shares} == {"a", "b"}
    assert len(packing.placed[2].engine.group.cards) == 2
    check_nothing_is_oversold(packing, cards)


def test_a_partly_used_card_is_given_bytes_and_a_share_that_is_free() -> None:
    """Others hold 30 of 79 GiB: vLLM would take what they allocate meanwhile for its own."""
    (card,) = box(("H100", 1))
    used = (replace(card, free_bytes=card.memory_bytes - 30 * GIB),)
    packing = pack([wanted("8B", EIGHT)], used)
    found = packing.placed[0].engine.answer.settings
    assert found.kv_cache_memory_bytes is not None
    assert found.gpu_memory_utilization == default_utilization(used[0])
    check_nothing_is_oversold(packing, used)


def test_unified_memory_is_given_bytes_and_leaves_the_system_its_part() -> None:
    cards = box(("GB10", 1))
    packing = pack([wanted("8B", EIGHT)], cards)
    found = packing.placed[0].engine
    assert found.answer.settings.kv_cache_memory_bytes is not None
    assert sum(reserved_bytes(found).values()) <= 0.9 * cards[0].memory_bytes


def test_a_mixed_box_gives_the_large_model_the_large_card() -> None:
    cards = box(("RTX4090", 2), ("H100", 1))
    half = published("meta-llama/Llama-3.1-70B-Instruct", num_hidden_layers=28)  # 52 GB
    packing = pack([wanted("8B", EIGHT, max_model_len=8192), wanted("half", half, max_model_len=4096)], cards)
    assert [placed.engine.group.cards[0].name for placed in packing.placed] == ["RTX4090", "H100"]
    check_nothing_is_oversold(packing, cards)


def test_one_engine_over_unlike_cards_where_nothing_else_fits() -> None:
    """53 GiB of weights: the H100 has 40 free, half of them is more than a 4090 has, and a third goes on each.

    A share would be the H100's half for all three, of which a 4090 is 11.7 GiB: too little for 17.7.
    """
    cards = box(("RTX4090", 2), ("H100", 1))
    cards = (*cards[:2], replace(cards[2], free_bytes=40 * GIB))
    model = published("meta-llama/Llama-3.1-70B-Instruct", num_hidden_layers=31)  # 28.6B parameters, 57 GB
    packing = pack([wanted("m", model, max_model_len=4096)], cards)
    (placed,) = packing.placed
    settings_ = placed.engine.answer.settings
    assert (settings_.tensor_parallel_size, settings_.pipeline_parallel_size) == (1, 3)
    assert [card.name for card in placed.engine.group.cards] == ["RTX4090", "RTX4090", "H100"]
    assert len(placed.engine.question.stage_devices) == 3
    assert settings_.gpu_memory_utilization == default_utilization(cards[2])  # for the check at start alone
    assert settings_.kv_cache_memory_bytes is not None
    check_nothing_is_oversold(packing, cards)


def test_what_does_not_fit_says_why_and_a_way_out_that_is_here() -> None:
    packing = pack([wanted("big", SEVENTY)], box(("L4", 1)))
    (left_out,) = packing.unplaced
    assert left_out.why.startswith("weights and work take")
    assert not left_out.alone
    assert "--count" not in left_out.why


def test_a_share_the_asker_gave_each_stands() -> None:
    cards = box(("H100", 1))
    pinned = [wanted(name, SMALL, gpu_memory_utilization=0.4) for name in ("a", "b")]
    packing = pack(pinned, cards)
    assert [placed.engine.answer.settings.gpu_memory_utilization for placed in packing.placed] == [0.4, 0.4]
    assert not packing.unplaced


CARDS = st.sampled_from(["L4", "RTX4090", "L40S", "A100-80GB", "H100"])
MODELS = {"0.6B": SMALL, "8B": EIGHT, "70B": SEVENTY}


@st.composite
def machines(draw: st.DrawFn) -> tuple[Device, ...]:
    cards = box(
        *draw(st.lists(st.tuples(CARDS, st.integers(1, 3)), min_size=1, max_size=2, unique_by=lambda part: part[0]))
    )
    return tuple(
        replace(card, free_bytes=int(card.memory_bytes * draw(st.sampled_from([1.0, 1.0, 0.5, 0.1])))) for card in cards
    )


@settings(max_examples=15, deadline=None)
@given(
    cards=machines(),
    models=st.lists(st.tuples(st.sampled_from(sorted(MODELS)), st.integers(1, 2)), min_size=1, max_size=3),
)
def test_nothing_is_oversold_and_everyone_is_placed_or_told_why(
    cards: tuple[Device, ...], models: list[tuple[str, int]]
) -> None:
    asked = [wanted(f"m{at}", MODELS[model], replicas) for at, (model, replicas) in enumerate(models)]
    packing = pack(asked, cards)
    check_nothing_is_oversold(packing, cards)
    expected = {(want.name, number) for want in asked for number in range(want.replicas)}
    told = {(each.name, each.number) for each in packing.unplaced}
    assert {(each.name, each.number) for each in packing.placed} | told == expected
    assert all(each.why and "\n" not in each.why for each in packing.unplaced)
    for placed in packing.placed:
        for stage in placed.engine.group.stages:
            assert len({(card.name, card.island) for card in stage}) == 1
    again = pack(asked, cards)
    assert [str(placed.engine.group) for placed in again.placed] == [str(each.engine.group) for each in packing.placed]
    assert [placed.engine.answer.settings for placed in again.placed] == [
        each.engine.answer.settings for each in packing.placed
    ]


@pytest.mark.parametrize("replicas", [1, 2])
def test_no_two_replicas_of_a_model_are_on_one_card(replicas: int) -> None:
    packing = pack([wanted("a", SMALL, replicas), wanted("b", SMALL, replicas)], box(("L4", replicas)))
    for name in ("a", "b"):
        used = [card_key(card) for each in packing.placed if each.name == name for card in each.engine.group.cards]
        assert len(used) == len(set(used)) == replicas
