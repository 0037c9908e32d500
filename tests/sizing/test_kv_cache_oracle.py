"""Equality with vLLM itself: its own config reading and its own KV cache arithmetic, with no GPU and no weights."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizing.config_json import parse_config
from sizing.kv_cache import FullAttentionCache
from tests.sizing.models import SMOLLM2, published_configs
from tests.sizing.test_config_json import SIZED

# importing vLLM and torch warns of their own deprecations, which are not ours to fix
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def vllm_config(max_model_len: int) -> Any:
    """The few fields of a VllmConfig that the arithmetic reads."""
    from vllm.v1.kv_cache_layout import KVCacheLayout

    layout = next(layout for layout in KVCacheLayout if not layout.is_block_outermost)
    cache_config = SimpleNamespace(
        mamba_cache_mode="none",
        num_gpu_blocks_override=None,
        prefix_cache_retention_interval=None,
        get_resolved_kv_cache_layout=lambda: layout,
    )
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=max_model_len, original_max_model_len=max_model_len),
        cache_config=cache_config,
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False, max_num_batched_tokens=2048),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, tensor_parallel_size=1, prefill_context_parallel_size=1
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
        max_in_flight_tokens=4096,
        num_prefill_lookahead_tokens=0,
        kv_transfer_config=None,
    )


def layer_specs(cache: FullAttentionCache) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    dtype = {1: torch.uint8, 2: torch.bfloat16, 4: torch.float32}[cache.dtype_bytes]
    spec = FullAttentionSpec(
        block_size=cache.block_size, num_kv_heads=cache.num_kv_heads, head_size=cache.head_dim, dtype=dtype
    )
    return {f"layer.{layer}": spec for layer in range(cache.num_layers)}


caches = st.builds(
    FullAttentionCache,
    num_layers=st.integers(1, 128),
    num_kv_heads=st.integers(1, 64),
    head_dim=st.sampled_from([32, 64, 80, 96, 112, 128, 192, 256]),
    dtype_bytes=st.sampled_from([1, 2, 4]),
    block_size=st.sampled_from([16, 32, 64, 128, 256]),
)


@settings(max_examples=300, deadline=None)
@given(cache=caches, max_model_len=st.integers(1, 2**20), blocks=st.floats(0, 5000))
def test_capacity_concurrency_and_refusal_are_vllms(
    cache: FullAttentionCache, max_model_len: int, blocks: float
) -> None:
    from vllm.v1.core import kv_cache_utils

    available = int(blocks * cache.block_bytes)
    config, specs = vllm_config(max_model_len), layer_specs(cache)
    groups = kv_cache_utils.get_kv_cache_groups(config, specs)
    theirs = kv_cache_utils.get_kv_cache_config_from_groups(config, groups, available)
    tokens, concurrency = kv_cache_utils.get_kv_cache_capacity(config, theirs)
    ours = cache.capacity(available, max_model_len)
    assert (ours.num_blocks, ours.tokens, ours.max_concurrency) == (theirs.num_blocks, tokens, concurrency)

    try:
        kv_cache_utils.check_enough_kv_cache_memory(config, specs, available)
        starts = True
    except ValueError:
        starts = False
    assert cache.holds(available, max_model_len) == starts

    # what it would name as "the estimated maximum model length", the null block already set aside
    usable = available - cache.block_bytes
    longest = kv_cache_utils._estimate_max_model_len_from_groups(config, groups, usable)
    assert cache.longest_model_len(available, max_model_len) == longest


LENGTHS: dict[str, dict[str, object]] = {
    "SmolLM2": {},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    "legacy scaling": {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "yarn": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
            "rope_theta": 1e6,
        },
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 5e5,
        }
    },
    "longrope": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "pad_token_id": 0,
        "original_max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 32,
            "long_factor": [2.0] * 32,
            "original_max_position_embeddings": 4096,
            "rope_theta": 1e4,
        },
    },
    "float32": {"dtype": "float32"},
}
CONFIGS = {name: {**SMOLLM2, **changes} for name, changes in LENGTHS.items()} | {
    name: config for name, config in published_configs().items() if name in SIZED
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_config_is_read_as_vllm_reads_it(name: str, tmp_path: Path) -> None:
    from vllm.config.model import _get_and_verify_max_len, _resolve_auto_dtype
    from vllm.transformers_utils.config import get_config
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    config = {key: value for key, value in CONFIGS[name].items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = get_config(str(tmp_path), trust_remote_code=False)
    arch = ModelArchConfigConvertorBase(theirs, theirs.get_text_config()).convert()
    max_model_len = _get_and_verify_max_len(
        hf_config=theirs,
        model_arch_config=arch,
        tokenizer_config=None,
        max_model_len=None,
        disable_sliding_window=False,
        sliding_window=None,
    )
    dtype = _resolve_auto_dtype(theirs.model_type, theirs.dtype, is_pooling_model=False)

    ours = parse_config(config, name=name)
    assert ours.max_model_len == max_model_len
    assert (ours.head_dim, ours.num_key_value_heads) == (arch.head_size, arch.total_num_kv_heads)
    assert (ours.num_hidden_layers, ours.num_attention_heads) == (
        arch.total_num_hidden_layers,
        arch.total_num_attention_heads,
    )
    assert f"torch.{ours.dtype}" == str(dtype)
    assert getattr(theirs, "sliding_window", None) is None or getattr(theirs, "layer_types", None) is not None
    assert ours.tie_word_embeddings == bool(theirs.tie_word_embeddings)
