"""vLLM's multimodal classes built without memory in a process of their own: what the first of some ranks holds.

Files come as JSON lines on standard input (`config`, `base`, `ranks`), answers go to standard output. The modules for
reading pictures that vLLM imports beside its models are not installed for processors; empty ones stand in for them.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

# A file's own class: sizes as they stand, with those of the class that it extends.
_OWN_CLASS = """
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LEFT = ("model_type", "architectures", "transformers_version", "layer_types", "rope_parameters", "rope_scaling")


def section(values):
    if values.get("model_type") in CONFIG_MAPPING:
        return CONFIG_MAPPING[values["model_type"]](**{k: v for k, v in values.items() if k != "model_type"})
    found = PretrainedConfig()
    for key, value in values.items():
        setattr(found, key, value)
    return found


class Own(PretrainedConfig):
    model_type = MODEL_TYPE

    def __init__(self, **given):
        parts = {k: section(v) for k, v in given.items() if isinstance(v, dict) and k.endswith("_config")}
        rest = {k: v for k, v in given.items() if k not in parts}
        if BASE in CONFIG_MAPPING:
            rest = {k: v for k, v in CONFIG_MAPPING[BASE]().to_dict().items() if k not in LEFT} | rest
        super().__init__(**rest)
        for key, value in {**{k: v for k, v in rest.items() if not hasattr(self, k)}, **parts}.items():
            setattr(self, key, value)

    def get_text_config(self, *_, **__):
        return next((getattr(self, k) for k in ("llm_config", "text_config") if hasattr(self, k)), self)
"""


class _AnyName(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _Nothing(metaclass=_AnyName):
    def __call__(self, value: object = None) -> object:  # also as a decorator
        return value


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> Any:
        root = name.partition(".")[0]
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if root == "torchvision" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _StandIn(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _prepare() -> None:
    """Tokenizers and processors are read at no time, and classes are looked at in this process."""
    import vllm.tokenizers
    from vllm.model_executor.models import registry
    from vllm.multimodal.processing.context import InputProcessingContext

    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_StandIns())
    registry._run_in_subprocess = lambda look: look()
    InputProcessingContext.get_tokenizer = lambda _: MagicMock()
    InputProcessingContext.get_hf_processor = lambda *_, **__: MagicMock()
    vllm.tokenizers.cached_tokenizer_from_config = lambda *_, **__: MagicMock()


def _held_bytes(config: dict[str, Any], base: str | None, ranks: int, meeting: Path) -> tuple[int, int]:
    """Of parameters and of buffers, each counted once."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    from tests.sizing.vllm_ranks import first_of

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if base is not None:
            config = {**config, "auto_map": {"AutoConfig": "configuration_own.Own"}}
            own = _OWN_CLASS.replace("MODEL_TYPE", repr(config["model_type"])).replace("BASE", repr(base))
            (folder / "configuration_own.py").write_text(own)
        (folder / "config.json").write_text(json.dumps(config))
        engine = EngineArgs(
            model=name,
            skip_tokenizer_init=True,
            load_format="dummy",
            enforce_eager=True,
            max_model_len=512,
            trust_remote_code=base is not None,
        ).create_engine_config()
        with first_of(ranks, engine, meeting):
            model = initialize_model(engine)
    parameters = {id(tensor): tensor.numel() * tensor.element_size() for tensor in model.parameters()}
    buffers = {id(tensor): tensor.numel() * tensor.element_size() for tensor in model.buffers()}
    return sum(parameters.values()), sum(buffers.values())


def main() -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    _prepare()
    with tempfile.TemporaryDirectory() as meeting:
        for line in sys.stdin:
            asked = json.loads(line)
            try:
                held: object = _held_bytes(asked["config"], asked["base"], asked["ranks"], Path(meeting))
            except Exception as error:  # noqa: BLE001  # whatever it is, the next one may be built all the same
                held = f"{type(error).__name__}: {error}"
            answers.write(json.dumps(held) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
