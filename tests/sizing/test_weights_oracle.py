"""Equality with what vLLM's own models allocate: built without memory, whole and as one rank of several."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from sizing.config_json import parse_config
from sizing.weights import weights_per_rank_bytes
from tests.sizing.models import published_configs
from tests.sizing.test_layers_oracle import decoder
from tests.sizing.vllm_ranks import first_of

# importing vLLM and torch warns of their own deprecations, which are not ours to fix
pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True, "dynamic": False}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
PER_TOKEN = {"strategy": "token", "symmetric": True, "dynamic": True}


def compressed(kind: str, weights: dict[str, object], activations: dict[str, object] | None) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


QUANTIZED: dict[str, dict[str, object]] = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "static"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "w4a16": compressed("pack-quantized", INT4, None),
    "w8a8": compressed("int-quantized", INT8, {"num_bits": 8, "type": "int", **PER_TOKEN}),
    "w8a8-fp8": compressed("float-quantized", FP8, {"num_bits": 8, "type": "float", **PER_TOKEN}),
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
    "modelopt with its output layer": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["vision"]},
}
FAMILIES = (
    "Qwen/Qwen3-30B-A3B",
    "google/gemma-3-27b-it",
    "deepseek-ai/DeepSeek-V2-Lite",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "openai/gpt-oss-20b",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "LGAI-EXAONE/EXAONE-4.0-32B",
    "Nemotron-H",
    "Granite 4",
    "Granite 4 in new words",
    "Falcon-H1",
    "Jamba",
    "LFM2",
    "LFM2 with experts",
    "Falcon Mamba",
    "Mamba-2",
    "Whisper",
)
# of a Mamba mixer vLLM keeps the decay in float32, and counts it twice in the sum below where it is a view
TOLERANCES = {"Jamba": 1e-3, "Falcon Mamba": 2e-3, "Falcon-H1": 1e-3, "Mamba-2": 1e-3, "Granite 4 in new words": 1e-3}


def allocated_bytes(config: Mapping[str, object], ranks: int, folder: Path, *, buffers: bool = True) -> int:
    """Parameters, and buffers, of the first of `ranks`, each once."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    (folder / "config.json").write_text(json.dumps(config))
    arguments = EngineArgs(
        model=str(folder), skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, max_model_len=448
    )
    engine = arguments.create_engine_config()
    with first_of(ranks, engine, folder):
        model = initialize_model(engine)
    held = [*model.parameters(), *(model.buffers() if buffers else ())]
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(tensor): tensor for tensor in held}.values())


def compare(
    config: Mapping[str, object], ranks: int, folder: Path, monkeypatch: pytest.MonkeyPatch, tolerance: float = 3e-4
) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    theirs = allocated_bytes(config, ranks, folder)
    assert weights_per_rank_bytes(parse_config(config, name="m"), ranks, as_allocated=False) == pytest.approx(
        theirs, rel=tolerance
    )


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("method", QUANTIZED)
def test_a_quantized_model(method: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**published_configs()[LLAMA], "num_hidden_layers": 2, "quantization_config": QUANTIZED[method]}
    compare(config, ranks, tmp_path, monkeypatch)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = decoder(name)
    if "gemma" in name:  # its full file stretches the full layers' positions
        config["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    compare(config, ranks, tmp_path, monkeypatch, TOLERANCES.get(name, 3e-4))
