"""Every way to serve a model, ranked, and one line for each of the others."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest

from sizing.errors import QuestionError
from sizing.goal import Goal
from sizing.gpu import GIB, Device, gpu
from sizing.islands import like_cards
from sizing.model import ModelShape
from sizing.options import Answers, options
from sizing.plan import settle
from sizing.question import Answer, Question
from sizing.ranking import Expected, Options, Want
from sizing.release import NEWEST, Release
from sizing.weights import quantized
from tests.sizing.models import published

EIGHT = published("meta-llama/Llama-3.1-8B-Instruct")
SEVENTY = published("meta-llama/Llama-3.1-70B-Instruct")
SMALL = published("Qwen/Qwen3-0.6B")


def asked(model: ModelShape, **changes: object) -> Question:
    return replace(Question(model=model, device=gpu("H100")), **changes)  # type: ignore[arg-type]  # by name


def best(found: Options) -> tuple[int, int, int]:
    assert found.best is not None
    settings = found.best.answer.settings
    return found.best.replicas, settings.tensor_parallel_size, settings.pipeline_parallel_size


def why(found: Options, what: str) -> str:
    (line,) = [each.why for each in found.why_not if each.what == what]
    return line


def test_the_fewest_cards_that_will_do_and_a_line_for_every_other_way() -> None:
    found = options(asked(EIGHT, max_model_len=8192), like_cards(gpu("H100"), 4))
    assert best(found) == (1, 1, 1)
    assert why(found, "2 x H100, tensor_parallel_size 2") == "takes 2 cards where 1 will do"
    assert why(found, "2 x H100, pipeline_parallel_size 2").startswith("pipeline stages delay")
    assert (
        why(found, "3 x H100, tensor_parallel_size 3")
        == "tensor_parallel_size 3 does not divide the 32 attention heads"
    )
    assert all(each.why and "\n" not in each.why for each in found.why_not)
    # 1x1..4, 2x1..2, 3x1, 4x1: one line each
    assert len(found.why_not) + 1 == 8


def test_what_does_not_fit_says_by_how_much_and_what_did_not_help() -> None:
    found = options(asked(SEVENTY, max_model_len=8192), like_cards(gpu("H100"), 1))
    assert found.best is None
    assert "which leaves no KV cache; nor with" in found.rejected[0].why
    assert "--kv-cache-dtype fp8" in found.rejected[0].why


def test_replicas_are_as_many_as_the_concurrency_needs() -> None:
    """An 8B on an L40S holds some 200,000 tokens: 24 requests of 8,192. 60 of them take three cards."""
    found = options(asked(EIGHT, max_model_len=8192, tensor_parallel_size=1), like_cards(gpu("L40S"), 4), Want(60))
    assert best(found)[1:] == (1, 1)
    assert found.best is not None
    one = found.best.engines[0].seats
    assert found.best.replicas == -(-60 // one) == 3
    assert found.best.shortfall is None


def test_requests_may_be_shorter_than_the_context() -> None:
    """16 requests of 1,280 tokens are 20,480 tokens, 2.5 GiB for an 8B: no reason for more H100s than one."""
    want = Want(16, request_tokens=1280)
    found = options(asked(EIGHT), like_cards(gpu("H100"), 8), want, quantized=quantized)
    assert found.best is not None
    assert best(found) == (1, 1, 1)
    assert found.best.variant.flags == ()
    assert found.best.answer.settings.max_model_len == 131_072
    assert found.best.seats == found.best.answer.kv_cache_tokens // 1280 == 354  # 80 blocks of 16 tokens each
    more = options(asked(EIGHT), like_cards(gpu("H100"), 2), replace(want, concurrency=500)).best
    assert more is not None
    assert len(more.cards) == 2


def test_requests_are_no_longer_than_the_context_that_is_served() -> None:
    found = options(asked(EIGHT, max_model_len=1024), like_cards(gpu("L4"), 1), Want(1000, request_tokens=8192))
    assert found.best is not None
    assert found.best.shortfall == f"holds {found.best.seats} requests of 1,024 tokens at once, not 1,000"
    assert found.best.seats == found.best.answer.requests_fit


def test_a_context_shorter_than_the_requests_falls_short() -> None:
    """32,768 tokens are good enough where nothing is known; of requests of 60,000 none would be taken."""
    found = options(asked(EIGHT), like_cards(gpu("L4"), 1), Want(1, request_tokens=60_000), quantized=quantized)
    assert [str(way) for way in found.ranked] == ["1 x L4, --quantization fp8", "1 x L4"]
    assert found.ranked[0].answer.settings.max_model_len >= 60_000
    assert found.ranked[1].shortfall == "serves 16,768 tokens of context, not 60,000"
    long = options(asked(EIGHT), like_cards(gpu("H100"), 8), Want(1, request_tokens=200_000)).best
    assert long is not None
    assert long.shortfall == "serves 131,072 tokens of context, not 200,000"


def test_where_not_all_are_held_the_most_are() -> None:
    found = options(asked(EIGHT, max_model_len=8192), like_cards(gpu("L4"), 2), Want(500, pipeline_parallel_size=1))
    assert found.best is not None
    assert found.best.shortfall is not None
    assert found.best.seats == max(option.seats for option in found.ranked)
    assert "requests of 8,192 tokens at once, not 500" in found.best.shortfall


def test_a_context_nobody_asked_for_is_one_that_surely_fits() -> None:
    """The longest that fits by the sum is a close call by itself."""
    found = options(asked(EIGHT), like_cards(gpu("L4"), 1))
    assert found.best is not None
    assert found.best.answer.certain
    assert 16_384 <= found.best.answer.settings.max_model_len < 131_072


def test_an_fp8_cache_is_offered_where_it_makes_the_difference_and_said() -> None:
    """16 requests of 8,192 tokens are 16 GiB in bfloat16: too much beside an 8B on an RTX 5090, 8 are not."""
    found = options(asked(EIGHT, max_model_len=8192), like_cards(gpu("RTX5090"), 1), Want(16))
    assert found.best is not None
    assert found.best.variant.flags == ("--kv-cache-dtype fp8",)
    assert found.best.variant.costs == ("an fp8 KV cache changes answers a little",)
    ampere = options(asked(EIGHT, max_model_len=8192), like_cards(gpu("RTX3090"), 1), Want(16))
    assert all("--kv-cache-dtype fp8" not in option.variant.flags for option in ampere.ranked)


def test_fp8_weights_are_the_last_thing_tried() -> None:
    question = asked(EIGHT, max_model_len=4096)
    crowded = [replace(gpu("L4"), index=0, free_bytes=14 * GIB)]
    assert options(question, crowded).best is None
    found = options(question, crowded, quantized=quantized)
    assert found.best is not None
    assert found.best.variant.quantization == "fp8"
    roomy = options(question, like_cards(gpu("L4"), 1), quantized=quantized)
    assert roomy.best is not None
    assert roomy.best.variant.quantization is None


@pytest.mark.parametrize(
    ("name", "release", "offered"),
    [("RTX3090", NEWEST, True), ("T4", NEWEST, True), ("T4", Release(20), False), ("V100-16GB", NEWEST, False)],
)
def test_fp8_weights_are_held_where_nothing_computes_in_fp8(name: str, release: Release, offered: bool) -> None:
    """Marlin takes them in 16 bits: Ampere, and Turing in the release read for it. 8B fill 15 GiB in bfloat16."""
    crowded = [replace(gpu(name), index=0, free_bytes=12 * GIB)]
    best = options(asked(EIGHT, max_model_len=4096, release=release), crowded, quantized=quantized).best
    assert (best is not None) is offered
    if best is not None:
        assert best.variant.quantization == "fp8"
        assert "in 16 bits" in best.variant.costs[0]


def test_groups_across_islands_come_after_stages_inside_them() -> None:
    """Two bridged pairs: four ranks would talk over the bus, two stages of two do not."""
    pairs = [replace(gpu("A100-40GB"), index=index, island=index // 2) for index in range(4)]
    found = options(
        asked(published("meta-llama/Llama-3.1-70B-Instruct", num_hidden_layers=72), max_model_len=4096), pairs
    )
    assert best(found) == (1, 2, 2)
    assert why(found, "4 x A100-40GB, tensor_parallel_size 4") == "tensor parallelism would cross NVLink islands"


def test_experts_stay_whole_where_a_rank_would_get_half_a_group() -> None:
    section = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128},
            }
        },
    }
    model = published("Qwen/Qwen3-30B-A3B", quantization_config=section)
    found = options(asked(model, tensor_parallel_size=4), like_cards(gpu("L4"), 4))
    assert found.best is not None
    assert found.best.answer.settings.enable_expert_parallel
    pinned = options(asked(model, tensor_parallel_size=4), like_cards(gpu("L4"), 4), Want(enable_expert_parallel=False))
    assert pinned.best is None
    assert "192 of the expert width" in pinned.rejected[0].why
    assert (
        "no experts"
        in options(asked(EIGHT), like_cards(gpu("L4"), 1), Want(enable_expert_parallel=True)).rejected[0].why
    )


def test_what_is_pinned_is_kept_even_where_the_cards_are_too_few() -> None:
    found = options(asked(EIGHT, tensor_parallel_size=4), like_cards(gpu("H100"), 2))
    assert [(each.what, each.why) for each in found.rejected] == [("4 x H100", "there are 2")]
    with pytest.raises(QuestionError, match="goes up to"):
        options(asked(EIGHT, max_model_len=10**9), like_cards(gpu("H100"), 2))


def test_the_first_of_two_kinds_is_the_one_that_will_do() -> None:
    box = [replace(card, index=index) for index, card in enumerate([gpu("L4"), gpu("L4"), gpu("H100")])]
    small = options(asked(SMALL, max_model_len=8192), box[:2] + box[2:])
    large = options(asked(published("Qwen/Qwen3-8B", num_hidden_layers=80), max_model_len=8192), box)
    assert small.best is not None
    assert large.best is not None
    assert [card.name for card in large.best.cards] == ["H100"]
    assert len(small.best.cards) == 1


def by_cards(question: Question, answer: Answer, replicas: int) -> Expected:
    """A forecast in which only four cards keep the SLO."""
    cards = answer.settings.num_cards * replicas
    return Expected(100.0 * cards, None if cards == 4 else "too slow")


def test_an_slo_decides_before_the_number_of_cards() -> None:
    found = options(asked(EIGHT, max_model_len=8192), like_cards(gpu("H100"), 4), forecast=by_cards)
    assert best(found) == (1, 4, 1)
    assert why(found, "1 x H100") == "too slow"


def test_the_forecast_of_speed_finds_what_keeps_a_time_per_token() -> None:
    """70B in bfloat16 reads 35 GB a rank at 3.35 TB/s on four H100: 10.5 ms at best. On eight, 5 and latencies."""
    cards: Sequence[Device] = like_cards(gpu("H100"), 8)
    load = Goal(prompt_tokens=1000, output_tokens=200, concurrency=1, tpot_s=0.013)
    loose = options(asked(SEVENTY, max_model_len=8192), cards, forecast=replace(load, tpot_s=None).expected)
    tight = options(asked(SEVENTY, max_model_len=8192), cards, forecast=load.expected)
    assert loose.best is not None
    assert tight.best is not None
    assert len(tight.best.cards) > len(loose.best.cards)
    assert tight.best.shortfall is None
    assert "time per output token would be" in " ".join(each.why for each in tight.why_not)
    with pytest.raises(QuestionError, match="concurrency is 0"):
        replace(load, concurrency=0)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "deepseek-ai/DeepSeek-V2-Lite", "Qwen/Qwen3-VL-2B-Instruct"])
def test_what_a_plan_remembers_is_what_each_question_is_answered_alone(name: str) -> None:
    """Of two cards, sizes and stages, lengths that change the batch and the workspaces, and what is switched off."""
    model, remembered = published(name), Answers()
    base = Question(model=model, device=gpu("H100"), count=4)
    for card, size, stages, length, eager, share in product(
        ("H100", "L40S"), (1, 2), (1, 2), (64, 4096, 32_768), (False, True), (None, 0.8)
    ):
        question = replace(
            base, device=gpu(card), tensor_parallel_size=size, pipeline_parallel_size=stages, max_model_len=length,
            enforce_eager=eager, gpu_memory_utilization=share,
        )  # fmt: skip
        assert remembered.settled(question) == settle(question)
