"""What is detected: cards as NVML reports them, memory as vLLM counts it."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sizing.detect import MemoryFiles, cpu_memory, detect, nvidia_gpus
from sizing.gpu import GIB

NODE = """Node 0 MemTotal:       8388608 kB
Node 0 MemFree:        2097152 kB
Node 0 Active(file):    524288 kB
Node 0 Inactive(file):  262144 kB
Node 0 SReclaimable:    262144 kB
Node 0 HugePages_Total:     0
"""


def memory_files(folder: Path, **contents: str) -> MemoryFiles:
    """Kernel files with these contents; the ones not named are not there."""
    for name, content in contents.items():
        (folder / name).write_text(content)
    return MemoryFiles(
        node_meminfo=folder / "node",
        cgroup_v2_limit=folder / "v2_limit",
        cgroup_v2_usage=folder / "v2_usage",
        cgroup_v1_limit=folder / "v1_limit",
        cgroup_v1_usage=folder / "v1_usage",
    )


def memory(files: MemoryFiles) -> tuple[float, float]:
    device = cpu_memory(files)
    assert device.kind == "cpu"
    return device.memory_bytes / GIB, device.free_bytes / GIB


def test_page_cache_counts_as_free(tmp_path: Path) -> None:
    assert memory(memory_files(tmp_path, node=NODE)) == (8, 2 + 0.5 + 0.25 + 0.25)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"v2_limit": str(4 * GIB), "v2_usage": str(3 * GIB)}, (4, 1)),  # the container is the tighter one
        ({"v2_limit": str(4 * GIB), "v2_usage": str(GIB // 2)}, (4, 3)),  # the node is
        ({"v2_limit": str(4 * GIB), "v2_usage": str(5 * GIB)}, (4, 0)),  # never negative
        ({"v2_limit": str(4 * GIB)}, (4, 3)),
        ({"v2_limit": str(64 * GIB), "v2_usage": str(60 * GIB)}, (8, 3)),  # a limit above the node's total is none
        ({"v2_limit": "max\n", "v1_limit": str(4 * GIB), "v1_usage": str(2 * GIB)}, (4, 2)),
        ({"v1_limit": "9223372036854771712"}, (8, 3)),  # how cgroup v1 says "no limit"
    ],
)
def test_a_containers_limit_is_honoured_as_vllm_does(
    tmp_path: Path, limits: dict[str, str], expected: tuple[float, float]
) -> None:
    assert memory(memory_files(tmp_path, node=NODE, **limits)) == expected


@pytest.mark.parametrize("node", [None, "", "Node 0 MemTotal: 8388608 kB\n"])
def test_without_a_nodes_file_the_whole_machine_counts(tmp_path: Path, node: str | None) -> None:
    files = memory_files(tmp_path) if node is None else memory_files(tmp_path, node=node)
    assert cpu_memory(files).memory_bytes == psutil.virtual_memory().total


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
def test_this_machines_memory_is_what_vllm_reads() -> None:
    from vllm.utils.cpu_resource_utils import get_memory_node_info

    here, theirs = cpu_memory(MemoryFiles()), get_memory_node_info(0)
    assert here.memory_bytes == pytest.approx(theirs.total_memory, rel=0.05)
    assert here.free_bytes == pytest.approx(theirs.available_memory, rel=0.2)  # it moves between two readings


class NvmlError(Exception):
    pass


@dataclass(frozen=True)
class Card:
    name: str
    memory: SimpleNamespace | None
    """Total, reserved and free bytes; None for a card that reports none."""


def card(name: str, *, total: int, reserved: int, free: int) -> Card:
    return Card(name, SimpleNamespace(total=total, reserved=reserved, free=free))


@dataclass
class ScriptedNvml:
    """NVML as it answers on a machine this one is not. A handle is the card's number."""

    cards: list[Card] = field(default_factory=list)
    nvlinks: int = 0
    installed: bool = True
    open: int = 0
    NVMLError: type[Exception] = NvmlError
    nvmlMemory_v2: int = 2  # noqa: N815 - NVML's own names

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.installed:
            raise NvmlError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return self.cards[handle].name

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int) -> SimpleNamespace:  # noqa: N802
        memory = self.cards[handle].memory
        if memory is None or version != self.nvmlMemory_v2:
            raise NvmlError("Not Supported")
        return memory

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> int:  # noqa: N802
        if not self.nvlinks:
            raise NvmlError("Not Supported")
        return int(link < self.nvlinks)


def test_cards_come_with_what_others_hold_taken_off() -> None:
    h200 = card("NVIDIA H200", total=141 * GIB, reserved=GIB, free=100 * GIB)
    nvml = ScriptedNvml([h200, card("NVIDIA L4", total=23 * GIB, reserved=0, free=22 * GIB)], nvlinks=18)
    first, second = nvidia_gpus(nvml)
    assert (first.name, first.memory_bytes, first.free_bytes) == ("NVIDIA H200", 140 * GIB, 100 * GIB)
    assert (first.kind, first.link, first.index, first.unified) == ("cuda", "nvlink", 0, False)
    assert second.index == 1
    assert nvml.open == 0  # closed again


def test_a_card_without_nvlink_is_on_pcie() -> None:
    (l4,) = nvidia_gpus(ScriptedNvml([card("NVIDIA L4", total=23 * GIB, reserved=0, free=22 * GIB)]))
    assert l4.link == "pcie"


def test_a_card_that_reports_no_memory_shares_the_systems() -> None:
    (gb10,) = nvidia_gpus(ScriptedNvml([Card("NVIDIA GB10", None)]))
    assert gb10.unified
    assert gb10.memory_bytes == psutil.virtual_memory().total


def test_no_driver_is_no_gpus(tmp_path: Path) -> None:
    machine = detect(files=memory_files(tmp_path, node=NODE), nvml=ScriptedNvml(installed=False), cpus=lambda: 3)
    assert machine.gpus == ()
    assert (machine.cpu.memory_bytes, machine.cpu_count) == (8 * GIB, 3)
