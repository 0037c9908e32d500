"""The budget's terms, by hand and beside what vLLM logged."""

from dataclasses import replace

import pytest

from sizing.activations import Batch
from sizing.engine_cache import Serving, engine_cache
from sizing.gpu import GIB, Device, Link, gpu
from sizing.memory import Budget, Engine, Parallel, Term, batch_limits, cpu_budget, default_utilization, gpu_budget
from sizing.model import ModelShape
from sizing.release import Release, parse_release
from sizing.weights import weights_per_rank_bytes
from tests.sizing.models import published, smollm2

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"


def cpu(free_gib: float) -> Device:
    return Device("cpu", "x86_64", 64 * GIB, int(free_gib * GIB))


def budget(
    model: ModelShape,
    batch: Batch,
    *,
    card: str = "H100",
    tp: int = 1,
    pp: int = 1,
    stage: int = 0,
    link: Link | None = None,
    eager: bool = False,
    vllm: str | None = None,
) -> Budget:
    device = gpu(card)
    release = parse_release(vllm)
    engine = Engine(Parallel(tp, pp), batch, max_model_len=8192, enforce_eager=eager, release=release)
    return gpu_budget(
        model,
        replace(device, link=link or device.link),
        engine,
        stage=stage,
        gpu_memory_utilization=0.92,
        kv_cache_memory_bytes=None,
    )


def term_gib(found: Budget, name: str) -> float:
    return next(term.bytes for term in found.terms if term.name == name) / GIB


@pytest.mark.parametrize(
    ("card", "seqs", "tokens"),
    [
        ("L4", 256, 2048),
        ("A100-80GB", 256, 2048),  # vLLM keeps A100 with the small ones by name
        ("H100", 1024, 8192),
        ("H200", 1024, 8192),
        ("B200", 1024, 16384),
        ("GB10", 256, 2048),  # NVML gives vLLM no memory to go by
    ],
)
def test_batch_defaults_are_vllms_by_card(card: str, seqs: int, tokens: int) -> None:
    found = batch_limits(gpu(card), max_model_len=8192, max_num_seqs=None, max_num_batched_tokens=None)
    assert found == Batch(seqs, tokens)


def test_batch_defaults_on_a_processor() -> None:
    found = batch_limits(cpu(16), max_model_len=8192, max_num_seqs=None, max_num_batched_tokens=None)
    assert found == Batch(128, 2048)


def test_a_batch_is_no_larger_than_all_its_sequences() -> None:
    assert batch_limits(gpu("L4"), max_model_len=100, max_num_seqs=4, max_num_batched_tokens=None) == Batch(4, 400)
    assert batch_limits(gpu("L4"), max_model_len=100, max_num_seqs=None, max_num_batched_tokens=64) == Batch(64, 64)


def test_the_budget_is_the_cards_share_less_every_term() -> None:
    found = budget(published(LLAMA_8B), Batch(256, 2048))
    assert found.limit_bytes == found.claimed_bytes
    assert found.limit_bytes == pytest.approx(0.92 * 79.18 * GIB, rel=1e-9)
    assert found.kv_cache_bytes == found.limit_bytes - sum(term.bytes for term in found.terms)
    assert term_gib(found, "weights") == pytest.approx(14.9888, abs=1e-4)  # "Model loading took 14.9888 GiB"


H100_DEFAULT = Batch(1024, 8192)
QWEN3_30B = "Qwen/Qwen3-30B-A3B"
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"


@pytest.mark.parametrize(
    ("vllm", "model", "tp", "batch", "logged_gib"),
    [
        # V0: the forward pass is the higher peak (vllm#10517), or the sampler on 4,096 rows
        ("0.6.3", LLAMA_8B, 1, Batch(256, 20_000), 2.07),
        ("0.6.3", LLAMA_8B, 1, Batch(256, 29_000), 2.99),
        ("0.6.6", "meta-llama/Llama-3.1-70B-Instruct", 1, Batch(4096, 32_768), 19.09),
        # sorting the logits, up to 0.16 (llm-d's planner: accuracy report)
        ("0.16.0", LLAMA_8B, 1, H100_DEFAULT, 4.76),
        ("0.16.0", "Qwen/Qwen3-0.6B", 1, H100_DEFAULT, 5.56),
        ("0.16.0", "Qwen/Qwen3-32B-FP8", 2, H100_DEFAULT, 5.64),
        # masking them, from 0.17 (the same report, and llm-d's benchmark logs of 0.19)
        ("0.19.0", "Qwen/Qwen3-8B", 1, H100_DEFAULT, 2.21),
        ("0.19.0", LLAMA_8B, 1, H100_DEFAULT, 1.89),
        ("0.19.0", LLAMA_8B, 4, H100_DEFAULT, 1.89),  # the vocabulary is whole on every rank
        # and the workspaces of a mixture, which tensor parallel divides only in part
        ("0.19.0", "deepseek-ai/DeepSeek-V2-Lite", 1, H100_DEFAULT, 1.93),
        ("0.19.0", MIXTRAL, 2, H100_DEFAULT, 1.21),
        ("0.19.0", MIXTRAL, 4, H100_DEFAULT, 0.89),
        ("0.19.0", QWEN3_30B, 4, H100_DEFAULT, 2.66),
    ],
)
def test_the_activation_peak_is_the_logged_one(vllm: str, model: str, tp: int, batch: Batch, logged_gib: float) -> None:
    found = budget(published(model, quantization_config=None), batch, tp=tp, vllm=vllm)
    assert term_gib(found, "activations") == pytest.approx(logged_gib, rel=0.02)


def test_latent_vectors_expand_to_the_width_of_the_models_own_heads() -> None:
    # of 65,536 earlier tokens, 16 heads: 192 + 256 wide instead of 128 + 128, in two bytes
    narrow, wide = (
        published("deepseek-ai/DeepSeek-V2-Lite", qk_nope_head_dim=nope, v_head_dim=value)
        for nope, value in ((128, 128), (192, 256))
    )
    peaks = [term_gib(budget(model, Batch(16, 8192), vllm="0.19.0"), "activations") for model in (narrow, wide)]
    assert peaks[1] - peaks[0] == pytest.approx(65_536 * 16 * (448 - 256) * 2 / GIB)


def test_only_the_last_pipeline_stage_samples() -> None:
    model = published(LLAMA_8B)
    first, last = (
        term_gib(budget(model, H100_DEFAULT, pp=2, stage=stage, vllm="0.19.0"), "activations") for stage in (0, 1)
    )
    assert first == pytest.approx(8192 * 3 * (14_336 + 4096) * 2 / GIB + 0.05)
    assert last == pytest.approx(1.89, rel=0.02)


def test_the_second_model_runner_keeps_token_counts_and_samples_in_place() -> None:
    found = budget(published(LLAMA_8B), Batch(256, 2048), vllm="0.29.0", eager=True)
    assert term_gib(found, "sampler state") == pytest.approx(256 * (4 * 128_256 + 128_256 / 8) / GIB)
    forward = 2048 * 3 * (14_336 + 4096) * 2 / GIB
    assert term_gib(found, "activations") == pytest.approx(forward + 0.03)
    assert [term.name for term in budget(published(LLAMA_8B), Batch(256, 2048), vllm="0.19.0").terms] == [
        "weights",
        "activations",
        "non-torch",
    ]  # no graphs in the budget before 0.20


def named(found: Budget, name: str) -> Term:
    return next(term for term in found.terms if term.name == name)


def test_a_first_start_compiles_beside_a_second_embedding() -> None:
    embedding = 128_256 * 4096 * 2 / GIB  # 0.98, where a forward pass of 2,048 tokens takes 0.21
    found = budget(published(LLAMA_8B), Batch(256, 2048), vllm="0.26.0")
    assert term_gib(found, "activations") == pytest.approx(embedding + 0.03)
    assert named(found, "activations").low_bytes / GIB < 0.21  # a later start
    assert named(found, "activations").high_bytes / GIB == pytest.approx(embedding + 0.15)
    assert named(budget(published(LLAMA_8B), Batch(256, 2048), vllm="0.27.0"), "activations").high_bytes / GIB == (
        pytest.approx(2 * embedding + 0.15)
    )  # what the allocator does not give back counts too
    divided = budget(published(LLAMA_8B), Batch(256, 2048), vllm="0.26.0", tp=2)
    assert term_gib(divided, "activations") == pytest.approx(embedding / 2 + 0.03)
    later_stage = budget(published(LLAMA_8B), Batch(256, 2048), vllm="0.26.0", pp=2, stage=1)
    assert term_gib(later_stage, "activations") < 0.3  # it has no tokens to embed


def test_the_first_runner_only_may_show_it() -> None:
    found = named(budget(published(LLAMA_8B), Batch(256, 2048), vllm="0.19.0"), "activations")
    sampling = 256 * 128_256 * 14.5 / GIB + 2048 * 4096 * 2 / GIB
    assert found.bytes / GIB == pytest.approx(sampling + 0.05)
    assert found.high_bytes / GIB == pytest.approx(128_256 * 4096 * 2 / GIB + 0.10)


def test_beside_an_encoder_tokens_are_embedded_outside_the_graph() -> None:
    seen = replace(published(LLAMA_8B), encoder_bytes=GIB)
    found = budget(seen, Batch(256, 2048), vllm="0.29.0")
    assert term_gib(found, "activations") == pytest.approx(2048 * 3 * (14_336 + 4096) * 2 / GIB + 0.03)


def test_flashinfer_samples_where_it_is_installed_until_0_11_1() -> None:
    def sampled(vllm: str) -> Term:
        return named(budget(published(LLAMA_8B), Batch(1024, 2048), vllm=vllm), "activations")

    logits, hidden = 1024 * 128_256 / GIB, 2048 * 4096 * 2 / GIB
    either, sorting = sampled("0.11.0"), sampled("0.11.1")
    assert either.low_bytes / GIB == pytest.approx((12 + 2) * logits + hidden)
    assert either.high_bytes / GIB == pytest.approx((38 + 2) * logits + hidden + 0.10)
    assert sorting.bytes / GIB == pytest.approx((36 + 2) * logits + hidden + 0.05)


def test_what_is_made_after_the_weights_counts_since_0_27() -> None:
    def names(vllm: str) -> list[str]:
        return [term.name for term in budget(published(LLAMA_8B), Batch(256, 2048), vllm=vllm).terms]

    assert "sampler state" not in names("0.26.0")
    assert "sampler state" in names("0.27.0")


@pytest.mark.parametrize(
    ("model", "card", "vllm", "taken"),
    [
        (LLAMA_8B, "H100", "0.23.0", True),  # the first runner
        (LLAMA_8B, "H100", "0.24.0", False),  # the second, whose estimate was 0
        (LLAMA_8B, "H100", "0.28.0", False),
        (LLAMA_8B, "H100", "0.29.0", True),
        (QWEN3_30B, "H100", "0.28.0", True),  # a mixture that the first runner still served
        (QWEN3_30B, "MI300X", "0.25.0", False),
        (QWEN3_30B, "MI300X", "0.26.0", True),
    ],
)
def test_who_gives_up_an_estimate_for_graphs(model: str, card: str, vllm: str, taken: bool) -> None:
    found = budget(published(model), Batch(256, 2048), card=card, vllm=vllm)
    assert ("CUDA graphs" in [term.name for term in found.terms]) is taken


def test_the_largest_picture_is_profiled_before_the_decoder() -> None:
    text = published(LLAMA_8B)
    seen = replace(text, encoder_bytes=GIB, largest_picture_bytes=3 * GIB // 2)
    found = budget(seen, Batch(256, 2048), vllm="0.19.0")
    both = term_gib(found, "activations") + term_gib(found, "encoder run")
    assert both == pytest.approx(1.5)  # the higher of the two peaks
    crowded = budget(seen, Batch(1024, 8192), vllm="0.19.0")
    assert term_gib(crowded, "activations") > 1.5
    assert term_gib(crowded, "encoder run") == pytest.approx(0.2)  # what it found stays


@pytest.mark.parametrize(("vllm", "kept_gib"), [("0.11.0", 153_600 * 2048 * 8 / GIB), ("0.12.0", 0.25)])
def test_what_an_encoder_hands_on_stays_beside_the_decoders_peak(vllm: str, kept_gib: float) -> None:
    """Qwen3-VL-30B-A3B in 0.11.0: the budget held 2.34 GiB; with the longest video held down, 16,384 tokens' 0.25."""
    seen = replace(
        published(LLAMA_8B),
        architecture="Qwen3VLMoeForConditionalGeneration",
        encoder_bytes=GIB,
        largest_picture_bytes=3 * GIB // 2,
        encoder_output_bytes=2048 * 4 * 2,
    )
    found = budget(seen, Batch(256, 8192), vllm=vllm)
    sampled = 256 * 128_256 * (31 if vllm == "0.11.0" else 38) / GIB
    assert term_gib(found, "activations") == pytest.approx(sampled + 8192 * 4096 * 2 / GIB + 0.05)
    assert term_gib(found, "encoder run") == pytest.approx(kept_gib)


def test_the_band_of_the_kv_cache_adds_errors_in_squares() -> None:
    found = budget(published(LLAMA_8B), Batch(256, 2048))
    low, high = found.kv_cache_band
    assert low < found.kv_cache_bytes < high
    over = sum((term.high_bytes - term.bytes) ** 2 for term in found.terms) ** 0.5
    assert found.kv_cache_bytes - low == pytest.approx(over, rel=1e-6)
    assert all(term.low_bytes <= term.bytes <= term.high_bytes for term in found.terms)


@pytest.mark.parametrize(
    ("model", "tp", "logged_gib"),
    [
        (LLAMA_8B, 1, 0.84),
        ("Qwen/Qwen3-8B", 1, 0.84),
        (QWEN3_30B, 1, 1.24),
        ("meta-llama/Llama-3.1-70B-Instruct", 4, 1.7),
    ],
)
def test_the_estimate_for_cuda_graphs_covers_the_logged_one(model: str, tp: int, logged_gib: float) -> None:
    found = budget(published(model), H100_DEFAULT, tp=tp, vllm="0.21.0")  # 0.19 logged it, and took it from 0.20 on
    term = next(term for term in found.terms if term.name == "CUDA graphs")
    assert term.low_bytes / GIB < logged_gib < term.high_bytes / GIB
    assert term.bytes / GIB == pytest.approx(logged_gib, rel=0.3)


def test_cuda_graphs_cost_nothing_when_eager_and_more_with_more_sizes() -> None:
    model = published(LLAMA_8B)
    assert term_gib(budget(model, Batch(256, 2048), eager=True), "CUDA graphs") == 0
    full = term_gib(budget(model, Batch(256, 2048)), "CUDA graphs")  # 51 sizes, up to 512
    assert term_gib(budget(model, Batch(4, 2048)), "CUDA graphs") == pytest.approx(full * 4 / 51)  # 1, 2, 4, 8


@pytest.mark.parametrize(
    ("vllm", "tp", "pp", "link", "logged_gib"),
    [
        ("0.16.0", 1, 1, "nvlink", 0.13),
        ("0.19.0", 1, 1, "nvlink", 0.25),
        ("0.19.0", 2, 1, "nvlink", 2.07),
        ("0.19.0", 4, 1, "nvlink", 2.13),
        ("0.19.0", 1, 2, "nvlink", 0.07),
        ("0.9.1", 4, 1, "pcie", 0.36),
        ("0.9.0", 1, 1, "nvlink", 0.63),  # with CUDA's context of 0.5, which every start was charged for until then
    ],
)
def test_non_torch_memory_by_version_and_link(vllm: str, tp: int, pp: int, link: Link, logged_gib: float) -> None:
    found = budget(published(LLAMA_8B), Batch(256, 2048), tp=tp, pp=pp, link=link, vllm=vllm)
    term = next(term for term in found.terms if term.name == "non-torch")
    assert term.low_bytes / GIB <= logged_gib <= term.high_bytes / GIB
    assert term.bytes / GIB == pytest.approx(logged_gib, abs=0.1)


@pytest.mark.parametrize(
    ("card", "vllm", "tp", "logged_gib"),
    [
        ("RTX4090", "0.10.2", 1, 0.02),
        ("A100-40GB", "0.10.2", 1, 0.02),
        ("RTX4080", "0.26.0", 1, 0.06),
        ("RTX4090", "0.27.1", 1, 0.14),
        ("L40S", "0.19.0", 4, 0.25),
    ],
)
def test_non_torch_memory_beside_hopper(card: str, vllm: str, tp: int, logged_gib: float) -> None:
    term = named(budget(published(LLAMA_8B), Batch(256, 2048), card=card, tp=tp, vllm=vllm), "non-torch")
    assert term.low_bytes / GIB <= logged_gib <= term.high_bytes / GIB
    assert term.bytes / GIB == pytest.approx(logged_gib, abs=0.06)


def test_the_default_utilization_shrinks_on_a_card_that_others_use() -> None:
    card = gpu("H100")
    assert default_utilization(card) == 0.92
    half = replace(card, free_bytes=card.memory_bytes // 2)
    assert default_utilization(half) == 0.493  # (39.57 - 0.5) / 79.14, rounded down
    assert default_utilization(replace(card, free_bytes=0)) == 0


def test_a_processor_gives_what_its_requests_can_use() -> None:
    model = smollm2()
    cache = engine_cache(model, Serving(block_size=128))
    found = cpu_budget(model, cpu(64), Batch(4, 2048), cache, max_model_len=2048, kv_cache_memory_bytes=None)
    assert found.kv_cache_bytes == (4 * 16 + 1) * cache.block_bytes  # 16 blocks each, and the null block
    assert found.claimed_bytes == weights_per_rank_bytes(model, 1) + int(2.5 * GIB) + found.kv_cache_bytes


def test_a_small_processor_gives_whole_blocks_of_what_is_left() -> None:
    model = smollm2()
    cache = engine_cache(model, Serving(block_size=128))
    found = cpu_budget(model, cpu(4), Batch(128, 2048), cache, max_model_len=8192, kv_cache_memory_bytes=None)
    left = 4 * GIB - weights_per_rank_bytes(model, 1) - int(2.5 * GIB) - int(0.4 * GIB)
    assert found.kv_cache_bytes == left // cache.block_bytes * cache.block_bytes
    assert found.claimed_bytes <= 3.6 * GIB


def test_the_default_batch_holds_what_is_not_cut() -> None:
    """Gemma 4's largest video is 2,496 tokens; vLLM raises the 2,048 of a small card to it since 0.22."""

    def tokens(card: str, minor: int) -> int:
        return batch_limits(
            gpu(card),
            max_model_len=32768,
            max_num_seqs=None,
            max_num_batched_tokens=None,
            release=Release(minor),
            undivided_item_tokens=2496,
        ).max_num_batched_tokens

    assert [tokens("L40S", 21), tokens("L40S", 22), tokens("H100", 22)] == [2048, 2496, 8192]
