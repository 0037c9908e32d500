"""What safetensors headers weigh: as stored, or as vLLM holds them."""

import json

import pytest

from sizing.errors import ModelFileError
from sizing.headers import Tensor, loaded_bytes, loaded_tensors, parse_header, stored_dtype

WEIGHT = Tensor("model.norm.weight", "BF16", (576,), 1152)
F32 = Tensor("model.embed_tokens.weight", "F32", (10, 4), 160)
FP8 = Tensor("model.layers.0.mlp.up_proj.weight", "F8_E4M3", (10, 4), 40)


def test_a_header_lists_tensors_and_their_bytes() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        WEIGHT.name: {"dtype": "BF16", "shape": [576], "data_offsets": [8, 1160]},
    }
    assert parse_header(json.dumps(header).encode(), file="f") == (WEIGHT,)


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": {"dtype": "BF16", "shape": [1]}}', b"\xff"])
def test_a_header_that_is_not_one_is_named(header: bytes) -> None:
    with pytest.raises(ModelFileError, match="model-1: its safetensors header is not readable"):
        parse_header(header, file="model-1")


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [None]},
        {"shape": ["576"]},
        {"shape": "576"},
        {"shape": [576.0]},
        {"shape": [-576]},
        {"dtype": 7},
        {"data_offsets": [1152, 0]},
        {"data_offsets": [-8, 1144]},
        {"data_offsets": [0, 1152.5]},
        {"data_offsets": [0, 8, 1152]},
    ],
)
def test_a_tensor_that_cannot_be_one_is_no_header_either(entry: dict[str, object]) -> None:
    header = {WEIGHT.name: {"dtype": "BF16", "shape": [576], "data_offsets": [0, 1152], **entry}}
    with pytest.raises(ModelFileError, match="model-1: its safetensors header is not readable"):
        parse_header(json.dumps(header).encode(), file="model-1")


def test_float32_is_loaded_in_the_served_type_and_quantized_weights_as_stored() -> None:
    assert loaded_bytes([F32, WEIGHT], dtype="bfloat16", quantized=False) == 10 * 4 * 2 + 1152
    assert loaded_bytes([F32, FP8], dtype="bfloat16", quantized=True) == 160 + 40


def test_what_vllm_skips_weighs_nothing() -> None:
    head = Tensor("lm_head.weight", "BF16", (10, 4), 80)
    rotary = Tensor("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (32,), 128)
    assert loaded_tensors([WEIGHT, head, rotary], tie_word_embeddings=True) == (WEIGHT,)
    assert loaded_tensors([WEIGHT, head, rotary], tie_word_embeddings=False) == (WEIGHT, head)


def test_the_stored_type_is_the_widest() -> None:
    assert stored_dtype([WEIGHT]) == "bfloat16"
    assert stored_dtype([WEIGHT, F32]) == "float32"
    assert stored_dtype([FP8]) is None
