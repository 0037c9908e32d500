"""Equality with what vLLM loads and keeps to draft: its own drafters built without memory beside their models."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sizing.config_json import parse_config
from sizing.engine_cache import Serving, engine_cache
from sizing.heads import parse_head
from sizing.model import ModelShape
from sizing.speculation import drafter, read_speculation
from sizing.weights import weights_per_rank
from tests.sizing.models import SMOLLM2, published_configs
from tests.sizing.test_layers_oracle import decoder
from tests.sizing.vllm_oracle import outcome, processor_block_size

# importing vLLM and torch warns of their own deprecations, which are not ours to fix
pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LLAMA: dict[str, object] = {**published_configs()["meta-llama/Llama-3.1-8B-Instruct"], "num_hidden_layers": 4}
EAGLE3: dict[str, object] = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "num_hidden_layers": 1,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "draft_vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
EAGLE = {key: value for key, value in EAGLE3.items() if key != "draft_vocab_size"} | {
    "architectures": ["LlamaForCausalLM"]
}
SMALL: dict[str, object] = {**LLAMA, "hidden_size": 1024, "num_attention_heads": 16, "head_dim": 64}
SMALL |= {"num_key_value_heads": 4, "intermediate_size": 4096, "num_hidden_layers": 3, "tie_word_embeddings": True}


def few(name: str, **changes: object) -> dict[str, object]:
    """A published decoder with so few layers that its prediction layer counts."""
    return {**decoder(name), **changes}


CASES: dict[str, tuple[dict[str, object], dict[str, object], dict[str, object] | None]] = {
    "DeepSeek V3": (
        few("deepseek-ai/DeepSeek-R1", num_hidden_layers=4, n_routed_experts=16, num_nextn_predict_layers=1),
        {"method": "mtp", "num_speculative_tokens": 1},
        None,
    ),
    "Qwen3-Next": (
        few("Qwen/Qwen3-Next-80B-A3B-Instruct", num_hidden_layers=8, num_experts=16, num_nextn_predict_layers=1),
        {"method": "mtp", "num_speculative_tokens": 2},
        None,
    ),
    "MiMo": (
        {**SMOLLM2, "architectures": ["MiMoForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": False}
        | {"num_nextn_predict_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 512},
        {"method": "mtp", "num_speculative_tokens": 1},
        None,
    ),
    "EAGLE-3": (LLAMA, {"method": "eagle3", "num_speculative_tokens": 3}, EAGLE3),
    "EAGLE": (LLAMA, {"method": "eagle", "num_speculative_tokens": 3}, EAGLE),
    "a smaller Llama": (LLAMA, {"method": "draft_model", "num_speculative_tokens": 3}, SMALL),
}


def saved(config: Mapping[str, object], folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def built(model: str, speculative: Mapping[str, object], ranks: int, folder: Path) -> tuple[Any, int, int, list[Any]]:
    """vLLM's config, the bytes of the model and of what its drafter adds, and the specs of all their layers."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
        parallel_state,
    )
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers import rotary_embedding
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import set_default_torch_dtype
    from vllm.v1.worker.gpu.spec_decode.eagle import utils

    engine = EngineArgs(
        model=model,
        skip_tokenizer_init=True,
        load_format="dummy",
        enforce_eager=True,
        max_model_len=2048,
        speculative_config=dict(speculative),
    ).create_engine_config()
    engine.parallel_config.tensor_parallel_size = ranks
    drafts = engine.speculative_config.draft_model_config

    def on_meta(*, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        with torch.device("meta"), set_default_torch_dtype(engine.model_config.dtype):
            return initialize_model(vllm_config, model_config=model_config, prefix=prefix)

    with set_current_vllm_config(engine), pytest.MonkeyPatch.context() as patch:
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        destroy_model_parallel()
        initialize_model_parallel(1)
        parallel_state._TP.world_size = ranks
        rotary_embedding._ROPE_DICT.clear()
        target = on_meta(vllm_config=engine, model_config=engine.model_config)
        if engine.speculative_config.uses_draft_model():
            drafting = on_meta(vllm_config=replace_config(engine, drafts), model_config=drafts, prefix="draft_model")
        else:
            patch.setattr(utils, "get_model", on_meta)
            # what loading finds in a head's files: an output table that is not the model's
            own_output = engine.speculative_config.method == "eagle3"
            patch.setattr(utils, "_should_share", lambda _, flag, *__: flag != "has_own_lm_head" or not own_output)
            drafting = utils.load_eagle_model(target, engine)
        current_platform.update_block_size_for_backend(engine)
        layers = engine.compilation_config.static_forward_context
        specs = [layer.get_kv_cache_spec(engine) for layer in layers.values() if isinstance(layer, AttentionLayerBase)]
    destroy_model_parallel()
    own = {id(tensor): tensor for tensor in (*target.parameters(), *target.buffers())}
    added = {id(tensor): tensor for tensor in (*drafting.parameters(), *drafting.buffers()) if id(tensor) not in own}
    sizes = [sum(tensor.numel() * tensor.element_size() for tensor in held.values()) for held in (own, added)]
    return engine, sizes[0], sizes[1], [spec for spec in specs if spec is not None]


def replace_config(engine: Any, drafts: Any) -> Any:
    from vllm.config import replace as replaced

    return replaced(engine, model_config=drafts, quant_config=None)


def ours(config: Mapping[str, object], speculative: Mapping[str, object], draft: Mapping[str, object] | None) -> Any:
    model = parse_config(config, name="m")

    def load(_: str, __: str | None, head: Any) -> ModelShape:
        assert draft is not None
        return parse_config(draft, name="d") if head is None else parse_head(draft, name="d", method=head)

    said = dict(speculative) if draft is None else {**speculative, "model": "d"}
    return model, drafter(read_speculation(said), model, load)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_a_drafter_weighs_and_keeps_what_vllms_does(
    name: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    config, speculative, draft = CASES[name]
    said = dict(speculative) if draft is None else {**speculative, "model": saved(draft, tmp_path / "draft")}
    engine, weights, added, specs = built(saved(config, tmp_path / "model"), said, ranks, tmp_path)

    model, drafts = ours(config, speculative, draft)
    assert weights_per_rank(model, tensor_parallel_size=ranks, as_allocated=False)[0] == pytest.approx(
        weights, rel=3e-4
    )
    held = weights_per_rank(drafts.model, tensor_parallel_size=ranks, as_allocated=False)[0]
    assert held == pytest.approx(added, rel=3e-4)

    cache = engine_cache(
        model,
        Serving(
            block_size=processor_block_size(model),
            tensor_parallel_size=ranks,
            max_num_batched_tokens=engine.max_in_flight_tokens,
            async_scheduling=False,
            enable_prefix_caching=engine.cache_config.enable_prefix_caching,
            on_processor=True,
            speculative=replace(drafts, model=None),
        ),
    )
    assert len(specs) == len(cache.pages)
    assert cache.block_size == engine.cache_config.block_size
    engine.cache_config.kv_cache_layout = "LBHNC"
    available = int(2.7 * cache.needed_bytes(2048))
    capacity = cache.capacity(available, 2048)
    theirs = outcome(engine, [specs], [available])
    assert (theirs.num_blocks, theirs.tokens, theirs.max_concurrency) == (
        capacity.num_blocks,
        capacity.tokens,
        capacity.max_concurrency,
    )
