"""How much of a card's published speed an engine reaches: ten fitted coefficients, and a few held ones, as data."""

from dataclasses import dataclass
from datetime import date

from sizing.gpu import Link


@dataclass(frozen=True)
class Efficiency:
    """Shares lie between 0 and 1, times are in seconds. The first ten are fitted, the rest are held."""

    expert_bandwidth: float
    """Share of memory bandwidth that reading experts reaches."""
    expert_bandwidth_fp4: float
    """The same where four-bit weights go into the matrix units as they are."""
    routing_independence: float
    """n tokens of one step touch as many experts as n ** this would if they chose independently."""
    kv_bandwidth: float
    expert_compute: float
    """Share of the 16-bit arithmetic that experts reach in prefill."""
    expert_layer_s: float
    """What routing, sorting and the experts' own launches add to a layer in one step."""
    all_reduce_s: float
    """Both all-reduces of one layer over NVLink, besides the bytes they move."""
    sequence_s: float
    """Scheduling, sampling and detokenizing of one sequence in one step."""
    prefill_layer_s: float
    """One layer's share of a prompt that no batch hides: launches outside CUDA graphs."""
    request_s: float
    """HTTP, tokenizing and scheduling before the first step."""

    # Held, because the rows have no dense model: 0.80, 0.50 and 30 us put Llama-3.1-70B in FP8 at concurrency 4 on one
    # and four H200 (21.5 and 9.9 ms per token measured) and B200 (16.3 and 8.0) within 15 %, and its FP4 at the 2.6
    # times of the weights' reading time that was measured.
    layer_s: float = 30e-6
    """Launches and small kernels of one layer in one step, whatever the batch."""
    dense_bandwidth: float = 0.80
    dense_bandwidth_4bit: float = 0.50
    on_chip_bandwidth: float = 40e12
    """Bytes/s that kernels move from the memory's interface on, one after the other with the reading itself: why a
    card of twice the bandwidth does not read twice as fast."""
    narrow_layer_s: float = 5e-6
    """What a layer with weights narrower than its activations adds: quantizing those before each product."""
    dense_compute: float = 0.60
    narrow_gain: float = 0.50
    """Of k times the arithmetic rate that a narrower type promises, k ** this arrives."""
    step_s: float = 300e-6
    link_share: float = 0.80
    """Of the link's bandwidth in one direction, what an all-reduce reaches (NCCL's bus bandwidth)."""
    opening_share: float = 0.15
    """Share of a closed-loop run in which its requests all wait for each other, having been sent at once."""
    # Not measured: no row has such a link.
    pcie_all_reduce_s: float = 120e-6
    xgmi_all_reduce_s: float = 60e-6

    nvlink_hop_s: float = 30e-6
    other_hop_s: float = 150e-6

    def hop_s(self, link: Link) -> float:
        """Handing a batch's activations to the next pipeline stage."""
        return self.nvlink_hop_s if link in ("nvlink", "xgmi") else self.other_hop_s

    def layer_all_reduce_s(self, link: Link) -> float:
        if link == "nvlink":
            return self.all_reduce_s
        return self.xgmi_all_reduce_s if link == "xgmi" else self.pcie_all_reduce_s


FITTED = (
    "expert_bandwidth",
    "expert_bandwidth_fp4",
    "routing_independence",
    "kv_bandwidth",
    "expert_compute",
    "expert_layer_s",
    "all_reduce_s",
    "sequence_s",
    "prefill_layer_s",
    "request_s",
    "layer_s",
    "dense_bandwidth",
    "on_chip_bandwidth",
    "narrow_layer_s",
    "dense_compute",
)
SHARES = frozenset(
    {
        "expert_bandwidth",
        "expert_bandwidth_fp4",
        "kv_bandwidth",
        "expert_compute",
        "dense_bandwidth",
        "dense_compute",
    }
)

START = Efficiency(
    expert_bandwidth=0.55,
    expert_bandwidth_fp4=0.80,
    routing_independence=1.0,
    kv_bandwidth=0.70,
    expert_compute=0.35,
    expert_layer_s=20e-6,
    all_reduce_s=32e-6,
    sequence_s=15e-6,
    prefill_layer_s=100e-6,
    request_s=25e-3,
)
"""What one would guess before seeing a row; the fit starts here and is pulled back to it where rows say nothing."""


@dataclass(frozen=True)
class Spread:
    """The 90th percentile of |ln(predicted / measured)|, every group of rows predicted by a fit without it."""

    ttft: float
    tpot: float
    output_rate: float
    rows: int


@dataclass(frozen=True)
class FitRecord:
    """Where the coefficients come from, and how far off they were."""

    as_of: date
    rows: int
    source: str
    few: Spread
    """Rows with at most `few_at_most` requests in flight."""
    many: Spread
    few_at_most: int = 16


# aiconfigurator's silicon_sample.csv (measured runs of vLLM 0.12-0.19), the fit half by benchmarks/sizing_speed.py:
# MiniMax-M2.5 on B300, Kimi-K2.5 and gpt-oss-120b on H200. The check half, which they did not see, is quoted in
# benchmarks/results/sizing_speed.txt; `make bench-speed` prints both anew.
EFFICIENCY = Efficiency(
    expert_bandwidth=0.3846,
    expert_bandwidth_fp4=0.8160,
    routing_independence=0.8357,
    kv_bandwidth=0.8165,
    expert_compute=0.2505,
    expert_layer_s=21.05e-6,
    all_reduce_s=35.02e-6,
    sequence_s=11.41e-6,
    prefill_layer_s=136.7e-6,
    request_s=22.94e-3,
)
FIT = FitRecord(
    as_of=date(2026, 11, 23),
    rows=26,
    source="ai-dynamo/aiconfigurator, systems/silicon_sample.csv: H200, B200 and B300, vLLM 0.12-0.19",
    few=Spread(ttft=0.374, tpot=0.270, output_rate=0.272, rows=33),
    many=Spread(ttft=0.342, tpot=0.357, output_rate=0.347, rows=20),
)
