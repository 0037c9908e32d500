"""Families spelt out kind by kind: states and parameters by hand, and against Transformers' own modules."""

from types import SimpleNamespace
from typing import Any

import pytest

from sizing.adapter_settings import Adapters
from sizing.adapters import check_adapters
from sizing.config_json import kv_layers, parse_config
from sizing.division import indivisible
from sizing.engine_cache import Serving, engine_cache
from sizing.errors import ModelFileError, QuestionError, UnsupportedModelError
from sizing.gpu import gpu
from sizing.headers import Tensor
from sizing.layers import Attention, Recurrent
from sizing.model import ModelShape
from sizing.pages import CrossPage, StatePage
from sizing.plan import answer
from sizing.question import Question
from sizing.release import Release
from sizing.speed_shape import speed_shape_of
from sizing.weights import weights_per_rank_bytes
from tests.sizing.hybrid_models import (
    FALCON_H1,
    GRANITE_4_TINY,
    HYBRIDS,
    JAMBA,
    JAMBA_DENSE,
    LFM2,
    MAMBA,
    MAMBA_2,
    NEMOTRON_3_NANO,
    NEMOTRON_WITH_LATENT_EXPERTS,
    WHISPER,
)


def shape(config: dict[str, object]) -> ModelShape:
    return parse_config(config, name="m")


def test_nemotron_3_nano_by_hand() -> None:
    # 23 Mamba-2 layers of 64 heads x 64 in 8 groups of 128 states, 6 of attention, 23 mixtures of 128 experts
    inner, grouped = 64 * 64, 2 * 8 * 128
    mamba = 2688 * (2 * inner + grouped + 64) + inner * 2688 + 5 * (inner + grouped) + 3 * 64 + inner
    attention = 2 * 2688 * 32 * 128 + 2 * 2688 * 2 * 128
    mixture = 2 * 2688 * (128 * 1856 + 3712) + 128 * (2688 + 1)  # no gate; the router corrects its scores
    ends = 2 * 131072 * 2688 + 2688
    model = shape(NEMOTRON_3_NANO)
    assert model.num_parameters == 23 * mamba + 6 * attention + 23 * mixture + 52 * 2688 + ends == 31_577_940_288
    assert [len(caches) for caches in model.cache_layers[:6]] == [1, 0, 1, 0, 1, 1]
    # published as 3.2 billion active: six experts and the shared one of each mixture
    active = speed_shape_of(model)
    assert active.experts_per_token == 6
    assert active.active_parameters == pytest.approx(3.23e9, rel=1e-3)


def test_experts_may_work_in_a_narrower_space() -> None:
    model = shape(NEMOTRON_WITH_LATENT_EXPERTS)
    assert model.expert_parameters == 2 * 256 * 512
    assert speed_shape_of(model).total_parameters == model.num_parameters


def test_nemotron_is_told_by_letters_or_by_words() -> None:
    words = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    pattern = str(NEMOTRON_3_NANO["hybrid_override_pattern"])
    spelt = {**NEMOTRON_3_NANO, "layers_block_type": [words[letter] for letter in pattern]}
    del spelt["hybrid_override_pattern"]
    assert shape(spelt) == shape(NEMOTRON_3_NANO)
    with pytest.raises(UnsupportedModelError, match=r"hybrid_override_pattern is 'MX\*'"):
        shape({**NEMOTRON_3_NANO, "hybrid_override_pattern": "MX*"})
    assert shape({**NEMOTRON_3_NANO, "hybrid_override_pattern": "M*"}).num_hidden_layers == 2  # whatever is counted


def test_granite_is_told_by_the_words_of_either_release_of_transformers() -> None:
    renamed = {"mamba": "linear_attention", "attention": "full_attention"}
    words = [renamed[word] for word in GRANITE_4_TINY["layer_types"]]
    assert shape({**GRANITE_4_TINY, "layer_types": words}) == shape(GRANITE_4_TINY)
    with pytest.raises(ModelFileError, match="mamba or attention for each of 40 layers"):
        shape({**GRANITE_4_TINY, "layer_types": ["mamba"]})


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (JAMBA, 51_570_323_328),  # the count of its published files
        (LFM2, 1_170_340_608),
        (MAMBA_2, 7_285_403_648),
        ({**WHISPER, "decoder_layers": 32}, 1_543_490_560 + 96 * 1280),  # vLLM's keys have biases, the files' none
    ],
)
def test_the_count_is_the_published_one(config: dict[str, object], count: int) -> None:
    assert shape(config).num_parameters == count


def test_before_0_32_prefix_caching_kept_the_state_of_every_block() -> None:
    # a state of 48 heads x 64 x 128 numbers and 3 x (3,072 + 256) inputs; a token has 2 x 4 heads x 128 numbers
    state, token = 2 * (48 * 64 * 128 + 3 * (3072 + 256)), 2 * 2 * 4 * 128
    assert -(-state // token) == 394
    model = shape(GRANITE_4_TINY)
    now = engine_cache(model, Serving(16, max_num_batched_tokens=8192))
    assert (now.block_size, len(now.groups)) == (400, 10)
    assert now.blocks_per_request(4096) == -(-4096 // 400) + 9 * 3  # of attention, and three states in nine groups
    old = engine_cache(model, Serving(16, max_num_batched_tokens=8192, release=Release(30)))
    assert old.block_size == 512  # whole chunks of 256 tokens
    assert old.blocks_per_request(4096) == 10 * 8
    plain = engine_cache(model, Serving(16, max_num_batched_tokens=8192, release=Release(20)))
    assert plain.blocks_per_request(4096) == -(-4096 // 400) + 9


def test_falcon_h1_keeps_keys_and_a_state_in_every_layer() -> None:
    model = shape(FALCON_H1)
    assert {tuple(type(cache) for cache in caches) for caches in model.cache_layers} == {(Attention, Recurrent)}
    # a state of 48 heads x 64 x 256 numbers and 3 x (3,072 + 2 x 256) inputs of the convolution; a token has 2 heads of
    # 128: blocks of 16 tokens until they are as large
    state = 2 * (48 * 64 * 256 + 3 * (3072 + 512))
    token = 2 * 2 * 128 * 2
    cache = engine_cache(model, Serving(16, max_num_batched_tokens=8192))
    assert cache.block_size == -(-state // (16 * token)) * 16 == 1568
    assert {page.page_bytes for page in cache.pages} == {1568 * token}


def test_a_sole_group_of_states_is_on_every_rank() -> None:
    state = shape(FALCON_H1).cache_layers[0][1]
    assert isinstance(state, Recurrent)
    assert state.page_bytes(4, 2) == 2 * (12 * 64 * 256 + 3 * (768 + 512))


def test_short_convolutions_remember_two_inputs() -> None:
    cache = engine_cache(shape(LFM2), Serving(16, max_num_batched_tokens=8192))
    states = [page for page in cache.pages if isinstance(page, StatePage)]
    assert len(states) == 10
    assert {page.state_bytes for page in states} == {2 * 2048 * 2}
    assert cache.block_size == 16  # a page of 16 tokens is larger than a state already, which is padded to it
    assert {page.page_bytes for page in cache.pages} == {16 * 2 * 8 * 64 * 2}


def test_without_attention_nothing_pads_a_state_and_a_sequence_has_one() -> None:
    model = shape(MAMBA)
    cache = engine_cache(model, Serving(16, max_num_batched_tokens=8192))
    state = 2 * 4096 * (3 + 16)
    assert {(page.page_bytes, page.padded_bytes) for page in cache.pages if isinstance(page, StatePage)} == {
        (state, None)
    }
    assert (cache.bytes_per_token, cache.blocks_per_request(100_000)) == (0, 1)
    # vLLM has prefix caching for it, off unless asked for: then the state of the last boundary is kept beside
    cached = engine_cache(model, Serving(16, max_num_batched_tokens=8192, enable_prefix_caching=True))
    assert cached.blocks_per_request(100_000) == 2


def test_a_context_without_end_is_2048_tokens_unless_asked_for() -> None:
    model = shape(MAMBA)
    assert (model.max_model_len, model.longest_model_len) == (2048, 2**24)
    found = answer(Question(model, gpu("L4"), max_model_len=500_000))
    assert found.fits
    assert found.settings.max_model_len == 500_000


def test_without_attention_the_mixers_heads_have_to_divide() -> None:
    assert answer(Question(shape(MAMBA_2), gpu("L4"), count=2, tensor_parallel_size=2)).fits
    with pytest.raises(QuestionError, match="3 does not divide the 128 heads or channels"):
        answer(Question(shape(MAMBA_2), gpu("L4"), count=3, tensor_parallel_size=3))


def test_groups_of_states_have_to_divide_but_a_sole_one_is_repeated() -> None:
    of_eight, sole = shape({**MAMBA_2, "n_groups": 8}), shape({**MAMBA_2, "n_groups": 1})
    assert indivisible(of_eight, 16) == "does not divide the 8 groups of recurrent heads"
    assert indivisible(of_eight, 8) is indivisible(sole, 16) is None


@pytest.mark.parametrize("config", [NEMOTRON_3_NANO, FALCON_H1, WHISPER])
def test_adapters_that_nobody_has_looked_at_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(UnsupportedModelError, match="is not known here"):
        check_adapters(Adapters(), shape(config))


def test_jamba_has_an_output_layer_of_its_own_whatever_its_file_says() -> None:
    tied, untied = shape({**JAMBA_DENSE, "tie_word_embeddings": True}), shape(JAMBA_DENSE)
    assert tied.num_parameters == untied.num_parameters == 3_029_337_472 + 65536 * 2560


def test_whisper_has_room_for_as_much_sound_as_a_batch_has_tokens() -> None:
    cache = engine_cache(shape(WHISPER), Serving(16, max_num_batched_tokens=8192))
    crossed = [page for page in cache.pages if isinstance(page, CrossPage)]
    assert len(crossed) == 4
    assert cache.blocks_per_request(448) == 448 // 16 + 8192 // 16


def test_whispers_table_is_on_every_rank() -> None:
    model = shape(WHISPER)
    table = 51866 * 1280
    halves = 2 * weights_per_rank_bytes(model, 2, as_allocated=False) - model.weights_bytes
    assert halves == pytest.approx(2 * (table + 1500 * 1280 + 448 * 1280 + 3 * 1280 * (128 + 1280)), rel=0.02)


def test_the_cache_alone_is_read_from_a_config_without_widths() -> None:
    kept = ("architectures", "num_hidden_layers", "layer_types", "num_attention_heads", "num_key_value_heads")
    config = {key: value for key, value in GRANITE_4_TINY.items() if key in kept or key.startswith("mamba")}
    config |= {"hidden_size": 1536, "max_position_embeddings": 131072, "num_local_experts": 0}
    assert kv_layers(config, name="m").cache_layers == shape(GRANITE_4_TINY).cache_layers


def test_a_wrapper_with_pictures_has_the_decoder_of_its_text() -> None:
    text = {key: value for key, value in LFM2.items() if key not in ("architectures", "dtype")}
    wrapped = {"architectures": ["Lfm2VlForConditionalGeneration"], "dtype": "bfloat16", "text_config": text}
    model = shape({**wrapped, "vision_config": {"hidden_size": 768}})
    assert model.cache_layers == shape(LFM2).cache_layers
    assert (model.num_parameters - model.encoder_bytes // 2, model.assumed) == (1_170_340_608, None)
    assert model.caveat == "the work of its encoder is not in the sum"


def modules(config: dict[str, Any]) -> Any:
    """Transformers' own model of that config, built without memory."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, WhisperForConditionalGeneration

    kept = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    made = CONFIG_MAPPING[config["model_type"]](**kept)
    with torch.device("meta"):
        module = WhisperForConditionalGeneration(made) if config is WHISPER else AutoModelForCausalLM.from_config(made)
    module.tie_weights()
    return module


# of a loaded Whisper's keys vLLM makes biases that its files do not have
FURTHER_PARAMETERS = {"Whisper": 40 * 1280}


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
@pytest.mark.parametrize("name", HYBRIDS)
def test_count_and_split_are_those_of_transformers_own_modules(name: str) -> None:
    config, module = HYBRIDS[name], modules(HYBRIDS[name])
    corrections = ("correction_bias", "expert_bias")  # of routers' scores, which are buffers there
    state = module.state_dict(keep_vars=True)
    held = {id(tensor): (key, tensor) for key, tensor in reversed(state.items())}  # of tied ones the first name
    learnt = {id(parameter) for parameter in module.parameters()}
    kept = [(key, value) for found, (key, value) in held.items() if found in learnt or key.endswith(corrections)]
    tensors = [Tensor(key, "BF16", tuple(value.shape), 2 * value.numel()) for key, value in kept]
    by_config, by_headers = shape(config), parse_config(config, name="m", tensors=tensors)
    counted = sum(tensor.num_elements for tensor in tensors) + FURTHER_PARAMETERS.get(name, 0)
    assert by_config.num_parameters == counted
    for ranks in (1, 2, 4):  # a file's names tell the same halves as the config
        assert weights_per_rank_bytes(by_headers, ranks, as_allocated=False) == pytest.approx(
            weights_per_rank_bytes(by_config, ranks, as_allocated=False), rel=4e-4
        )


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name in HYBRIDS if name not in ("Whisper", "Granite 4 Micro")])
def test_a_ranks_state_is_what_vllms_class_asks_for(name: str, ranks: int) -> None:
    import torch
    from transformers import CONFIG_MAPPING
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.v1.kv_cache_interface import MambaSpec

    config = HYBRIDS[name]
    states = {layer for layer in shape(config).distinct_layers if isinstance(layer, Recurrent)}
    if any(layer.heads % ranks for layer in states):
        pytest.skip("its heads do not divide")
    kept = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    engine = SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=ranks),
        model_config=SimpleNamespace(
            hf_config=CONFIG_MAPPING[config["model_type"]](**kept), dtype=torch.bfloat16, get_mamba_chunk_size=lambda: 1
        ),
        cache_config=SimpleNamespace(
            mamba_cache_dtype="auto",
            mamba_ssm_cache_dtype="float32" if "Nemotron" in name else "auto",
            use_replayssm=False,
        ),
        speculative_config=None,
        num_speculative_tokens=0,
    )
    built = ModelRegistry.models[config["architectures"][0]].load_model_cls()
    theirs = MambaSpec(
        block_size=-1,
        shapes=built.get_mamba_state_shape_from_config(engine),
        dtypes=built.get_mamba_state_dtype_from_config(engine),
    ).page_size_bytes
    assert {layer.page_bytes(ranks, 2) for layer in states} == {theirs}
