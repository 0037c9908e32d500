"""Families beyond plain decoders: published parameter counts, pages by hand, and logs of real starts."""

from dataclasses import dataclass, replace

import pytest

from sizing.config_json import kv_layers, parse_config
from sizing.engine_cache import Serving, engine_cache, pipeline_stages
from sizing.errors import QuestionError
from sizing.gpu import GIB, gpu
from sizing.headers import Tensor, loaded_tensors
from sizing.kv_cache import KvCache
from sizing.layers import Latent, Recurrent
from sizing.memory import block_size
from sizing.model import ModelShape
from sizing.pages import LatentPage
from sizing.parameters import count_parameters
from sizing.plan import answer
from sizing.question import Question
from sizing.release import NEWEST, Release, batch_defaults
from sizing.weights import weights_per_rank_bytes
from tests.sizing.models import published, published_configs


def unquantized(name: str) -> ModelShape:
    return published(name, quantization_config=None)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("openai/gpt-oss-20b", 20.91),
        ("openai/gpt-oss-120b", 116.83),
        ("deepseek-ai/DeepSeek-R1", 671.03),
        ("deepseek-ai/DeepSeek-V2-Lite", 15.71),
        ("moonshotai/Kimi-K2-Instruct", 1026.4),
        ("zai-org/GLM-5", 743.9),
        ("MiniMaxAI/MiniMax-M2.5", 228.7),
        ("google/gemma-3-27b-it", 27.01),  # 27.4 with its vision encoder
        ("google/gemma-4-26B-A4B", 25.25),  # 25.8 with its vision encoder
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 107.77),  # 108.6 with its vision encoder
        ("Qwen/Qwen3.5-35B-A3B", 34.66),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", 79.67),
        ("LGAI-EXAONE/EXAONE-4.0-32B", 32.0),
    ],
)
def test_the_decoders_count_is_the_published_one(name: str, billions: float) -> None:
    assert count_parameters(unquantized(name)).total == pytest.approx(billions * 1e9, rel=1e-3)


def test_latent_projections_are_whole_on_every_rank() -> None:
    shape = unquantized("deepseek-ai/DeepSeek-R1")
    down = 61 * (7168 * (1536 + 576) + 1536 + 512 + 2 * 7168) + 58 * 256 * (7168 + 1) + 7168
    positions = 163_840 * 64  # of the rotated part of a head
    held = weights_per_rank_bytes(shape, 8, as_allocated=False)
    assert held == pytest.approx(2 * ((shape.num_parameters - down) / 8 + down + positions), rel=1e-9)


def served(name: str, **serving: object) -> KvCache:
    return engine_cache(unquantized(name), Serving(**{"block_size": 16} | serving))  # type: ignore[arg-type]


def test_deepseek_r1_keeps_576_numbers_a_token_on_every_rank() -> None:
    for ranks in (1, 8):
        assert served("deepseek-ai/DeepSeek-R1", tensor_parallel_size=ranks).bytes_per_token == 61 * 576 * 2 == 70_272


def test_an_indexer_keeps_a_byte_an_element_and_a_scale() -> None:
    assert served("deepseek-ai/DeepSeek-V3.2", block_size=64).bytes_per_token == 61 * (576 * 2 + 132)


@pytest.mark.parametrize(
    ("name", "dtype", "major", "release", "token_bytes"),
    [
        ("deepseek-ai/DeepSeek-V3.2", "fp8", 9, NEWEST, 656),
        ("deepseek-ai/DeepSeek-V3.2", "auto", 9, NEWEST, 1152),
        ("deepseek-ai/DeepSeek-V3.2", "auto", 9, Release(11), 656),  # packed before anyone asked
        ("deepseek-ai/DeepSeek-V3.2", "fp8", 10, NEWEST, 576),
        ("deepseek-ai/DeepSeek-V3.2", "fp8", 10, Release(16), 656),
        ("deepseek-ai/DeepSeek-V3.2", "auto", 12, NEWEST, 656),
        ("deepseek-ai/DeepSeek-V3.2", "nvfp4_ds_mla", 10, NEWEST, 352),
        ("zai-org/GLM-5", "auto", 9, NEWEST, 1152),
        ("zai-org/GLM-5", "auto", 10, NEWEST, 576),
        ("zai-org/GLM-5", "auto", 10, Release(28), 1152),
    ],
)
def test_beside_an_indexer_card_and_release_decide_the_layout(
    name: str, dtype: str, major: int, release: Release, token_bytes: int
) -> None:
    cache = served(name, block_size=64, kv_cache_dtype=dtype, compute_major=major, release=release)
    latent = [page for page in cache.groups[0].pages if isinstance(page, LatentPage) and page.role == "indexed"]
    assert {page.state_bytes for page in latent} == {token_bytes}


def test_four_bits_and_a_scale_for_each_sixteen() -> None:
    cache = served("Qwen/Qwen3-8B", kv_cache_dtype="nvfp4")
    assert cache.bytes_per_token == 36 * 8 * 2 * (64 + 8)
    with pytest.raises(QuestionError, match="no KV cache of type nvfp4"):
        served("deepseek-ai/DeepSeek-R1", kv_cache_dtype="nvfp4")


@pytest.mark.parametrize(("release", "fits"), [(Release(15, 2), False), (Release(17), True)])
def test_a_release_that_counted_every_stages_layers_refused_more(release: Release, fits: bool) -> None:
    # Qwen3-Coder-30B-A3B on two stages: "24.0 GiB KV cache is needed", 3.18 GiB there, "34736" estimated
    cache = served("Qwen/Qwen3-30B-A3B", pipeline_parallel_size=2, release=release)
    available = int(3.18 * GIB)
    assert not cache.holds(available, 262_144)
    assert cache.holds(available, 60_000) is fits
    if not fits:
        assert cache.needed_bytes(262_144) == 24 * GIB
        assert cache.longest_model_len(available, 262_144) == pytest.approx(34_736, abs=32)


def test_gemma_4_e2b_as_it_was_logged_on_a_card_of_192_gib() -> None:
    """35 layers, the last 20 of which share: 155.04 GiB at 32,768 tokens is "9,026,017 tokens" and "275.45x"."""
    types = (["sliding_attention"] * 4 + ["full_attention"]) * 7
    config: dict[str, object] = {
        "architectures": ["Gemma4ForCausalLM"],
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 512,
        "layer_types": types,
        "num_kv_shared_layers": 20,
        "max_position_embeddings": 131_072,
    }
    model = kv_layers(config, name="gemma-4-E2B")
    _, tokens = batch_defaults(NEWEST, memory_bytes=int(191.69 * GIB), name="MI300X")
    cache = engine_cache(model, Serving(16, max_num_batched_tokens=tokens))
    capacity = cache.capacity(int(155.04 * GIB), 32_768)
    assert capacity.tokens == pytest.approx(9_026_017, rel=1e-4)
    assert f"{capacity.max_concurrency:.2f}" == "275.45"


def test_a_gated_delta_net_sets_the_block() -> None:
    # Qwen3.5-35B-A3B was logged with blocks of 1,056 tokens: 2 heads of 256 make 2,048 bytes a token, and the state is
    # 3 x 8,192 channels in bfloat16 and 32 x 128 x 128 numbers in float32
    state = 3 * 8192 * 2 + 32 * 128 * 128 * 4
    assert state == 2_146_304
    cache = served("Qwen/Qwen3.5-35B-A3B", max_num_batched_tokens=2048)
    assert cache.block_size == -(-state // (16 * 2048)) * 16 == 1056
    assert len(cache.groups) == 4
    # 55.72 GiB at 262,144 tokens: "10.85x"
    assert f"{cache.capacity(int(55.72 * GIB), 262_144).max_concurrency:.2f}" == "10.85"


def test_delta_attention_beside_latent_attention_sets_the_block() -> None:
    # GLM-5.3-Flash on eight ranks was logged with blocks of 640 tokens and its states padded by 20.75 %
    state = Recurrent(3 * 72 * 128, 3, 72, 128 * 128, state_bytes=4)
    assert state.page_bytes(8, 2) == 3 * 9 * 128 * 3 * 2 + 9 * 128 * 128 * 4 == 610_560
    model = replace(unquantized("deepseek-ai/DeepSeek-R1"), layers=((state,), (state,), (Latent(576),)) * 20)
    cache = engine_cache(replace(model, num_hidden_layers=60), Serving(64, tensor_parallel_size=8))
    assert cache.block_size == 640
    padding = 100 * (640 * 1152 / 610_560 - 1)
    assert padding == pytest.approx(20.75, abs=0.01)


def test_kimi_linear_and_deepseek_v4_count_what_was_published() -> None:
    full = [4, 8, 12, 16, 20, 24, 27]
    kimi: dict[str, object] = {
        "architectures": ["KimiLinearForCausalLM"],
        "hidden_size": 2304,
        "num_hidden_layers": 27,
        "num_attention_heads": 32,
        "intermediate_size": 9216,
        "moe_intermediate_size": 1024,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "vocab_size": 163840,
        "max_position_embeddings": 1048576,
        "linear_attn_config": {
            "num_heads": 32,
            "head_dim": 128,
            "short_conv_kernel_size": 4,
            "full_attn_layers": full,
            "kda_layers": [layer for layer in range(1, 28) if layer not in full],
        },
    }
    assert parse_config(kimi, name="Kimi-Linear-48B-A3B").num_parameters == pytest.approx(49.1e9, rel=1e-3)
    v4: dict[str, object] = {
        "architectures": ["DeepseekV4ForCausalLM"],
        "hidden_size": 4096,
        "num_hidden_layers": 43,
        "num_attention_heads": 64,
        "head_dim": 512,
        "vocab_size": 129280,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_experts_per_tok": 6,
        "n_shared_experts": 1,
        "sliding_window": 128,
        "q_lora_rank": 1024,
        "qk_rope_head_dim": 64,
        "index_head_dim": 128,
        "index_n_heads": 64,
        "max_position_embeddings": 1048576,
        "compress_ratios": [0, 0, *[4, 128] * 20, 4],
    }
    model = parse_config(v4, name="DeepSeek-V4-Flash")
    assert model.num_parameters == pytest.approx(284e9, rel=2e-3)
    # 21 rows of four tokens and 20 of 128, 21 indexers: 584 and 132 bytes a row, pages aligned to 576
    cache = engine_cache(model, Serving(256, max_num_batched_tokens=8192))
    assert max(cache.stage_block_bytes) == 21 * (65 * 576) + 20 * (3 * 576) + 21 * (15 * 576)


def test_gemma_3_wastes_eight_layers_of_padding() -> None:
    cache = served("google/gemma-3-27b-it", max_num_batched_tokens=8192, async_scheduling=False)
    assert [len(group.layers) for group in cache.groups] == [9, 9, 9, 9, 8, 8, 10]
    # 109.86 GiB at 4,096 tokens: 89,994 blocks and "50.05x"
    capacity = cache.capacity(int(109.86 * GIB), 4096)
    assert capacity.num_blocks == pytest.approx(89_994, abs=5)
    assert f"{capacity.max_concurrency:.2f}" == "50.05"
    # the release that wrote this logged blocks // groups x 16 tokens
    old = served("google/gemma-3-27b-it", max_num_batched_tokens=8192, release=Release(11))
    assert old.capacity(int(109.86 * GIB), 4096).tokens == 205_696


@dataclass(frozen=True)
class Logged:
    """A start-up log: what vLLM said was available, and the concurrency it printed."""

    name: str
    kv_gib: float
    max_model_len: int
    max_num_batched_tokens: int
    concurrency: str


@pytest.mark.parametrize(
    "log",
    [Logged("LGAI-EXAONE/EXAONE-4.0-32B", 10.31, 4096, 2048, "10.28")],
    ids=lambda log: log.name,
)
def test_logged_concurrency_follows_from_logged_memory(log: Logged) -> None:
    cache = served(log.name, max_num_batched_tokens=log.max_num_batched_tokens, async_scheduling=False)
    assert f"{cache.capacity(int(log.kv_gib * GIB), log.max_model_len).max_concurrency:.2f}" == log.concurrency


@pytest.mark.parametrize(
    ("layers", "stages", "counts"), [(61, 2, [31, 30]), (61, 4, [15, 15, 16, 15]), (62, 8, [7, 8, 8, 8, 8, 8, 8, 7])]
)
def test_uneven_layers_go_to_the_stages_before_the_last(layers: int, stages: int, counts: list[int]) -> None:
    assert [len(stage) for stage in pipeline_stages(layers, stages)] == counts


def test_pipeline_stages_share_the_poorest_stages_blocks() -> None:
    cache = served("deepseek-ai/DeepSeek-R1", pipeline_parallel_size=2)
    page = 16 * 576 * 2
    assert cache.stage_block_bytes == (31 * page, 30 * page)
    assert cache.num_blocks([100 * 31 * page, 90 * 30 * page]) == 90


@pytest.mark.parametrize(
    ("card", "dtype", "tokens"), [("H100", "auto", 16), ("H100", "fp8", 64), ("B200", "auto", 32), ("L4", "fp8", 16)]
)
def test_latent_attention_has_the_block_of_its_kernel(card: str, dtype: str, tokens: int) -> None:
    assert block_size(gpu(card), unquantized("deepseek-ai/DeepSeek-R1"), dtype) == tokens
    assert block_size(gpu(card), published("Qwen/Qwen3-8B"), dtype) == 16


def test_sparse_attention_is_refused_where_its_layout_is_not_known() -> None:
    model = published("zai-org/GLM-5")
    with pytest.raises(QuestionError, match="sparse attention"):
        answer(Question(model, gpu("MI300X"), count=8))
    plain = answer(Question(model, gpu("B200"), count=8, kv_cache_dtype="bfloat16"))
    packed = answer(Question(model, gpu("B200"), count=8))
    assert packed.kv_bytes_per_token < plain.kv_bytes_per_token  # B200 packs it when told nothing


def test_plans_hold_for_every_kind_of_layer() -> None:
    for name in published_configs():
        shape = unquantized(name) if "DeciLM" not in str(published_configs()[name]["architectures"]) else None
        if shape is None:
            continue
        found = answer(Question(shape, gpu("H200"), count=8, max_num_batched_tokens=8192))
        if found.fits:
            assert found.num_blocks > 1
            assert found.longest_model_len == found.settings.max_model_len
            assert found.requests_fit >= 1


def test_prediction_layers_are_not_loaded() -> None:
    names = [
        "model.layers.60.mlp.gate.weight",
        "model.layers.61.eh_proj.weight",
        "mtp.layers.0.mlp.gate.weight",
        "model.visual.blocks.0.mlp.weight",
        "language_model.model.layers.61.shared_head.weight",
    ]
    tensors = [Tensor(name, "BF16", (1,), 2) for name in names]
    kept = loaded_tensors(tensors, tie_word_embeddings=False, num_hidden_layers=61)
    assert [tensor.name for tensor in kept] == [names[0], names[3]]


def test_an_encoder_is_weighed_by_its_headers_and_named() -> None:
    config = published_configs()["Qwen/Qwen3-VL-2B-Instruct"]
    decoder = count_parameters(parse_config(config, name="m")).total
    tensors = [
        Tensor("model.language_model.layers.0.mlp.gate_proj.weight", "BF16", (decoder,), 2 * decoder),
        Tensor("model.visual.blocks.0.mlp.linear_fc1.weight", "BF16", (1000, 1000), 2_000_000),
    ]
    shape = parse_config(config, name="m", tensors=tensors)
    assert (shape.num_parameters, shape.encoder_bytes) == (decoder + 1_000_000, 2_000_000)
    assert shape.caveat == "the work of its encoder is not in the sum"
    assert shape.held is not None
    assert weights_per_rank_bytes(shape, 2, as_allocated=False) - shape.held.buffers < shape.weights_bytes / 2 * 1.01
