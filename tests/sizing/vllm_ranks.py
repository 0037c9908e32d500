"""vLLM's model classes as the first of several ranks sees them, without its peers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def first_of(ranks: int, engine: Any, folder: Path, *, device: str = "meta", middle: bool = False) -> Iterator[None]:
    """What is built in the block is this rank's part, on the meta device and in the model's own type.

    `engine` is vLLM's configuration; a file for the rendezvous goes into `folder`. Classes that read numbers back
    while they are built need a `device` with memory. `middle`: of the second of three pipeline stages.
    """
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
        parallel_state,
    )
    from vllm.model_executor.layers import rotary_embedding
    from vllm.utils.torch_utils import set_default_torch_dtype

    engine.parallel_config.tensor_parallel_size = ranks
    with set_current_vllm_config(engine):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        destroy_model_parallel()
        initialize_model_parallel(1)
        parallel_state._TP.world_size = ranks  # the layers ask the group, which needs no peers until it computes
        if middle:
            stage = parallel_state._PP
            stage.world_size, stage.ranks, stage.rank, stage.rank_in_group = 3, [-1, 0, 1], 0, 1
        rotary_embedding._ROPE_DICT.clear()
        with torch.device(device), set_default_torch_dtype(engine.model_config.dtype):
            yield
    destroy_model_parallel()


def register(model_type: str) -> None:
    """Gives a model that brings its own config class one that takes every key; others have theirs already."""
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    if model_type not in CONFIG_MAPPING and model_type not in _CONFIG_REGISTRY:
        AutoConfig.register(model_type, type("Brought", (PretrainedConfig,), {"model_type": model_type}))
