"""The devices engines run on: one row per card, with its memory as the driver reports it."""

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from sizing.errors import UnknownGpuError

Link = Literal["none", "pcie", "nvlink", "xgmi"]
GIB = 2**30

AMPERE, HOPPER = 8, 9
"""Compute capabilities' major numbers."""


@dataclass(frozen=True)
class Device:
    """One card, or the processor's memory node, as an engine would find it."""

    kind: Literal["cuda", "cpu"]
    name: str
    memory_bytes: int
    """Total as the driver reports it to a program, which is less than the marketing size."""
    free_bytes: int
    """Total minus what other processes hold."""
    unified: bool = False
    """The card shares the processor's memory (GB10)."""
    link: Link = "none"
    """How several of these cards reach each other."""
    index: int | None = None
    """The driver's number for a card that is here; None for one out of the catalogue."""
    island: int | None = None
    """Cards with the same number reach each other over NVLink; None: not known, or, without a link, none."""
    numa_node: int | None = None
    """Of the processor's memory, what this card is attached to; None: not known."""
    compute_capability: tuple[int, int] | None = None
    """As the driver reports it; None for a card out of the catalogue (sizing.cards has those)."""
    mig_uuid: str | None = None
    """Of one MIG instance: how a process names it. A process can use one of these and no other card."""


@dataclass(frozen=True)
class _Row:
    name: str
    memory_gib: float
    link: Link
    driver_names: tuple[str, ...]
    unified: bool = False
    compute_major: int | None = None


# memory_gib: the total that vLLM or PyTorch printed on the card ("total_memory", "total capacity of ... GiB"); where
# logs differ, the smallest of them, since a plan that holds there holds everywhere.
_CATALOGUE = (
    _Row("T4", 14.56, "pcie", ("Tesla T4",), compute_major=7),  # vLLM 0.7 profile, f55765941562
    _Row("L4", 22.03, "pcie", ("NVIDIA L4",), compute_major=8),  # vLLM profiles: 22.03-22.07
    _Row("A10G", 22.03, "pcie", ("NVIDIA A10G",), compute_major=8),  # vLLM profiles: 22.03-22.07
    _Row("L40S", 44.39, "pcie", ("NVIDIA L40S",), compute_major=8),  # vLLM profiles: 44.3-44.42
    _Row("RTX3090", 23.56, "pcie", ("NVIDIA GeForce RTX 3090",), compute_major=8),  # vLLM profiles: 23.56-23.65
    _Row("RTX4090", 23.52, "pcie", ("NVIDIA GeForce RTX 4090",), compute_major=8),  # vLLM profiles: 23.5-23.65
    _Row("RTX5090", 31.36, "pcie", ("NVIDIA GeForce RTX 5090",), compute_major=12),  # vLLM profile: 30.86 free of 31.36
    _Row(
        "RTXPRO6000",
        95.0,  # PyTorch: 95.0-95.6
        "pcie",
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"),
        compute_major=12,
    ),
    _Row("A40", 44.4, "pcie", ("NVIDIA A40",), compute_major=8),  # vLLM profile
    _Row("A100-40GB", 39.39, "nvlink", ("NVIDIA A100-SXM4-40GB",), compute_major=8),  # vLLM: 39.39-39.56
    _Row("A100-80GB", 79.25, "nvlink", ("NVIDIA A100-SXM4-80GB",), compute_major=8),  # vLLM: 79.14-79.33
    _Row("H100", 79.18, "nvlink", ("NVIDIA H100 80GB HBM3",), compute_major=9),  # vLLM: 79.14-79.33
    _Row("H200", 139.8, "nvlink", ("NVIDIA H200",), compute_major=9),  # vLLM and PyTorch: 139.80-139.81
    _Row("GH200", 94.5, "nvlink", ("NVIDIA GH200 480GB",), compute_major=9),  # PyTorch: 94.50
    _Row("B200", 178.35, "nvlink", ("NVIDIA B200",), compute_major=10),  # PyTorch: 178.35
    _Row("B300", 267.7, "nvlink", ("NVIDIA B300 SXM6 AC",), compute_major=10),  # vLLM: 267.7-276.6
    _Row(
        "GB10", 121.6, "pcie", ("NVIDIA GB10",), unified=True, compute_major=12
    ),  # vLLM: 121.6-121.7, shared with the processor
    _Row("MI300X", 191.69, "xgmi", ("AMD Instinct MI300X",)),  # vLLM: 191.69-191.98
    # Boards of the same chips whose cards reach each other by PCIe: the memory is their SXM sisters'.
    _Row("A100-PCIe-40GB", 39.39, "pcie", ("NVIDIA A100-PCIE-40GB",), compute_major=8),
    _Row("A100-PCIe-80GB", 79.14, "pcie", ("NVIDIA A100 80GB PCIe",), compute_major=8),
    _Row("H100-PCIe", 79.14, "pcie", ("NVIDIA H100 PCIe",), compute_major=9),
    # Derived: what nvidia-smi shows, less what PyTorch sees less on the cards above (0.4-0.6 GiB). NVL bridges join
    # two cards only.
    _Row("H100-NVL", 93.0, "pcie", ("NVIDIA H100 NVL",), compute_major=9),  # 95,830 MiB
    _Row("H20", 95.0, "nvlink", ("NVIDIA H20",), compute_major=9),  # 97,871 MiB, PRO 6000's 97,887 being 95.0
    _Row("L40", 44.3, "pcie", ("NVIDIA L40",), compute_major=8),  # L40S's 46,068 MiB
    _Row("A10", 22.03, "pcie", ("NVIDIA A10",), compute_major=8),  # A10G's 23,028 MiB
    _Row("RTXA6000", 47.4, "pcie", ("NVIDIA RTX A6000", "A6000"), compute_major=8),  # vLLM: 48 GB cards 47.4-47.5
    _Row(
        "RTX6000Ada",
        44.43,  # PyTorch, with ECC on (46,068 MiB); 47.4 with it off
        "pcie",
        ("NVIDIA RTX 6000 Ada Generation",),
        compute_major=8,
    ),
    _Row("RTX3060", 11.63, "pcie", ("NVIDIA GeForce RTX 3060", "RTX 3060 12GB"), compute_major=8),  # 12,288 MiB
    # vLLM and PyTorch: cards of 16 GB 15.48 (RTX 5080) to 15.7
    _Row("RTX4060Ti-16GB", 15.48, "pcie", ("RTX 4060 Ti 16G",), compute_major=8),
    _Row("RTX4070TiSUPER", 15.48, "pcie", ("NVIDIA GeForce RTX 4070 Ti SUPER",), compute_major=8),
    _Row("RTX4080", 15.48, "pcie", ("NVIDIA GeForce RTX 4080", "NVIDIA GeForce RTX 4080 SUPER"), compute_major=8),
    _Row("RTX5070Ti", 15.48, "pcie", ("NVIDIA GeForce RTX 5070 Ti",), compute_major=12),
    _Row("RTX5080", 15.48, "pcie", ("NVIDIA GeForce RTX 5080",), compute_major=12),  # vLLM: 15.48
    # Sisters of the same memory, as the driver showed it on one of them.
    _Row("RTX3090Ti", 23.56, "pcie", ("NVIDIA GeForce RTX 3090 Ti",), compute_major=8),  # RTX 3090's
    _Row("RTXA5000", 23.56, "pcie", ("NVIDIA RTX A5000", "A5000"), compute_major=8),  # RTX 3090's
    _Row("RTXA4000", 15.48, "pcie", ("NVIDIA RTX A4000", "A4000"), compute_major=8),  # as other cards of 16 GB
    _Row("RTX2000Ada", 15.48, "pcie", ("NVIDIA RTX 2000 Ada Generation",), compute_major=8),  # as other cards of 16 GB
    _Row("RTX4000Ada", 19.55, "pcie", ("NVIDIA RTX 4000 Ada Generation",), compute_major=8),  # 20,475 MiB, less 0.44
    _Row("RTX5000Ada", 31.36, "pcie", ("NVIDIA RTX 5000 Ada Generation",), compute_major=8),  # RTX 5090's
    _Row("RTX5060Ti-16GB", 15.48, "pcie", ("RTX 5060 Ti 16G",), compute_major=12),  # as other cards of 16 GB
    _Row("RTX4070", 11.55, "pcie", ("NVIDIA GeForce RTX 4070",), compute_major=8),  # 12,282 MiB, less RTX 4080's 0.44
    _Row("RTX4070Ti", 11.55, "pcie", ("NVIDIA GeForce RTX 4070 Ti",), compute_major=8),
    _Row("RTX5070", 11.50, "pcie", ("NVIDIA GeForce RTX 5070",), compute_major=12),  # 12,227 MiB, less RTX 5080's 0.44
    _Row("RTX4060", 7.56, "pcie", ("NVIDIA GeForce RTX 4060",), compute_major=8),  # 8,188 MiB, less RTX 4080's 0.44
    _Row("A30", 23.5, "pcie", ("NVIDIA A30",), compute_major=8),  # vLLM profile
    _Row("A800-80GB", 79.14, "nvlink", ("NVIDIA A800-SXM4-80GB", "A800"), compute_major=8),  # A100's
    _Row("H800", 79.14, "nvlink", ("NVIDIA H800",), compute_major=9),  # H100's
    _Row("RTX2080Ti", 10.73, "pcie", ("NVIDIA GeForce RTX 2080 Ti",), compute_major=7),  # vLLM profile
    _Row("V100-16GB", 15.77, "nvlink", ("Tesla V100-SXM2-16GB",), compute_major=7),  # PyTorch: 15.77-15.78
    _Row("V100-32GB", 31.73, "nvlink", ("Tesla V100-SXM2-32GB",), compute_major=7),  # PyTorch: 31.73-31.75
    # Derived from the size sold, less MI300X's difference.
    _Row("MI325X", 255.69, "xgmi", ("AMD Instinct MI325X",)),
    _Row("MI355X", 287.69, "xgmi", ("AMD Instinct MI355X",)),
)


def _normalised(name: str) -> str:
    words = re.sub(r"nvidia|geforce|tesla|\bamd\b|instinct", " ", name.lower())
    return re.sub(r"[^a-z0-9]", "", words)


_BY_NAME = {
    _normalised(spelling): row for row in _CATALOGUE for spelling in (row.name, row.name + "GB", *row.driver_names)
}


def catalogue() -> tuple[Device, ...]:
    """Every card known, empty, in the order of the table."""
    return tuple(_device(row) for row in _CATALOGUE)


def link_of(device: Device) -> str:
    """The link, and "unified" for memory shared with the processor, which is measured like no card's."""
    return "unified" if device.unified else device.link


@lru_cache(maxsize=512)
def compute_major(name: str) -> int | None:
    """The major number of a card's CUDA compute capability; None for cards without one and for unknown ones."""
    row = _BY_NAME.get(_normalised(name))
    return row.compute_major if row else None


def gpu(name: str) -> Device:
    """The catalogue's card of that name, however it is spelt: "h100", "RTX 4090", "NVIDIA A100-SXM4-80GB".

    Raises:
        UnknownGpuError: naming the nearest cards.
    """
    wanted = _normalised(name)
    if row := _BY_NAME.get(wanted):
        return _device(row)
    raise UnknownGpuError(f"no GPU called {name!r} in the catalogue; {_nearest(wanted)}")


def sizes_of(name: str) -> tuple[Device, ...]:
    """The cards that share this name and differ by their memory alone: of "A100" those of 40 and 80 GB; else none."""
    sizes = re.compile(re.escape(_normalised(name)) + r"\d+gb")
    found = tuple(_device(row) for row in _CATALOGUE if sizes.fullmatch(_normalised(row.name)))
    return found if len(found) > 1 else ()


def _nearest(wanted: str) -> str:
    names = {_normalised(row.name): row.name for row in _CATALOGUE}
    near = [key for key in names if wanted and key.startswith(wanted)]
    near += [key for key in difflib.get_close_matches(wanted, names, n=3, cutoff=0.5) if key not in near]
    if near:
        return "did you mean " + " or ".join(names[key] for key in near[:3]) + "?"
    return "known are " + ", ".join(names.values())


def _device(row: _Row) -> Device:
    memory_bytes = int(row.memory_gib * GIB)
    return Device("cuda", row.name, memory_bytes, memory_bytes, unified=row.unified, link=row.link)
