"""Parameters of the vision encoder in front of a multimodal model's decoder, counted from its `vision_config`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sizing.config_values import ConfigValues

_CHANNELS = 3  # red, green and blue


def encoder_parameters(config: Mapping[str, object], *, name: str = "the model") -> int | None:
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


@dataclass(frozen=True)
class _Tower:
    """A transformer over patches. Widths in elements."""

    hidden: int
    width: int
    layers: int
    biased: bool = True
    gated: bool = False
    norms: int = 4
    """Vectors as wide as the hidden states in each layer: two LayerNorms have four, two RMSNorms two."""

    @property
    def num_parameters(self) -> int:
        hidden, width = self.hidden, self.width
        attention = 4 * hidden * hidden + (4 * hidden if self.biased else 0)
        matrices = 3 if self.gated else 2
        mlp = matrices * hidden * width + (((matrices - 1) * width + hidden) if self.biased else 0)
        return self.layers * (attention + mlp + self.norms * hidden)


def _linear(into: int, out: int, *, bias: bool = True) -> int:
    return into * out + (out if bias else 0)


def _patches(vision: ConfigValues, hidden: int, patch: int, *, bias: bool, frames: int = 1) -> int:
    side = vision.count("patch_size", default=patch)
    return _linear(_CHANNELS * frames * side * side, hidden, bias=bias)


def _merger(hidden: int, merge: int, out: int, *, norm: int) -> int:
    """Qwen's: neighbouring patches side by side through two layers."""
    wide = hidden * merge * merge
    return norm + _linear(wide, wide) + _linear(wide, out)


def _qwen2_vl(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> int:
    hidden = vision.count("embed_dim", default=1280)
    width = hidden * vision.count("mlp_ratio", default=4)
    tower = _Tower(hidden, width, vision.count("depth", default=32))
    merge = vision.count("spatial_merge_size", default=2)
    patches = _patches(vision, hidden, 14, bias=False, frames=vision.count("temporal_patch_size", default=2))
    return patches + tower.num_parameters + _merger(hidden, merge, text_hidden, norm=2 * hidden)


def _qwen2_5_vl(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> int:
    hidden = vision.count("hidden_size", default=1280)
    width, depth = vision.count("intermediate_size", default=3420), vision.count("depth", default=32)
    tower = _Tower(hidden, width, depth, gated=True, norms=2)
    merge = vision.count("spatial_merge_size", default=2)
    patches = _patches(vision, hidden, 14, bias=False, frames=vision.count("temporal_patch_size", default=2))
    out = vision.count("out_hidden_size", default=text_hidden)
    return patches + tower.num_parameters + _merger(hidden, merge, out, norm=hidden)


def _qwen3_vl(_: ConfigValues, vision: ConfigValues, text_hidden: int, *, deepstack: int = 3) -> int:
    hidden = vision.count("hidden_size", default=1152)
    tower = _Tower(hidden, vision.count("intermediate_size", default=4304), vision.count("depth", default=27))
    merge, out = vision.count("spatial_merge_size", default=2), vision.count("out_hidden_size", default=text_hidden)
    patches = _patches(vision, hidden, 16, bias=True, frames=vision.count("temporal_patch_size", default=2))
    positions = vision.count("num_position_embeddings", default=2304) * hidden
    if vision.values.get("deepstack_visual_indexes") is not None:
        deepstack = len(vision.numbers("deepstack_visual_indexes"))
    deeper = deepstack * _merger(hidden, merge, out, norm=2 * hidden * merge * merge)
    return patches + positions + tower.num_parameters + _merger(hidden, merge, out, norm=2 * hidden) + deeper


def _qwen3_5(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> int:
    return _qwen3_vl(whole, vision, text_hidden, deepstack=0)


def _gemma3(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> int:
    """SigLIP So400m at 896 pixels, and one matrix behind it."""
    hidden = vision.count("hidden_size", default=1152)
    width, layers = vision.count("intermediate_size", default=4304), vision.count("num_hidden_layers", default=27)
    side = vision.count("image_size", default=896) // vision.count("patch_size", default=14)
    patches = _patches(vision, hidden, 14, bias=True) + side * side * hidden
    return patches + _Tower(hidden, width, layers).num_parameters + 2 * hidden + hidden + hidden * text_hidden


def _gemma4(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> int:
    hidden = vision.count("hidden_size", default=1152)
    width, layers = vision.count("intermediate_size", default=4304), vision.count("num_hidden_layers", default=27)
    tower = _Tower(hidden, width, layers, biased=False, gated=True)
    positions = 2 * vision.count("position_embedding_size", default=10 * 1024) * hidden
    head_dim = vision.count("head_dim", default=64)
    patches = _patches(vision, hidden, 16, bias=False)
    return patches + positions + tower.num_parameters + layers * 2 * head_dim + hidden * text_hidden


def _llava_next(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> int:
    """CLIP-L at 336 pixels up to the layer whose features are taken, a two-layer projector, and a row's end."""
    hidden = vision.count("hidden_size", default=1024)
    layers = vision.count("num_hidden_layers", default=24)
    taken = whole.values.get("vision_feature_layer", -2)
    if isinstance(taken, int) and not isinstance(taken, bool):
        layers = min(layers, layers + taken + 1 if taken < 0 else taken + 1)
    tower = _Tower(hidden, vision.count("intermediate_size", default=4096), layers)
    side = vision.count("image_size", default=336) // vision.count("patch_size", default=14)
    patches = _patches(vision, hidden, 14, bias=False) + (side * side + 1) * hidden + hidden + 2 * hidden
    return (
        patches + tower.num_parameters + _linear(hidden, text_hidden) + _linear(text_hidden, text_hidden) + text_hidden
    )


def _mistral3(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> int:
    """Pixtral, and a projector that first merges neighbouring patches."""
    hidden = vision.count("hidden_size", default=1024)
    width, layers = vision.count("intermediate_size", default=4096), vision.count("num_hidden_layers", default=24)
    tower = _Tower(hidden, width, layers, biased=False, gated=True, norms=2)
    merge, bias = whole.count("spatial_merge_size", default=2), whole.flag("multimodal_projector_bias", default=False)
    projector = hidden + hidden * merge * merge * hidden
    projector += _linear(hidden, text_hidden, bias=bias) + _linear(text_hidden, text_hidden, bias=bias)
    return _patches(vision, hidden, 14, bias=False) + hidden + tower.num_parameters + projector


def _llama4(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> int:
    """A tower, the adapter behind its pixel shuffle, and one matrix."""
    hidden = vision.count("hidden_size", default=1408)
    width, layers = vision.count("intermediate_size", default=5632), vision.count("num_hidden_layers", default=34)
    side = vision.count("image_size", default=336) // vision.count("patch_size", default=14)
    patches = _patches(vision, hidden, 14, bias=False) + (side * side + 1) * hidden + hidden + 4 * hidden
    wide, out = vision.count("projector_input_dim", default=4096), vision.count("projector_output_dim", default=4096)
    adapter = width * wide + wide * out
    return patches + _Tower(hidden, width, layers).num_parameters + adapter + out * text_hidden


def _kimi_k25(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> int:
    """MoonViT with a table of positions, and a projector over merged patches."""
    hidden = vision.count("vt_hidden_size", default=vision.count("hidden_size", default=1152))
    width = vision.count("vt_intermediate_size", default=vision.count("intermediate_size", default=4304))
    layers = vision.count("vt_num_hidden_layers", default=vision.count("num_hidden_layers", default=27))
    table = vision.count("init_pos_emb_height", default=64) * vision.count("init_pos_emb_width", default=64) * hidden
    merged = 4 * hidden
    projector = 2 * hidden + _linear(merged, merged) + _linear(merged, text_hidden)
    return (
        _patches(vision, hidden, 14, bias=True)
        + table
        + _Tower(hidden, width, layers).num_parameters
        + 2 * hidden
        + projector
    )


_Family = Callable[[ConfigValues, ConfigValues, int], int]
_FAMILIES: Mapping[str, _Family] = {
    "Gemma3ForConditionalGeneration": _gemma3,
    "Gemma4ForConditionalGeneration": _gemma4,
    "KimiK25ForConditionalGeneration": _kimi_k25,
    "Llama4ForConditionalGeneration": _llama4,
    "LlavaNextForConditionalGeneration": _llava_next,
    "Mistral3ForConditionalGeneration": _mistral3,
    "Qwen2VLForConditionalGeneration": _qwen2_vl,
    "Qwen2_5_VLForConditionalGeneration": _qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": _qwen3_vl,
    "Qwen3VLMoeForConditionalGeneration": _qwen3_vl,
    "Qwen3_5ForConditionalGeneration": _qwen3_5,
    "Qwen3_5MoeForConditionalGeneration": _qwen3_5,
}
