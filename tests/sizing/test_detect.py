"""What is detected: cards as NVML reports them, memory as vLLM counts it."""

from dataclasses import dataclass, field, replace
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


class NotSupportedError(NvmlError):
    pass


@dataclass(frozen=True)
class Card:
    name: str
    memory: SimpleNamespace | None
    """Total, reserved and free bytes; None for a card that reports none."""
    bus: str = "00000000:00:00.0"
    capability: tuple[int, int] | None = None
    instances: tuple["Card", ...] | None = None
    """Of a card that is cut up."""
    lost_at: str = ""
    """The first question that it no longer answers."""


def card(
    name: str,
    *,
    total: int,
    reserved: int = 0,
    free: int,
    bus: str = "00000000:00:00.0",
    capability: tuple[int, int] | None = None,
    instances: tuple[Card, ...] | None = None,
) -> Card:
    memory = SimpleNamespace(total=total, reserved=reserved, free=free)
    return Card(name, memory, bus, capability, instances)


@dataclass
class ScriptedNvml:
    """NVML as it answers on a machine this one is not. A handle is the card."""

    cards: list[Card] = field(default_factory=list)
    nvlinks: int = 0
    islands: tuple[frozenset[int], ...] = ()
    """Cards that reach each other over NVLink."""
    installed: bool = True
    open: int = 0
    NVMLError: type[Exception] = NvmlError
    NVMLError_NotSupported: type[Exception] = NotSupportedError
    nvmlMemory_v2: int = 2  # noqa: N815 - NVML's own names
    NVML_P2P_CAPS_INDEX_NVLINK: int = 2
    NVML_P2P_STATUS_OK: int = 0
    NVML_NVLINK_MAX_LINKS: int = 36

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.installed:
            raise NvmlError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        if self.cards[index].lost_at == "handle":
            raise NvmlError("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetName(self, handle: Card) -> str:  # noqa: N802
        if handle.lost_at == "name":
            raise NvmlError("GPU is lost")
        return handle.name

    def nvmlDeviceGetPciInfo(self, handle: Card) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(busId=handle.bus)

    def nvmlDeviceGetCudaComputeCapability(self, handle: Card) -> tuple[int, int]:  # noqa: N802
        if handle.capability is None:
            raise NvmlError("Not Supported")
        return handle.capability

    def nvmlDeviceGetUUID(self, handle: Card) -> str:  # noqa: N802
        return f"MIG-{handle.name[-6:]}"

    def nvmlDeviceGetMigMode(self, device: Card) -> list[int]:  # noqa: N802
        if device.capability is not None and device.capability < (8, 0):
            raise NvmlError("Not Supported")
        return [int(device.instances is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Card) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Card, index: int) -> Card:  # noqa: N802
        instances = device.instances or ()
        if index >= len(instances):
            raise NvmlError("Not Found")
        return instances[index]

    def nvmlDeviceGetP2PStatus(self, device1: Card, device2: Card, p2pIndex: int) -> int:  # noqa: N802, N803
        one, other = (next(at for at, card in enumerate(self.cards) if card is asked) for asked in (device1, device2))
        return 0 if any({one, other} <= island for island in self.islands) else 5

    def nvmlDeviceGetMemoryInfo(self, handle: Card, version: int) -> SimpleNamespace:  # noqa: N802
        memory = handle.memory
        if handle.lost_at == "memory":
            raise NvmlError("GPU is lost")
        if memory is None:
            raise NotSupportedError("Not Supported")
        if version != self.nvmlMemory_v2:
            raise NvmlError("Not Supported")
        return memory

    def nvmlDeviceGetNvLinkState(self, handle: Card, link: int) -> int:  # noqa: N802
        if not self.nvlinks:
            raise NvmlError("Not Supported")
        return int(link == self.nvlinks - 1)  # a bridge need not use the first


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


def test_cards_that_reach_each_other_are_an_island() -> None:
    """Two bridged pairs and a card by itself; then four on one switch."""
    five = [card("NVIDIA GeForce RTX 3090", total=24 * GIB, free=24 * GIB) for _ in range(5)]
    pairs = ScriptedNvml(five, nvlinks=4, islands=(frozenset({0, 3}), frozenset({1, 2})))
    assert [gpu.island for gpu in nvidia_gpus(pairs)] == [0, 1, 1, 0, None]
    assert [gpu.link for gpu in nvidia_gpus(pairs)] == ["nvlink"] * 4 + ["pcie"]
    switched = ScriptedNvml(five[:4], nvlinks=18, islands=(frozenset(range(4)),))
    assert [gpu.island for gpu in nvidia_gpus(switched)] == [0, 0, 0, 0]


def test_a_ring_is_no_island() -> None:
    """In a ring of four each card reaches two of three: vLLM asks for all, so it is two pairs."""
    ring = tuple(frozenset({at, (at + 1) % 4}) for at in range(4))
    cards = [card("Tesla V100-SXM2-16GB", total=16 * GIB, free=16 * GIB) for _ in range(4)]
    assert [gpu.island for gpu in nvidia_gpus(ScriptedNvml(cards, nvlinks=2, islands=ring))] == [0, 0, 1, 1]


def test_numa_node_and_compute_capability(tmp_path: Path) -> None:
    for bus, node in (("0000:3b:00.0", "1"), ("0000:18:00.0", "-1")):
        (tmp_path / bus).mkdir()
        (tmp_path / bus / "numa_node").write_text(f"{node}\n")
    buses = ("00000000:3B:00.0", "00000000:18:00.0", "00000000:AF:00.0")
    cards = [card("NVIDIA L4", total=23 * GIB, free=22 * GIB, bus=bus, capability=(8, 9)) for bus in buses]
    found = nvidia_gpus(ScriptedNvml(cards), tmp_path)
    assert [gpu.numa_node for gpu in found] == [1, None, None]
    assert {gpu.compute_capability for gpu in found} == {(8, 9)}


def test_a_card_that_is_cut_up_is_its_instances() -> None:
    parts = tuple(
        card(f"NVIDIA A100-SXM4-40GB MIG {n}g.{5 * n}gb", total=5 * n * GIB, free=4 * n * GIB) for n in (1, 3)
    )
    whole = card("NVIDIA A100-SXM4-40GB", total=40 * GIB, free=39 * GIB)
    found = nvidia_gpus(ScriptedNvml([replace(whole, instances=parts), whole, replace(whole, instances=())]))
    assert [(gpu.name[-7:], gpu.memory_bytes // GIB, gpu.index) for gpu in found] == [
        (" 1g.5gb", 5, 0),
        ("3g.15gb", 15, 0),
        ("M4-40GB", 40, 1),
    ]
    assert [gpu.mig_uuid for gpu in found] == ["MIG-1g.5gb", "MIG-g.15gb", None]


def test_a_card_that_reports_no_memory_shares_the_systems() -> None:
    (gb10,) = nvidia_gpus(ScriptedNvml([Card("NVIDIA GB10", None)]))
    assert gb10.unified
    assert gb10.memory_bytes == psutil.virtual_memory().total


@pytest.mark.parametrize("at", ["handle", "name", "memory"])
def test_a_card_that_is_lost_is_passed_over_and_the_others_keep_their_numbers(
    at: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended in a traceback, or, where only its memory could not be read, had the system's."""
    h100 = card("NVIDIA H100 80GB HBM3", total=80 * GIB, free=79 * GIB)
    found = nvidia_gpus(
        ScriptedNvml([h100, replace(h100, lost_at=at), h100], islands=(frozenset({0, 1, 2}),), nvlinks=18)
    )
    assert [(gpu.index, gpu.memory_bytes // GIB, gpu.unified, gpu.island) for gpu in found] == [
        (0, 80, False, 0),
        (2, 80, False, 0),
    ]
    assert caplog.messages == ["GPU 1 is passed over: GPU is lost (nvidia-smi says more)"]


def test_no_driver_is_no_gpus(tmp_path: Path) -> None:
    machine = detect(files=memory_files(tmp_path, node=NODE), nvml=ScriptedNvml(installed=False), cpus=lambda: 3)
    assert machine.gpus == ()
    assert (machine.cpu.memory_bytes, machine.cpu_count) == (8 * GIB, 3)
