"""What drafts tokens, asked for as vLLM's `speculative_config`: its terms of the sum, and what cannot draft."""

import json
from dataclasses import replace
from typing import Any

import pytest

from sizing.config_json import parse_config
from sizing.errors import QuestionError, SizingError
from sizing.gpu import GIB
from sizing.headers import Tensor
from sizing.heads import parse_head
from sizing.plan import answer
from sizing.question import Answer, Question
from sizing.questions import Sources, read_question
from sizing.speculation import read_speculation
from sizing.weights import quantized, weights_per_rank
from tests.sizing.models import published, published_configs

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
R1 = "deepseek-ai/DeepSeek-R1"
HEAD: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "draft_vocab_size": 32000,
    "max_position_embeddings": 2048,
}
SMALL: dict[str, object] = {**published_configs()[LLAMA], "num_hidden_layers": 2}


def nowhere(*_: object) -> Any:
    raise AssertionError("a model that is not among the configs")


SOURCES = Sources(nowhere, nowhere, configs={**published_configs(), "head": HEAD, "small": SMALL})


def asked(model: str, speculative: object, **settings: object) -> Question:
    row = {"model": model, "gpu": "H200", "speculative_config": speculative, **settings}
    return read_question(row, SOURCES)


def term_bytes(found: Answer, name: str) -> int:
    return next((term.bytes for term in found.terms if term.name == name), 0)


def test_the_object_and_its_json_text_are_the_same_question() -> None:
    said = {"method": "mtp", "num_speculative_tokens": 1}
    assert asked(R1, said, tp=8) == asked(R1, json.dumps(said), tp=8)
    assert asked(R1, {"method": "deepseek_mtp"}, tp=8) == asked(R1, said, tp=8)


def test_prediction_layers_are_loaded_only_to_draft() -> None:
    alone = answer(asked(R1, None, tp=8))
    drafted = answer(asked(R1, {"method": "mtp", "num_speculative_tokens": 1}, tp=8))
    assert drafted.weights_bytes == alone.weights_bytes
    assert term_bytes(alone, "drafter") == 0
    # one layer of 256 experts of 3 x 7168 x 2048 in FP8, an eighth on each rank, and 2 x 7168 x 7168 in bfloat16
    experts, joint = 256 * 3 * 7168 * 2048 / 8, 2 * 2 * 7168 * 7168
    assert term_bytes(drafted, "drafter") == pytest.approx(experts + joint, rel=0.1)
    assert drafted.kv_bytes_per_token * 61 == alone.kv_bytes_per_token * 62
    assert drafted.kv_cache_bytes < alone.kv_cache_bytes


def test_what_looks_drafts_up_in_the_text_costs_nothing_on_the_card() -> None:
    alone = answer(asked(LLAMA, None))
    for method in ("ngram", "suffix"):
        drafted = answer(asked(LLAMA, {"method": method, "num_speculative_tokens": 3}))
        assert [term.name for term in drafted.terms] == [term.name for term in alone.terms]
        assert drafted.kv_bytes_per_token == alone.kv_bytes_per_token


def test_logits_that_are_kept_for_verification() -> None:
    said = {"method": "eagle3", "model": "head", "num_speculative_tokens": 3}
    greedy, sampled = (
        answer(asked(LLAMA, {**said, "draft_sample_method": how}, max_num_seqs=256))
        for how in ("greedy", "probabilistic")
    )
    more = term_bytes(sampled, "drafter state") - term_bytes(greedy, "drafter state")
    assert more == 256 * 3 * 32000 * 2


def test_an_embedding_in_a_heads_files_may_or_may_not_stay() -> None:
    """vLLM drops it where it equals the model's, which headers do not tell: the band holds both."""

    def tensor(name: str, *shape: int) -> Tensor:
        elements = shape[0] * (shape[1] if len(shape) > 1 else 1)
        return Tensor(name, "BF16", shape, 2 * elements)

    layer = {
        "q_proj": (4096, 8192),
        "k_proj": (1024, 8192),
        "v_proj": (1024, 8192),
        "o_proj": (4096, 4096),
        "gate_proj": (14336, 4096),
        "up_proj": (14336, 4096),
        "down_proj": (4096, 14336),
    }
    files = [tensor(f"midlayer.x.{name}.weight", *shape) for name, shape in layer.items()]
    files += [tensor(f"midlayer.{name}.weight", 4096) for name in ("input_layernorm", "hidden_norm", "post_norm")]
    files += [tensor("fc.weight", 4096, 3 * 4096), tensor("norm.weight", 4096), tensor("lm_head.weight", 32000, 4096)]
    files += [Tensor("d2t", "I64", (32000,), 8 * 32000), Tensor("t2d", "BOOL", (128256,), 128256)]
    by_config = parse_head(HEAD, name="head", method="eagle3")
    by_headers = parse_head(HEAD, name="head", method="eagle3", tensors=files)
    for ranks in (1, 2):
        sizes = [
            weights_per_rank(head, tensor_parallel_size=ranks, as_allocated=False) for head in (by_config, by_headers)
        ]
        assert sizes[0] == sizes[1]

    table = tensor("embed_tokens.weight", 128256, 4096)
    sources = replace(
        SOURCES,
        configs=published_configs(),
        load_head=lambda *_: parse_head(HEAD, name="head", method="eagle3", tensors=[*files, table]),
    )
    said = {"method": "eagle3", "model": "elsewhere", "num_speculative_tokens": 3}
    found = answer(read_question({"model": LLAMA, "gpu": "H200", "speculative_config": said}, sources))
    term = next(term for term in found.terms if term.name == "drafter")
    assert term.high_bytes - term.bytes > table.num_bytes > term.bytes - term.low_bytes
    assert "dropped where it equals" in term.why


def test_prediction_layers_by_their_headers_weigh_what_they_weigh_by_config() -> None:
    config = {**published_configs()["Qwen/Qwen3-Next-80B-A3B-Instruct"], "num_hidden_layers": 4, "num_experts": 2}
    config["layer_types"] = ["linear_attention"] * 3 + ["full_attention"]
    config.pop("quantization_config", None)
    model = parse_config(config, name="m")
    assert model.predictor is not None
    prediction = [
        Tensor(f"{weight.name}{'' if weight.name.endswith('norm') else '.weight'}", "BF16", shape, 2 * elements)
        for weight in model.predictor.blueprint
        for shape, elements in [((weight.copies, *weight.shape), weight.num_elements)]
    ]
    decoder = [
        Tensor(weight.name, "BF16", (weight.copies, *weight.shape), 2 * weight.num_elements)
        for weight in model.blueprint
    ]
    read = parse_config(config, name="m", tensors=[*decoder, *prediction])
    assert read.predictor is not None
    assert read.predictor.weights_bytes == model.predictor.weights_bytes
    assert parse_config(config, name="m", tensors=decoder).predictor is None


def test_prediction_layers_are_packed_with_the_model() -> None:
    model = published("Qwen/Qwen3-Next-80B-A3B-Instruct")
    packed = quantized(model, "fp8")
    assert model.predictor is not None
    assert packed.predictor is not None
    assert packed.predictor.weights_bytes == pytest.approx(model.predictor.weights_bytes / 2, rel=0.01)


def test_on_the_last_of_several_stages() -> None:
    said = {"method": "mtp", "num_speculative_tokens": 1}
    found = answer(asked(R1, said, tp=8, pp=2))
    names = [{term.name for term in budget.terms} for budget in found.budgets]
    assert "drafter" not in names[0]
    assert "drafter" in names[1]
    # it has no embedding to share there
    table = 129_280 * 7168 * 2 / 8
    last = next(term for term in found.budgets[1].terms if term.name == "drafter")
    assert last.bytes - term_bytes(answer(asked(R1, said, tp=8)), "drafter") == pytest.approx(table, rel=0.01)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("x", "is not JSON"),
        ([1], "no JSON object"),
        ({"method": "eagel", "num_speculative_tokens": 3}, "did you mean 'eagle'"),
        ({"method": "medusa", "num_speculative_tokens": 3}, "not sized yet; sized are mtp"),
        ({"method": "eagle3", "model": "head"}, 'add such as "num_speculative_tokens": 3'),
        ({"method": "eagle3", "num_speculative_tokens": 3}, 'add "model"'),
        ({"method": "ngram", "num_speculative_tokens": 0}, "from 1 to 1024"),
        ({"method": "ngram", "num_speculative_token": 3}, "did you mean 'num_speculative_tokens'"),
        ({"num_speculative_tokens": 3}, "neither a method nor a model"),
        ({"method": "draft_model", "model": "small", "num_speculative_tokens": 3, "kv_cache_dtype": "fp8"}, "leave it"),
    ],
)
def test_what_cannot_be_meant_is_said_with_the_way_out(said: object, complaint: str) -> None:
    with pytest.raises(QuestionError, match=complaint):
        asked(LLAMA, said)


@pytest.mark.parametrize(
    ("model", "said", "complaint"),
    [
        ("Qwen/Qwen3-8B", {"method": "mtp"}, "no prediction layers"),
        ("Qwen/Qwen3-8B", {"model": "small", "num_speculative_tokens": 3}, "a smaller model of the same family"),
        (LLAMA, {"method": "eagle3", "model": "lost", "num_speculative_tokens": 3}, "the draft model of spec.*lost"),
    ],
)
def test_what_cannot_draft_for_that_model(model: str, said: object, complaint: str) -> None:
    with pytest.raises(SizingError, match=complaint):
        asked(model, said)


def test_a_method_is_found_out_by_the_name_as_vllm_does() -> None:
    for name, method in (("a/EAGLE-x", "eagle"), ("a/EAGLE3-x", "eagle3"), ("a/small", "draft_model")):
        assert read_speculation({"model": name, "num_speculative_tokens": 1}).method == method
    assert read_speculation({"method": "suffix"}).num_speculative_tokens == 24


def test_data_parallel_engines_deal_out_the_experts_and_repeat_the_rest() -> None:
    sizes = {"tp": 1, "dp": 8, "ep": True}
    row = {"model": R1, "gpu": "H200", **sizes}
    question = read_question(row, SOURCES)
    assert question.count == 8
    found = answer(question)
    alone = weights_per_rank(question.model, tensor_parallel_size=1)[0]
    experts = question.model.held.decoder.experts if question.model.held else 0
    assert found.weights_bytes == pytest.approx(alone - experts * 7 / 8, rel=0.001)
    assert found.settings.num_cards == 8
    # dense: each rank is an engine by itself
    dense = answer(read_question({"model": LLAMA, "gpu": "L40S", "dp": 4}, SOURCES))
    assert dense.kv_cache_tokens == answer(read_question({"model": LLAMA, "gpu": "L40S"}, SOURCES)).kv_cache_tokens


def test_data_parallel_needs_its_cards() -> None:
    with pytest.raises(QuestionError, match="--count 16"):
        answer(read_question({"model": R1, "gpu": "H200", "tp": 2, "dp": 8, "count": 8}, SOURCES))
    with pytest.raises(QuestionError, match="data_parallel_size is 0"):
        answer(read_question({"model": R1, "gpu": "H200", "dp": 0, "count": 8}, SOURCES))


def test_the_prediction_layer_of_a_logged_start() -> None:
    """A 27B of Qwen3.5's shape logged 51.10 GiB loaded without its prediction layer and 51.89 with it."""
    layer = published("Qwen/Qwen3.5-27B").predictor
    assert layer is not None
    assert layer.weights_bytes / GIB == pytest.approx(51.89 - 51.10, abs=0.01)
