"""The budget's terms, by hand and beside what vLLM logged."""

from dataclasses import replace

import pytest

from sizing.engine_cache import Serving, engine_cache
from sizing.gpu import GIB, Device, Link, gpu
from sizing.memory import Batch, Budget, batch_limits, cpu_budget, default_utilization, gpu_budget
from sizing.model import ModelShape
from sizing.weights import weights_per_rank_bytes
from tests.sizing.models import published, smollm2

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"


def cpu(free_gib: float) -> Device:
    return Device("cpu", "x86_64", 64 * GIB, int(free_gib * GIB))


def budget(
    model: ModelShape, batch: Batch, *, card: str = "H100", tp: int = 1, link: Link | None = None, eager: bool = False
) -> Budget:
    device = gpu(card)
    return gpu_budget(
        model,
        replace(device, link=link or device.link),
        batch,
        tensor_parallel_size=tp,
        gpu_memory_utilization=0.92,
        kv_cache_memory_bytes=None,
        enforce_eager=eager,
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
    assert found.limit_bytes == pytest.approx(0.92 * 79.14 * GIB, rel=1e-9)
    assert found.kv_cache_bytes == found.limit_bytes - sum(term.bytes for term in found.terms)
    assert term_gib(found, "weights") == pytest.approx(14.9888, abs=1e-4)  # "Model loading took 14.9888 GiB"


@pytest.mark.parametrize(
    ("model", "batch", "logged_gib"),
    [
        (LLAMA_8B, Batch(256, 20_000), 2.07),  # i10517-20k, the forward pass is the higher peak
        (LLAMA_8B, Batch(256, 29_000), 2.99),  # i10517-29k
        ("Qwen/Qwen2.5-7B-Instruct", Batch(256, 2048), 1.40),  # the vocabulary of f60430572081, sampled
        ("meta-llama/Llama-3.1-70B-Instruct", Batch(4096, 8192), 19.09),  # f43801487237
    ],
)
def test_the_activation_peak_is_near_the_logged_one(model: str, batch: Batch, logged_gib: float) -> None:
    assert term_gib(budget(published(model), batch), "activations") == pytest.approx(logged_gib, rel=0.1)


def test_experts_count_by_what_one_token_visits() -> None:
    mixtral = published("mistralai/Mixtral-8x7B-v0.1")
    found = budget(mixtral, Batch(8, 32_768))
    width = 3 * 2 * 14_336 + 3 * 4096  # two experts of 14,336, and the hidden states
    assert term_gib(found, "activations") == pytest.approx(32_768 * width * 2 / GIB + 0.05)


def test_cuda_graphs_cost_nothing_when_eager_and_more_with_more_sizes() -> None:
    model = published(LLAMA_8B)
    assert term_gib(budget(model, Batch(256, 2048), eager=True), "CUDA graphs") == 0
    assert term_gib(budget(model, Batch(4, 2048)), "CUDA graphs") == pytest.approx(4 * 0.0125)  # 1, 2, 4, 8
    assert term_gib(budget(model, Batch(256, 2048)), "CUDA graphs") == pytest.approx(51 * 0.0125)  # up to 512


@pytest.mark.parametrize(
    ("tp", "link", "gib"), [(1, "nvlink", 0.12), (2, "pcie", 0.25), (2, "nvlink", 0.60), (8, "xgmi", 0.60)]
)
def test_non_torch_memory_depends_on_the_link(tp: int, link: Link, gib: float) -> None:
    found = budget(published("meta-llama/Llama-3.1-70B-Instruct"), Batch(256, 2048), tp=tp, link=link)
    assert term_gib(found, "non-torch") == pytest.approx(gib)


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
