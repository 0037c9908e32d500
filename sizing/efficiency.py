"""How much of a card's published speed an engine reaches: eighteen fitted coefficients, a few held ones."""

from dataclasses import dataclass
from datetime import date

from sizing.gpu import Link


@dataclass(frozen=True)
class Efficiency:
    """Shares lie between 0 and 1, times are in seconds. The first eighteen are fitted, the rest are held."""

    expert_on_chip_bandwidth: float
    """Bytes/s that experts' kernels move on, one after the other with the reading itself: a card of little bandwidth
    hardly notices, one of much reads them at a third of it."""
    expert_on_chip_bandwidth_fused: float
    """The same by the fused kernels of B200-class cards."""
    routing_independence: float
    """n tokens of one step touch as many experts as n ** this would if they chose independently."""
    kv_bandwidth: float
    expert_compute: float
    """Share of the 16-bit arithmetic that experts reach in prefill."""
    expert_compute_fused: float
    """The same by the fused kernels of B200-class cards."""
    expert_layer_s: float
    """What routing, sorting and the experts' own launches add to a layer in one step."""
    all_reduce_s: float
    """Both all-reduces of one layer over NVLink, besides the bytes they move."""
    sequence_s: float
    """Scheduling, sampling and detokenizing of one sequence in one step."""
    prefill_layer_s: float
    """One layer's share of a prompt that no batch hides: launches outside CUDA graphs."""
    request_s: float
    """HTTP and scheduling before the first step."""
    prompt_token_s: float
    """Receiving, tokenizing and hashing one token of a prompt."""
    layer_s: float
    """Launches and small kernels of one layer in one step, whatever the batch."""
    dense_bandwidth: float
    on_chip_bandwidth: float
    """Bytes/s that kernels move on from the memory's interface, one after the other with the reading itself: why a card
    of twice the bandwidth does not read twice as fast."""
    narrow_layer_s: float
    """What a product with weights narrower than its activations adds to a layer: quantizing those first."""
    dense_compute: float
    opening_share: float
    """Share of a closed-loop run in which its requests all wait for each other, having been sent at once."""

    # Held. It puts Llama-3.1-70B in FP4 on one B200 at the 2.6 times of its weights' reading time that was measured.
    on_chip_bandwidth_4bit: float = 9.6e12
    """The same for dense weights in four bits, which are unpacked on their way."""
    narrow_gain: float = 0.50
    """Of k times the arithmetic rate that a narrower type promises, k ** this arrives."""
    step_s: float = 300e-6
    link_share: float = 0.80
    """Of the link's bandwidth in one direction, what an all-reduce reaches (NCCL's bus bandwidth)."""
    # Not measured: no row has such a link, or several stages.
    pcie_all_reduce_s: float = 120e-6
    xgmi_all_reduce_s: float = 60e-6
    fabric_hop_s: float = 30e-6
    """Handing a batch's activations to the next pipeline stage, over NVLink or Infinity Fabric."""
    pcie_hop_s: float = 150e-6

    def layer_all_reduce_s(self, link: Link) -> float:
        if link == "nvlink":
            return self.all_reduce_s
        return self.xgmi_all_reduce_s if link == "xgmi" else self.pcie_all_reduce_s

    def hop_s(self, link: Link) -> float:
        return self.fabric_hop_s if link in ("nvlink", "xgmi") else self.pcie_hop_s


FITTED = (
    "expert_on_chip_bandwidth",
    "expert_on_chip_bandwidth_fused",
    "routing_independence",
    "kv_bandwidth",
    "expert_compute",
    "expert_compute_fused",
    "expert_layer_s",
    "all_reduce_s",
    "sequence_s",
    "prefill_layer_s",
    "request_s",
    "prompt_token_s",
    "layer_s",
    "dense_bandwidth",
    "on_chip_bandwidth",
    "narrow_layer_s",
    "dense_compute",
    "opening_share",
)
SHARES = frozenset(
    {
        "kv_bandwidth",
        "expert_compute",
        "expert_compute_fused",
        "dense_bandwidth",
        "dense_compute",
        "opening_share",
    }
)

START = Efficiency(
    expert_on_chip_bandwidth=5e12,
    expert_on_chip_bandwidth_fused=40e12,
    routing_independence=1.0,
    kv_bandwidth=0.70,
    expert_compute=0.35,
    expert_compute_fused=0.30,
    expert_layer_s=20e-6,
    all_reduce_s=32e-6,
    sequence_s=15e-6,
    prefill_layer_s=100e-6,
    request_s=15e-3,
    prompt_token_s=4e-6,
    layer_s=30e-6,
    dense_bandwidth=0.80,
    on_chip_bandwidth=40e12,
    narrow_layer_s=5e-6,
    dense_compute=0.60,
    opening_share=0.15,
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
    """Where the coefficients come from, and how far off fits without a group were on that group."""

    as_of: date
    rows: int
    source: str
    few: Spread
    """Rows with at most `few_at_most` requests in flight."""
    many: Spread
    few_at_most: int = 16


# All rows of benchmarks/results/sizing_speed.txt; how right such a fit is for models and cards it did not see is told
# by the fits that each left a group out (`make bench-speed` prints them anew), and that is how wide the bands are.
EFFICIENCY = Efficiency(
    expert_on_chip_bandwidth=2.417e12,
    expert_on_chip_bandwidth_fused=57.02e12,
    routing_independence=0.7329,
    kv_bandwidth=0.4626,
    expert_compute=0.2359,
    expert_compute_fused=0.4428,
    expert_layer_s=29.17e-6,
    all_reduce_s=31.24e-6,
    sequence_s=17.05e-6,
    prefill_layer_s=60.76e-6,
    request_s=27.82e-3,
    prompt_token_s=3.706e-6,
    layer_s=15.89e-6,
    dense_bandwidth=0.7998,
    on_chip_bandwidth=53.89e12,
    narrow_layer_s=12.1e-6,
    dense_compute=0.5412,
    opening_share=0.1587,
)
FIT = FitRecord(
    as_of=date(2026, 12, 1),
    rows=96,
    source="aiconfigurator's silicon_sample.csv (53 rows) and benchmarks/data/perf_public.jsonl",
    few=Spread(ttft=0.388, tpot=0.207, output_rate=0.210, rows=70),
    many=Spread(ttft=0.542, tpot=0.304, output_rate=0.326, rows=26),
)
