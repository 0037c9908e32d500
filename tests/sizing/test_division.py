"""Which splits vLLM refuses: heads, widths, and quantized matrices that cannot be cut anywhere."""

from dataclasses import replace

import pytest

from sizing.division import indivisible, read_granule
from sizing.errors import QuestionError
from sizing.gpu import gpu
from sizing.model import Granule, ModelShape
from sizing.plan import answer
from sizing.question import Question
from sizing.release import Release
from tests.sizing.models import published

FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "group_size": 128, "bits": 4}


def qwen25_72b(section: dict[str, object]) -> ModelShape:
    """Qwen2.5-72B as its config gives it: 29,568 is 231 groups of 128."""
    base = published("Qwen/Qwen2.5-7B-Instruct")
    wide = replace(base, hidden_size=8192, intermediate_size=29568, num_attention_heads=64, num_key_value_heads=8)
    return replace(wide, quantization=str(section["quant_method"]), granule=read_granule(section))


def test_what_is_read_from_a_quantization_section() -> None:
    int4 = {"type": "int", "group_size": 64, "strategy": "group", "num_bits": 4}
    blocks = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 128]}
    assert read_granule(FP8_BLOCKS) == Granule("block", 128, 128)
    assert read_granule({"quant_method": "fp8"}) is None
    assert read_granule(AWQ) == Granule("group", 1, 128)
    assert read_granule({"quant_method": "gptq", "group_size": -1}) is None
    assert read_granule({"config_groups": {"group_0": {"weights": int4}}}) == Granule("group", 1, 64)
    assert read_granule({"config_groups": {"group_0": {"weights": blocks}}}) == Granule("block", 128, 128)
    assert read_granule({"quant_method": "mxfp4"}) is None
    spared = read_granule({**FP8_BLOCKS, "modules_to_not_convert": ["model.layers.0.self_attn.q_proj"]})
    assert spared == Granule("block", 128, 128, attention=False)


def test_awq_groups_of_qwen25_72b_cannot_be_cut_even_in_two() -> None:
    """29,568 / 2 = 14,784 = 115.5 groups: the published checkpoint is padded to 29,696 for this reason."""
    assert "14784 of the feed-forward width" in str(indivisible(qwen25_72b(AWQ), 2))
    assert indivisible(replace(qwen25_72b(AWQ), intermediate_size=29696), 8) is None
    assert indivisible(replace(qwen25_72b(AWQ), granule=None), 8) is None


@pytest.mark.parametrize(
    ("release", "expert_parallel", "refused"),
    [(Release(28), False, True), (Release(28), True, False), (Release(29), False, False)],
)
def test_fp8_experts_of_1536_in_eight(release: Release, expert_parallel: bool, refused: bool) -> None:
    """1,536 / 8 = 192 = 1.5 blocks: refused until 0.29 halves them, or with every expert whole."""
    experts = replace(published("Qwen/Qwen3-30B-A3B"), moe_intermediate_size=1536, num_attention_heads=64)
    experts = replace(experts, quantization="fp8", granule=read_granule(FP8_BLOCKS), intermediate_size=12288)
    why = indivisible(experts, 8, enable_expert_parallel=expert_parallel, release=release)
    assert (why is not None) == refused
    assert why is None or "192 of the expert width" in why


def test_key_heads_narrower_than_a_block() -> None:
    """One key-value head of 64 is half a block of 128."""
    narrow = replace(published("Qwen/Qwen3-8B"), head_dim=64, granule=read_granule(FP8_BLOCKS))
    assert "64 of the key width" in str(indivisible(narrow, 8))
    assert indivisible(narrow, 4) is None
    assert indivisible(replace(narrow, granule=Granule("block", 128, 128, attention=False)), 8) is None


def test_sizing_refuses_such_a_size_and_names_those_that_do() -> None:
    question = Question(model=qwen25_72b(AWQ), device=gpu("H100"), count=4, tensor_parallel_size=4)
    with pytest.raises(QuestionError, match=r"leaves 7392 .* group of 128 .*; use one of 1$"):
        answer(question)
