"""Questions and answers: yes with the settings, no with the numbers and a way out that was checked."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizing.errors import QuestionError, UnsupportedModelError
from sizing.gpu import GIB, Device, catalogue, gpu
from sizing.memory import usable_bytes
from sizing.model import ModelShape
from sizing.plan import answer, cache_capacity, settle
from sizing.question import Answer, Question
from sizing.questions import Sources, read_question
from sizing.release import parse_release
from sizing.remedy import fitting_remedies
from tests.sizing.models import published, smollm2

LLAMA_8B = published("meta-llama/Llama-3.1-8B-Instruct")
LLAMA_70B = published("meta-llama/Llama-3.1-70B-Instruct")


def cpu(free_gib: float) -> Device:
    return Device("cpu", "x86_64", 64 * GIB, int(free_gib * GIB))


def test_an_8b_on_an_h100() -> None:
    found = answer(Question(LLAMA_8B, gpu("H100")))
    assert (found.fits, found.reason, found.way_out, found.note) == (True, None, None, None)
    assert found.kv_bytes_per_token == 131_072
    assert found.block_size == 16
    assert found.num_blocks == found.kv_cache_bytes // (16 * 131_072)
    assert found.kv_cache_tokens == int(found.num_blocks / (131_072 / 16) * 131_072)
    assert found.requests_fit == int(found.max_concurrency) == 3
    assert (found.settings.gpu_memory_utilization, found.settings.kv_cache_memory_bytes) == (0.92, None)
    assert (found.settings.max_num_seqs, found.settings.max_num_batched_tokens) == (1024, 8192)


def test_smollm2_on_a_processor_as_vllm_0_32_logged_it() -> None:
    found = answer(Question(smollm2(), cpu(16), max_model_len=2048, kv_cache_memory_bytes=268_435_456))
    assert (found.num_blocks, found.block_size, found.kv_cache_tokens) == (91, 128, 11_648)
    assert f"{found.max_concurrency:.2f}" == "5.69"
    assert found.settings.kv_cache_memory_bytes == 268_435_456


def test_a_processor_is_given_bytes_and_no_utilization() -> None:
    found = answer(Question(smollm2(), cpu(16)))
    assert found.fits
    assert found.settings.gpu_memory_utilization is None
    assert found.settings.kv_cache_memory_bytes == found.kv_cache_bytes == found.num_blocks * 128 * 23_040


def test_a_context_nobody_asked_for_is_cut_to_what_fits() -> None:
    found = answer(Question(LLAMA_8B, gpu("L4")))
    assert found.fits
    assert found.settings.max_model_len < 131_072
    assert found.note is not None
    assert "131,072" in found.note
    assert f"{found.settings.max_model_len:,}" in found.note
    assert found.certain
    assert found.kv_cache_tokens_range.low // 16 == found.settings.max_model_len // 16 + 1  # and the null block
    longer = answer(Question(LLAMA_8B, gpu("L4"), max_model_len=found.settings.max_model_len + 16))
    assert longer.fits
    assert not longer.certain


def test_a_context_that_was_asked_for_is_never_cut() -> None:
    found = answer(Question(LLAMA_8B, gpu("L4"), max_model_len=131_072))
    assert not found.fits
    assert found.reason is not None
    assert "131,072 tokens needs 16.00 GiB" in found.reason
    assert found.way_out is not None


def test_a_model_larger_than_the_card() -> None:
    found = answer(Question(LLAMA_70B, gpu("H100")))
    assert not found.fits
    assert found.reason is not None
    assert "leaves no KV cache" in found.reason
    assert found.way_out == "try --count 2, or --gpu B200"
    assert (found.num_blocks, found.requests_fit, found.kv_cache_bytes) == (0, 0, 0)


def test_the_fewest_cards_that_fit_are_taken() -> None:
    assert answer(Question(LLAMA_8B, gpu("H100"), count=8)).settings.tensor_parallel_size == 1
    assert answer(Question(LLAMA_70B, gpu("H100"), count=8)).settings.tensor_parallel_size == 4  # 2 cut its context
    assert answer(Question(LLAMA_70B, gpu("H100"), count=8, max_model_len=8192)).settings.tensor_parallel_size == 2


def test_tensor_parallel_sizes_that_do_not_divide_are_not_tried() -> None:
    found = answer(Question(smollm2(), gpu("L4"), count=4))  # 9 heads
    assert found.settings.tensor_parallel_size == 1


def test_a_used_card_gets_a_smaller_share() -> None:
    card = replace(gpu("H100"), free_bytes=40 * GIB)
    found = answer(Question(LLAMA_8B, card))
    assert found.fits
    assert found.claimed_bytes <= 39.5 * GIB
    asked = answer(Question(LLAMA_8B, card, gpu_memory_utilization=0.92))
    assert not asked.fits
    assert asked.reason is not None
    assert "where 39.50 GiB is free" in asked.reason
    assert asked.way_out is not None
    assert asked.way_out.startswith("try --gpu-memory-utilization 0.498")


def test_kv_bytes_that_are_given_replace_the_utilization_on_a_card() -> None:
    found = answer(Question(LLAMA_8B, gpu("H100"), max_model_len=8192, kv_cache_memory_bytes=2 * GIB))
    assert found.fits
    assert (found.kv_cache_bytes, found.settings.gpu_memory_utilization) == (2 * GIB, None)
    assert found.claimed_bytes == sum(term.bytes for term in found.terms) + 2 * GIB
    too_many = answer(Question(LLAMA_8B, gpu("L4"), max_model_len=8192, kv_cache_memory_bytes=20 * GIB))
    assert not too_many.fits


def test_kv_bytes_that_only_just_fit_are_a_close_call() -> None:
    """What vLLM takes on trust may still be out of memory: the terms beside them have bands."""
    asked = Question(LLAMA_8B, gpu("L4"), max_model_len=8192, kv_cache_memory_bytes=2 * GIB)
    found = answer(asked)
    assert (found.fits, found.certain) == (True, True)
    left = usable_bytes(gpu("L4")) - found.claimed_bytes
    last = answer(replace(asked, kv_cache_memory_bytes=2 * GIB + left))
    assert (last.fits, last.certain) == (True, False)
    assert not answer(replace(asked, kv_cache_memory_bytes=2 * GIB + left + 2**20)).fits
    sure = answer(replace(asked, kv_cache_memory_bytes=2 * GIB + left - last.budgets[0].more_bytes))
    assert (sure.fits, sure.certain) == (True, True)


def test_a_full_processor_says_how_much_to_free() -> None:
    found = answer(Question(smollm2(), cpu(2.5)))
    assert not found.fits
    assert found.way_out is not None
    assert "freeing" in found.way_out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"count": 0}, "count is 0"),
        ({"max_model_len": 0}, "max_model_len is 0"),
        ({"max_model_len": -1}, "max_model_len is -1"),
        ({"max_model_len": 131_073}, "goes up to 131,072"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_batched_tokens": -5}, "max_num_batched_tokens is -5"),
        ({"max_num_seqs": 512, "max_num_batched_tokens": 256}, "less than max_num_seqs"),
        ({"kv_cache_memory_bytes": 0}, "kv_cache_memory_bytes is 0"),
        ({"gpu_memory_utilization": 0.0}, "gpu_memory_utilization is 0.0"),
        ({"gpu_memory_utilization": 1.01}, "gpu_memory_utilization is 1.01"),
        ({"kv_cache_dtype": "int3"}, "'int3' is not sized"),
        ({"tensor_parallel_size": 2}, "there are 1 devices"),
        ({"tensor_parallel_size": 3, "count": 3}, "does not divide the 32 attention heads of"),
        ({"tensor_parallel_size": 64, "count": 64}, "does not divide the 32 attention heads of"),
        ({"device": cpu(16), "tensor_parallel_size": 2}, "a processor is one device"),
    ],
)
def test_questions_that_cannot_be_answered(changes: dict[str, object], named: str) -> None:
    with pytest.raises(QuestionError) as caught:
        answer(replace(Question(LLAMA_8B, gpu("H100")), **changes))  # type: ignore[arg-type]  # wrong on purpose
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


models = st.sampled_from(
    [
        smollm2(),
        LLAMA_8B,
        LLAMA_70B,
        published("Qwen/Qwen3-30B-A3B"),
        published("mistralai/Mixtral-8x7B-v0.1"),
        published("google/gemma-3-27b-it"),
        published("openai/gpt-oss-20b", quantization_config=None),
        published("meta-llama/Llama-4-Scout-17B-16E-Instruct"),
    ]
)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    model = draw(models)
    if draw(st.booleans()):
        device, count = cpu(draw(st.floats(0, 64))), 1
    else:
        device, count = draw(st.sampled_from(catalogue())), draw(st.sampled_from([1, 2, 4, 8]))
        device = replace(device, free_bytes=int(device.memory_bytes * draw(st.floats(0, 1))))
    return Question(
        model,
        device,
        count=count,
        max_model_len=draw(st.none() | st.integers(1, model.longest_model_len)),
        max_num_seqs=draw(st.none() | st.integers(1, 256)),
        enforce_eager=draw(st.booleans()),
        kv_cache_memory_bytes=draw(st.none() | st.integers(1, 64 * GIB)),
    )


@given(questions())
def test_every_answer_holds_together(question: Question) -> None:
    found = answer(question)
    assert found.fits == (found.reason is None)
    assert found.num_blocks * found.block_size * found.kv_bytes_per_token <= found.kv_cache_bytes
    if found.fits:
        assert found.way_out is None
        assert found.requests_fit >= 1
        assert found.claimed_bytes <= question.device.free_bytes
        assert found.kv_cache_tokens >= found.settings.max_model_len
    if question.max_model_len is not None:
        assert found.settings.max_model_len == question.max_model_len


@given(questions())
def test_the_answers_settings_asked_for_give_the_same_answer(question: Question) -> None:
    found = answer(question)
    if not found.fits:
        return
    settings = found.settings
    again = answer(
        replace(
            question,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_memory_bytes=settings.kv_cache_memory_bytes,
            tensor_parallel_size=settings.tensor_parallel_size,
        )
    )
    assert replace(again, note=found.note) == found


@pytest.mark.parametrize(
    "flags",
    [
        {"gpu": "L4", "max_model_len": 8192, "gpu_memory_utilization": 0.9},
        {"gpu": "L4", "max_model_len": 8192, "gpu_memory_utilization": 0.3},  # with which B300 would be too small
        {"gpu": "H100", "max_model_len": 8192, "gpu_memory_utilization": 1.0},  # which no card takes
        {"gpu": "H100", "tensor_parallel_size": 1},
        {"gpu": "L40S", "tensor_parallel_size": 2, "max_model_len": 8192},
    ],
)
def test_a_way_out_fits_as_it_is_typed_beside_the_other_flags(flags: dict[str, object]) -> None:
    sources = Sources(lambda name, revision: LLAMA_70B, machine=lambda: (cpu(16), 1))
    way_out = answer(read_question({"model": "llama", **flags}, sources)).way_out
    assert way_out is not None
    for remedy in way_out.removeprefix("try ").split(", or "):
        typed, _, dropped = remedy.partition(" without ")
        words = iter(typed.split())
        changed = {name.removeprefix("--").replace("-", "_"): typed_value(next(words)) for name in words}
        kept = {key: value for key, value in flags.items() if key not in dropped.replace("-", "_")}
        assert answer(read_question({"model": "llama", **kept, **changed}, sources)).fits, remedy


def typed_value(text: str) -> object:
    if text[0].isdigit():
        return float(text) if "." in text else int(text)
    return text


def test_a_way_out_of_a_used_card_is_a_whole_one() -> None:
    way_out = answer(Question(LLAMA_70B, replace(gpu("H100"), free_bytes=8 * GIB), max_model_len=8192)).way_out
    assert way_out is not None
    assert way_out.endswith("--gpu B200 with all its memory free")


def test_data_parallelism_that_cuts_experts_too_small_says_so() -> None:
    """768 of expert width over 8 ranks is 96, which splits blocks of 128 before 0.29."""
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    model = published("Qwen/Qwen3-30B-A3B", quantization_config=fp8)
    asked = Question(model, gpu("H200"), count=8, data_parallel_size=8, release=parse_release("0.14"))
    with pytest.raises(QuestionError, match=r"in 8 data-parallel engines leaves 96 .*; use fewer") as refused:
        answer(asked)
    with pytest.raises(QuestionError, match=re.escape(str(refused.value))):
        answer(replace(asked, tensor_parallel_size=1))
    assert answer(replace(asked, data_parallel_size=2, count=2)).settings.tensor_parallel_size == 1
    assert answer(replace(asked, enable_expert_parallel=True)).settings.tensor_parallel_size == 1


@given(questions())
def test_every_way_out_fits(question: Question) -> None:
    found = answer(question)
    if found.fits:
        return
    remedies = fitting_remedies(question, found, settle)
    assert (found.way_out is None) == (not remedies)
    for remedy in remedies:
        assert answer(remedy.question).fits
        assert found.way_out is not None
        assert remedy.text in found.way_out


def tokens(found: Answer) -> int:
    return found.kv_cache_tokens if found.fits else 0


# above 0.98 the CUDA context no longer fits beside the share, and vLLM refuses
shares = st.floats(0.3, 0.97)


@given(models, st.sampled_from(["L4", "H100", "B200"]), shares, shares)
def test_more_memory_never_means_fewer_tokens(model: ModelShape, card: str, a: float, b: float) -> None:
    less, more = (
        answer(Question(model, gpu(card), max_model_len=4096, gpu_memory_utilization=share)) for share in sorted((a, b))
    )
    assert tokens(less) <= tokens(more)


def test_older_releases_do_not_look_at_what_is_free() -> None:
    """16 cards at 0.99 of 23.58 GiB started under V0, which leaves less beside it than a CUDA context."""
    card = replace(gpu("RTX3090"), memory_bytes=int(23.58 * GIB), free_bytes=int(23.58 * GIB))
    asked = Question(LLAMA_8B, card, max_model_len=8192, gpu_memory_utilization=0.99)
    assert answer(replace(asked, release=parse_release("0.8.5", "V0"))).fits
    assert not answer(replace(asked, release=parse_release("0.19.0"))).fits


def test_recurrent_states_bound_the_sequences() -> None:
    """Logged by 0.26 on an L40S: max_num_seqs (256) exceeds available Mamba cache blocks (184)."""
    model = published("Qwen/Qwen3.5-27B")
    asked = Question(model, gpu("H100"), max_model_len=32_768, release=parse_release("0.26.0"))
    told = answer(replace(asked, max_num_seqs=1024))
    assert not told.fits
    assert told.reason is not None
    assert f"of which {told.num_blocks:,} fit" in told.reason
    left_open = answer(asked)  # the default of 1,024 is then lowered, and said
    assert left_open.fits
    assert left_open.settings.max_num_seqs <= left_open.num_blocks
    assert left_open.note is not None
    assert "max_num_seqs is lowered from 1,024" in left_open.note


def test_an_answer_about_recurrent_states_is_certain_where_both_ends_of_the_band_say_the_same() -> None:
    model = published("Qwen/Qwen3.5-27B")
    asked = Question(model, gpu("H100"), max_model_len=32_768, release=parse_release("0.26.0"))
    for max_num_seqs, blocks, fits, certain in (
        (256, 393, True, True),
        (380, 390, True, False),  # of which the band's bad end leaves fewer
        (400, 389, False, False),
        (1024, 345, False, True),
    ):
        told = answer(replace(asked, max_num_seqs=max_num_seqs))
        assert (told.num_blocks, told.fits, told.certain) == (blocks, fits, certain)
    assert answer(asked).certain  # 1,024 lowered to what is there with so many fewer to sample


def test_a_release_that_cannot_lay_out_a_model_points_to_newer_ones() -> None:
    """No --block-size brings an indexer's pages to those of the latent layers; 0.32 does so itself."""
    asked = Question(published("deepseek-ai/DeepSeek-V3.2"), gpu("B200"), count=8)
    with pytest.raises(UnsupportedModelError, match=r"vLLM 0\.9\.2 refuses them; use a newer vLLM"):
        answer(replace(asked, release=parse_release("0.9.2")))
    assert answer(asked).fits


def test_a_release_of_unknown_rules_says_whose_are_taken() -> None:
    asked = Question(LLAMA_8B, gpu("H100"))
    noted = {version: answer(replace(asked, release=parse_release(version))).note for version in ("0.33", "0.5.4")}
    assert "0.33.0 is not among" in str(noted["0.33"])
    assert str(noted["0.33"]).endswith("these are 0.32.0's")
    assert str(noted["0.5.4"]).endswith("these are 0.6.0's")
    assert answer(replace(asked, release=parse_release("0.32.1"))).note is None


def test_the_capacity_of_given_memory_needs_no_weights() -> None:
    asked = Question(LLAMA_8B, gpu("L4"), max_model_len=8192)
    assert cache_capacity(asked, 4 * GIB).tokens == 4 * GIB // 131_072
