"""vLLM's own KV cache arithmetic, driven with specs made from our pages: no GPU, no weights, no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sizing.model import ModelShape
from sizing.pages import ChunkedPage, CrossPage, FullPage, LatentPage, Page, SlidingLatentPage, SlidingPage, StatePage


@dataclass(frozen=True)
class Outcome:
    """What vLLM answers for one engine. None where it refuses to start."""

    num_blocks: int | None
    tokens: int | None
    max_concurrency: float | None
    longest_model_len: int | None
    """`--max-model-len auto`; None where not one token fits."""


def vllm_config(
    max_model_len: int,
    *,
    in_flight_tokens: int = 4096,
    encoder_tokens: int = 0,
    mamba_cache_mode: str = "none",
    packed: bool = False,
    hybrid: bool = True,
    context_shards: int = 1,
) -> Any:
    """The few fields of a VllmConfig that the arithmetic reads; `packed`: a layout with all layers of a block."""
    from vllm.v1.kv_cache_layout import KVCacheLayout

    layout = KVCacheLayout.BLHNC if packed else KVCacheLayout.LBHNC
    return SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=max_model_len, original_max_model_len=max_model_len),
        cache_config=SimpleNamespace(
            mamba_cache_mode=mamba_cache_mode,
            num_gpu_blocks_override=None,
            prefix_cache_retention_interval=None,
            get_resolved_kv_cache_layout=lambda: layout,
        ),
        scheduler_config=SimpleNamespace(
            disable_hybrid_kv_cache_manager=not hybrid,
            max_num_batched_tokens=in_flight_tokens // 2,
            max_num_encoder_input_tokens=encoder_tokens,
        ),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=context_shards,
            tensor_parallel_size=context_shards,
            prefill_context_parallel_size=1,
        ),
        device_config=SimpleNamespace(device_type="cuda"),
        attention_config=SimpleNamespace(hisparse_config=None),
        speculative_config=None,
        max_in_flight_tokens=in_flight_tokens,
        num_prefill_lookahead_tokens=0,
        kv_transfer_config=None,
    )


def spec(page: Page) -> Any:
    """The spec that vLLM would describe such a layer with."""
    import torch
    from vllm.v1 import kv_cache_interface as specs

    if isinstance(page, SlidingLatentPage):
        return specs.SlidingWindowMLASpec(
            block_size=page.block_size,
            num_kv_heads=1,
            head_size=page.state_bytes,
            dtype=torch.uint8,
            sliding_window=page.window,
            alignment=page.alignment if page.alignment > 1 else None,
        )
    if isinstance(page, LatentPage):
        role = specs.SparseCacheRole.INDEXER if page.role == "indexer" else specs.SparseCacheRole.SPARSE
        return specs.MLAAttentionSpec(
            block_size=page.block_size,
            num_kv_heads=1,
            head_size=page.state_bytes,
            dtype=torch.uint8,
            cache_role=role,
            is_index_group_leader=page.role == "indexed",
            tokens_per_state=page.tokens_per_state,
            alignment=page.alignment if page.alignment > 1 else None,
        )
    if isinstance(page, StatePage):
        return specs.MambaSpec(
            block_size=page.block_size,
            shapes=((page.state_bytes,),),
            dtypes=(torch.uint8,),
            page_size_padded=page.padded_bytes,
            num_prefill_checkpoint_blocks=0 if page.every_block else max(0, page.request_blocks - 2),
            num_speculative_blocks=page.request_blocks if page.every_block else 0,
        )
    sizes = {
        "block_size": page.block_size,
        "num_kv_heads": page.num_kv_heads,
        "head_size": page.head_dim,
        "head_size_v": page.value_dim,
        "dtype": {1: torch.uint8, 2: torch.bfloat16, 4: torch.float32}[page.dtype_bytes],
        "page_size_padded": page.padded_bytes,
    }
    match page:
        case FullPage():
            return specs.FullAttentionSpec(**sizes)
        case SlidingPage():
            return specs.SlidingWindowSpec(**sizes, sliding_window=page.window)
        case ChunkedPage():
            return specs.ChunkedLocalAttentionSpec(**sizes, attention_chunk_size=page.chunk)
        case CrossPage():
            return specs.CrossAttentionSpec(**sizes)


def outcome(config: Any, stages: Sequence[Sequence[Any]], available: Sequence[int]) -> Outcome:
    """vLLM's answers for the specs of each pipeline stage and the memory of each.

    Raises:
        NotImplementedError: pages that it cannot bring to one size.
    """
    from vllm.v1.core import kv_cache_utils

    names = [[f"{stage}.{layer}" for layer in range(len(specs))] for stage, specs in enumerate(stages)]
    per_worker = [dict(zip(*pair, strict=True)) for pair in zip(names, stages, strict=True)]

    def configs() -> Any:
        return kv_cache_utils.get_kv_cache_configs(config, [dict(worker) for worker in per_worker], list(available))

    own = config.model_config.max_model_len
    config.model_config.original_max_model_len = -1
    try:
        configs()
        longest = config.model_config.max_model_len
    except ValueError:
        longest = None
    config.model_config.max_model_len = config.model_config.original_max_model_len = own
    try:
        workers = configs()
    except ValueError:
        return Outcome(None, None, None, longest)
    scheduler = kv_cache_utils.generate_scheduler_kv_cache_config(workers)
    tokens, concurrency = kv_cache_utils.get_kv_cache_capacity(config, scheduler)
    return Outcome(scheduler.num_blocks, tokens, concurrency, longest)


def processor_block_size(shape: ModelShape) -> int:
    """Tokens a block of vLLM's on this processor: its latent attention has another kernel where there is AMX."""
    import torch

    has_amx: bool = torch.cpu._is_amx_tile_supported()
    return 16 if "Latent" in str(shape.layers) and not has_amx else 128
