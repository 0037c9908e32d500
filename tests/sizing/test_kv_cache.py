"""Pages, blocks and tokens of full attention: by hand, against logs of real starts, and as invariants."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizing.engine_cache import Serving, engine_cache
from sizing.errors import QuestionError
from sizing.gpu import GIB
from sizing.kv_cache import KvCache, kv_cache
from sizing.model import ModelShape
from sizing.pages import FullPage
from tests.sizing.models import published, smollm2


def full_attention(num_layers: int, num_kv_heads: int, head_dim: int, dtype_bytes: int, block_size: int) -> KvCache:
    """The cache of a model whose layers are all alike."""
    page = FullPage(block_size, num_kv_heads, head_dim, head_dim, dtype_bytes)
    return kv_cache([page] * num_layers, block_size=block_size)


def served(
    model: ModelShape, *, tensor_parallel_size: int = 1, kv_cache_dtype: str = "auto", block_size: int
) -> KvCache:
    return engine_cache(model, Serving(block_size, tensor_parallel_size, kv_cache_dtype=kv_cache_dtype))


def page_of(cache: KvCache) -> FullPage:
    page = cache.groups[0].pages[0]
    assert isinstance(page, FullPage)
    return page


caches = st.builds(
    full_attention,
    num_layers=st.integers(1, 128),
    num_kv_heads=st.sampled_from([1, 2, 3, 4, 8, 10, 32]),
    head_dim=st.sampled_from([64, 80, 96, 128, 256]),
    dtype_bytes=st.sampled_from([1, 2, 4]),
    block_size=st.sampled_from([16, 32, 64, 128]),
)
lengths = st.integers(1, 2**20)
memories = st.integers(-GIB, 256 * GIB)


def test_llama_3_1_8b_by_hand() -> None:
    cache = served(
        published("meta-llama/Llama-3.1-8B-Instruct"), tensor_parallel_size=1, kv_cache_dtype="auto", block_size=16
    )
    assert page_of(cache).page_bytes == 16 * 8 * 2 * 128 * 2 == 65_536  # tokens, heads, K and V, width, bfloat16
    assert cache.bytes_per_token == 32 * 8 * 2 * 128 * 2 == 131_072
    # 19.28 GiB was logged as 157,936 tokens: 9,871 blocks
    capacity = cache.capacity(int(19.28 * GIB), 131_072)
    assert (capacity.num_blocks, capacity.tokens) == (9_871, 157_936)


def test_smollm2_on_a_processor_as_vllm_0_32_logged_it() -> None:
    # --kv-cache-memory-bytes 268435456 --max-model-len 2048: "11,648 tokens", "5.69x", num_gpu_blocks 91
    cache = served(smollm2(), tensor_parallel_size=1, kv_cache_dtype="auto", block_size=128)
    assert cache.block_bytes == 30 * 128 * 3 * 2 * 64 * 2
    capacity = cache.capacity(268_435_456, 2048)
    assert (capacity.num_blocks, capacity.tokens, f"{capacity.max_concurrency:.2f}") == (91, 11_648, "5.69")


def test_heads_are_divided_by_tensor_parallel_and_repeated_beyond() -> None:
    model = published("Qwen/Qwen3-30B-A3B")  # 4 key-value heads
    heads = [
        page_of(served(model, tensor_parallel_size=tp, kv_cache_dtype="auto", block_size=16)).num_kv_heads
        for tp in (1, 2, 4, 8)
    ]
    assert heads == [4, 2, 1, 1]


@pytest.mark.parametrize(("dtype", "size"), [("auto", 2), ("bfloat16", 2), ("fp8", 1), ("fp8_e5m2", 1)])
def test_the_cache_type_sets_the_bytes(dtype: str, size: int) -> None:
    cache = served(smollm2(), tensor_parallel_size=1, kv_cache_dtype=dtype, block_size=16)
    assert page_of(cache).dtype_bytes == size


def test_a_cache_type_that_is_not_sized_is_refused() -> None:
    with pytest.raises(QuestionError, match=r"'turboquant_3bit' is not sized; use one of auto"):
        served(smollm2(), tensor_parallel_size=1, kv_cache_dtype="turboquant_3bit", block_size=16)


@dataclass(frozen=True)
class Logged:
    """A start-up log: the cache's shape and type, what vLLM said was available, and the tokens it printed."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    kv_gib: float
    tokens: int
    max_model_len: int


# "Available KV cache memory" (or the V0 profile) against "KV cache size", from public start-up logs, by their ids.
LOGS = (
    Logged("f3493652842 Llama-3.2-3B", 28, 8, 128, 2.38, 22_320, 10_000),
    Logged("fGB10-qwen06 Qwen3-0.6B", 28, 8, 128, 69.4, 649_728, 40_960),
    Logged("i10517-20k Llama-3.1-8B", 32, 8, 128, 3.81, 31_232, 20_000),
    Logged("i10517-29k Llama-3.1-8B", 32, 8, 128, 2.89, 23_648, 29_000),
    Logged("f60430572081 Qwen2.5-Math-1.5B", 28, 2, 128, 33.37, 1_249_840, 4096),
    Logged("f55765941562 Qwen2.5-1.5B", 28, 2, 128, 2.36, 88_304, 32_768),
    Logged("f43801487237 Llama-3.1-70B", 80, 8, 128, 95.28, 312_208, 32_768),
    Logged("f55921714709 Qwen2.5-0.5B", 24, 2, 64, 11.71, 1_022_896, 2048),
    Logged("f58028398527 Qwen3-8B", 36, 8, 128, 18.69, 136_080, 40_960),
    Logged("f53268049166 Qwen2.5-7B-AWQ", 28, 4, 128, 0.67, 12_624, 4096),
    Logged("f66862056619 Llama-3.1-70B-AWQ", 80, 8, 128, 38.71, 126_832, 131_072),
)


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.name)
def test_logged_tokens_follow_from_logged_memory(log: Logged) -> None:
    cache = full_attention(log.layers, log.kv_heads, log.head_dim, dtype_bytes=2, block_size=16)
    tokens = cache.capacity(int(log.kv_gib * GIB), log.max_model_len).tokens
    # the memory is logged to two decimals, which is all there is to tell for the smallest
    rounding = 0.005 / log.kv_gib
    assert abs(tokens / log.tokens - 1) < max(0.005, rounding)


def test_the_null_block_is_never_handed_out() -> None:
    cache = full_attention(num_layers=2, num_kv_heads=1, head_dim=64, dtype_bytes=2, block_size=16)
    two_blocks = 2 * cache.block_bytes
    assert cache.capacity(two_blocks, 32).max_concurrency == 1.0  # vLLM logs one request
    assert not cache.holds(two_blocks, 32)  # and refuses to start
    assert cache.holds(two_blocks + cache.block_bytes, 32)
    assert cache.requests_fit(two_blocks + cache.block_bytes, 32) == 1


@given(caches, memories, memories, lengths)
def test_more_memory_never_holds_fewer_tokens(cache: KvCache, a: int, b: int, length: int) -> None:
    less, more = sorted((a, b))
    assert cache.capacity(less, length).tokens <= cache.capacity(more, length).tokens
    assert cache.longest_model_len(less, length) <= cache.longest_model_len(more, length)


@given(caches, memories, lengths, lengths)
def test_a_longer_context_never_leaves_more_requests(cache: KvCache, memory: int, a: int, b: int) -> None:
    shorter, longer = sorted((a, b))
    assert cache.capacity(memory, longer).num_blocks <= cache.capacity(memory, shorter).num_blocks
    assert cache.requests_fit(memory, longer) <= cache.requests_fit(memory, shorter)


@given(caches, memories, lengths)
def test_the_longest_context_is_the_last_that_is_held(cache: KvCache, memory: int, limit: int) -> None:
    longest = cache.longest_model_len(memory, limit)
    assert longest == 0 or cache.holds(memory, longest)
    assert longest == limit or not cache.holds(memory, longest + 1)
