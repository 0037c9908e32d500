"""Equality with vLLM's own models: built without memory from a config, asked for their specs and parameters."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sizing.architecture import WRAPPERS
from sizing.config_json import parse_config
from sizing.engine_cache import Serving, engine_cache
from tests.sizing.hybrid_models import HYBRIDS, ON_CARDS_ONLY
from tests.sizing.models import SMOLLM2, published_configs
from tests.sizing.vllm_oracle import outcome, processor_block_size

# importing vLLM and torch warns of their own deprecations, which are not ours to fix
pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

SMALL: dict[str, object] = {**SMOLLM2, "num_attention_heads": 9, "pad_token_id": 0}
CHANGED: dict[str, dict[str, object]] = {
    "Mistral with its window": {**SMALL, "architectures": ["MistralForCausalLM"], "model_type": "mistral"},
    "Llama with a window": {**SMALL, "sliding_window": 2048},
    "Llama of two kinds": {
        **SMALL,
        "sliding_window": 1024,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"] * 10,
    },
    "Phi-3 with a window": {
        **SMALL,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "sliding_window": 2047,
    },
    "Qwen2 with a window": {
        **SMALL,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 512,
        "max_window_layers": 0,
    },
    "Qwen2 with a window on no layer": {
        **SMALL,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 512,
        "max_window_layers": 30,
    },
    "Gemma 3n": {
        **SMALL,
        "architectures": ["Gemma3nForCausalLM"],
        "model_type": "gemma3n_text",
        "head_dim": 64,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 7
        + ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 10,
        "intermediate_size": 1536,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 49152,
        "altup_num_inputs": 4,
        "laurel_rank": 16,
        "activation_sparsity_pattern": [0.0] * 30,
    },
    "Gemma 4 with layer embeddings": {
        **SMALL,
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "head_dim": 64,
        "global_head_dim": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 7
        + ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 10,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 49152,
        "enable_moe_block": False,
    },
    "Step 3.5": {
        **SMALL,
        "architectures": ["Step3p5ForCausalLM"],
        "model_type": "step3p5",
        "num_attention_heads": 8,
        "num_attention_groups": 4,
        "head_dim": 64,
        "num_hidden_layers": 8,
        "sliding_window": 512,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"] * 2,
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "num_attention_heads": 16,
            "num_attention_groups": 4,
            "head_dim": 64,
        },
        "max_seq_len": 8192,
        "use_head_wise_attn_gate": True,
        "use_moe": True,
        "moe_layers_enum": "3,4,5,6,7",
        "moe_num_experts": 16,
        "moe_top_k": 4,
        "moe_intermediate_size": 128,
        "share_expert_dim": 128,
        "tie_word_embeddings": False,
    },
    "Gemma 2": {
        **SMALL,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "sliding_window": 1024,
    },
}
# The decoder's own type, where the wrapper's is another and the decoder alone is enough.
TEXT_TYPES = {"qwen3_vl_text": "qwen3", "qwen3_vl_moe_text": "qwen3_moe", "kimi_k2": "deepseek_v3"}
PUBLISHED = (
    "openai/gpt-oss-20b",
    "openai/gpt-oss-120b",
    "google/gemma-3-27b-it",
    "google/gemma-4-26B-A4B",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "deepseek-ai/DeepSeek-V2-Lite",
    "deepseek-ai/DeepSeek-R1",
    "moonshotai/Kimi-K2-Instruct",
    "LGAI-EXAONE/EXAONE-4.0-32B",
    "MiniMaxAI/MiniMax-M2.5",
    "Qwen/Qwen3-VL-2B-Instruct",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-30B-A3B",
)
# vLLM's processor kernels widen these experts (704 to 768 columns); no card's weights are measured by that
PADDED_EXPERTS = {"google/gemma-4-26B-A4B"}


def decoder(name: str) -> dict[str, object]:
    """The config of the decoder alone, in the served type."""
    config = dict({**CHANGED, **HYBRIDS}.get(name) or published_configs()[name])
    architecture = config["architectures"]
    assert isinstance(architecture, list)
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**text, "architectures": [WRAPPERS[architecture[0]]]}
    config.pop("quantization_config", None)
    config.setdefault("dtype", config.pop("torch_dtype", "bfloat16"))
    config["model_type"] = TEXT_TYPES.get(str(config["model_type"]), config["model_type"])
    if name == "deepseek-ai/DeepSeek-V2-Lite":
        config["q_lora_rank"] = None
    if name == "MiniMaxAI/MiniMax-M2.5":
        config |= {"rotary_dim": 64, "scoring_func": "sigmoid"}
    return config


def built(config: Mapping[str, object], folder: Path, max_model_len: int = 8192) -> tuple[Any, dict[str, Any], int]:
    """vLLM's config, the specs of its layers by name, and its parameters."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import destroy_model_parallel, init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform

    (folder / "config.json").write_text(json.dumps(config))
    arguments = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        load_format="dummy",
        enforce_eager=True,
        max_model_len=max_model_len,
    )
    engine = arguments.create_engine_config()
    with set_current_vllm_config(engine):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        destroy_model_parallel()  # of the model before, which may have had no experts to be parallel about
        initialize_model_parallel(1)
        with torch.device("meta"):
            model = initialize_model(engine)
        current_platform.update_block_size_for_backend(engine)
        layers = engine.compilation_config.static_forward_context
        specs = {
            name: layer.get_kv_cache_spec(engine)
            for name, layer in layers.items()
            # vLLM's runners leave out layers that share another's cache
            if isinstance(layer, AttentionLayerBase) and getattr(layer, "kv_sharing_target_layer_name", None) is None
        }
    kept = {name: spec for name, spec in specs.items() if spec is not None}
    return engine, kept, sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", [*CHANGED, *PUBLISHED, *(HYBRIDS.keys() - ON_CARDS_ONLY)])
def test_layers_parameters_and_capacity_are_those_of_vllms_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    config = decoder(name)
    ours = parse_config(config, name=name)
    length = min(8192, ours.longest_model_len)
    engine, specs, parameters = built(config, tmp_path, length)
    if name not in PADDED_EXPERTS:
        assert ours.num_parameters == pytest.approx(parameters, rel=1e-4)

    cache = engine_cache(
        ours,
        Serving(
            block_size=processor_block_size(ours),
            max_num_batched_tokens=engine.max_in_flight_tokens,
            async_scheduling=False,
            enable_prefix_caching=engine.cache_config.enable_prefix_caching,
            on_processor=True,
        ),
    )
    assert cache.block_size == engine.cache_config.block_size
    windows = Counter(getattr(spec, "sliding_window", None) for spec in specs.values())
    assert sum(windows.values()) == sum(len(caches) for caches in ours.cache_layers)
    assert windows == Counter(getattr(layer, "window", None) for caches in ours.cache_layers for layer in caches)

    engine.cache_config.kv_cache_layout = "LBHNC"
    available = int(2.7 * cache.needed_bytes(length))
    capacity = cache.capacity(available, length)
    theirs = outcome(engine, [list(specs.values())], [available])
    assert (theirs.num_blocks, theirs.tokens, theirs.max_concurrency) == (
        capacity.num_blocks,
        capacity.tokens,
        capacity.max_concurrency,
    )
