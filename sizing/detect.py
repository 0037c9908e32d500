"""What this machine has: its cards by NVML and its memory by vLLM's own rule, with what others hold taken off."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from sizing.gpu import Device, Link

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
    """Where the kernel says how much memory there is. Only tests name others."""

    node_meminfo: Path = Path("/sys/devices/system/node/node0/meminfo")
    cgroup_v2_limit: Path = Path("/sys/fs/cgroup/memory.max")
    cgroup_v2_usage: Path = Path("/sys/fs/cgroup/memory.current")
    cgroup_v1_limit: Path = Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    cgroup_v1_usage: Path = Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")


class Nvml(Protocol):
    """What is used of `nvidia-ml-py`, which ships no types; its handles and records are opaque."""

    NVMLError: type[Exception]
    nvmlMemory_v2: int  # noqa: N815 - NVML's own names

    def nvmlInit(self) -> object: ...  # noqa: N802
    def nvmlShutdown(self) -> object: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> object: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int) -> int: ...  # noqa: N802


def detect(
    *, files: MemoryFiles | None = None, nvml: Nvml | None = None, cpus: Callable[[], int] = lambda: cpu_count()
) -> Machine:
    """This machine. Without an NVIDIA driver it simply has no GPUs."""
    return Machine(gpus=nvidia_gpus(nvml), cpu=cpu_memory(files or MemoryFiles()), cpu_count=cpus())


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
        memory = psutil.virtual_memory()
        return Device("cpu", name, memory.total, memory.available)
    total, available = node
    limit, usage = _cgroup(files)
    if limit is not None and limit < total:
        total = limit
        available = max(0, min(available, limit - (usage or 0)))
    return Device("cpu", name, total, available)


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


def nvidia_gpus(nvml: Nvml | None = None) -> tuple[Device, ...]:
    """The cards NVML shows, in its order; `index` is NVML's, before any CUDA_VISIBLE_DEVICES."""
    nvml = nvml or _installed_nvml()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver, or none that answers: a machine without GPUs
        return ()
    try:
        return tuple(_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    finally:
        nvml.nvmlShutdown()


def _installed_nvml() -> Nvml:
    import pynvml  # nvidia-ml-py's import name; loaded only here so that laptops pay nothing for it

    module: Nvml = pynvml
    return module


def _gpu(nvml: Nvml, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name = nvml.nvmlDeviceGetName(handle)
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except nvml.NVMLError:
        # Unified memory (GB10) has no frame buffer to report: the card's memory is the system's.
        system = psutil.virtual_memory()
        return Device("cuda", name, system.total, system.available, unified=True, link="pcie", index=index)
    # The driver keeps `reserved` for itself; what is left is the total that CUDA, and so vLLM, is told.
    return Device("cuda", name, memory.total - memory.reserved, memory.free, link=_link(nvml, handle), index=index)


def _link(nvml: Nvml, handle: object) -> Link:
    try:
        return "nvlink" if nvml.nvmlDeviceGetNvLinkState(handle, 0) else "pcie"
    except nvml.NVMLError:  # a card without NVLink
        return "pcie"
