"""Reading models: a local folder, the Hub (a loopback one that speaks its protocol), and what goes wrong with each."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sizing.errors import ModelFileError, ModelNotFoundError, SizingError, UnsupportedModelError
from sizing.hub import load_model
from sizing.model import ModelShape
from tests.hub import LoopbackHub, running
from tests.sizing.models import SMOLLM2, smollm2_tensors, write_safetensors

REPO = "someone/smollm2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """SmolLM2-135M as a folder: its config and a header for each of its tensors."""
    folder = tmp_path / "smollm2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMOLLM2))
    write_safetensors(folder / "model.safetensors", smollm2_tensors())
    return folder


def refusal(ref: str | Path, kind: type[SizingError], **options: str | Path) -> str:
    with pytest.raises(kind) as caught:
        load_model(str(ref), **options)  # type: ignore[arg-type]  # options are typed by each test
    assert "\n" not in str(caught.value)
    return str(caught.value)


def split_in_two(folder: Path) -> None:
    tensors = list(smollm2_tensors().items())
    halves = {"model-00001-of-00002.safetensors": tensors[:100], "model-00002-of-00002.safetensors": tensors[100:]}
    (folder / "model.safetensors").unlink()
    for name, half in halves.items():
        write_safetensors(folder / name, dict(half))
    weight_map = {tensor: name for name, half in halves.items() for tensor, _ in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_folder_is_weighed_by_its_headers(folder: Path) -> None:
    shape = load_model(str(folder))
    assert (shape.name, shape.weights_source) == (str(folder), "safetensors headers")
    assert shape.weights_bytes == 2 * 134_515_008


def test_a_folder_that_cannot_be_read_is_named(folder: Path) -> None:
    def closed(self: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with pytest.MonkeyPatch.context() as patch:  # for the superuser no folder is closed
        patch.setattr(Path, "iterdir", closed)
        said = refusal(folder, ModelFileError)
    assert said == f"{folder}: cannot be read (Permission denied); check its permissions"


def test_a_config_that_leads_to_itself_is_not_about_permissions(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    said = refusal(folder, ModelFileError)
    assert "config.json: cannot be read (Too many levels of symbolic links); give the folder" in said


def test_shards_count_once_and_only_those_of_the_index(folder: Path) -> None:
    split_in_two(folder)
    write_safetensors(folder / "consolidated.safetensors", smollm2_tensors())
    assert load_model(str(folder)).weights_bytes == 2 * 134_515_008


def test_mistrals_copy_beside_a_single_file_counts_once(folder: Path) -> None:
    write_safetensors(folder / "consolidated.safetensors", smollm2_tensors())
    assert load_model(str(folder)).weights_bytes == 2 * 134_515_008


def test_a_float32_checkpoint_weighs_what_it_is_served_in(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", smollm2_tensors("F32"))
    assert load_model(str(folder)).weights_bytes == 2 * 134_515_008


def test_a_tied_output_layer_in_the_file_is_not_counted(folder: Path) -> None:
    tensors = smollm2_tensors() | {"lm_head.weight": ("BF16", (49152, 576))}
    write_safetensors(folder / "model.safetensors", tensors)
    assert load_model(str(folder)).weights_bytes == 2 * 134_515_008


def test_without_weights_the_config_is_weighed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shape = load_model(str(folder))
    assert (shape.weights_bytes, shape.weights_source) == (2 * 134_515_008, "config")


def test_modelopts_own_file_is_read(folder: Path) -> None:
    quantization = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    }
    (folder / "hf_quant_config.json").write_text(json.dumps(quantization))
    assert load_model(str(folder)).kv_cache_dtype == "fp8"


def test_modelopts_list_of_layers_is_taken_from_its_own_file(folder: Path) -> None:
    section = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    listed = {"model.layers.0.mlp.up_proj": {"quant_algo": "FP8"}}
    (folder / "config.json").write_text(json.dumps({**SMOLLM2, "quantization_config": section}))
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": listed}})
    )
    (folder / "model.safetensors").unlink()
    assert load_model(str(folder)).weights_bytes == 2 * 134_515_008 - 1536 * 576


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no folder" in refusal(tmp_path / "missing", ModelNotFoundError)
    assert "no folder" in refusal("./missing", ModelNotFoundError)


@pytest.mark.parametrize(
    "ref", ["", " ", "~no-such-user-here/model", "x" * 300, "https://huggingface.co/Qwen/Qwen3-8B"]
)
def test_what_is_neither_a_folder_nor_a_hub_id(ref: str) -> None:
    assert "is neither a folder nor a Hub id" in refusal(ref, ModelNotFoundError)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path, ModelFileError)


def test_a_file_instead_of_a_folder(folder: Path) -> None:
    assert "give the folder" in refusal(folder / "model.safetensors", UnsupportedModelError)


@pytest.mark.parametrize("content", ["{", "[1]", "", "\x00"])
def test_a_config_that_is_not_json(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder, ModelFileError)


@pytest.mark.parametrize("kept", [0, 4, 8, 200])
def test_a_truncated_header(folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "truncated; download the file again" in refusal(folder, ModelFileError)


def test_a_header_longer_than_the_format_allows(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "truncated" in refusal(folder, ModelFileError)


def test_a_missing_shard(folder: Path) -> None:
    split_in_two(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "1 of 2 safetensors shards are missing" in refusal(folder, ModelFileError)


@pytest.mark.parametrize("other", ["model.pt", "pytorch_model.bin"])
def test_other_weights_formats_are_refused_by_name(folder: Path, other: str) -> None:
    (folder / "model.safetensors").rename(folder / other)
    assert Path(other).suffix in refusal(folder, UnsupportedModelError)


@pytest.fixture
def hub(folder: Path) -> Iterator[LoopbackHub]:
    with running(LoopbackHub(REPO, {file.name: file.read_bytes() for file in folder.iterdir()})) as hub:
        yield hub


def from_hub(hub: LoopbackHub) -> ModelShape:
    return load_model(REPO, endpoint=hub.endpoint)


def test_the_hub_gives_the_same_answer_without_the_weights(hub: LoopbackHub, folder: Path) -> None:
    hub.files["model.safetensors"] += bytes(5_000_000)  # the data that must stay where it is
    shape = from_hub(hub)
    assert (shape.weights_bytes, shape.weights_source) == (2 * 134_515_008, "safetensors headers")
    assert hub.served_bytes < 200_000


def test_shards_on_the_hub(hub: LoopbackHub, folder: Path) -> None:
    split_in_two(folder)
    hub.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert from_hub(hub).weights_bytes == 2 * 134_515_008


@pytest.mark.parametrize(
    ("status", "code", "named"),
    [
        (403, "GatedRepo", "hf auth login"),
        (401, "GatedRepo", "gated"),
        (404, "RepoNotFound", "no such repository"),
        (404, "RevisionNotFound", "no revision 'v9'"),
        (500, "", "cannot be reached (it answers 500)"),
    ],
)
def test_what_the_hub_refuses(hub: LoopbackHub, tmp_path: Path, status: int, code: str, named: str) -> None:
    hub.fault = (status, code)
    said = refusal(REPO, ModelNotFoundError, endpoint=hub.endpoint, revision="v9", cache_dir=tmp_path / "cache")
    assert named in said


def test_repositories_without_what_is_needed(hub: LoopbackHub) -> None:
    weights = hub.files.pop("model.safetensors")
    assert "holds no weights" in refusal(REPO, UnsupportedModelError, endpoint=hub.endpoint)
    hub.files["pytorch_model.bin"] = weights
    assert ".bin" in refusal(REPO, UnsupportedModelError, endpoint=hub.endpoint)
    hub.files["model.safetensors"] = weights[:300]
    assert "header is not readable" in refusal(REPO, ModelFileError, endpoint=hub.endpoint)
    del hub.files["config.json"]
    assert "no config.json" in refusal(REPO, ModelFileError, endpoint=hub.endpoint)


def test_a_name_that_cannot_be_a_repository(hub: LoopbackHub) -> None:
    assert "neither a folder nor a Hub id" in refusal("no spaces please", ModelNotFoundError, endpoint=hub.endpoint)


def test_a_hub_out_of_reach_is_replaced_by_its_cache(folder: Path, tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"  # nothing listens on the discard port
    cache = tmp_path / "cache"
    said = refusal(REPO, ModelNotFoundError, endpoint=closed, cache_dir=cache)
    assert "cannot be reached" in said
    commit = "0" * 40
    repository = cache / "models--someone--smollm2"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / commit)
    assert load_model(REPO, endpoint=closed, cache_dir=cache).weights_bytes == 2 * 134_515_008
