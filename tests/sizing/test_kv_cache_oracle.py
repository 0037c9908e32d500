"""Equality with vLLM itself: its own config reading and its own KV cache arithmetic, with no GPU and no weights."""

import json
from pathlib import Path

import pytest

from sizing.config_json import parse_config
from tests.sizing.models import SMOLLM2, published_configs
from tests.sizing.test_config_json import SIZED

# importing vLLM and torch warns of their own deprecations, which are not ours to fix
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


LENGTHS: dict[str, dict[str, object]] = {
    "SmolLM2": {},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    "legacy scaling": {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "yarn": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 2048,
            "rope_theta": 1e6,
        },
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 5e5,
        }
    },
    "longrope": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "pad_token_id": 0,
        "original_max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 32,
            "long_factor": [2.0] * 32,
            "original_max_position_embeddings": 4096,
            "rope_theta": 1e4,
        },
    },
    "float32": {"dtype": "float32"},
}
CONFIGS = {name: {**SMOLLM2, **changes} for name, changes in LENGTHS.items()} | {
    name: config
    for name, config in published_configs().items()
    # one's config class is remote code, the other's layers differ in head size and the convertor names the largest
    if name in SIZED and name not in ("XiaomiMiMo/MiMo-7B-Base", "google/gemma-4-26B-A4B")
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_config_is_read_as_vllm_reads_it(name: str, tmp_path: Path) -> None:
    from vllm.config.model import _get_and_verify_max_len, _resolve_auto_dtype
    from vllm.transformers_utils.config import get_config
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    config = {key: value for key, value in CONFIGS[name].items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = get_config(str(tmp_path), trust_remote_code=False)
    arch = ModelArchConfigConvertorBase(theirs, theirs.get_text_config()).convert()
    max_model_len = _get_and_verify_max_len(
        hf_config=theirs,
        model_arch_config=arch,
        tokenizer_config=None,
        max_model_len=None,
        disable_sliding_window=False,
        sliding_window=None,
    )
    dtype = _resolve_auto_dtype(theirs.model_type, theirs.dtype, is_pooling_model=False)

    ours = parse_config(config, name=name)
    assert ours.max_model_len == max_model_len
    assert (ours.head_dim, ours.num_key_value_heads) == (arch.head_size, arch.total_num_kv_heads)
    assert (ours.num_hidden_layers, ours.num_attention_heads) == (
        arch.total_num_hidden_layers,
        arch.total_num_attention_heads,
    )
    assert f"torch.{ours.dtype}" == str(dtype)
    assert getattr(theirs, "sliding_window", None) is None or getattr(theirs, "layer_types", None) is not None
    assert ours.tie_word_embeddings == bool(theirs.tie_word_embeddings)
