"""Parameters counted from the shape alone, against published counts and against Transformers' own modules."""

import pytest

from sizing.config_json import parse_config
from sizing.parameters import count_parameters
from sizing.weights import weights_per_rank_bytes
from tests.sizing.models import SMOLLM2, published, smollm2


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Llama-3.1-70B-Instruct", 70_553_706_496),
        ("Qwen/Qwen3-8B", 8_190_735_360),
        ("Qwen/Qwen3-0.6B", 596_049_920),  # tied: its checkpoint repeats the output layer, vLLM does not
        ("Qwen/Qwen2.5-7B-Instruct", 7_615_616_512),  # biased q, k and v projections
        ("Qwen/Qwen3-30B-A3B", 30_532_122_624),  # 128 experts
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
    ],
)
def test_the_count_is_the_published_one(name: str, count: int) -> None:
    shape = published(name)
    assert shape.num_parameters == count
    assert shape.weights_bytes == 2 * count


def test_smollm2_by_hand() -> None:
    # per layer: q and o 2 x 576 x 576, k and v 2 x 576 x 192, three MLP matrices 576 x 1536, two norms
    layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
    assert smollm2().num_parameters == 49152 * 576 + 30 * layer + 576 == 134_515_008


def test_tensor_parallel_divides_matrices_and_repeats_norms() -> None:
    shape = published("meta-llama/Llama-3.1-8B-Instruct")
    norms = (2 * 32 + 1) * 4096
    assert count_parameters(shape).replicated == norms
    rotary = 131_072 * 128  # a row of cosines and sines for each position, on every rank
    assert weights_per_rank_bytes(shape, 1, as_allocated=False) == shape.weights_bytes + 2 * rotary
    assert weights_per_rank_bytes(shape, 4, as_allocated=False) == pytest.approx(
        2 * ((8_030_261_248 - norms) / 4 + norms + rotary), abs=2
    )


def test_key_value_projections_are_repeated_beyond_their_heads() -> None:
    shape = published("Qwen/Qwen2.5-7B-Instruct")  # 4 key-value heads of 28
    assert shape.held is not None
    halves = (weights_per_rank_bytes(shape, 7, as_allocated=False) - shape.held.buffers) * 7 - shape.weights_bytes
    kv_projection = 2 * 28 * 2 * (3584 + 1) * 4 * 128
    norms = 2 * (2 * 28 + 1) * 3584
    assert halves == pytest.approx(kv_projection * (7 / 4 - 1) + 6 * norms, rel=1e-3)


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_vocabulary_is_padded_to_64_rows(ranks: int) -> None:
    whole, odd = smollm2(), smollm2(vocab_size=49153)
    more = (
        weights_per_rank_bytes(odd, ranks, as_allocated=False)
        - weights_per_rank_bytes(whole, ranks, as_allocated=False)
    ) * ranks
    assert more == pytest.approx(64 * 576 * 2, abs=ranks)  # one row more than 49,152 = 768 x 64 makes 64


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
        ("LlamaForCausalLM", {"tie_word_embeddings": True}),
        ("MistralForCausalLM", {"sliding_window": None}),
        ("Qwen2ForCausalLM", {}),
        ("Qwen3ForCausalLM", {"attention_bias": True}),
        ("Qwen3MoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
        (
            "Qwen3MoeForCausalLM",
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
        ),
        ("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("Phi3ForCausalLM", {"pad_token_id": 0}),
        ("GraniteForCausalLM", {"attention_bias": True, "mlp_bias": True}),
        ("GemmaForCausalLM", {"tie_word_embeddings": None}),  # absent: its class ties them
        ("Olmo2ForCausalLM", {}),
        ("OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_the_count_is_that_of_transformers_own_modules(architecture: str, changes: dict[str, object]) -> None:
    import torch
    import transformers

    small: dict[str, object] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "architectures": [architecture],
    }
    config = {**small, **changes}
    kept = {key: value for key, value in config.items() if key not in ("architectures",) and value is not None}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
    with torch.device("meta"):
        module = getattr(transformers, architecture)(config_class(**ids | kept))
    module.tie_weights()
    parameters = {id(parameter): parameter.numel() for parameter in module.parameters()}
    shape_config = {key: value for key, value in {**SMOLLM2, **config}.items() if value is not None}
    shape_config.setdefault("sliding_window", None)
    assert parse_config(shape_config, name=architecture).num_parameters == sum(parameters.values())
