"""Families of sizing.decoders: equality with what vLLM's own classes allocate, and with what real runs logged."""

import os
from pathlib import Path

import pytest

from sizing.config_json import parse_config
from sizing.decoders import DECODERS
from sizing.dense_decoders import DENSE_DECODERS
from sizing.gpu import GIB
from sizing.mixture_decoders import MIXTURE_DECODERS
from sizing.release import Release
from sizing.weights import weights_per_rank_bytes
from tests.sizing.test_weights_oracle import allocated_bytes

SMALL: dict[str, object] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
MODELS: dict[str, dict[str, object]] = {
    "ArceeForCausalLM": {"model_type": "arcee", "hidden_act": "relu2", "head_dim": 32},
    "CohereForCausalLM": {"model_type": "cohere", "use_qk_norm": True, "tie_word_embeddings": True},
    "Cohere2ForCausalLM": {
        "model_type": "cohere2",
        "sliding_window": 1024,
        "num_hidden_layers": 4,
        "head_dim": 32,
        "tie_word_embeddings": True,
    },
    "Ernie4_5ForCausalLM": {"model_type": "ernie4_5", "head_dim": 32},
    "Ernie4_5_MoeForCausalLM": {
        "model_type": "ernie4_5_moe",
        "moe_num_experts": 4,
        "moe_num_shared_experts": 2,
        "moe_k": 2,
        "moe_intermediate_size": 128,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
        "moe_layer_interval": 1,
        "rms_norm_eps": 1e-6,
        "use_bias": False,
    },
    "GlmForCausalLM": {"model_type": "glm", "head_dim": 32, "attention_bias": True, "pad_token_id": 0},
    "Glm4ForCausalLM": {"model_type": "glm4", "head_dim": 32, "attention_bias": True, "pad_token_id": 0},
    "Glm4MoeForCausalLM": {
        "model_type": "glm4_moe",
        "head_dim": 32,
        "attention_bias": True,
        "use_qk_norm": True,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "HunYuanDenseV1ForCausalLM": {"model_type": "hunyuan_v1_dense", "head_dim": 32, "pad_token_id": 0},
    "NemotronForCausalLM": {"model_type": "nemotron", "hidden_act": "relu2", "head_dim": 32, "norm_eps": 1e-5},
    "PhiForCausalLM": {"model_type": "phi", "hidden_act": "gelu_new", "bos_token_id": 1, "eos_token_id": 2},
    "Qwen2MoeForCausalLM": {
        "model_type": "qwen2_moe",
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 256,
        "mlp_only_layers": [0],
    },
    "SeedOssForCausalLM": {"model_type": "seed_oss", "head_dim": 32, "attention_bias": True},
    "SmolLM3ForCausalLM": {"model_type": "smollm3", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "Starcoder2ForCausalLM": {"model_type": "starcoder2", "bos_token_id": 1, "eos_token_id": 2, "use_bias": True},
    "Phi3ForCausalLM": {  # Phi-4-mini: three quarters of a head are turned
        "model_type": "phi3",
        "partial_rotary_factor": 0.75,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    },
}
# routers that vLLM keeps in float32: two layers of 4 experts, and a bias for each
FLOAT32_ROUTERS = {"Ernie4_5_MoeForCausalLM": 2 * 2 * (4 * 256 + 4), "Glm4MoeForCausalLM": 2 * 2 * (4 * 256 + 4)}
PUBLISHED: dict[str, dict[str, object]] = {
    "PhiForCausalLM": {
        "model_type": "phi",
        "dtype": "float16",
        "hidden_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 10240,
        "vocab_size": 51200,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.4,
        "hidden_act": "gelu_new",
    },
    "Qwen2MoeForCausalLM": {
        "model_type": "qwen2_moe",
        "dtype": "bfloat16",
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 5632,
        "vocab_size": 151936,
        "max_position_embeddings": 8192,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
    },
}


def test_every_family_is_compared() -> None:
    elsewhere = {*DENSE_DECODERS, *MIXTURE_DECODERS}  # in test_text_families
    assert set(DECODERS) - elsewhere <= set(MODELS)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("architecture", MODELS)
def test_weights_are_those_of_vllms_class(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one rank of two. Rotary tables aside: half of these are run by Transformers' classes, which have none."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    config = {**SMALL, "architectures": [architecture], **MODELS[architecture]}
    theirs = allocated_bytes(config, 2, tmp_path, buffers=False)
    shape = parse_config(config, name="m")
    assert shape.held is not None
    ours = weights_per_rank_bytes(shape, 2, as_allocated=False) - shape.held.buffers
    routers = FLOAT32_ROUTERS.get(architecture, 0)
    assert ours + routers == theirs


@pytest.mark.parametrize(
    ("architecture", "tp", "logged_gib"),
    [("PhiForCausalLM", 1, 5.19), ("Qwen2MoeForCausalLM", 1, 26.67)],
)
def test_weights_are_what_real_runs_logged(architecture: str, tp: int, logged_gib: float) -> None:
    """jgchn/llm-d-planner's campaign: vLLM 0.19.0 on an H100, "Model loading took"."""
    shape = parse_config({**PUBLISHED[architecture], "architectures": [architecture]}, name="m")
    found = weights_per_rank_bytes(shape, tp, compute_major=9, release=Release(19)) / GIB
    assert found == pytest.approx(logged_gib, abs=0.006)
