"""What each card of the catalogue is sold with: bandwidth, arithmetic, link, power and price, each with its source."""

from dataclasses import dataclass
from datetime import date
from typing import Literal

from sizing.errors import QuestionError
from sizing.gpu import gpu

PriceKind = Literal["cloud, on demand", "GPU cloud, on demand", "marketplace, lowest listed", "as given", "owned"]
_GB_S = 1e9
_TERA = 1e12


@dataclass(frozen=True)
class Price:
    """US dollars per hour for one card, as it was listed on a day."""

    usd_per_hour: float
    as_of: date
    kind: PriceKind
    source: str


@dataclass(frozen=True)
class Card:
    """The published figures of one card; None is what its maker does not publish, never a guess.

    FLOP/s are those of the matrix units, dense (without sparsity), and for 16 bits with a 32-bit sum where the sheet
    tells the two apart. Where one name covers cards that differ (an SXM and a PCIe board), the figures are those of
    the board named in `source`.
    """

    name: str
    bandwidth: float | None
    """Memory bandwidth, bytes/s."""
    flops_16bit: float | None
    """bfloat16 and float16; float16 only before Ampere."""
    flops_fp8: float | None
    ops_int8: float | None
    flops_fp4: float | None
    """NVFP4 and MXFP4 where the matrix units take them."""
    link_bandwidth: float | None
    """To the other cards of the box, bytes/s in both directions together."""
    power_w: float | None
    compute_capability: tuple[int, int] | None
    """NVIDIA's number; None for others."""
    source: str
    price: Price | None


def _aws(usd_per_hour: float, instance: str, as_of: date) -> Price:
    return Price(usd_per_hour, as_of, "cloud, on demand", f"AWS EC2 us-east-1 {instance}, per card")


def _runpod(usd_per_hour: float, as_of: date) -> Price:
    return Price(usd_per_hour, as_of, "GPU cloud, on demand", "runpod.io/pricing, Secure Cloud")


def _market(usd_per_hour: float, source: str) -> Price:
    return Price(usd_per_hour, date(2026, 9, 20), "marketplace, lowest listed", source)


_PRICES = {
    # AWS has listed its small instances unchanged up to this day; they were not read again.
    "T4": _aws(0.526, "g4dn.xlarge", date(2025, 6, 30)),
    "L4": _aws(0.805, "g6.xlarge", date(2025, 6, 30)),
    "A10G": _aws(1.006, "g5.xlarge", date(2025, 6, 30)),
    "L40S": _aws(1.861, "g6e.xlarge", date(2025, 6, 30)),
    "RTX3090": _market(0.18, "openrelay.inc"),
    "RTX4090": _market(0.29, "openrelay.inc"),
    "RTXPRO6000": _market(2.04, "akash.network/pricing/gpus, Server Edition"),
    "A40": _runpod(0.44, date(2026, 8, 19)),
    "A100-40GB": _aws(2.745, "p4d.24xlarge", date(2026, 11, 9)),
    "A100-80GB": _runpod(1.79, date(2026, 11, 9)),
    "H100": _runpod(3.99, date(2026, 11, 9)),
    "H200": _runpod(4.59, date(2026, 10, 7)),
    "B200": _runpod(6.79, date(2026, 10, 7)),
    "B300": _runpod(7.89, date(2026, 10, 7)),
    "A100-PCIe-80GB": _runpod(1.79, date(2026, 11, 9)),
    "H100-PCIe": _runpod(2.89, date(2026, 11, 9)),
    "H100-NVL": _runpod(3.19, date(2026, 11, 9)),
}


def _row(
    name: str,
    gb_s: float,
    tera: tuple[float | None, float | None, float | None, float | None],
    link_gb_s: float,
    power_w: float,
    compute_capability: tuple[int, int] | None,
    source: str,
) -> Card:
    """`tera` is 16-bit, FP8, INT8 and FP4, in tera-operations per second."""
    half, fp8, int8, fp4 = (None if rate is None else rate * _TERA for rate in tera)
    link = link_gb_s * _GB_S
    price = _PRICES.get(name)
    return Card(name, gb_s * _GB_S, half, fp8, int8, fp4, link, power_w, compute_capability, source, price)


# name, memory GB/s, (16-bit, FP8, INT8, FP4) dense tera, link GB/s both ways, watts, compute capability, source
_CARDS = (
    _row("T4", 320, (65, None, 130, None), 32, 70, (7, 5), "NVIDIA T4 datasheet"),
    _row("L4", 300, (121, 242, 242, None), 64, 72, (8, 9), "NVIDIA L4 datasheet"),
    _row("A10G", 600, (70, None, 140, None), 64, 300, (8, 6), "NVIDIA A10G datasheet"),
    _row("L40S", 864, (362, 733, 733, None), 64, 350, (8, 9), "NVIDIA L40S datasheet"),
    _row("RTX3090", 936, (71, None, 284, None), 64, 350, (8, 6), "NVIDIA Ampere GA102 whitepaper"),
    _row("RTX4090", 1008, (165.2, 330.3, 660.6, None), 64, 450, (8, 9), "NVIDIA Ada whitepaper"),
    _row("RTX5090", 1792, (209.5, 419, 838, 1676), 128, 575, (12, 0), "NVIDIA RTX Blackwell whitepaper"),
    _row(
        "RTXPRO6000",
        1597,  # the Server Edition's; the Workstation Edition has 1792
        (503.8, 1007.6, 1007.6, 2015.2),
        128,
        600,
        (12, 0),
        "NVIDIA RTX Blackwell PRO whitepaper, Server Edition memory",
    ),
    _row("A40", 696, (149.7, None, 299.3, None), 64, 300, (8, 6), "NVIDIA A40 datasheet"),
    _row("A100-40GB", 1555, (312, None, 624, None), 600, 400, (8, 0), "NVIDIA A100 datasheet, SXM"),
    _row("A100-80GB", 2039, (312, None, 624, None), 600, 400, (8, 0), "NVIDIA A100 datasheet, SXM"),
    _row("H100", 3350, (989.4, 1978.9, 1978.9, None), 900, 700, (9, 0), "NVIDIA H100 datasheet, SXM"),
    _row("H200", 4800, (989.4, 1978.9, 1978.9, None), 900, 700, (9, 0), "NVIDIA H200 datasheet, SXM"),
    _row("GH200", 4000, (989.4, 1978.9, 1978.9, None), 900, 1000, (9, 0), "NVIDIA GH200 datasheet, 96 GB HBM3"),
    _row("B200", 8000, (2250, 4500, 4500, 9000), 1800, 1000, (10, 0), "NVIDIA HGX B200 datasheet"),
    # published figures for its INT8 contradict each other
    _row("B300", 8000, (2250, 4500, None, 13500), 1800, 1100, (10, 3), "NVIDIA HGX B300 datasheet"),
    # only the sparse FP4 rate is published (1 PFLOP/s); link: ConnectX-7, 200 Gb/s each way
    _row("GB10", 273, (None, None, None, 500), 50, 140, (12, 1), "NVIDIA DGX Spark datasheet"),
    _row("MI300X", 5300, (1307.4, 2614.9, 2614.9, None), 896, 750, None, "AMD Instinct MI300X datasheet"),
    _row("A100-PCIe-40GB", 1555, (312, None, 624, None), 64, 250, (8, 0), "NVIDIA A100 datasheet, PCIe"),
    _row("A100-PCIe-80GB", 1935, (312, None, 624, None), 64, 300, (8, 0), "NVIDIA A100 datasheet, PCIe"),
    _row("H100-PCIe", 2000, (756.5, 1513, 1513, None), 128, 350, (9, 0), "NVIDIA H100 datasheet, PCIe"),
    # link: PCIe's; its NVLink bridge joins two cards at 600 GB/s
    _row("H100-NVL", 3900, (835.5, 1671, 1671, None), 128, 400, (9, 0), "NVIDIA H100 NVL datasheet"),
    _row("H20", 4000, (148, 296, 296, None), 900, 400, (9, 0), "NVIDIA H20 datasheet"),
    _row("L40", 864, (181.05, 362.1, 362.1, None), 64, 300, (8, 9), "NVIDIA L40 datasheet"),
    _row("A10", 600, (125, None, 250, None), 64, 150, (8, 6), "NVIDIA A10 datasheet"),
    _row("RTXA6000", 768, (154.8, None, 309.7, None), 64, 300, (8, 6), "NVIDIA Ampere GA102 whitepaper"),
    _row("RTX6000Ada", 960, (364.2, 728.5, 728.5, None), 64, 300, (8, 9), "NVIDIA RTX 6000 Ada datasheet"),
    _row("RTX3060", 360, (25.4, None, 101.7, None), 64, 170, (8, 6), "28 of GA102's SMs at 1.78 GHz (derived)"),
    _row("RTX4060Ti-16GB", 288, (44.1, 88.3, 176.5, None), 32, 165, (8, 9), "34 of AD102's SMs at 2.54 GHz (derived)"),
    _row("RTX4070TiSUPER", 672, (88.2, 176.4, 352.9, None), 64, 285, (8, 9), "66 of AD102's SMs at 2.61 GHz (derived)"),
    _row("RTX4080", 716.8, (97.5, 194.9, 389.9, None), 64, 320, (8, 9), "NVIDIA Ada whitepaper"),
    _row("RTX5070Ti", 896, (87.9, 175.8, 351.5, 703), 128, 300, (12, 0), "NVIDIA RTX Blackwell whitepaper"),
    _row("RTX5080", 960, (112.6, 225.1, 450.2, 900.4), 128, 360, (12, 0), "NVIDIA RTX Blackwell whitepaper"),
    _row("RTX3090Ti", 1008, (80, None, 320, None), 64, 450, (8, 6), "84 of GA102's SMs at 1.86 GHz (derived)"),
    _row("RTXA5000", 768, (111.1, None, 222.2, None), 64, 230, (8, 6), "NVIDIA RTX A5000 datasheet"),
    _row("RTXA4000", 448, (76.7, None, 153.4, None), 64, 140, (8, 6), "NVIDIA RTX A4000 datasheet"),
    _row("RTX2000Ada", 224, (48, 96, 96, None), 32, 70, (8, 9), "NVIDIA RTX 2000 Ada datasheet"),
    _row("RTX4000Ada", 360, (106.9, 213.8, 213.8, None), 64, 130, (8, 9), "NVIDIA RTX 4000 Ada datasheet"),
    _row("RTX5000Ada", 576, (261.1, 522.2, 522.2, None), 64, 250, (8, 9), "NVIDIA RTX 5000 Ada datasheet"),
    _row(
        "RTX5060Ti-16GB", 448, (47.4, 94.9, 189.7, 379.4), 64, 180, (12, 0), "36 of GB203's SMs at 2.57 GHz (derived)"
    ),
    _row("RTX4070", 504, (58.3, 116.6, 233.2, None), 64, 200, (8, 9), "46 of AD102's SMs at 2.48 GHz (derived)"),
    _row("RTX4070Ti", 504, (80.2, 160.4, 320.8, None), 64, 285, (8, 9), "60 of AD102's SMs at 2.61 GHz (derived)"),
    _row("RTX5070", 672, (61.7, 123.5, 246.9, 493.9), 128, 250, (12, 0), "NVIDIA RTX Blackwell whitepaper"),
    _row("RTX4060", 272, (30.2, 60.5, 121, None), 32, 115, (8, 9), "24 of AD102's SMs at 2.46 GHz (derived)"),
    _row("A30", 933, (165, None, 330, None), 64, 165, (8, 0), "NVIDIA A30 datasheet"),
    _row("A800-80GB", 2039, (312, None, 624, None), 400, 400, (8, 0), "NVIDIA A100 datasheet, SXM, with NVLink at 400"),
    _row("H800", 3350, (989.4, 1978.9, 1978.9, None), 400, 700, (9, 0), "NVIDIA H100 datasheet, with NVLink at 400"),
    _row("RTX2080Ti", 616, (53.8, None, 215.2, None), 32, 250, (7, 5), "NVIDIA Turing whitepaper, reference clocks"),
    _row("V100-16GB", 900, (125, None, None, None), 300, 300, (7, 0), "NVIDIA V100 datasheet, SXM2"),
    _row("V100-32GB", 900, (125, None, None, None), 300, 300, (7, 0), "NVIDIA V100 datasheet, SXM2"),
    _row("MI325X", 6000, (1307.4, 2614.9, 2614.9, None), 896, 1000, None, "AMD Instinct MI325X datasheet"),
    _row("MI355X", 8000, (2516.6, 5033.2, 5033.2, 10066.4), 1075, 1400, None, "AMD Instinct MI355X datasheet"),
    Card("CPU", None, None, None, None, None, None, None, None, "depends on the machine: processor()", None),
)


def cards() -> tuple[Card, ...]:
    """Every card of the catalogue and the processor, in the order of the table."""
    return _CARDS


def card(name: str) -> Card:
    """The figures of the card of that name, in any spelling `gpu()` takes, or of "CPU".

    Raises:
        UnknownGpuError: naming the nearest cards.
    """
    wanted = "CPU" if name.strip().lower() == "cpu" else gpu(name).name
    return next(found for found in _CARDS if found.name == wanted)


def processor(
    *, memory_channels: int, megatransfers_s: int, cores: int, ghz: float, flops_per_cycle: int, power_w: float | None
) -> Card:
    """A processor by its memory and its clock: 64-bit channels, and fused multiply-adds counted as two operations.

    Per core and cycle, in bfloat16: 1024 with AMX, 128 with AVX512-BF16, and 32 where it is float32 by AVX2.

    Raises:
        QuestionError: a figure that is not above zero.
    """
    if min(memory_channels, megatransfers_s, cores, ghz, flops_per_cycle) <= 0:
        raise QuestionError("a processor needs channels, MT/s, cores, GHz and operations per cycle, all above 0")
    bandwidth = memory_channels * megatransfers_s * 1e6 * 8
    flops = cores * ghz * 1e9 * flops_per_cycle
    return Card("CPU", bandwidth, flops, None, None, None, None, power_w, None, "its memory and clock", None)


_OPERATIONS_PER_CYCLE = (("amx_bf16", 1024), ("avx512_bf16", 128), ("avx512f", 64), ("avx2", 32), ("asimd", 16))
"""Of one core, by what it can do best: fused multiply-adds in bfloat16 or, without that, in float32."""


def detected_processor(cpuinfo: str, *, memory_gb_s: float | None = None) -> Card:
    """The machine's own processor, by the text of /proc/cpuinfo: its cores, its clock and its widest arithmetic.

    That text does not say how fast the memory is: without `memory_gb_s` (channels x MT/s x 8 / 1000) the card has no
    bandwidth, and whoever asks it for a speed is told so.

    Raises:
        QuestionError: a text without a core, its clock or a vector unit that is known here.
    """
    blocks = [_fields(block) for block in cpuinfo.split("\n\n") if "processor" in block]
    cores = {(block.get("physical id", "0"), block.get("core id", str(index))) for index, block in enumerate(blocks)}
    clocks = [float(block["cpu MHz"]) for block in blocks if block.get("cpu MHz")]
    flags = {flag for block in blocks for key in ("flags", "Features") for flag in block.get(key, "").split()}
    operations = next((per_cycle for flag, per_cycle in _OPERATIONS_PER_CYCLE if flag in flags), None)
    if not cores or not clocks or operations is None:
        raise QuestionError(
            "/proc/cpuinfo tells no cores, clock or vector unit that is known here; give them to processor()"
        )
    flops = len(cores) * max(clocks) * 1e6 * operations
    bandwidth = None if memory_gb_s is None else memory_gb_s * _GB_S
    return Card("CPU", bandwidth, flops, None, None, None, None, None, None, "/proc/cpuinfo", None)


def _fields(block: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
