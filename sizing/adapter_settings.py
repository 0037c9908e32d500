"""The settings of vLLM's `--enable-lora` that memory depends on, read from the values of a question or of flags."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sizing.errors import QuestionError
from sizing.model import Dtype

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""vllm/config/lora.py: MaxLoRARanks."""
LORA_DTYPES: Mapping[str, Dtype | None] = {"auto": None, "float16": "float16", "bfloat16": "bfloat16"}
SETTINGS = (
    *("enable_lora", "max_loras", "max_lora_rank", "fully_sharded_loras", "lora_dtype", "lora_target_modules"),
    *("specialize_active_lora", "enable_mixed_moe_lora_format", "enable_moe_shared_loras"),
)
"""Under vLLM's own names."""
_SWITCHES = tuple(name for name in SETTINGS if name.startswith(("enable", "fully", "specialize")))


@dataclass(frozen=True)
class Adapters:
    """The settings of `--enable-lora` that memory depends on; names and defaults are vLLM's."""

    max_loras: int = 1
    """Adapters in one batch: so many slots are allocated."""
    max_lora_rank: int = 16
    """Each slot has room for this rank, whatever the adapters' own is."""
    fully_sharded_loras: bool = False
    lora_dtype: Dtype | None = None
    """None: the served type."""
    lora_target_modules: tuple[str, ...] = ()
    """Layers that get adapters, by the last part of their name; none named: all that can."""
    specialize_active_lora: bool = False
    """CUDA graphs for each power of two of active adapters, not only for none and for all."""
    enable_mixed_moe_lora_format: bool = False
    """An A matrix for each of an expert's projections, in whatever form the model's own adapters come."""
    enable_moe_shared_loras: bool = False
    """The same, and those before and behind the experts are one for all of a layer."""

    @property
    def graph_cases(self) -> int:
        """How often each batch size is captured (v1/worker/gpu/lora_utils.py: get_lora_capture_cases)."""
        if not self.specialize_active_lora:
            return 2
        return 1 + len({*(1 << power for power in range(self.max_loras.bit_length())), self.max_loras + 1})

    def __str__(self) -> str:
        return f"{self.max_loras} of rank {self.max_lora_rank} at once"


def read_adapters(values: Mapping[str, object]) -> Adapters | None:
    """What these keys of a question say; None without `enable_lora`.

    Raises:
        QuestionError: a value that is not of its kind, one that vLLM refuses, or settings without `enable_lora`.
    """
    found = ((name, values.get(name)) for name in SETTINGS)
    said = {name: value for name, value in found if value is not None and value is not False}
    for name in _SWITCHES:
        if not isinstance(said.get(name, True), bool):
            raise QuestionError(f"{name} is {said[name]!r}; it has to be true or false")
    if "enable_lora" not in said:
        if said:
            raise QuestionError(f"{next(iter(said))} says how adapters are kept; add enable_lora, or leave it out")
        return None
    slots, rank = (_whole(said, name, default) for name, default in (("max_loras", 1), ("max_lora_rank", 16)))
    if slots < 1:
        raise QuestionError(f"max_loras is {slots}; it must be at least 1")
    if rank not in RANKS:
        raise QuestionError(f"max_lora_rank is {rank}; vLLM takes {', '.join(map(str, RANKS))}")
    dtype = said.get("lora_dtype", "auto")
    if not isinstance(dtype, str) or dtype not in LORA_DTYPES:
        raise QuestionError(f"lora_dtype is {dtype!r}; use {', '.join(LORA_DTYPES)}")
    return Adapters(
        max_loras=slots,
        max_lora_rank=rank,
        fully_sharded_loras="fully_sharded_loras" in said,
        lora_dtype=LORA_DTYPES[dtype],
        lora_target_modules=_names(said.get("lora_target_modules", [])),
        specialize_active_lora="specialize_active_lora" in said,
        enable_mixed_moe_lora_format="enable_mixed_moe_lora_format" in said,
        enable_moe_shared_loras="enable_moe_shared_loras" in said,
    )


def _whole(said: Mapping[str, object], name: str, default: int) -> int:
    value = said.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value % 1:
        raise QuestionError(f"{name} is {value!r}; it has to be a whole number")
    return int(value)


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise QuestionError(f'lora_target_modules is {value!r}; it has to be a list of names, such as ["o_proj"]')
    return tuple(value)
