"""What one rank holds: against start-up logs ("Model loading took"), by hand, by headers and config alike."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from sizing.allocator import slack_bytes
from sizing.blueprint import blueprint, is_spelt_out
from sizing.config_json import parse_config
from sizing.config_values import ConfigValues
from sizing.errors import QuestionError
from sizing.gpu import GIB
from sizing.headers import Tensor
from sizing.held import ExpertTiles
from sizing.model import ModelShape
from sizing.parameters import count_parameters
from sizing.release import NEWEST, Release
from sizing.weights import quantized, weights_per_rank, weights_per_rank_bytes
from tests.sizing.models import published, published_configs, qwen3_tensors, smollm2

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"
DECODERS = [name for name in published_configs() if "Nemotron" not in name]


def rank_gib(shape: ModelShape, compute_major: int | None = None) -> float:
    return weights_per_rank(shape, tensor_parallel_size=1, compute_major=compute_major)[0] / GIB


@pytest.mark.parametrize(
    ("name", "scheme", "logged_gib"),
    [
        (LLAMA_8B, None, 14.9888),
        (LLAMA_70B, "fp8", 67.6979),
        (LLAMA_70B, "w8a8-int8", 67.7229),
        (LLAMA_70B, "awq_marlin", 37.09),
        ("Qwen/Qwen3-8B", None, 15.2683),
        ("Qwen/Qwen2.5-7B-Instruct", "awq_marlin", 5.2),
        # the rounding of an allocator makes half a percent of these
        ("LGAI-EXAONE/EXAONE-4.0-32B", "fp8-block", 30.9891),
    ],
)
def test_what_vllm_logged(name: str, scheme: str | None, logged_gib: float) -> None:
    shape = published(name)
    found = rank_gib(quantized(shape, scheme) if scheme else shape)
    assert found == pytest.approx(logged_gib, rel=0.001)


def test_what_the_allocator_rounds_up() -> None:
    mib = 1 << 20
    assert slack_bytes(267.5 * mib) == 0.5 * mib
    assert slack_bytes(35 * mib) == mib
    assert slack_bytes(16.6 * mib) == 0  # 1.4 MiB are left, which another tensor may take
    assert slack_bytes(9.5625 * mib) == pytest.approx(0.4375 * mib)  # two of them in a segment of 20 MiB
    assert slack_bytes(7 * mib) == 0
    assert slack_bytes(1000) == 0


def test_mxfp4_experts_are_padded_as_the_cards_kernels_need() -> None:
    assert rank_gib(published("openai/gpt-oss-20b"), 8) == pytest.approx(13.72, rel=0.003)  # A100, vLLM 0.19


@pytest.mark.parametrize(
    ("name", "tp", "release", "logged_gib"),
    [  # vllm-project/vllm#33155, and jgchn/llm-d-planner's campaign: "Model loading took" on H100s
        ("openai/gpt-oss-120b", 1, Release(14, 1), 64.38),
        ("openai/gpt-oss-20b", 2, Release(19), 7.01),
        ("openai/gpt-oss-20b", 4, Release(19), 3.63),
    ],
)
def test_triton_kernels_on_hopper_keep_scales_twice_and_pad(
    name: str, tp: int, release: Release, logged_gib: float
) -> None:
    found = weights_per_rank_bytes(published(name), tp, compute_major=9, release=release) / GIB
    assert found == pytest.approx(logged_gib, rel=0.0035)


def test_one_expert_on_hopper_by_hand() -> None:
    """gpt-oss on four ranks: 720 of 2,880 columns are held as 768; 2,880 inputs as 2,944 numbers since 0.15."""
    tiles = ExpertTiles(2880, 2880)
    exact = 3 * 2880 * 720 * 17 / 32
    scales = (3 * 768 * 2880 + 1536 * 2880 + 3072 * 768) / 32
    biases = 4 * (1536 + 2880) - 2 * (1440 + 2880)
    older = (1536 * 2880 + 2880 * 768) / 2 + scales + biases
    newer = (1536 * 2944 + 2880 * 768) / 2 + scales + biases
    assert tiles.growth(4, 9, Release(14)) == pytest.approx(older / exact)
    assert tiles.growth(4, 9, Release(15)) == pytest.approx(newer / exact)
    assert tiles.growth(4, 8, Release(15)) == pytest.approx(3072 * 768 / (2880 * 720))


def test_experts_are_dealt_out_whole_under_expert_parallelism() -> None:
    shape = quantized(
        parse_config(  # Qwen3-235B-A22B
            {
                **published_configs()["Qwen/Qwen3-30B-A3B"],
                "hidden_size": 4096,
                "num_hidden_layers": 94,
                "num_attention_heads": 64,
                "moe_intermediate_size": 1536,
            },
            name="m",
        ),
        "fp8-block",
    )
    found = weights_per_rank(shape, tensor_parallel_size=8, enable_expert_parallel=True)[0] / GIB
    assert found == pytest.approx(27.72, rel=0.004)  # L40S, vLLM 0.10.2
    # 128 experts on 24 ranks: some hold 6, which is more than 128 / 24
    dealt, divided = (
        weights_per_rank(
            shape,
            tensor_parallel_size=8,
            data_parallel_size=3,
            enable_expert_parallel=whole_experts,
            as_allocated=False,
        )[0]
        for whole_experts in (True, False)
    )
    assert shape.held is not None
    assert dealt - divided == pytest.approx(shape.held.decoder.experts * (6 / 128 - 1 / 24), abs=2)


@pytest.mark.parametrize("name", DECODERS)
def test_the_parameters_that_are_spelt_out_are_those_that_are_counted(name: str) -> None:
    shape = published(name)
    assert sum(weight.num_elements for weight in shape.blueprint) == count_parameters(shape).total


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("tp", [1, 8])
def test_stages_hold_the_whole_between_them(name: str, tp: int) -> None:
    shape = published(name)
    assert shape.held is not None
    whole = weights_per_rank(shape, tensor_parallel_size=tp, as_allocated=False)[0]
    stages = weights_per_rank(shape, tensor_parallel_size=tp, pipeline_parallel_size=3, as_allocated=False)
    # every stage has its own
    repeated = 2 * (shape.held.buffers + shape.held.encoder_per_rank(tp, NEWEST))
    held = shape.held
    if held.stage_tables != "none":  # so do its tables
        repeated += 2 * held.embedding / tp
    elif shape.tie_word_embeddings:  # the last stage has the table as its output layer
        repeated += held.embedding / tp
    if held.stage_tables == "both":
        repeated += 2 * (held.output / tp + held.last_norm)
    assert sum(stages) == pytest.approx(whole + repeated, abs=4)


def test_the_ends_stand_on_the_first_and_the_last_stage() -> None:
    shape = published(LLAMA_8B)
    first, second, third, last = weights_per_rank(
        shape, tensor_parallel_size=1, pipeline_parallel_size=4, as_allocated=False
    )
    assert second == third
    assert first - second == 2 * 128_256 * 4096
    assert last - second == 2 * (128_256 + 1) * 4096


def test_some_classes_build_their_tables_on_every_stage() -> None:
    shape = published("Qwen/Qwen3-30B-A3B")  # vocabulary 151,936 x 2048, twice, and the last norm
    stages = weights_per_rank(shape, tensor_parallel_size=1, pipeline_parallel_size=4, as_allocated=False)
    assert len(set(stages)) == 1
    assert shape.held is not None
    assert stages[0] - shape.held.buffers == 12 * shape.held.layers[0].total + 2 * (2 * 151_936 + 1) * 2048


def test_layers_that_differ_weigh_on_their_own_stage() -> None:
    shape = published("deepseek-ai/DeepSeek-V2-Lite")  # its first layer of 27 has no experts
    first, second = weights_per_rank(shape, tensor_parallel_size=1, pipeline_parallel_size=2, as_allocated=False)
    assert shape.held is not None
    fourteen = shape.held.layers[1].total * 13 + shape.held.layers[0].total
    assert first == fourteen + shape.held.embedding + shape.held.buffers
    assert second == 13 * shape.held.layers[1].total + shape.held.output + shape.held.last_norm + shape.held.buffers


def as_headers(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[Tensor]:
    found = []
    for name, (dtype, shape) in tensors.items():
        tensor = Tensor(name, dtype, shape, 0)
        found.append(Tensor(name, dtype, shape, tensor.num_elements * {"BF16": 2, "F8_E4M3": 1, "F32": 4}[dtype]))
    return found


@pytest.mark.parametrize("parallel", [(1, 1), (4, 1), (16, 1), (2, 3)])
def test_headers_and_config_agree(parallel: tuple[int, int]) -> None:
    tp, pp = parallel
    config = published_configs()["Qwen/Qwen3-8B"]
    by_config = parse_config(config, name="m")
    by_headers = parse_config(config, name="m", tensors=as_headers(qwen3_tensors(config)))
    sizes = [
        weights_per_rank(shape, tensor_parallel_size=tp, pipeline_parallel_size=pp) for shape in (by_config, by_headers)
    ]
    assert sizes[0] == sizes[1]


def test_headers_of_experts_are_dealt_out_and_routers_are_not() -> None:
    config = {
        **published_configs()["Qwen/Qwen3-30B-A3B"],
        "num_hidden_layers": 1,
        "quantization_config": {"quant_method": "fp8"},
    }
    names = {
        "model.layers.0.mlp.experts.0.up_proj.weight": ("F8_E4M3", (768, 2048)),
        "model.layers.0.mlp.gate.weight": ("BF16", (128, 2048)),
        "model.layers.0.self_attn.o_proj.weight": ("F8_E4M3", (2048, 4096)),
        "model.layers.0.self_attn.o_proj.weight_scale": ("F32", (2048, 1)),
        "model.layers.0.self_attn.q_norm.weight": ("BF16", (128,)),
        "model.layers.0.self_attn.k_proj.weight": ("F8_E4M3", (512, 2048)),
        "model.layers.0.self_attn.k_proj.weight_scale": ("F32", (512, 1)),
    }
    held = parse_config(config, name="m", tensors=as_headers(names)).held
    assert held is not None
    layer = held.layers[0]
    assert layer.experts == 768 * 2048
    assert layer.kv == 512 * 2048 + 512 * 4
    assert layer.sharded == 2048 * 4096
    assert layer.replicated == 128 * 2048 * 2 + 2048 * 4 + 128 * 2


def test_gptqs_tables_that_the_kernels_drop_weigh_nothing() -> None:
    tensors = [
        Tensor("model.layers.0.mlp.up_proj.qweight", "I32", (72, 1536), 72 * 1536 * 4),
        Tensor("model.layers.0.mlp.up_proj.qzeros", "I32", (5, 192), 5 * 192 * 4),
        Tensor("model.layers.0.mlp.up_proj.g_idx", "I32", (576,), 576 * 4),
    ]

    def weighed(*, desc_act: bool) -> int:
        section = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": desc_act}
        config = {"quantization_config": section, **dict(published_configs()["Qwen/Qwen3-8B"])}
        return parse_config(config, name="m", tensors=tensors).weights_bytes

    assert weighed(desc_act=False) == 72 * 1536 * 4
    assert weighed(desc_act=True) == 72 * 1536 * 4 + 576 * 4


def test_latent_attention_keeps_an_unpacked_copy() -> None:
    config = {**published_configs()["deepseek-ai/DeepSeek-V2-Lite"], "quantization_config": {"quant_method": "fp8"}}
    tensor = Tensor("model.layers.0.self_attn.kv_b_proj.weight", "F8_E4M3", (4096, 512), 4096 * 512)
    assert parse_config(config, name="m", tensors=[tensor]).weights_bytes == 4096 * 512 * (1 + 2)
    plain, packed = published("deepseek-ai/DeepSeek-V2-Lite"), parse_config(config, name="m")
    assert plain.held is not None
    assert packed.held is not None
    up, others = 4096 * 512, 2048 * (16 * 192 + 576) + 16 * 128 * 2048 + 3 * 2048 * 10944
    assert plain.held.layers[0].total - packed.held.layers[0].total == others - up


def test_the_served_type_widens_what_is_not_packed() -> None:
    wide = smollm2().served_as("float32")
    sizes = [weights_per_rank_bytes(shape, 1, as_allocated=False) for shape in (wide, smollm2())]
    assert sizes[0] == 2 * sizes[1]


def test_a_shape_that_was_changed_by_hand_is_not_answered_for() -> None:
    with pytest.raises(QuestionError, match="not those that were weighed"):
        weights_per_rank_bytes(replace(smollm2(), weights_bytes=1), 1)
    with pytest.raises(QuestionError, match="not those that were weighed"):
        weights_per_rank_bytes(replace(smollm2(), num_hidden_layers=4), 1)


@pytest.mark.parametrize("name", ["deepseek-ai/DeepSeek-R1", "openai/gpt-oss-120b", "Qwen/Qwen3-8B"])
@pytest.mark.parametrize("scheme", [None, "fp8-block", "nvfp4"])
def test_a_family_that_is_only_counted_comes_close(name: str, scheme: str | None) -> None:
    values = {key: value for key, value in published_configs()[name].items() if key != "quantization_config"}
    shape = parse_config(values, name="m")
    counted = replace(shape, architecture="SomethingNewForCausalLM", parameters=count_parameters(shape))
    counted = replace(counted, blueprint=blueprint(ConfigValues("m", values), counted))
    assert not is_spelt_out(counted)
    assert sum(weight.num_elements for weight in counted.blueprint) == count_parameters(shape).total
    if scheme:
        shape, counted = quantized(shape, scheme), quantized(counted, scheme)
    for tp in (1, 8):
        assert weights_per_rank_bytes(counted, tp) == pytest.approx(weights_per_rank_bytes(shape, tp), rel=0.02)


def test_nvfp4_by_name_leaves_delta_nets_alone() -> None:
    """RedHatAI/Qwen3.6-35B-A3B-NVFP4 on a GB10, vLLM 0.20.0: 21.86 GiB; its linear attention in NVFP4 would be 20.4."""
    shape = quantized(published("Qwen/Qwen3.5-35B-A3B"), "nvfp4")
    assert rank_gib(shape, None) == pytest.approx(21.86, rel=0.01)


def test_only_long_gemmas_are_taken_to_stretch_their_positions() -> None:
    """gemma-3-1b-it reads 32,768 tokens and logs 1.9148 GiB (vLLM 0.13.0); a table of eight times that is 0.12 more."""
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": "bfloat16",
        "hidden_size": 1152,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 6912,
        "vocab_size": 262144,
        "max_position_embeddings": 32768,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
    }
    assert rank_gib(parse_config(config, name="m"), 12) == pytest.approx(1.9148, rel=0.003)
