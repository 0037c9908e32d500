"""Equality with what vLLM's own models hold on a pipeline stage that is neither the first nor the last."""

import os
from pathlib import Path
from typing import Any

import pytest

from sizing.config_json import parse_config
from sizing.weights import weights_per_rank
from tests.sizing.test_decoders import MODELS, SMALL
from tests.sizing.test_layers_oracle import decoder
from tests.sizing.test_text_families import WITH_MEMORY, WITHOUT_KERNEL, built
from tests.sizing.text_models import SMALL_MODELS

# importing vLLM and torch warns of their own deprecations, which are not ours to fix
pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

FURTHER = (
    "Falcon Mamba",
    "Gemma 2",
    "Granite 4",
    "Jamba without experts",
    "LFM2",
    "LFM2 with experts",
    "Mamba-2",
    "Nemotron-H",
    "Qwen/Qwen3-30B-A3B",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "deepseek-ai/DeepSeek-V2-Lite",
    "google/gemma-3-27b-it",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "openai/gpt-oss-20b",
)
CONFIGS: dict[str, dict[str, Any]] = {
    **{name: config for name, config in SMALL_MODELS.items() if name not in WITHOUT_KERNEL},
    **{name: {**SMALL, "architectures": [name], **changes} for name, changes in MODELS.items()},
}
# of a Mamba mixer vLLM keeps the decay in another type, and counts it twice where it is a view
TOLERANCES = {"Falcon Mamba": 2e-3}


@pytest.mark.parametrize("name", [*CONFIGS, *FURTHER])
def test_the_middle_stage_holds_what_vllms_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    config = CONFIGS.get(name) or decoder(name)
    theirs = built(config, 1, tmp_path, device="cpu" if name in WITH_MEMORY else "meta", middle=True)
    ours = parse_config(config, name=name)
    assert ours.held is not None
    stage = weights_per_rank(ours, tensor_parallel_size=1, pipeline_parallel_size=3, as_allocated=False)[1]
    assert stage - ours.held.buffers == pytest.approx(2 * theirs.elements, rel=TOLERANCES.get(name, 1e-3))
