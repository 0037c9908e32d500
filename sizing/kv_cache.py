"""vLLM's rules for the KV cache of full attention: pages, blocks, tokens, concurrency and the refusal at start.

Equal to vLLM 0.32 (v1/kv_cache_interface.py, v1/core/kv_cache_utils.py) for models with one kind of layer, which its
cache manager keeps in one group; the tests compare the two.
"""

from dataclasses import dataclass

from sizing.errors import QuestionError
from sizing.model import DTYPE_BYTES, KvCacheDtype, ModelShape

_FP8_BYTES = 1


@dataclass(frozen=True)
class Capacity:
    """What vLLM logs about a cache: blocks, tokens, and how many requests of the longest length it holds."""

    num_blocks: int
    tokens: int
    max_concurrency: float


@dataclass(frozen=True)
class FullAttentionCache:
    """The KV cache of one rank. A block is the same `block_size` tokens in every layer."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype_bytes: int
    block_size: int

    @property
    def page_bytes(self) -> int:
        """One block of one layer: keys and values, hence 2."""
        return self.block_size * self.num_kv_heads * 2 * self.head_dim * self.dtype_bytes

    @property
    def block_bytes(self) -> int:
        return self.num_layers * self.page_bytes

    @property
    def bytes_per_token(self) -> int:
        return self.block_bytes // self.block_size

    def blocks_per_request(self, max_model_len: int) -> int:
        return -(-max_model_len // self.block_size)

    def needed_bytes(self, max_model_len: int) -> int:
        """What one request of that length needs beside the null block."""
        return self.blocks_per_request(max_model_len) * self.block_bytes

    def capacity(self, available_bytes: int, max_model_len: int) -> Capacity:
        """get_kv_cache_config_from_groups, then get_kv_cache_capacity."""
        num_blocks = max(0, available_bytes) // self.block_bytes
        max_concurrency = num_blocks / self.blocks_per_request(max_model_len)
        return Capacity(num_blocks, int(max_concurrency * max_model_len), max_concurrency)

    def holds(self, available_bytes: int, max_model_len: int) -> bool:
        """Whether vLLM starts: one request of that length beside the null block it never hands out."""
        usable = available_bytes - self.block_bytes
        return usable > 0 and self.needed_bytes(max_model_len) <= usable

    def longest_model_len(self, available_bytes: int, limit: int) -> int:
        """The largest length up to `limit` that it starts with; 0 where none. vLLM's `--max-model-len auto`."""
        usable_blocks = max(0, available_bytes - self.block_bytes) // self.block_bytes
        return min(limit, usable_blocks * self.block_size)

    def requests_fit(self, available_bytes: int, max_model_len: int) -> int:
        """Whole requests of that length at once, the null block left out."""
        usable_blocks = max(0, available_bytes // self.block_bytes - 1)
        return usable_blocks // self.blocks_per_request(max_model_len)


def full_attention_cache(
    model: ModelShape, *, tensor_parallel_size: int, kv_cache_dtype: str, block_size: int
) -> FullAttentionCache:
    """The cache of one rank; key-value heads are replicated where there are more ranks than heads.

    Raises:
        QuestionError: a KV cache type that is not sized.
    """
    return FullAttentionCache(
        num_layers=model.num_hidden_layers,
        num_kv_heads=max(1, model.num_key_value_heads // tensor_parallel_size),
        head_dim=model.head_dim,
        dtype_bytes=_dtype_bytes(model, kv_cache_dtype),
        block_size=block_size,
    )


def _dtype_bytes(model: ModelShape, kv_cache_dtype: str) -> int:
    sizes: dict[KvCacheDtype, int] = {
        "auto": _FP8_BYTES if model.kv_cache_dtype.startswith("fp8") else model.dtype_bytes,
        "bfloat16": DTYPE_BYTES["bfloat16"],
        "float16": DTYPE_BYTES["float16"],
        "fp8": _FP8_BYTES,
        "fp8_e4m3": _FP8_BYTES,
        "fp8_e5m2": _FP8_BYTES,
    }
    for dtype, size in sizes.items():
        if dtype == kv_cache_dtype:
            return size
    raise QuestionError(f"KV cache type {kv_cache_dtype!r} is not sized; use one of {', '.join(sizes)}")
