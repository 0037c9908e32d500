"""Vision encoders counted from their sizes, against the modules that Transformers builds from them."""

from typing import Any

import pytest

from sizing.config_json import parse_config
from sizing.encoders import kept_tokens, largest_picture_bytes, output_bytes, read_encoder, undivided_item_tokens
from sizing.errors import ModelFileError
from sizing.gpu import GIB
from sizing.release import Release, parse_release
from sizing.weights import weights_per_rank_bytes
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


MISTRAL_SMALL: dict[str, object] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "mistral",
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 32768,
        "vocab_size": 131072,
        "max_position_embeddings": 131072,
        "sliding_window": None,
    },
    "vision_config": PIXTRAL,
}
KIMI_VL: dict[str, object] = {
    "architectures": ["KimiVLForConditionalGeneration"],
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "deepseek_v3",
        "hidden_size": 2048,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 11264,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "first_k_dense_replace": 1,
        "vocab_size": 163840,
        "max_position_embeddings": 131072,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
    },
    "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
}


def per_rank_gib(config: dict[str, object], name: str, tp: int, release: Release) -> float:
    return weights_per_rank_bytes(parse_config(config, name=name), tp, compute_major=9, release=release) / GIB


@pytest.mark.parametrize(
    ("config", "name", "tp", "logged_gib"),
    [
        # its own format, in which 0.19 divides nothing of the encoder
        (MISTRAL_SMALL, "mistralai/Mistral-Small-3.1-24B-Instruct-2503", 2, 22.80),
        (MISTRAL_SMALL, "mistralai/Mistral-Small-3.1-24B-Instruct-2503", 4, 11.86),
        # a divided tower, a whole projector, and the workspace for latent attention
        (KIMI_VL, "moonshotai/Kimi-VL-A3B-Instruct", 1, 30.74),
        (KIMI_VL, "moonshotai/Kimi-VL-A3B-Instruct", 2, 15.53),
    ],
)
def test_a_rank_holds_of_the_encoder_what_a_real_run_logged(
    config: dict[str, object], name: str, tp: int, logged_gib: float
) -> None:
    """jgchn/llm-d-planner's campaign: vLLM 0.19.0 on H100, "Model loading took"."""
    assert per_rank_gib(config, name, tp, Release(19)) == pytest.approx(logged_gib, rel=0.0015)


def test_mistrals_own_format_is_read_and_divided_by_release() -> None:
    """HF's class divides the tower and its projector; Mistral's own held all whole from 0.12 and the projector since
    0.20. The tower's matrices are 24 x 16 x 1024^2 numbers."""
    own = {minor: per_rank_gib(MISTRAL_SMALL, "mistralai/M", 2, Release(minor)) for minor in (11, 12, 19, 20)}
    others = per_rank_gib(MISTRAL_SMALL, "someone/M", 2, Release(19))
    tower, projector = 24 * 16 * 1024**2, (1024 + 5120) * 5120
    assert own[12] == own[19]
    assert own[19] - own[20] == pytest.approx(tower / GIB)  # half of two bytes each
    assert own[20] - others == pytest.approx(projector / GIB)


def test_an_encoder_of_transformers_own_is_whole_on_every_rank() -> None:
    gemma4 = read_encoder({"architectures": ["Gemma4ForConditionalGeneration"], "text_config": {"hidden_size": 2816}})
    assert gemma4 is not None
    assert gemma4.sharded == 0


def test_features_of_several_layers_enter_the_projector_side_by_side() -> None:
    """Granite Vision: SigLIP's 27 layers, and a projector four times as wide; a run on an H100 logged 5.54 GiB."""
    vision = {**SIGLIP, "model_type": "siglip_vision_model", "num_hidden_layers": 27, "image_size": 384}
    config = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "text_config": {"hidden_size": 2048},
        "vision_config": vision,
    }
    one, four = (read_encoder({**config, "vision_feature_layer": layers}) for layers in ([-1], [-24, -20, -12, -1]))
    assert one is not None
    assert four is not None
    assert four.num_parameters - one.num_parameters == 3 * 1152 * 2048


def test_a_video_is_not_cut_into_batches_where_attention_looks_both_ways() -> None:
    """32 frames of 78 tokens: a run of Gemma-4-26B-A4B logs "encoder budget 2496"."""
    config = {"architectures": ["Gemma4ForConditionalGeneration"]}
    assert undivided_item_tokens({**config, "text_config": {"use_bidirectional_attention": "vision"}}) == 2496
    assert undivided_item_tokens({**config, "text_config": {"use_bidirectional_attention": None}}) == 0
    assert undivided_item_tokens({**config, "text_config": {"hidden_size_per_layer_input": 256}}) == 0
    assert undivided_item_tokens({"architectures": ["Gemma3ForConditionalGeneration"]}) == 0


@pytest.mark.parametrize(
    ("architecture", "vision", "logged_gib"),
    [
        ("Qwen3_5ForConditionalGeneration", {"hidden_size": 1152, "intermediate_size": 4304}, 1.46),
        ("Qwen3_5ForConditionalGeneration", {"hidden_size": 1024, "intermediate_size": 4096}, 1.37),
    ],
)
def test_the_largest_picture_of_qwen_is_65_536_patches(
    architecture: str, vision: dict[str, int], logged_gib: float
) -> None:
    config = {"architectures": [architecture], "vision_config": vision}
    by_hand = 65_536 * 2 * (2 * vision["intermediate_size"] + 3 * vision["hidden_size"])
    assert largest_picture_bytes(config) == by_hand
    assert by_hand / 2**30 == pytest.approx(logged_gib, rel=0.02)


def test_the_largest_picture_by_family() -> None:
    def taken(architecture: str, **vision: int) -> int:
        return largest_picture_bytes({"architectures": [architecture], "vision_config": vision})

    assert taken("Qwen2VLForConditionalGeneration", embed_dim=1280, mlp_ratio=4) == 131_072 * (2 * 5120 + 3 * 1280)
    assert taken("Qwen2_5_VLForConditionalGeneration") == 131_072 * (3 * 3420 + 3 * 1280)  # gated
    assert taken("Gemma3ForConditionalGeneration") == 0
    assert largest_picture_bytes({}) == 0


def test_what_qwens_encoders_hand_on_for_each_token() -> None:
    """One vector as wide as the text's, and with deepstack one for each layer that is fed as well; two bytes each."""

    def handed_on(architecture: str, vision: dict[str, object], hidden: int = 2048) -> int:
        config = {"architectures": [architecture], "vision_config": vision, "text_config": {"hidden_size": hidden}}
        return output_bytes(config)

    assert handed_on("Qwen3VLMoeForConditionalGeneration", {}) == 2 * 2048 * 4
    assert handed_on("Qwen3VLForConditionalGeneration", {"deepstack_visual_indexes": [5, 11]}) == 2 * 2048 * 3
    assert handed_on("Qwen3_5ForConditionalGeneration", {}, 5120) == 2 * 5120
    assert handed_on("Gemma3ForConditionalGeneration", {}) == 0
    flat = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}, "hidden_size": 3584}
    assert output_bytes(flat) == 2 * 3584


@pytest.mark.parametrize(
    ("vllm", "architecture", "tokens"),
    [
        ("0.11.0", "Qwen3VLMoeForConditionalGeneration", 153_600),  # "initialized with a budget of 153600 tokens"
        ("0.11.0", "Qwen2_5_VLForConditionalGeneration", 16_384),
        ("0.11.1", "Qwen3VLForConditionalGeneration", 16_384),
        ("0.32.0", "Qwen3_5ForConditionalGeneration", 16_384),  # "initialized with a budget of 16384 tokens"
        ("0.7.3", "Qwen2VLForConditionalGeneration", 0),
        ("0.11.0", "Gemma3ForConditionalGeneration", 0),
    ],
)
def test_tokens_whose_outputs_stay_for_the_decoders_profile(vllm: str, architecture: str, tokens: int) -> None:
    assert kept_tokens(architecture, parse_release(vllm)) == tokens
