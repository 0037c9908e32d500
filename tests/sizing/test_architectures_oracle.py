"""Equality with vLLM over every architecture: parallel sizes, lengths, batches and memory of any size, with no GPU."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sizing.config_json import kv_layers
from sizing.drafters import Drafter, head_drafter, prediction_drafter
from sizing.engine_cache import Serving, engine_cache
from sizing.errors import QuestionError, UnsupportedModelError
from sizing.heads import parse_head
from sizing.layers import Attention, Compressed, Indexer, Latent, Layers
from sizing.model import ModelShape
from sizing.pages import StatePage
from tests.sizing.hybrid_models import HYBRIDS
from tests.sizing.models import published_configs
from tests.sizing.vllm_oracle import Outcome, outcome, spec, vllm_config

# importing vLLM and torch warns of their own deprecations, which are not ours to fix
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SPARSE_LAYERS = [0, 0, *[4, 128] * 20, 4]
FURTHER: dict[str, dict[str, object]] = {
    "DeepSeek V4": {
        "architectures": ["DeepseekV4ForCausalLM"],
        "num_hidden_layers": 43,
        "num_attention_heads": 64,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "index_head_dim": 128,
        "index_n_heads": 64,
        "q_lora_rank": 1024,
        "sliding_window": 128,
        "n_routed_experts": 8,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 2048,
        "compress_ratios": [*SPARSE_LAYERS, 0],
        "max_position_embeddings": 1048576,
        "num_nextn_predict_layers": 1,
    },
    "MiniMax M3": {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "num_hidden_layers": 60,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "max_position_embeddings": 1048576,
    },
    "Kimi Linear": {
        "architectures": ["KimiLinearForCausalLM"],
        "num_hidden_layers": 27,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "hidden_size": 2304,
        "num_experts_per_token": 8,
        "linear_attn_config": {
            "num_heads": 32,
            "head_dim": 128,
            "short_conv_kernel_size": 4,
            "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
            "kda_layers": [layer for layer in range(1, 28) if layer not in (4, 8, 12, 16, 20, 24, 27)],
        },
        "max_position_embeddings": 1048576,
    },
    "Nemotron-NAS": {
        "architectures": ["DeciLMForCausalLM"],
        "num_hidden_layers": 12,
        "num_attention_heads": 64,
        "head_dim": 128,
        "block_configs": [
            {
                "attention": {"n_heads_in_group": 8 if layer % 3 else None, "no_op": layer % 3 == 0},
                "ffn": {"ffn_mult": 2.6},
            }
            for layer in range(12)
        ],
        "max_position_embeddings": 131072,
    },
    "Step 3.5": {
        "architectures": ["Step3p5ForCausalLM"],
        "num_hidden_layers": 45,
        "num_attention_heads": 64,
        "num_attention_groups": 8,
        "head_dim": 128,
        "sliding_window": 512,
        "layer_types": ["sliding_attention" if layer % 4 else "full_attention" for layer in range(48)],
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "num_attention_heads": 96,
            "num_attention_groups": 8,
            "head_dim": 128,
        },
        "moe_num_experts": 288,
        "moe_top_k": 8,
        "moe_intermediate_size": 1280,
        "max_position_embeddings": 65536,
        "num_nextn_predict_layers": 3,
    },
}
ALL = {**published_configs(), **FURTHER, **HYBRIDS}
NAMES = sorted(name for name in ALL if name != "nvidia/Llama-3_3-Nemotron-Super-49B-v1")


def config_of(name: str) -> dict[str, object]:
    return {key: value for key, value in ALL[name].items() if key != "quantization_config"}


@cache
def shape(name: str) -> ModelShape:
    return kv_layers(config_of(name), name=name)


@st.composite
def servings(draw: st.DrawFn, model: ModelShape, name: str) -> Serving:
    tp = draw(st.sampled_from([1, 2, 4, 8]))
    head = None
    if draw(st.booleans()):
        head = Drafter("eagle", draw(st.integers(1, 5)), (draw(st.sampled_from(model.cache_layers)),))
    return Serving(
        block_size=64 if any(isinstance(layer, Latent | Indexer) for layer in model.cache_layers[-1]) else 16,
        tensor_parallel_size=tp,
        pipeline_parallel_size=draw(st.sampled_from([1, 1, 2, 4])),
        kv_cache_dtype=draw(st.sampled_from(["auto", "fp8"])),
        max_num_batched_tokens=draw(st.sampled_from([512, 2048, 8192, 16384])),
        enable_prefix_caching=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        speculative=head,
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_an_engine_of_any_shape_is_sized_as_vllm_sizes_it(name: str, data: st.DataObject) -> None:
    model = shape(name)
    serving = data.draw(servings(model, name))
    try:
        ours = engine_cache(model, serving)
    except UnsupportedModelError:
        return  # mixtures that vLLM refuses are compared in test_kv_cache_mixtures.py
    length = data.draw(st.integers(16, 2**20))
    modes = {"align" if page.request_blocks > 1 else "none" for page in ours.pages if isinstance(page, StatePage)}
    packed = any(isinstance(layer, Compressed) for caches in model.cache_layers for layer in caches)
    if serving.speculative and modes:
        return  # vLLM counts drafts' blocks in a field of their own, compared in test_drafts_keep_states_of_their_own
    config = vllm_config(
        length,
        in_flight_tokens=ours.in_flight_tokens,
        encoder_tokens=ours.encoder_tokens,
        mamba_cache_mode=(modes or {"none"}).pop(),
        packed=packed,
    )
    stages = [[spec(ours.pages[layer]) for layer in stage] for stage in ours.stages]
    needed = ours.blocks_per_request(length)
    available = [
        int(data.draw(st.floats(0.2, 3)) * needed * block) + data.draw(st.integers(0, 2)) * block
        for block in ours.stage_block_bytes
    ]
    theirs = outcome(config, stages, available)
    longest = ours.longest_model_len(available, length) or None
    if not ours.holds(available, length):
        assert theirs == Outcome(None, None, None, longest)
        return
    capacity = ours.capacity(available, length)
    assert theirs == Outcome(capacity.num_blocks, capacity.tokens, capacity.max_concurrency, longest)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_context_parallel_ranks_share_out_the_tokens(shards: int) -> None:
    model = shape("deepseek-ai/DeepSeek-R1")
    serving = Serving(64, tensor_parallel_size=8, decode_context_parallel_size=shards)
    ours = engine_cache(model, serving)
    config = vllm_config(100_000, context_shards=shards)
    available = 3 * ours.needed_bytes(100_000)
    theirs = outcome(config, [[spec(page) for page in ours.pages]], [available])
    capacity = ours.capacity(available, 100_000)
    assert theirs == Outcome(capacity.num_blocks, capacity.tokens, capacity.max_concurrency, 100_000)
    whole = engine_cache(model, Serving(64, tensor_parallel_size=8))
    assert capacity.tokens == pytest.approx(whole.capacity(available, 100_000).tokens * shards, rel=0.01)


def test_without_the_hybrid_manager_windows_save_nothing() -> None:
    model = shape("openai/gpt-oss-20b")
    ours = engine_cache(model, Serving(16, max_num_batched_tokens=8192, hybrid_kv_cache_manager=False))
    assert len(ours.groups) == 1
    available = 3 * ours.needed_bytes(50_000)
    config = vllm_config(50_000, in_flight_tokens=ours.in_flight_tokens, hybrid=False)
    theirs = outcome(config, [[spec(page) for page in ours.pages]], [available])
    capacity = ours.capacity(available, 50_000)
    assert (theirs.num_blocks, theirs.tokens) == (capacity.num_blocks, capacity.tokens)


def test_drafts_keep_states_of_their_own() -> None:
    """Each drafted token has a state of its own, and its inputs make the convolution's longer."""
    model = shape("Qwen/Qwen3.5-35B-A3B")
    config = config_of("Qwen/Qwen3.5-35B-A3B")
    assert isinstance(config["text_config"], dict)
    config["text_config"] = {**config["text_config"], "mtp_num_hidden_layers": 1}
    mtp = prediction_drafter(kv_layers(config, name="m"), 3, probabilistic=False)
    assert mtp.layers == ((Attention(2, 256, 256),),)
    drafted = engine_cache(model, Serving(16, max_num_batched_tokens=2048, speculative=mtp))
    states = [page for page in drafted.pages if isinstance(page, StatePage)]
    assert {page.state_bytes for page in states} == {(3 + 3) * 8192 * 2 + 32 * 128 * 128 * 4}
    assert {page.request_blocks for page in states} == {2 + 3}
    alone = engine_cache(model, Serving(16, max_num_batched_tokens=2048))
    assert len(drafted.pages) == len(alone.pages) + 1
    assert drafted.capacity(2**36, 65_536).tokens < alone.capacity(2**36, 65_536).tokens


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("deepseek-ai/DeepSeek-R1", ((Latent(576),),)),
        ("zai-org/GLM-5", ((Latent(576, indexed=True), Indexer(128)),)),
        ("DeepSeek V4", ((Compressed(512, 64, window=128),),)),
        ("Step 3.5", ((Attention(8, 128, 128, 512),),) * 3),
        ("XiaomiMiMo/MiMo-7B-Base", ((Attention(8, 128, 128),),)),
    ],
)
def test_prediction_layers_keep_what_the_models_own_do(name: str, layers: Layers) -> None:
    config: dict[str, Any] = {"num_nextn_predict_layers": 1, **config_of(name)}
    config["num_nextn_predict_layers"] = len(layers)
    tokens = 2 * len(layers)
    mtp = prediction_drafter(kv_layers(config, name=name), tokens, probabilistic=False)
    assert mtp.layers == layers
    assert mtp.retained_tokens == (tokens - 1 if len(layers) > 1 else 0)


def test_a_head_brings_its_own_layers() -> None:
    head: dict[str, object] = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "num_hidden_layers": 1,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    head |= {"intermediate_size": 14336, "vocab_size": 128256}
    model = shape("meta-llama/Llama-3.1-8B-Instruct")
    eagle = head_drafter(model, parse_head(head, name="head", method="eagle3"), "eagle3", 3, probabilistic=False)
    assert eagle.layers == ((Attention(8, 128, 128),),)
    cache = engine_cache(model, Serving(16, pipeline_parallel_size=2, speculative=eagle))
    assert [len(stage) for stage in cache.stages] == [16, 17]


def test_a_model_without_prediction_layers_says_so() -> None:
    with pytest.raises(QuestionError, match="no prediction layers"):
        prediction_drafter(shape("Qwen/Qwen3-8B"), 2, probabilistic=False)
