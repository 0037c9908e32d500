"""What a config.json means: the shape, the context length vLLM derives, and the refusals by name."""

import pytest

from sizing.config_json import parse_config
from sizing.errors import ModelFileError, SizingError, UnsupportedModelError
from sizing.headers import Tensor
from sizing.layers import Attention
from tests.sizing.models import SMOLLM2, published, published_configs, smollm2

SIZED = {
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen3-30B-A3B",
    "mistralai/Mixtral-8x7B-v0.1",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B-Instruct",
    "Qwen/Qwen3-VL-2B-Instruct",
    "Qwen/Qwen3.5-27B",
    "XiaomiMiMo/MiMo-7B-Base",
    "google/gemma-3-27b-it",
    "google/gemma-4-26B-A4B",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "deepseek-ai/DeepSeek-V2-Lite",
    "zai-org/GLM-5",
    "Qwen/Qwen3.5-35B-A3B",
    "LGAI-EXAONE/EXAONE-4.0-32B",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    # quantized, and their config.json says how
    "Qwen/Qwen3-32B-FP8",
    "deepseek-ai/DeepSeek-R1",
    "deepseek-ai/DeepSeek-V3.2",
    "moonshotai/Kimi-K2-Instruct",
    "openai/gpt-oss-20b",
    "openai/gpt-oss-120b",
    "MiniMaxAI/MiniMax-M2.5",
}
REFUSED = {
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": "block_configs",
}


def refusal(changes: dict[str, object], without: str | None = None) -> str:
    config = {key: value for key, value in {**SMOLLM2, **changes}.items() if key != without}
    with pytest.raises(SizingError) as caught:
        parse_config(config, name="m")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_shape_is_what_the_file_says() -> None:
    shape = smollm2()
    assert (shape.architecture, shape.num_hidden_layers, shape.hidden_size) == ("LlamaForCausalLM", 30, 576)
    assert (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim) == (9, 3, 64)
    assert (shape.dtype, shape.tie_word_embeddings, shape.quantization) == ("bfloat16", True, None)


@pytest.mark.parametrize("name", sorted(published_configs()))
def test_every_architecture_is_sized_or_refused_by_name(name: str) -> None:
    if name in SIZED:
        assert published(name).num_parameters > 0
        return
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]) as caught:
        published(name)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 2047}, [2047] * 30),
        ({"sliding_window": 0}, [None] * 30),  # 0 turns it off
        ({"architectures": ["MistralForCausalLM"]}, [4096] * 30),  # its class assumes one
        ({"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"] * 15}, [None, 512] * 15),
        ({"architectures": ["Gemma2ForCausalLM"], "sliding_window": 512}, [512, None] * 15),
    ],
)
def test_windows_are_where_vllm_puts_them(changes: dict[str, object], windows: list[int | None]) -> None:
    kept = [layer for caches in smollm2(**changes).cache_layers for layer in caches]
    assert [layer.window for layer in kept if isinstance(layer, Attention)] == windows


def test_a_wrapper_says_what_of_its_encoder_is_not_in_the_sum() -> None:
    assert published("Qwen/Qwen3-VL-2B-Instruct").caveat == "the work of its encoder is not in the sum"
    assert smollm2().caveat is None


def test_head_dim_is_hidden_over_heads_where_the_file_is_silent() -> None:
    assert published("Qwen/Qwen2.5-7B-Instruct").head_dim == 3584 // 28
    assert "head_dim" in refusal({"architectures": ["Qwen3ForCausalLM"]}, without="head_dim")  # Qwen3's default is 128


def test_llama_without_key_value_heads_has_as_many_as_query_heads() -> None:
    config = {key: value for key, value in SMOLLM2.items() if key != "num_key_value_heads"}
    assert parse_config(config, name="m").num_key_value_heads == 9


@pytest.mark.parametrize(
    ("changes", "default", "longest"),
    [
        ({}, 8192, 8192),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 32768, 32768),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 16384, 16384),
        # these leave max_position_embeddings as it is to be served
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, 8192, 8192),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 8192, 8192),
        ({"model_max_length": 4096}, 4096, 4096),
        ({"seq_length": 2048}, 2048, 2048),  # the smallest of the known keys
        (
            {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096},
            4096,  # vLLM spares short prompts the loss unless asked
            8192,
        ),
    ],
)
def test_max_model_len_is_derived_as_vllm_does(changes: dict[str, object], default: int, longest: int) -> None:
    config = {key: value for key, value in SMOLLM2.items() if key != "rope_parameters"}
    shape = parse_config({**config, **changes}, name="m")
    assert (shape.max_model_len, shape.longest_model_len) == (default, longest)


def test_a_window_that_is_switched_off_is_full_attention() -> None:
    qwen2: dict[str, object] = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 4096}
    assert smollm2(**qwen2, use_sliding_window=False).num_hidden_layers == 30
    assert smollm2(**qwen2).num_hidden_layers == 30  # the switch is off by default
    assert smollm2(sliding_window=4096, layer_types=["full_attention"] * 30).num_hidden_layers == 30
    assert smollm2(architectures=["MistralForCausalLM"], sliding_window=None).num_hidden_layers == 30


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {
                "architectures": ["Qwen2ForCausalLM"],
                "use_sliding_window": True,
                "sliding_window": 1024,
                "max_window_layers": 20,
            },
            "beside full ones is not sized yet, and vLLM refuses it",
        ),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention layers"),
        ({"kv_lora_rank": 512}, "MLA"),
        ({"attention_chunk_size": 8192}, "chunked local attention"),
        ({"num_kv_shared_layers": 15}, "share their KV cache"),
        ({"mamba_d_state": 128}, "Mamba"),
        ({"linear_num_value_heads": 32}, "linear attention"),
        ({"is_encoder_decoder": True}, "encoder"),
        ({"architectures": ["SomethingNewForCausalLM"], "mamba_expand": 2}, "Mamba layers (mamba_expand)"),
        ({"architectures": [], "hybrid_layer_pattern": [0, 1]}, "layers of several kinds (hybrid_layer_pattern)"),
        ({"architectures": [], "layer_types": ["conv"] * 30}, "conv layers"),
        ({"architectures": ["NewForCausalLM"], "num_key_value_heads": None}, "lacks num_key_value_heads"),
    ],
)
def test_layers_that_are_not_sized_are_refused_by_their_name(changes: dict[str, object], named: str) -> None:
    assert named in refusal(changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers = -1"),
        ({"num_hidden_layers": 10**9}, "more than any model has"),  # and takes no memory for each of them
        ({"hidden_size": 10**30}, "more than any model has"),
        ({"hidden_size": 9 * 10**9, "intermediate_size": 10**9}, "parameters, more than any model has"),
        ({"num_hidden_layers": "30"}, "num_hidden_layers = '30'"),
        ({"vocab_size": True}, "vocab_size = True"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"max_position_embeddings": None}, "no max_position_embeddings"),
        ({"num_key_value_heads": 4}, "num_key_value_heads = 4"),  # 9 heads do not divide into 4 groups
        ({"dtype": "int4"}, "dtype = 'int4'"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes'"),
        ({"rope_parameters": 3}, "rope_parameters = 3"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": float("inf")}}, "rope factor = inf"),
        ({"rope_parameters": {"rope_type": "linear", "factor": float("nan")}}, "rope factor = nan"),
        ({"num_hidden_layers": 10_000}, "more than any model has"),  # which would take ten seconds
        ({"num_nextn_predict_layers": 10**12}, "more than any model has"),
    ],
)
def test_impossible_values_are_named_with_their_key(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ModelFileError):
        parse_config({**SMOLLM2, **changes}, name="m")
    assert named in refusal(changes)


def test_a_long_value_is_named_by_its_beginning() -> None:
    said = refusal({"architectures": ["NewForCausalLM"], "layer_types": ["full_attention"] * 29 + [1]})
    assert "layer_types = ['full_attention', " in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("stored", "served"), [("float32", "bfloat16"), ("float16", "float16"), ("torch.bfloat16", "bfloat16")]
)
def test_a_float32_checkpoint_is_served_in_bfloat16(stored: str, served: str) -> None:
    assert smollm2(dtype=stored).dtype == served


def fp8_headers() -> list[Tensor]:
    return [Tensor("model.layers.0.mlp.gate_proj.weight", "F8_E4M3", (1536, 576), 1536 * 576)]


@pytest.mark.parametrize(
    ("quantization", "method", "kv_cache_dtype"),
    [
        ({"quant_method": "fp8"}, "fp8", "auto"),
        ({"quant_method": "awq", "bits": 4}, "awq", "auto"),
        ({"quant_method": "compressed_tensors", "kv_cache_scheme": {"num_bits": 8}}, "compressed-tensors", "fp8"),
        ({"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}, "modelopt", "fp8"),
        ({"quant_method": "modelopt", "kv_cache_scheme": {"type": "float", "num_bits": 8}}, "modelopt", "fp8"),
    ],
)
def test_a_quantized_checkpoint_names_its_method_and_its_kv_cache(
    quantization: dict[str, object], method: str, kv_cache_dtype: str
) -> None:
    shape = parse_config({**SMOLLM2, "quantization_config": quantization}, name="m", tensors=fp8_headers())
    assert (shape.quantization, shape.kv_cache_dtype) == (method, kv_cache_dtype)
    assert shape.weights_bytes == 1536 * 576  # as stored


def test_a_kv_cache_type_that_is_not_sized_is_refused() -> None:
    quantization = {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "NVFP4"}}
    with pytest.raises(UnsupportedModelError, match="NVFP4 KV cache"):
        parse_config({**SMOLLM2, "quantization_config": quantization}, name="m", tensors=fp8_headers())


def test_a_kv_cache_of_impossible_bits_is_refused_too() -> None:
    scheme = {"quant_method": "modelopt", "kv_cache_scheme": {"type": "float", "num_bits": ["8"]}}
    with pytest.raises(UnsupportedModelError, match="KV cache, which is not sized"):
        parse_config({**SMOLLM2, "quantization_config": scheme}, name="m", tensors=fp8_headers())


def test_headers_that_do_not_fit_the_config_are_refused() -> None:
    adapter = [Tensor("base_model.layers.0.lora_A.weight", "BF16", (8, 576), 8 * 576 * 2)]
    with pytest.raises(ModelFileError, match=r"4,608 parameters where config\.json describes 134,515,008"):
        parse_config(SMOLLM2, name="m", tensors=adapter)
