"""Vision encoders counted from their sizes, against the modules that Transformers builds from them."""

from typing import Any

import pytest

from sizing.config_json import parse_config
from sizing.encoders import read_encoder
from sizing.errors import ModelFileError
from tests.sizing.models import SMOLLM2, published, published_configs

TEXT: dict[str, object] = {
    "hidden_size": 512,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "head_dim": 128,
}
SIGLIP: dict[str, object] = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16}
# Transformers' sizes, the parts that are no decoder, and what of them vLLM does not hold
QWEN25_VISION: dict[str, object] = {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "out_hidden_size": 512}
QWEN3_VISION: dict[str, object] = {"hidden_size": 1152, "intermediate_size": 4304, "depth": 27, "out_hidden_size": 512}
PIXTRAL: dict[str, object] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}
CLIP: dict[str, object] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 336,
}
LLAMA4: dict[str, object] = {
    "hidden_size": 1408,
    "intermediate_size": 5632,
    "num_hidden_layers": 34,
    "image_size": 336,
    "patch_size": 14,
}
FAMILIES: dict[str, tuple[str, dict[str, object], tuple[str, ...]]] = {
    "Qwen2VL": ("Qwen2VLConfig", {"embed_dim": 1280, "depth": 32, "hidden_size": 512}, ("model.visual",)),
    "Qwen2_5_VL": ("Qwen2_5_VLConfig", {**QWEN25_VISION, "num_heads": 16}, ("model.visual",)),
    "Qwen3VL": ("Qwen3VLConfig", {**QWEN3_VISION, "num_heads": 16}, ("model.visual",)),
    "Qwen3_5": ("Qwen3_5Config", {**QWEN3_VISION, "num_heads": 16}, ("model.visual",)),
    "Gemma3": (
        "Gemma3Config",
        {**SIGLIP, "num_hidden_layers": 27, "patch_size": 14, "image_size": 896, "vision_use_head": False},
        ("model.vision_tower", "model.multi_modal_projector"),
    ),
    "Mistral3": (
        "Mistral3Config",
        {**PIXTRAL, "model_type": "pixtral", "num_attention_heads": 16},
        ("model.vision_tower", "model.multi_modal_projector"),
    ),
    "Llama4": (
        "Llama4Config",
        {**LLAMA4, "num_attention_heads": 16, "vision_output_dim": 4096}
        | {"projector_input_dim": 4096, "projector_output_dim": 4096},
        ("vision_model", "multi_modal_projector"),
    ),
}


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")  # of torch's and Transformers' own
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_is_as_large_as_transformers_builds_it(family: str) -> None:
    import torch
    import transformers

    config_name, vision, parts = FAMILIES[family]
    text: Any = {**TEXT, "num_local_experts": 2} if family == "Llama4" else TEXT
    if family == "Mistral3":
        text = transformers.MistralConfig(**text)
    config = getattr(transformers, config_name)(text_config=text, vision_config=vision)
    with torch.device("meta"):
        module = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    parameters = sum(value.numel() for part in parts for value in module.get_submodule(part).parameters())
    architecture = f"{family}ForConditionalGeneration"
    found = read_encoder({"architectures": [architecture], "vision_config": vision, "text_config": TEXT})
    assert found is not None
    assert found.num_parameters == parameters


def test_clip_by_hand() -> None:
    """Of 24 layers the one before the last gives the features, so that vLLM builds 23."""
    layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    ends = 3 * 14 * 14 * 1024 + (24 * 24 + 1) * 1024 + 1024 + 2 * 1024
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096
    config = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "vision_config": CLIP,
        "text_config": {"hidden_size": 4096},
    }
    found = read_encoder(config)
    assert found is not None
    assert found.num_parameters == 23 * layer + ends + projector


def test_sizes_that_a_file_leaves_out_are_those_its_family_shares() -> None:
    bare: dict[str, object] = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"hidden_size": 5376},
    }
    told = {**bare, "vision_config": {**SIGLIP, "num_hidden_layers": 27, "patch_size": 14, "image_size": 896}}
    assert read_encoder(bare) == read_encoder(told)


def test_what_is_not_known_or_not_possible_is_said() -> None:
    assert read_encoder({"architectures": ["SomethingForConditionalGeneration"]}) is None
    broken = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"hidden_size": 0}}
    with pytest.raises(ModelFileError, match="hidden_size = 0"):
        read_encoder(broken)


def test_an_encoder_is_in_the_sum_and_named() -> None:
    shape = published("Qwen/Qwen3-VL-2B-Instruct")
    assert shape.caveat == "the work of its encoder is not in the sum"
    encoder = read_encoder(published_configs()["Qwen/Qwen3-VL-2B-Instruct"])
    assert encoder is not None
    assert shape.encoder_bytes == 2 * encoder.num_parameters
    assert shape.weights_bytes == 2 * shape.num_parameters
    assert parse_config(SMOLLM2, name="m").encoder_bytes == 0
