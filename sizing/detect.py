"""What this machine has: its cards by NVML and its memory by vLLM's own rule, with what others hold taken off."""

import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from sizing.gpu import Device, Link

_log = logging.getLogger(__name__)
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_NO_CGROUP_LIMIT = 1 << 62  # cgroup v1 writes a number this large for "no limit"


@dataclass(frozen=True)
class Machine:
    """The devices an engine can be started on here."""

    gpus: tuple[Device, ...]
    cpu: Device
    cpu_count: int
    """Processors this process may run on."""


@dataclass(frozen=True)
class MemoryFiles:
    """Where the kernel says how much memory there is, and where cards are. Only tests name others."""

    node_meminfo: Path = Path("/sys/devices/system/node/node0/meminfo")
    cgroup_v2_limit: Path = Path("/sys/fs/cgroup/memory.max")
    cgroup_v2_usage: Path = Path("/sys/fs/cgroup/memory.current")
    cgroup_v1_limit: Path = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    cgroup_v1_usage: Path = Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")
    pci_devices: Path = _PCI_DEVICES


class Nvml(Protocol):
    """What is used of `nvidia-ml-py`, which ships no types; its handles and records are opaque."""

    NVMLError: type[Exception]
    NVMLError_NotSupported: type[Exception]
    nvmlMemory_v2: int  # noqa: N815 - NVML's own names
    NVML_P2P_CAPS_INDEX_NVLINK: int
    NVML_P2P_STATUS_OK: int
    NVML_NVLINK_MAX_LINKS: int

    def nvmlInit(self) -> object: ...  # noqa: N802
    def nvmlShutdown(self) -> object: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int) -> int: ...  # noqa: N802
    def nvmlDeviceGetP2PStatus(self, device1: Any, device2: Any, p2pIndex: int) -> int: ...  # noqa: N802, N803
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetMigMode(self, device: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetMaxMigDeviceCount(self, device: Any) -> int: ...  # noqa: N802
    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> object: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...  # noqa: N802


def detect(
    *, files: MemoryFiles | None = None, nvml: Nvml | None = None, cpus: Callable[[], int] = lambda: cpu_count()
) -> Machine:
    """This machine. Without an NVIDIA driver it simply has no GPUs."""
    files = files or MemoryFiles()
    return Machine(gpus=nvidia_gpus(nvml, files.pci_devices), cpu=cpu_memory(files), cpu_count=cpus())


def cpu_count() -> int:
    """Processors this process is allowed on, which a container may have cut."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_memory(files: MemoryFiles) -> Device:
    """NUMA node 0 and the container's limit: what vLLM refuses by (vllm/utils/cpu_resource_utils.py).

    Without the node's file vLLM takes the whole machine's numbers and no container limit, and so does this.
    """
    name = platform.machine() or "CPU"
    node = _node_memory(files.node_meminfo)
    if node is None:
        return Device("cpu", name, *_system_memory())
    total, available = node
    limit, usage = _cgroup(files)
    if limit is not None and limit < total:
        total = limit
        available = max(0, min(available, limit - (usage or 0)))
    return Device("cpu", name, total, available)


def _system_memory() -> tuple[int, int]:
    """Bytes in all and bytes available, as the operating system counts them."""
    import psutil  # who names a card asks for no machine

    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _node_memory(meminfo: Path) -> tuple[int, int] | None:
    """Total and available bytes of a node; the page cache counts as available."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    rows = (line.split() for line in lines)  # "Node 0 MemTotal:  7432396 kB"
    kib = {row[2].rstrip(":"): int(row[3]) for row in rows if len(row) > 3 and row[3].isdigit()}
    reclaimable = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
    if not kib.keys() >= {"MemTotal", *reclaimable}:
        return None
    return kib["MemTotal"] * 1024, sum(kib[key] for key in reclaimable) * 1024


def _cgroup(files: MemoryFiles) -> tuple[int | None, int | None]:
    if (limit := _number(files.cgroup_v2_limit)) is not None:
        return limit, _number(files.cgroup_v2_usage)
    limit = _number(files.cgroup_v1_limit)
    if limit is None or limit >= _NO_CGROUP_LIMIT:
        return None, None
    return limit, _number(files.cgroup_v1_usage)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such controller, or "max"
        return None


def nvidia_gpus(nvml: Nvml | None = None, pci_devices: Path = _PCI_DEVICES) -> tuple[Device, ...]:
    """The cards NVML shows, in its order; `index` is NVML's, before any CUDA_VISIBLE_DEVICES.

    A card that is cut up (MIG) is shown as its instances, each a device of its own; one that the driver has lost is
    passed over with a warning.
    """
    nvml = nvml or _installed_nvml()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver, or none that answers: a machine without GPUs
        return ()
    try:
        answering = _answering(nvml)
        handles = list(answering.values())
        found: list[Device] = []
        for (index, handle), island in zip(answering.items(), _islands(nvml, handles), strict=True):
            card = replace(_gpu(nvml, handle, pci_devices), index=index, island=island)
            if island is None and _apart(nvml, handle, handles):
                card = replace(card, link="pcie")
            instances = _instances(nvml, handle, card)
            found += [card] if instances is None else instances
        return tuple(found)
    finally:
        nvml.nvmlShutdown()


def _answering(nvml: Nvml) -> Mapping[int, object]:
    """The handles of the cards that say who they are and what they hold, by their numbers."""
    found = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            nvml.nvmlDeviceGetName(handle)
            _memory(nvml, handle)
        except nvml.NVMLError as error:
            _log.warning("GPU %d is passed over: %s (nvidia-smi says more)", index, error)
            continue
        found[index] = handle
    return found


def _memory(nvml: Nvml, handle: object) -> Any:
    """None for a card without memory of its own. Raises NVMLError where it has some and does not tell."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
    except nvml.NVMLError_NotSupported:
        return None


def _installed_nvml() -> Nvml:
    import pynvml  # nvidia-ml-py's import name; loaded only here so that laptops pay nothing for it

    module: Nvml = pynvml
    return module


def _gpu(nvml: Nvml, handle: object, pci_devices: Path) -> Device:
    name = nvml.nvmlDeviceGetName(handle)
    capability = _asked(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    pci = _asked(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    memory = _memory(nvml, handle)
    if memory is None:
        # Unified memory (GB10) has no frame buffer to report: the card's memory is the system's.
        card = Device("cuda", name, *_system_memory(), unified=True, link="pcie")
    else:
        # The driver keeps `reserved` for itself; what is left is the total that CUDA, and so vLLM, is told.
        card = Device("cuda", name, memory.total - memory.reserved, memory.free, link=_link(nvml, handle))
    return replace(
        card,
        numa_node=None if pci is None else _numa_node(pci.busId, pci_devices),
        compute_capability=None if capability is None else tuple(capability),
    )


def _instances(nvml: Nvml, handle: object, card: Device) -> list[Device] | None:
    """The MIG instances of a card that is cut up, none of them linked to anything; None for a whole card."""
    mode = _asked(nvml, nvml.nvmlDeviceGetMigMode, handle)
    if not mode or not mode[0]:  # current, pending
        return None
    found = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        part = _asked(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number)
        if part is None:  # fewer than the card could be cut into
            continue
        memory = nvml.nvmlDeviceGetMemoryInfo(part, nvml.nvmlMemory_v2)
        found.append(
            replace(
                card,
                name=nvml.nvmlDeviceGetName(part),
                memory_bytes=memory.total - memory.reserved,
                free_bytes=memory.free,
                link="none",
                island=None,
                mig_uuid=nvml.nvmlDeviceGetUUID(part),
            )
        )
    return found


def _islands(nvml: Nvml, handles: Sequence[object]) -> list[int | None]:
    """For each card the number of its island: cards of which each reaches each over NVLink, as vLLM asks of a group.

    vllm/platforms/cuda.py: is_fully_connected. None for a card that no other one reaches.
    """
    islands: list[list[int]] = []
    for card, handle in enumerate(handles):
        near = [island for island in islands if all(_linked(nvml, handles[other], handle) for other in island)]
        if near:
            near[0].append(card)
        else:
            islands.append([card])
    number = {card: at for at, island in enumerate(islands) if len(island) > 1 for card in island}
    return [number.get(card) for card in range(len(handles))]


def _linked(nvml: Nvml, one: object, other: object) -> bool:
    status = _asked(nvml, nvml.nvmlDeviceGetP2PStatus, one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    return bool(status == nvml.NVML_P2P_STATUS_OK)


def _apart(nvml: Nvml, handle: object, handles: Sequence[object]) -> bool:
    """Whether the driver says of another card of its kind that this one's links do not lead there."""
    name, link = nvml.nvmlDeviceGetName(handle), nvml.NVML_P2P_CAPS_INDEX_NVLINK
    alike = [other for other in handles if other is not handle and nvml.nvmlDeviceGetName(other) == name]
    return any(_asked(nvml, nvml.nvmlDeviceGetP2PStatus, handle, other, link) is not None for other in alike)


def _link(nvml: Nvml, handle: object) -> Link:
    """NVLink where any of the card's links is up; a bridge does not use all of them."""
    for number in range(nvml.NVML_NVLINK_MAX_LINKS):
        state = _asked(nvml, nvml.nvmlDeviceGetNvLinkState, handle, number)
        if state is None:  # a card without NVLink, or the end of its links
            return "pcie"
        if state:
            return "nvlink"
    return "pcie"


def _numa_node(bus_id: str | bytes, pci_devices: Path) -> int | None:
    """The kernel's node of a card on that bus; NVML writes the domain with eight digits, the kernel with four."""
    text = (bus_id.decode() if isinstance(bus_id, bytes) else bus_id).lower()
    domain, _, rest = text.partition(":")
    node = _number(pci_devices / f"{domain[-4:]}:{rest}" / "numa_node")
    return node if node is not None and node >= 0 else None  # -1: a machine with one node


def _asked(nvml: Nvml, question: Callable[..., Any], *about: object) -> Any:
    """The answer, or None where the driver or the card has none."""
    try:
        return question(*about)
    except nvml.NVMLError:
        return None
