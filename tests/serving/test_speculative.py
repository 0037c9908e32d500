"""`speculative_config` of a served model: it reaches the engine's command line and the sizing question alike."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from serving.config import ModelSection, load_stack
from serving.engine import argv
from serving.environment import Environment
from serving.errors import ConfigError, PlacementError
from serving.placement import Folders, place
from sizing.config_json import parse_config
from sizing.detect import Machine
from sizing.gpu import GIB, Device, gpu
from tests.sizing.models import SMOLLM2, published

FOLDERS = Folders(Path("/run/berth"), Path("/var/log/berth"))
CPU = Device(kind="cpu", name="CPU", memory_bytes=32 * GIB, free_bytes=24 * GIB)
BOX = Machine(gpus=(replace(gpu("H200"), index=0),), cpu=CPU, cpu_count=4)
SHAPE = published("Qwen/Qwen3-Next-80B-A3B-Instruct", quantization_config={"quant_method": "fp8"})


def test_what_drafts_is_given_to_vllm_and_counted() -> None:
    said = {"method": "mtp", "num_speculative_tokens": 2}
    (placed,) = place([(ModelSection(model="q", speculative_config=said), SHAPE)], BOX, (0,), FOLDERS)
    (flag,) = [flag for flag in argv(placed.spec) if flag.startswith("--speculative-config=")]
    assert json.loads(flag.partition("=")[2]) == said
    assert "drafter" in {term.name for term in placed.answer.terms}


def test_a_draft_models_folder_is_relative_to_the_file(tmp_path: Path) -> None:
    for folder in ("model", "draft"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(SMOLLM2))
    said = {"method": "draft_model", "model": "./draft", "num_speculative_tokens": 2}
    file = tmp_path / "berth.yaml"
    file.write_text(yaml.safe_dump({"models": [{"model": "./model", "speculative_config": said}]}))
    (section,) = load_stack(str(file), Environment(), {}).models
    assert section.speculative_config == {**said, "model": str(tmp_path / "draft")}
    shape = parse_config(SMOLLM2, name="m")
    on_card, on_processor = (
        place([(section, shape)], machine, (0,), FOLDERS)[0] for machine in (BOX, replace(BOX, gpus=()))
    )
    for placed in (on_card, on_processor):
        assert placed.question.speculative is not None
        assert placed.spec.env["HF_HUB_OFFLINE"] == "1"
        drafter = next(term for term in placed.answer.terms if term.name == "drafter")
        assert drafter.bytes == pytest.approx(placed.answer.weights_bytes, rel=0.01)


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ({"speculative_config": {"method": "eagel", "num_speculative_tokens": 1}}, "did you mean 'eagle'"),
        ({"extra_args": ["--speculative-config={}"]}, "Berth's to give"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_before_anything_starts(
    key: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "berth.yaml"
    file.write_text(yaml.safe_dump({"models": [{"model": "a/b", **key}]}))
    with pytest.raises(ConfigError, match=complaint):
        load_stack(str(file), Environment(), {})


def test_a_model_that_has_none_to_draft_with_is_one_line() -> None:
    section = ModelSection(model="m", speculative_config={"method": "mtp"})
    with pytest.raises(PlacementError, match="no prediction layers"):
        place([(section, published("Qwen/Qwen3-8B"))], BOX, (0,), FOLDERS)
