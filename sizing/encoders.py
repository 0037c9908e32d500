"""Parameters of the encoder of pictures or sound in front of a decoder, counted from its part of the config."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from sizing.config_values import ConfigValues
from sizing.release import Release

_CHANNELS = 3  # red, green and blue
_EVER = Release(0)
_LARGEST_PICTURE_PATCHES = 65_536


@dataclass(frozen=True)
class Encoder:
    """An encoder's parameters by what tensor parallelism does to them (vllm/model_executor/models)."""

    sharded: int = 0
    """Matrices of parallel layers, and the biases of those that are divided by outputs."""
    whole: int = 0
    """On every rank: patches, positions, norms, and what is a plain or a replicated layer."""
    whole_in: tuple[Release, Release] = (_EVER, _EVER)
    """From the first of these releases to before the second every rank held all of it."""

    @property
    def num_parameters(self) -> int:
        return self.sharded + self.whole

    def __add__(self, other: "Encoder") -> "Encoder":
        return replace(self, sharded=self.sharded + other.sharded, whole=self.whole + other.whole)


def read_encoder(config: Mapping[str, object], *, name: str = "the model") -> Encoder | None:
    """What vLLM holds beside the decoder: the tower's layers as far as it uses them, and the projector.

    `config` is the wrapper's. A size that the file leaves out is the one that the published models of that family
    share (their own files name it, or their config class does). None: a family whose encoder is not known here.

    Raises:
        ModelFileError: an impossible size.
    """
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    family = _FAMILIES.get(str(architecture))
    if family is None:
        return None
    whole = ConfigValues(name, config)
    text = whole.section("text_config") or dict(config)
    return family(
        whole, ConfigValues(name, whole.section("vision_config")), ConfigValues(name, text).count("hidden_size")
    )


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
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if _FAMILIES.get(architecture) not in (_qwen2_vl, _qwen2_5_vl, _qwen3_vl, _qwen3_5):
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


def _tower(
    hidden: int, width: int, layers: int, *, biased: bool = True, gated: bool = False, norms: int = 4
) -> Encoder:
    """A transformer over patches. `norms`: vectors in each layer; two LayerNorms have four, two RMSNorms two."""
    matrices = 3 if gated else 2
    sharded = 4 * hidden * hidden + matrices * hidden * width
    whole = norms * hidden
    if biased:  # the biases of what a row-parallel matrix gives are not divided
        sharded += 3 * hidden + (matrices - 1) * width
        whole += 2 * hidden
    return Encoder(layers * sharded, layers * whole)


def _pair(into: int, between: int, out: int, *, bias: bool = True) -> Encoder:
    """Two layers, the first divided by its outputs and the second by its inputs."""
    return Encoder(into * between + between * out + (between if bias else 0), out if bias else 0)


def _patches(vision: ConfigValues, hidden: int, patch: int, *, bias: bool, frames: int = 1) -> Encoder:
    side = vision.count("patch_size", default=patch)
    return Encoder(whole=_CHANNELS * frames * side * side * hidden + (hidden if bias else 0))


def _positions(vision: ConfigValues, hidden: int, image: int, *, more: int = 0) -> Encoder:
    side = vision.count("image_size", default=image) // vision.count("patch_size", default=14)
    return Encoder(whole=(side * side + more) * hidden)


def _merger(hidden: int, merge: int, out: int, *, norm: int) -> Encoder:
    """Qwen's: neighbouring patches side by side through two layers."""
    wide = hidden * merge * merge
    return Encoder(whole=norm) + _pair(wide, wide, out)


def _qwen2_vl(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    hidden = vision.count("embed_dim", default=1280)
    width = hidden * vision.count("mlp_ratio", default=4)
    merge = vision.count("spatial_merge_size", default=2)
    patches = _patches(vision, hidden, 14, bias=False, frames=vision.count("temporal_patch_size", default=2))
    tower = _tower(hidden, width, vision.count("depth", default=32))
    return patches + tower + _merger(hidden, merge, text_hidden, norm=2 * hidden)


def _qwen2_5_vl(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    hidden = vision.count("hidden_size", default=1280)
    width, depth = vision.count("intermediate_size", default=3420), vision.count("depth", default=32)
    merge = vision.count("spatial_merge_size", default=2)
    patches = _patches(vision, hidden, 14, bias=False, frames=vision.count("temporal_patch_size", default=2))
    out = vision.count("out_hidden_size", default=text_hidden)
    return patches + _tower(hidden, width, depth, gated=True, norms=2) + _merger(hidden, merge, out, norm=hidden)


def _qwen3_vl(_: ConfigValues, vision: ConfigValues, text_hidden: int, *, deepstack: int = 3) -> Encoder:
    hidden = vision.count("hidden_size", default=1152)
    tower = _tower(hidden, vision.count("intermediate_size", default=4304), vision.count("depth", default=27))
    merge, out = vision.count("spatial_merge_size", default=2), vision.count("out_hidden_size", default=text_hidden)
    patches = _patches(vision, hidden, 16, bias=True, frames=vision.count("temporal_patch_size", default=2))
    positions = Encoder(whole=vision.count("num_position_embeddings", default=2304) * hidden)
    if vision.values.get("deepstack_visual_indexes") is not None:
        deepstack = len(vision.numbers("deepstack_visual_indexes"))
    found = patches + positions + tower + _merger(hidden, merge, out, norm=2 * hidden)
    for _index in range(deepstack):
        found += _merger(hidden, merge, out, norm=2 * hidden * merge * merge)
    return found


def _qwen3_5(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    return _qwen3_vl(whole, vision, text_hidden, deepstack=0)


def _gemma3(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP So400m at 896 pixels, and one matrix behind it."""
    hidden = vision.count("hidden_size", default=1152)
    width, layers = vision.count("intermediate_size", default=4304), vision.count("num_hidden_layers", default=27)
    embeddings = _patches(vision, hidden, 14, bias=True) + _positions(vision, hidden, 896)
    return embeddings + _tower(hidden, width, layers) + Encoder(whole=2 * hidden + hidden + hidden * text_hidden)


def _gemma4(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Its tower is Transformers' own module, which no rank divides."""
    hidden = vision.count("hidden_size", default=1152)
    width, layers = vision.count("intermediate_size", default=4304), vision.count("num_hidden_layers", default=27)
    tower = _tower(hidden, width, layers, biased=False, gated=True)
    positions = 2 * vision.count("position_embedding_size", default=10 * 1024) * hidden
    norms = layers * 2 * vision.count("head_dim", default=64)
    found = _patches(vision, hidden, 16, bias=False) + tower
    return Encoder(whole=found.num_parameters + positions + norms + hidden * text_hidden)


def _llava_next(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """CLIP-L at 336 pixels or SigLIP, up to the deepest layer whose features are taken, and a two-layer projector.

    Features of several layers enter the projector side by side. A vector ends each row.
    """
    clip = vision.values.get("model_type", "clip_vision_model") == "clip_vision_model"
    hidden = vision.count("hidden_size", default=1024)
    layers, total = 0, vision.count("num_hidden_layers", default=24)
    taken = whole.values.get("vision_feature_layer", -2)
    indexes = [index for index in (taken if isinstance(taken, list) else [taken]) if isinstance(index, int)] or [-1]
    layers = min(total, max(total + index + 1 if index < 0 else index for index in indexes))
    tower = _tower(hidden, vision.count("intermediate_size", default=4096), layers)
    embeddings = _patches(vision, hidden, 14, bias=not clip) + _positions(vision, hidden, 336, more=int(clip))
    # CLIP has a vector for the whole picture and a norm before its layers; after the last one both have one
    norms = (hidden + 2 * hidden if clip else 0) + (2 * hidden if layers == total else 0)
    projector = _pair(hidden * len(indexes), text_hidden, text_hidden)
    return embeddings + tower + projector + Encoder(whole=norms + text_hidden)


def _mistral3(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Pixtral, and a projector that first merges neighbouring patches.

    Mistral's own repositories hold its own format beside this file, and vLLM prefers that since 0.12
    (transformers_utils/config.py). Its class for it (models/pixtral.py) was not divided before 0.20, and its projector
    still is not.
    """
    hidden = vision.count("hidden_size", default=1024)
    width, layers = vision.count("intermediate_size", default=4096), vision.count("num_hidden_layers", default=24)
    merge, bias = whole.count("spatial_merge_size", default=2), whole.flag("multimodal_projector_bias", default=False)
    found = _patches(vision, hidden, 14, bias=False) + _tower(hidden, width, layers, biased=False, gated=True, norms=2)
    found += Encoder(whole=2 * hidden + hidden * merge * merge * hidden)
    projector = _pair(hidden, text_hidden, text_hidden, bias=bias)
    if not whole.name.startswith("mistralai/"):
        return found + projector
    return replace(found + Encoder(whole=projector.num_parameters), whole_in=(Release(12), Release(20)))


def _llama4(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """A tower, the adapter behind its pixel shuffle, and one matrix. Its patches go through a parallel layer."""
    hidden = vision.count("hidden_size", default=1408)
    width, layers = vision.count("intermediate_size", default=5632), vision.count("num_hidden_layers", default=34)
    patches = Encoder(_patches(vision, hidden, 14, bias=False).num_parameters)
    embeddings = patches + _positions(vision, hidden, 336, more=1) + Encoder(whole=hidden + 4 * hidden)
    wide, out = vision.count("projector_input_dim", default=4096), vision.count("projector_output_dim", default=4096)
    adapter = Encoder(width * wide + wide * out)
    return embeddings + _tower(hidden, width, layers) + adapter + Encoder(out * text_hidden)


def _moonvit(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """MoonViT with a table of positions, and a projector over merged patches."""
    hidden = vision.count("vt_hidden_size", default=vision.count("hidden_size", default=1152))
    width = vision.count("vt_intermediate_size", default=vision.count("intermediate_size", default=4304))
    layers = vision.count("vt_num_hidden_layers", default=vision.count("num_hidden_layers", default=27))
    table = vision.count("init_pos_emb_height", default=64) * vision.count("init_pos_emb_width", default=64) * hidden
    projector = 2 * hidden + _pair(4 * hidden, 4 * hidden, text_hidden).num_parameters
    found = _patches(vision, hidden, 14, bias=True) + _tower(hidden, width, layers)
    return found + Encoder(whole=table + 2 * hidden + projector)


def _kimi_vl(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Its tower was of plain layers before 0.14 (models/moonvit.py)."""
    return replace(_moonvit(whole, vision, text_hidden), whole_in=(_EVER, Release(14)))


def _whisper(whole: ConfigValues, _: ConfigValues, hidden: int) -> Encoder:
    """Two convolutions over the spectrum, positions, and a tower."""
    width, layers = whole.count("encoder_ffn_dim"), whole.count("encoder_layers")
    convolutions = 3 * hidden * (whole.count("num_mel_bins", default=80) + hidden) + 2 * hidden
    positions = whole.count("max_source_positions", default=1500) * hidden
    return _tower(hidden, width, layers) + Encoder(whole=convolutions + positions + 2 * hidden)


_Family = Callable[[ConfigValues, ConfigValues, int], Encoder]
_FAMILIES: Mapping[str, _Family] = {
    "Gemma3ForConditionalGeneration": _gemma3,
    "Gemma4ForConditionalGeneration": _gemma4,
    "KimiK25ForConditionalGeneration": _moonvit,
    "KimiVLForConditionalGeneration": _kimi_vl,
    "Llama4ForConditionalGeneration": _llama4,
    "LlavaNextForConditionalGeneration": _llava_next,
    "Mistral3ForConditionalGeneration": _mistral3,
    "Qwen2VLForConditionalGeneration": _qwen2_vl,
    "Qwen2_5_VLForConditionalGeneration": _qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": _qwen3_vl,
    "Qwen3VLMoeForConditionalGeneration": _qwen3_vl,
    "Qwen3_5ForConditionalGeneration": _qwen3_5,
    "Qwen3_5MoeForConditionalGeneration": _qwen3_5,
    "WhisperForConditionalGeneration": _whisper,
}
