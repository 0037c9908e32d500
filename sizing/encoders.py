"""Parameters of the encoder of pictures or sound in front of a decoder, counted from its part of the config."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from sizing.architecture import architecture_name
from sizing.config_values import ConfigValues
from sizing.document_encoders import DOCUMENTS
from sizing.further_encoders import FURTHER
from sizing.picture_encoders import PICTURES
from sizing.qwen_encoders import QWEN
from sizing.release import Release
from sizing.sound_encoders import SOUNDS
from sizing.towers import EVER, Encoder, blocks, pair, patches, positions, spectrum
from sizing.wrappers import TEXT_SECTIONS

_LARGEST_PICTURE_PATCHES = 65_536
_FIRST_QWEN3_VIDEO_TOKENS = 153_600
_LARGEST_PICTURE_FAMILIES = (
    *("Qwen2VLFor", "Qwen2_5_VLFor", "Qwen3VLFor", "Qwen3VLMoeFor"),
    *("Qwen3_5For", "Qwen3_5MoeFor"),
)


def read_encoder(
    config: Mapping[str, object], *, name: str = "the model", text_hidden: int | None = None
) -> Encoder | None:
    """What vLLM holds beside the decoder: the tower's layers as far as it uses them, and the projector.

    `config` is the wrapper's, `text_hidden` how wide its decoder is where its part of the file does not say. A size
    that the file leaves out is the one that the published models of that family share (their own files name it, or
    their config class does). None: a family whose encoder is not known here.

    Raises:
        ModelFileError: an impossible size.
    """
    family = _FAMILIES.get(architecture_name(config) or "")
    if family is None:
        return None
    whole = ConfigValues(name, config)
    text = ConfigValues(name, whole.section(*TEXT_SECTIONS) or dict(config))
    hidden = text.count("hidden_size", default=text_hidden)
    return family(whole, ConfigValues(name, whole.section("vision_config")), hidden)


def undivided_item_tokens(config: Mapping[str, object], *, name: str = "the model") -> int:
    """Tokens of the largest picture or video that has to be in one batch as a whole; 0 where none has to be.

    Gemma 4 may look both ways within one (`use_bidirectional_attention`); its largest is a video of 32 frames with 78
    tokens each (models/gemma4_mm.py). Where the key is absent, the files without embeddings for each layer are taken
    to say "vision", as the published ones do.
    """
    if config.get("architectures") != ["Gemma4ForConditionalGeneration"]:
        return 0
    text = ConfigValues(name, config).section("text_config")
    small = bool(text.get("hidden_size_per_layer_input"))
    both_ways = text.get("use_bidirectional_attention", None if small else "vision")
    return 32 * 78 if both_ways == "vision" else 0


def largest_picture_bytes(config: Mapping[str, object], *, name: str = "the model") -> int:
    """The most that the encoder holds at once of the largest picture; 0 where that is not known here.

    Qwen's preprocessors allow 65,536 patches (16,777,216 pixels in squares of 16, 12,845,056 in squares of 14), and
    vLLM profiles one such picture. Alive together: what the feed-forward layer makes of each patch, before and after
    its activation, and three copies of the hidden states, in 16 bits. 1.44 and 1.46 GiB logged for 1152 and 4304 wide.
    """
    architecture = architecture_name(config) or ""
    if not architecture.startswith(_LARGEST_PICTURE_FAMILIES):
        return 0
    vision = ConfigValues(name, ConfigValues(name, config).section("vision_config"))
    if architecture.startswith("Qwen2VL"):
        hidden = vision.count("embed_dim", default=1280)
        made = 2 * hidden * vision.count("mlp_ratio", default=4)
    elif architecture.startswith("Qwen2_5"):
        hidden, made = vision.count("hidden_size", default=1280), 3 * vision.count("intermediate_size", default=3420)
    else:
        hidden, made = vision.count("hidden_size", default=1152), 2 * vision.count("intermediate_size", default=4304)
    return 2 * _LARGEST_PICTURE_PATCHES * (made + 3 * hidden)


def output_bytes(config: Mapping[str, object], *, name: str = "the model") -> int:
    """What the encoder hands on for each token, in 16 bits; 0 where that is not known here.

    One vector as wide as the text's, and one for each further layer of the decoder that Qwen 3 feeds (deepstack).
    """
    architecture = architecture_name(config) or ""
    if not architecture.startswith(_LARGEST_PICTURE_FAMILIES):
        return 0
    whole = ConfigValues(name, config)
    vision = ConfigValues(name, whole.section("vision_config"))
    text = ConfigValues(name, whole.section(*TEXT_SECTIONS) or dict(config))
    further = 3 if architecture.startswith("Qwen3VL") else 0
    if vision.values.get("deepstack_visual_indexes") is not None:
        further = len(vision.numbers("deepstack_visual_indexes"))
    return 2 * text.count("hidden_size", default=0) * (1 + further)


def kept_tokens(architecture: str, release: Release) -> int:
    """Tokens whose outputs stay while vLLM profiles the decoder: the largest picture's, four patches each.

    0.11.0 kept room for as many as the longest video might have, which no limit held down for Qwen3-VL yet:
    "Encoder cache will be initialized with a budget of 153600 tokens" (v1/worker/gpu_model_runner.py: profile_run).
    """
    if release.engine == "V0" or not architecture.startswith(_LARGEST_PICTURE_FAMILIES):
        return 0
    if architecture.startswith("Qwen3VL") and release < Release(11, 1):
        return _FIRST_QWEN3_VIDEO_TOKENS
    return _LARGEST_PICTURE_PATCHES // 4


def _gemma3(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP So400m at 896 pixels, and one matrix behind it."""
    hidden = vision.count("hidden_size", default=1152)
    width, layers = vision.count("intermediate_size", default=4304), vision.count("num_hidden_layers", default=27)
    embeddings = patches(vision, hidden, 14, bias=True) + positions(vision, hidden, 896)
    return embeddings + blocks(hidden, width, layers) + Encoder(whole=2 * hidden + hidden + hidden * text_hidden)


# MobileNetV5 and a conformer of twelve blocks, both Transformers' own, and the norms of what joins them to the text
_GEMMA3N_TOWERS = 294_126_912 + 681_348_640 + 2 * (2048 + 1536)


def _gemma3n(_: ConfigValues, __: ConfigValues, text_hidden: int) -> Encoder:
    """Two towers that all published sizes share; a table of 128 words and a matrix behind each."""
    return Encoder((2048 + 1536) * (128 + text_hidden), _GEMMA3N_TOWERS)


def _gemma4(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Its tower is Transformers' own module, which no rank divides."""
    hidden = vision.count("hidden_size", default=1152)
    width, layers = vision.count("intermediate_size", default=4304), vision.count("num_hidden_layers", default=27)
    tower = blocks(hidden, width, layers, biased=False, gated=True)
    places = 2 * vision.count("position_embedding_size", default=10 * 1024) * hidden
    norms = layers * 2 * vision.count("head_dim", default=64)
    found = patches(vision, hidden, 16, bias=False) + tower
    return Encoder(whole=found.num_parameters + places + norms + hidden * text_hidden)


def _mistral3(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Pixtral, and a projector that first merges neighbouring patches.

    Mistral's own repositories hold its own format beside this file, and vLLM prefers that since 0.12
    (transformers_utils/config.py). Its class for it (models/pixtral.py) was not divided before 0.20, and its projector
    still is not.
    """
    hidden = vision.count("hidden_size", default=1024)
    width, layers = vision.count("intermediate_size", default=4096), vision.count("num_hidden_layers", default=24)
    merge, bias = whole.count("spatial_merge_size", default=2), whole.flag("multimodal_projector_bias", default=False)
    found = patches(vision, hidden, 14, bias=False) + blocks(hidden, width, layers, biased=False, gated=True, norms=2)
    found += Encoder(whole=2 * hidden + hidden * merge * merge * hidden)
    projector = pair(hidden, text_hidden, text_hidden, bias=bias)
    if not whole.name.startswith("mistralai/"):
        return found + projector
    return replace(found + Encoder(whole=projector.num_parameters), whole_in=(Release(12), Release(20)))


def _llama4(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """A tower, the adapter behind its pixel shuffle, and one matrix. Its patches go through a parallel layer."""
    hidden = vision.count("hidden_size", default=1408)
    width, layers = vision.count("intermediate_size", default=5632), vision.count("num_hidden_layers", default=34)
    entry = Encoder(patches(vision, hidden, 14, bias=False).num_parameters)
    embeddings = entry + positions(vision, hidden, 336, more=1) + Encoder(whole=hidden + 4 * hidden)
    wide, out = vision.count("projector_input_dim", default=4096), vision.count("projector_output_dim", default=4096)
    adapter = Encoder(width * wide + wide * out)
    return embeddings + blocks(hidden, width, layers) + adapter + Encoder(out * text_hidden)


def _moonvit(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """MoonViT with a table of positions, and a projector over merged patches."""
    hidden = vision.count("vt_hidden_size", default=vision.count("hidden_size", default=1152))
    width = vision.count("vt_intermediate_size", default=vision.count("intermediate_size", default=4304))
    layers = vision.count("vt_num_hidden_layers", default=vision.count("num_hidden_layers", default=27))
    table = vision.count("init_pos_emb_height", default=64) * vision.count("init_pos_emb_width", default=64) * hidden
    projector = 2 * hidden + pair(4 * hidden, 4 * hidden, text_hidden).num_parameters
    found = patches(vision, hidden, 14, bias=True) + blocks(hidden, width, layers)
    return found + Encoder(whole=table + 2 * hidden + projector)


def _kimi_vl(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Its tower was of plain layers before 0.14 (models/moonvit.py)."""
    return replace(_moonvit(whole, vision, text_hidden), whole_in=(EVER, Release(14)))


def _whisper(whole: ConfigValues, _: ConfigValues, __: int) -> Encoder:
    return spectrum(whole)


_Family = Callable[[ConfigValues, ConfigValues, int], Encoder]
_FAMILIES: Mapping[str, _Family] = {
    "Gemma3ForConditionalGeneration": _gemma3,
    "Gemma3nForConditionalGeneration": _gemma3n,
    "Gemma4ForConditionalGeneration": _gemma4,
    "KimiK25ForConditionalGeneration": _moonvit,
    "KimiVLForConditionalGeneration": _kimi_vl,
    "Llama4ForConditionalGeneration": _llama4,
    "LightOnOCRForConditionalGeneration": _mistral3,
    "Mistral3ForConditionalGeneration": _mistral3,
    "WhisperForConditionalGeneration": _whisper,
    **PICTURES,
    **DOCUMENTS,
    **FURTHER,
    **QWEN,
    **SOUNDS,
}
