"""Rows of questions: vLLM's names and those of collected logs, cards as people write them, bad rows by line."""

import pytest

from sizing.adapter_settings import Adapters
from sizing.errors import QuestionError, SizingError
from sizing.gpu import GIB, Device, gpu
from sizing.model import ModelShape
from sizing.plan import cache_capacity
from sizing.questions import Sources, read_question
from tests.sizing.models import SMOLLM2, published, published_configs

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
HERE = Device("cuda", "L4", 22 * GIB, 20 * GIB, link="pcie")


def load(ref: str, revision: str | None) -> ModelShape:
    return published(ref)


SOURCES = Sources(load=load, machine=lambda: (HERE, 2), configs={"own/model": SMOLLM2})
ROW: dict[str, object] = {"model": LLAMA, "gpu": "H100"}


def test_short_names_mean_vllms_flags() -> None:
    short = {
        **ROW,
        "tp": 2,
        "pp": 1,
        "gmu": 0.8,
        "kv_dtype": "fp8",
        "vllm": "0.11.0",
        "ep": None,
        "prefix_caching": False,
    }
    long = {
        **ROW,
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.8,
        "kv_cache_dtype": "fp8",
        "vllm_version": "0.11.0",
        "enable_prefix_caching": False,
    }
    assert read_question(short, SOURCES) == read_question(long, SOURCES)


def test_what_a_row_logged_is_no_part_of_the_question() -> None:
    logged = {"kv_tokens": 1, "load_gib": 1.0, "outcome": "refused", "note": "x", "complete": True}
    assert read_question({**ROW, **logged}, SOURCES) == read_question(ROW, SOURCES)


def test_cards_that_were_used_are_the_parallel_size_and_cards_there_are_leave_it_open() -> None:
    used, there = read_question({**ROW, "ngpu": 4}, SOURCES), read_question({**ROW, "count": 4}, SOURCES)
    assert (used.count, used.tensor_parallel_size) == (4, 4)
    assert (there.count, there.tensor_parallel_size) == (4, None)
    staged = read_question({**ROW, "ngpu": 4, "pp": 2}, SOURCES)
    assert (staged.tensor_parallel_size, staged.pipeline_parallel_size) == (2, 2)
    assert read_question({**ROW, "tp": 8}, SOURCES).count == 8


@pytest.mark.parametrize(
    ("text", "card"),
    [
        ("H100", "H100"),
        ("A100 40GB (p4d)", "A100-40GB"),
        ("A100 80GB", "A100-80GB"),
        ("GB10 (DGX Spark)", "GB10"),
        ("MI300X (ROCm)", "MI300X"),
        ("RTX 4090 (WSL)", "RTX4090"),
        ("RTX 5070 Ti 16GB (limiting rank) + RTX 5090", "RTX5070Ti"),
        ("NVIDIA H100 80GB HBM3", "H100"),
    ],
)
def test_cards_as_logs_describe_them(text: str, card: str) -> None:
    assert read_question({**ROW, "gpu": text}, SOURCES).device == gpu(card)


def test_a_total_that_is_given_comes_first_and_names_a_card_of_no_catalogue() -> None:
    assert read_question({**ROW, "gpu": "H100", "gpu_total_gib": 79.33}, SOURCES).device.memory_bytes == int(
        79.33 * GIB
    )
    unknown = read_question({**ROW, "gpu": "80GB class (79.19 GiB)", "gpu_total_gib": 79.19}, SOURCES).device
    assert (unknown.name, unknown.link) == ("80GB class (79.19 GiB)", "pcie")
    used = read_question({**ROW, "gpu_free_gib": 30, "link": "pcie"}, SOURCES).device
    assert (used.free_bytes, used.link) == (30 * GIB, "pcie")


def test_auto_is_the_longest_context_that_fits() -> None:
    for auto in ("auto", -1):
        assert read_question({**ROW, "max_model_len": auto}, SOURCES) == read_question(ROW, SOURCES)


def test_a_laptops_card_is_not_the_desktops() -> None:
    with pytest.raises(SizingError, match="no GPU called"):
        read_question({**ROW, "gpu": "RTX 5090 Laptop"}, SOURCES)


def test_the_machine_itself() -> None:
    asked = read_question({"model": LLAMA, "detected": True}, SOURCES)
    assert (asked.device, asked.count) == (HERE, 2)
    with pytest.raises(QuestionError, match="count is 3, but this machine has 2 of L4"):
        read_question({"model": LLAMA, "detected": True, "count": 3}, SOURCES)


def test_models_by_name_inline_and_by_configs() -> None:
    inline = read_question({"config": SMOLLM2, "gpu": "L4"}, SOURCES).model
    named = read_question({"model": "own/model", "gpu": "L4"}, SOURCES).model
    aside = read_question({"model": "own/model (GGUF Q8_0)", "gpu": "L4", "quant": "gguf-q8_0"}, SOURCES).model
    assert inline.num_parameters == named.num_parameters == aside.num_parameters
    assert aside.quantization == "gguf"
    assert aside.weights_bytes < 0.6 * named.weights_bytes


@pytest.mark.parametrize("words", ["fp8 (online)", "compressed-tensors fp8-dynamic", "FP8"])
def test_schemes_as_logs_name_them(words: str) -> None:
    plain = read_question(ROW, SOURCES).model
    packed = read_question({**ROW, "quant": words}, SOURCES).model
    assert packed.quantization is not None
    assert 0.5 < packed.weights_bytes / plain.weights_bytes < 0.6  # the vocabulary's tables stay as they are


def test_a_type_that_is_named_is_served() -> None:
    assert read_question({**ROW, "dtype": "fp32"}, SOURCES).model.dtype == "float32"
    assert read_question({**ROW, "dtype": "fp16/bf16"}, SOURCES).model.dtype == "bfloat16"  # the log did not say


def test_a_cache_alone_needs_no_widths_of_weights() -> None:
    """Qwen3.5-9B's layers as a log gives them: 32 of which every fourth is full, in blocks of 528 tokens."""
    sizes = {"num_hidden_layers": 32, "full_attention_interval": 4, "num_key_value_heads": 4, "head_dim": 256}
    delta = {"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128}
    config = {**sizes, **delta, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "vocab_size": 248_320}
    row = {"config": config, "gpu": "L40S", "max_model_len": 262_144}
    with pytest.raises(SizingError, match="lacks hidden_size"):
        read_question(row, SOURCES)
    found = cache_capacity(read_question(row, SOURCES, cache_only=True), 20 * GIB)
    assert found.num_blocks == 20 * GIB // (8 * 528 * 4 * 2 * 256 * 2)


def test_a_row_of_adapters() -> None:
    """A start-up log's `lora` beside what was asked for adds nothing."""
    asked = {"enable_lora": True, "max_loras": 4, "max_lora_rank": 32, "lora_target_modules": ["qkv_proj"]}
    expected = Adapters(4, 32, lora_target_modules=("qkv_proj",))
    assert read_question({**ROW, **asked}, SOURCES).adapters == expected
    assert read_question({**ROW, **asked, "lora": True}, SOURCES).adapters == expected
    assert read_question({**ROW, "lora": False}, SOURCES).adapters is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "a question is a JSON object"),
        ({**ROW, "modle": 1}, "'modle' is not part of a question; did you mean 'model'"),
        ({"gpu": "H100"}, "names no model"),
        ({"model": LLAMA}, "names no card"),
        ({**ROW, "gpu": 4}, "gpu is 4; it has to be text"),
        ({**ROW, "tp": "2"}, "tensor_parallel_size is '2'; it has to be a number"),
        ({**ROW, "tp": 1.5}, "has to be a whole number"),
        ({**ROW, "tp": True}, "has to be a number"),
        ({**ROW, "enforce_eager": 1}, "has to be true or false"),
        ({**ROW, "dtype": "int4"}, "dtype 'int4' is not served"),
        ({**ROW, "link": "wifi"}, "link 'wifi' is not known"),
        ({**ROW, "engine": "V9"}, "engine 'V9' is not known"),
        ({**ROW, "lora": True}, "not how many; say enable_lora, max_loras and max_lora_rank too"),
        ({**ROW, "max_loras": 4}, "max_loras says how adapters are kept; add enable_lora"),
        ({**ROW, "enable_lora": True, "max_lora_rank": 24}, "max_lora_rank is 24; vLLM takes 1, 8, 16"),
        ({**ROW, "config": "x"}, "config is not a JSON object"),
        ({**ROW, "quant": "int3"}, "'int3' is not known"),
    ],
)
def test_bad_rows_say_what_and_the_way_out(row: object, said: str) -> None:
    with pytest.raises(QuestionError) as caught:
        read_question(row, SOURCES)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_published_configs_are_answered_or_refused_in_a_line() -> None:
    refused: dict[str, str] = {}
    for name, config in published_configs().items():
        try:
            read_question({"config": config, "gpu": "H200", "tp": 8}, SOURCES)
        except SizingError as error:
            refused[name] = str(error)
    assert list(refused) == ["nvidia/Llama-3_3-Nemotron-Super-49B-v1"]  # its excerpt has no block_configs
    assert all("\n" not in message for message in refused.values())
