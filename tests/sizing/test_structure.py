"""Models whose architecture is not known: layers read off the keys, and the KV cache of files that say nothing else."""

import pytest

from sizing.config_json import kv_layers, parse_config
from sizing.engine_cache import Serving, engine_cache
from sizing.errors import ModelFileError, UnsupportedModelError
from sizing.gpu import GIB
from sizing.layers import Attention, Latent, Recurrent
from sizing.pages import StatePage
from sizing.release import Release
from tests.sizing.models import SMOLLM2, published, published_configs, smollm2

UNNAMED = {key: value for key, value in SMOLLM2.items() if key != "architectures"}


def test_a_plain_decoder_without_a_name_is_what_its_keys_say() -> None:
    named, unnamed = smollm2(), parse_config(UNNAMED, name="m")
    assert unnamed.num_parameters == named.num_parameters
    assert unnamed.cache_layers == named.cache_layers
    assert named.assumed is None
    assert unnamed.assumed == "config.json names no architecture: its 30 layers are read off the keys"
    other = parse_config({**SMOLLM2, "architectures": ["NewForCausalLM"]}, name="m")
    assert other.assumed == "NewForCausalLM is not known here: its 30 layers are read off the keys"
    assert other.num_parameters == named.num_parameters


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 512}, [512] * 30),
        ({"sliding_window": 512, "use_sliding_window": False}, [None] * 30),
        ({"sliding_window": 512, "sliding_window_pattern": 6}, ([512] * 5 + [None]) * 5),
        ({"sliding_window": 512, "full_attention_interval": 3}, ([512] * 2 + [None]) * 10),
        ({"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"] * 15}, [None, 512] * 15),
    ],
)
def test_windows_are_read_off_the_keys(changes: dict[str, object], windows: list[int | None]) -> None:
    kept = [layer for caches in parse_config({**UNNAMED, **changes}, name="m").cache_layers for layer in caches]
    assert [layer.window for layer in kept if isinstance(layer, Attention)] == windows


def test_mixtures_and_latent_attention_are_read_off_the_keys() -> None:
    names = ("Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite")
    for name in names:
        config = {key: value for key, value in published_configs()[name].items() if key != "architectures"}
        unnamed, named = parse_config(config, name=name), published(name)
        assert unnamed.cache_layers == named.cache_layers
        assert unnamed.num_parameters == pytest.approx(named.num_parameters, rel=1e-4)
    assert isinstance(unnamed.cache_layers[0][0], Latent)


def test_a_wrapper_of_no_known_name_is_unwrapped() -> None:
    config = {"architectures": ["NewForConditionalGeneration"], "vision_config": {"depth": 3}, "text_config": UNNAMED}
    shape = parse_config(config, name="m")
    assert shape.cache_layers == smollm2().cache_layers
    assert shape.caveat is not None


def test_a_flat_multimodal_file_is_its_decoder_and_an_encoder() -> None:
    config = {**published_configs()["Qwen/Qwen2.5-7B-Instruct"], "vision_config": {"depth": 32}}
    shape = parse_config({**config, "architectures": ["Qwen2_5_VLForConditionalGeneration"]}, name="m")
    assert shape.cache_layers == published("Qwen/Qwen2.5-7B-Instruct").cache_layers
    assert (shape.assumed, shape.caveat is not None) == (None, True)


def test_latent_attention_of_a_type_that_vllm_may_not_know_is_refused() -> None:
    config = {**published_configs()["deepseek-ai/DeepSeek-V2-Lite"], "architectures": ["NewLatentForCausalLM"]}
    with pytest.raises(UnsupportedModelError, match="keeps latent vectors for model_type 'new_latent'"):
        parse_config({**config, "model_type": "new_latent"}, name="m")


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"head_dim": 64, "v_head_dim": 48}, "values of another width than keys"),
        ({"num_attention_heads_per_layer": [9, 6, *[9] * 28]}, "layers of differing shape"),
        ({"loop_num": 2, "loop_window_size": 64}, "layers that every token passes more than once"),
        ({"interleaved_sliding_window": [512, None]}, "windows that its class deals out"),
        ({"sliding_window": 512, "no_rope_layers": [1, 0] * 15}, "windows that its class deals out"),
    ],
)
def test_shapes_that_a_plain_decoder_does_not_have_are_refused(changes: dict[str, object], kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"announces {kind}"):
        parse_config({**UNNAMED, **changes}, name="m")
    parse_config({**UNNAMED, "head_dim": 64, "v_head_dim": 64, "num_attention_heads_per_layer": [9] * 30}, name="m")


def test_shared_experts_and_dense_layers_under_their_other_names() -> None:
    config = {**published_configs()["Qwen/Qwen3-30B-A3B"], "architectures": ["NewMoeForCausalLM"]}
    plain, width = parse_config(config, name="m"), 768
    shared = parse_config({**config, "num_shared_experts": 2}, name="m")
    assert shared.num_parameters - plain.num_parameters == 48 * 3 * 2048 * 2 * width
    dense = parse_config({**config, "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 45}, name="m")
    assert plain.num_parameters - dense.num_parameters == 3 * (2048 * 128 + 3 * 2048 * (128 * width - 6144))


# Qwen3.5-9B as far as its cache goes: logged with blocks of 528 tokens, padded by 0.76 %
QWEN35_9B: dict[str, object] = {
    "num_hidden_layers": 32,
    "full_attention_interval": 4,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}


def test_a_file_without_widths_still_sizes_its_cache() -> None:
    shape = kv_layers(QWEN35_9B, name="Qwen/Qwen3.5-9B")
    assert (shape.hidden_size, shape.vocab_size, shape.weights_bytes, shape.num_parameters) == (0, 0, 0, 0)
    assert sum(isinstance(caches[0], Recurrent) for caches in shape.cache_layers) == 24
    cache = engine_cache(shape, Serving(block_size=16, max_num_batched_tokens=2048))
    assert cache.block_size == 528
    state = cache.pages[0]
    assert isinstance(state, StatePage)
    assert state.page_bytes / state.state_bytes == pytest.approx(1.0076, abs=1e-4)
    assert cache.block_bytes == 8 * 528 * 4 * 2 * 256 * 2
    assert cache.capacity(GIB, 4096).num_blocks == GIB // cache.block_bytes
    # a release before prefix caching was the default beside states: "165,792 tokens" and "2.52x" at 262,144
    old = engine_cache(shape, Serving(16, max_num_batched_tokens=2048, release=Release(17)))
    capacity = old.capacity(1258 * old.block_bytes, 262_144)
    assert (capacity.tokens, f"{capacity.max_concurrency:.2f}") == (165_792, "2.52")
    with pytest.raises(ModelFileError, match="no width"):
        kv_layers({key: value for key, value in QWEN35_9B.items() if key != "head_dim"}, name="m")


def test_a_named_file_sizes_its_cache_the_same_without_its_weights() -> None:
    config = published_configs()["openai/gpt-oss-20b"]
    shape = kv_layers(config, name="m")  # its weights are known from headers alone
    cache = engine_cache(shape, Serving(block_size=16, max_num_batched_tokens=8192))
    assert len(cache.groups) == 2
    assert cache.block_bytes == 12 * 16 * 8 * 2 * 64 * 2


@pytest.mark.parametrize(("activation", "matrices"), [("silu", 3), ("gelu_pytorch_tanh", 3), ("relu2", 2), ("gelu", 2)])
def test_the_activation_tells_whether_an_unknown_decoder_has_gates(activation: str, matrices: int) -> None:
    config = {
        "architectures": ["SomethingForCausalLM"],
        "hidden_act": activation,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 2048,
    }
    shape = parse_config(config, name="m")
    attention = 2 * 256 * 256 + 2 * 256 * 128 + 2 * 256
    by_hand = 2 * 1024 * 256 + 256 + 2 * (attention + matrices * 256 * 1024)
    assert shape.num_parameters == by_hand
    assert shape.weights_bytes == 2 * by_hand
