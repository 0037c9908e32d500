"""Multimodal wrappers: what their files say, what they weigh, and equality with what vLLM's own classes allocate."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from sizing.activations import Batch
from sizing.config_defaults import TYPES, class_defaults
from sizing.config_json import kv_layers, parse_config
from sizing.errors import ModelFileError, UnsupportedModelError
from sizing.gpu import GIB
from sizing.headers import Tensor, loaded_tensors
from sizing.layers import Attention, Latent
from sizing.model import ModelShape
from sizing.release import NEWEST
from sizing.weights import weights_per_rank_bytes
from sizing.wrappers import TEXT_SECTIONS
from tests.sizing.test_memory import budget
from tests.sizing.wrapper_models import WRAPPED, Values

PUBLISHED = [name for name, wrapped in WRAPPED.items() if wrapped.parameters is not None]


@cache
def shape(name: str) -> ModelShape:
    return parse_config(WRAPPED[name].config, name=name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wrapper_has_about_as_many_parameters_as_its_publisher_says(name: str) -> None:
    """Within a hundredth: a tower's last layers, which vLLM does not build, are in the published numbers."""
    assert shape(name).num_parameters / 1e9 == pytest.approx(WRAPPED[name].parameters, rel=0.01)


@pytest.mark.parametrize("name", WRAPPED)
def test_the_cache_is_read_from_the_decoders_part(name: str) -> None:
    assert kv_layers(WRAPPED[name].config, name=name).cache_layers == shape(name).cache_layers
    assert shape(name).encoder_bytes > 0


def _cut(config: Values) -> Values:
    """The same model with two decoder layers."""
    if isinstance(config.get("thinker_config"), dict):
        return {**config, "thinker_config": _cut(config["thinker_config"])}  # type: ignore[arg-type]  # it is a dict
    for key in TEXT_SECTIONS:
        text = config.get(key)
        if isinstance(text, dict):
            kinds = {"layer_types": text["layer_types"][:2]} if text.get("layer_types") else {}
            return {**config, key: {**text, "num_hidden_layers": 2, **kinds}}
    return {**config, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def vllm() -> Iterator[Any]:
    """Asks a process in which vLLM builds models; it would leave too much behind in this one."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.sizing.vllm_wrappers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def held(config: Values, base: str | None, ranks: int) -> Any:
            asked.write(json.dumps({"config": config, "base": base, "ranks": ranks}) + "\n")
            asked.flush()
            return json.loads(answers.readline())

        yield held
        asked.close()


@pytest.mark.engine
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", [name for name, wrapped in WRAPPED.items() if wrapped.built])
def test_a_rank_holds_what_vllms_own_class_allocates(name: str, ranks: int, vllm: Any) -> None:
    """Parameters and buffers of all but the further decoder layers, of which two say as much as forty."""
    wrapped = WRAPPED[name]
    if ranks > 1 and not wrapped.splits:
        pytest.skip("its heads are not even")
    config = _cut(wrapped.config)
    theirs = vllm(config, wrapped.base, ranks)
    assert isinstance(theirs, list), theirs
    ours = weights_per_rank_bytes(parse_config(config, name=name), ranks, as_allocated=False)
    assert ours == pytest.approx(sum(theirs), rel=1.5e-3)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")  # of torch's and Transformers' own
@pytest.mark.parametrize("model_type", TYPES)
def test_the_sizes_that_a_file_may_leave_out_are_those_of_its_config_class(model_type: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    theirs = CONFIG_MAPPING[model_type]()
    ours = dict(class_defaults(model_type))
    assert ours
    assert {key: getattr(theirs, key, False) for key in ours} == ours


def test_a_file_says_by_itself_which_decoder_is_behind_a_wrapper() -> None:
    """LLaVA-NeXT over Vicuna keeps every token, over Mistral as many as its window, and Granite's has its own name."""
    vicuna = WRAPPED["llava-v1.6-vicuna-7b"].config
    layers = kv_layers(vicuna, name="m").cache_layers
    assert set(layers) == {(Attention(32, 128, 128),)}
    mistral = {**vicuna, "text_config": {"model_type": "mistral", "sliding_window": 4096}}
    assert set(kv_layers(mistral, name="m").cache_layers) == {(Attention(8, 128, 128, 4096),)}
    versions = {
        version: parse_config({**WRAPPED["MiniCPM-V-4.5"].config, "version": version}, name="m").num_parameters
        for version in ("2.6", "4.5")
    }
    # Qwen 2 has biases for queries, keys and values, Qwen 3 two norms as wide as a head
    assert versions["2.6"] - versions["4.5"] == 36 * (32 * 128 + 2 * 8 * 128 - 2 * 128)


def test_latent_attention_is_where_the_file_says_so() -> None:
    assert set(shape("deepseek-vl2-small").cache_layers) == {(Latent(576),)}
    assert set(shape("DeepSeek-OCR").cache_layers) == {(Attention(10, 128, 128),)}


def test_the_part_that_thinks_is_sized_and_what_speaks_is_not() -> None:
    config = WRAPPED["Qwen2.5-Omni-7B"].config
    speaking = {**config, "talker_config": {"hidden_size": 896}, "token2wav_config": {"dit_config": {}}}
    assert parse_config(speaking, name="m").weights_bytes == shape("Qwen2.5-Omni-7B").weights_bytes


def test_a_decoder_that_is_only_named_is_asked_for() -> None:
    config = {**WRAPPED["ultravox-v0.3"].config, "text_config": None, "text_model_id": "meta-llama/Llama-3.1-8B"}
    with pytest.raises(ModelFileError, match=r"only as meta-llama/Llama-3\.1-8B; add that model's config\.json"):
        parse_config(config, name="ultravox")


def test_a_decoder_that_is_not_known_is_named() -> None:
    text = {"model_type": "t5", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32}
    config = {"architectures": ["Blip2ForConditionalGeneration"], "text_config": text}
    with pytest.raises(UnsupportedModelError, match=r"m: the decoder \(t5\) behind Blip2For.* lacks num_key_value"):
        parse_config(config, name="m")


def test_attention_is_whole_where_the_ranks_do_not_divide_its_heads() -> None:
    """InternViT-6B has 25 heads: two ranks hold all of its attention, five a fifth each."""
    model = shape("InternVL2.5-38B")
    assert model.held is not None
    attention = 45 * 4 * 3200 * 3200 * 2
    assert model.held.encoder_by_heads == attention
    per_rank = {ranks: model.held.encoder_per_rank(ranks, NEWEST) for ranks in (1, 2, 5)}
    rest = model.held.encoder - model.held.encoder_whole - attention
    assert per_rank[2] == model.held.encoder_whole + attention + rest / 2
    assert per_rank[5] == model.held.encoder_whole + (attention + rest) / 5


def _internvl_tensors(layers: int) -> list[Tensor]:
    """InternVL3-8B's file with so many of its tower's layers, all of one sum."""
    per_layer = shape("InternVL3-8B").blueprint
    tower = [
        Tensor(f"vision_model.encoder.layers.{layer}.all", "BF16", (12_598_272,), 2 * 12_598_272)
        for layer in range(layers)
    ]
    ends = 1_024 + 1_049_600 + 603_136 + 27_529_216 + 11_264
    tower.append(Tensor("mlp1.1.weight", "BF16", (ends,), 2 * ends))
    decoder = [
        Tensor(f"language_model.{weight.name}.weight", "BF16", weight.shape, 2 * weight.num_elements)
        for weight in per_layer
    ]
    return tower + decoder


def test_an_encoder_weighs_what_vllm_builds_of_it() -> None:
    """A file with a layer more than the features are taken behind is not heavier."""
    config = WRAPPED["InternVL3-8B"].config
    by_config = shape("InternVL3-8B")
    for layers in (24, 25):
        by_headers = parse_config(config, name="m", tensors=_internvl_tensors(layers))
        assert by_headers.num_parameters == by_config.num_parameters
        assert weights_per_rank_bytes(by_headers, 2) == pytest.approx(weights_per_rank_bytes(by_config, 2), rel=1e-3)
    far_more = parse_config(config, name="m", tensors=_internvl_tensors(48))  # not the tower that is known
    assert far_more.encoder_bytes > 1.7 * by_config.encoder_bytes


def test_blocks_under_names_of_their_own_are_divided_all_the_same() -> None:
    """Molmo's file names no layer as others do; what is divided is read off its config."""
    config, by_config = WRAPPED["Molmo-7B-D"].config, shape("Molmo-7B-D")
    assert by_config.held is not None
    decoder = by_config.num_parameters - by_config.encoder_bytes // 2
    tensors = [Tensor("model.transformer.blocks.0.all.weight", "BF16", (decoder,), 2 * decoder)]
    tower = by_config.encoder_bytes
    tensors.append(Tensor("model.vision_backbone.all", "BF16", (tower // 2,), tower))
    by_headers = parse_config(config, name="m", tensors=tensors)
    assert weights_per_rank_bytes(by_headers, 4) == pytest.approx(weights_per_rank_bytes(by_config, 4), rel=1e-4)


def test_adapters_and_speech_in_the_files_are_not_held() -> None:
    kept = ("model.layers.0.mlp.down_proj.base_layer.weight", "thinker.model.norm.weight")
    left = ("model.layers.0.mlp.down_proj.lora_A.speech.weight", "talker.model.norm.weight", "token2wav.x", "tts.y")
    tensors = [Tensor(name, "BF16", (2, 2), 8) for name in (*kept, *left)]
    assert [tensor.name for tensor in loaded_tensors(tensors, tie_word_embeddings=False)] == list(kept)


def test_an_unknown_encoder_has_a_band_for_its_weights() -> None:
    """And one larger than those whose runs were measured has a wider band for its run."""
    config = {**WRAPPED["InternVL3-8B"].config, "architectures": ["SomethingChatModel"]}
    unknown = parse_config(config, name="m")
    assert unknown.encoder_bytes == 0
    batch = Batch(max_num_seqs=256, max_num_batched_tokens=2048)
    runs = {
        model.architecture: next(term for term in budget(model, batch).terms if term.name == "encoder run")
        for model in (unknown, shape("InternVL3-8B"), shape("NVLM-D-72B"))
    }
    assert runs["SomethingChatModel"].high_bytes == 4 * GIB
    assert runs["InternVLChatModel"].high_bytes == pytest.approx(0.9 * GIB)
    assert runs["NVLM_D"].high_bytes > 4 * GIB
