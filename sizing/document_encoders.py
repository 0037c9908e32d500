"""Encoders of families that are there to read documents, and of their kin, each with what joins it to the text."""

from collections.abc import Callable, Mapping

from sizing.config_values import ConfigValues
from sizing.picture_encoders import CLIP_L
from sizing.towers import (
    Encoder,
    blocks,
    clip,
    line,
    pair,
    part,
    patches,
    positions,
    siglip,
)


def _ovis2_5(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP whose patches are spoken of in words of their own: a head over those, and a table of them."""
    vision = part(whole, "vit_config", "siglip_vision_model")
    words = whole.count("visual_vocab_size", default=65536)
    wide = vision.count("hidden_size") * vision.count("hidden_stride", default=2) ** 2
    spoken = words - 4  # four of them stand around a picture
    head = Encoder(whole=wide * spoken + 2 * spoken)
    return siglip(vision) + head + Encoder(whole=words * text_hidden)


_SAM_B = 95_569_152  # vllm/model_executor/models/deepencoder.py: build_sam_vit_b, whose sizes are fixed there


def _deepseek_ocr(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SAM, which no rank divides, CLIP-L over its features, and one matrix over both."""
    tower = clip(ConfigValues(whole.name, {**CLIP_L, "image_size": 224}), last_norm=False)
    projector = ConfigValues(whole.name, whole.section("projector_config"))
    out = projector.count("n_embed", default=text_hidden)
    joined = line(projector.count("input_dim", default=2048), out) + Encoder(whole=2 * out)
    return tower + Encoder(whole=_SAM_B) + joined


def _deepseek_vl2(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Timm's SigLIP, of which only feed-forward parts are divided, with its pooling; two plain layers."""
    hidden, layers, width = 1152, vision.count("layers", default=27), 4304
    attention = 4 * hidden * hidden + 4 * hidden
    layer = Encoder(2 * hidden * width + width, attention + hidden + 4 * hidden)
    pooling = Encoder(2 * hidden * width + width, hidden + attention + 2 * hidden + hidden)
    entry = 3 * 14 * 14 * hidden + hidden + 27 * 27 * hidden + 2 * hidden
    out = ConfigValues(whole.name, whole.section("projector_config")).count("n_embed", default=text_hidden)
    projector = pair(4 * hidden, out, out).undivided() + Encoder(whole=2 * out)
    return Encoder(layers * layer.sharded, layers * layer.whole + entry) + pooling + projector


def _dots_ocr(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Gated layers without biases between two norms, and Qwen's merger."""
    hidden = vision.count("embed_dim", default=1536)
    width, layers = vision.count("intermediate_size", default=4224), vision.count("num_hidden_layers", default=42)
    wide = hidden * vision.count("spatial_merge_size", default=2) ** 2
    entry = patches(vision, hidden, 14, bias=True) + Encoder(whole=hidden + hidden + 2 * hidden)
    return entry + blocks(hidden, width, layers, biased=False, gated=True, norms=2) + pair(wide, wide, text_hidden)


def _keye(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP with a second table of positions, a norm and Qwen's two layers over neighbouring patches."""
    tower, projector = _merged(whole, text_hidden)
    hidden = part(whole, "vision_config", "siglip_vision_model").count("hidden_size")
    return tower + projector + Encoder(whole=_KEYE_PLACES * hidden)


def _paddle(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """The same without that table, its two layers plain ones."""
    tower, projector = _merged(whole, text_hidden)
    return tower + projector.undivided()


def _merged(whole: ConfigValues, text_hidden: int) -> tuple[Encoder, Encoder]:
    vision = part(whole, "vision_config", "siglip_vision_model")
    hidden, merge = vision.count("hidden_size"), vision.count("spatial_merge_size", default=2)
    wide = hidden * merge**2
    return siglip(vision), Encoder(whole=2 * hidden) + pair(wide, wide, text_hidden)


_KEYE_PLACES = 32768


def _glm_ocr(whole: ConfigValues, _: ConfigValues, __: int) -> Encoder:
    """GLM-4V's with biases and normed heads, without a table of positions."""
    vision = part(whole, "vision_config", "glm_ocr_vision")
    hidden, out, heads = vision.count("hidden_size"), vision.count("out_hidden_size"), vision.count("num_heads")
    layers, merge, width = vision.count("depth"), vision.count("spatial_merge_size"), 3 * out
    biased = vision.flag("attention_bias", default=True)
    tower = blocks(hidden, vision.count("intermediate_size"), layers, biased=biased, gated=True, norms=2)
    entry = patches(vision, hidden, bias=True, frames=vision.count("temporal_patch_size"))
    merger = Encoder(out * out + 3 * out * width, 2 * out) + line(hidden * merge**2, out)
    return entry + tower + merger + Encoder(whole=hidden + layers * 2 * (hidden // heads))


def _keye1_5(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """The norm is behind the merging instead of before it."""
    own = part(whole, "vision_config", "siglip_vision_model")
    wide = own.count("hidden_size") * own.count("spatial_merge_size", default=2) ** 2
    return _keye(whole, vision, text_hidden) + Encoder(whole=2 * (wide - own.count("hidden_size")))


def _ovis2(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """AIMv2 or SigLIP whose patches are spoken of in words of their own."""
    tokenizer = ConfigValues(whole.name, whole.section("visual_tokenizer_config"))
    vision = part(tokenizer, "backbone_config", "siglip_vision_model")
    hidden, words = vision.count("hidden_size"), tokenizer.count("vocab_size", default=65536)
    tower = _aimv2(vision) if vision.values.get("model_type") == "aimv2" else siglip(vision)
    spoken = words - 5  # five of them stand around a picture
    wide = hidden * tokenizer.count("hidden_stride", default=2) ** 2
    return tower + Encoder(whole=wide * spoken + 2 * spoken + words * text_hidden)


def _aimv2(vision: ConfigValues) -> Encoder:
    """Gated layers without biases, and a norm behind the patches."""
    hidden, width, layers = (vision.count(key) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    entry = patches(vision, hidden, bias=True) + positions(vision, hidden, patch=None) + Encoder(whole=hidden)
    return entry + blocks(hidden, width, layers, biased=False, gated=True, norms=2)


# SAM, whose last convolution ends in 896 instead of 1,024 channels, and a Qwen 2 of 24 layers with its queries
_DEEPSEEK_OCR2 = _SAM_B - 589_824 + 357_898_112 + (144 + 256) * 896


def _deepseek_ocr2(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """No rank divides any of it (vllm/model_executor/models/deepencoder2.py)."""
    projector = ConfigValues(whole.name, whole.section("projector_config"))
    out = projector.count("n_embed", default=text_hidden)
    return Encoder(whole=_DEEPSEEK_OCR2 + out) + line(projector.count("input_dim", default=896), out)


DOCUMENTS: Mapping[str, Callable[[ConfigValues, ConfigValues, int], Encoder]] = {
    "DeepseekOCR2ForCausalLM": _deepseek_ocr2,
    "DeepseekOCRForCausalLM": _deepseek_ocr,
    "DeepseekVLV2ForCausalLM": _deepseek_vl2,
    "DotsOCRForCausalLM": _dots_ocr,
    "GlmOcrForConditionalGeneration": _glm_ocr,
    "KeyeForConditionalGeneration": _keye,
    "KeyeVL1_5ForConditionalGeneration": _keye1_5,
    "Ovis": _ovis2,
    "Ovis2_5": _ovis2_5,
    "Ovis2_6ForCausalLM": _ovis2_5,
    "Ovis2_6_MoeForCausalLM": _ovis2_5,
    "PaddleOCRVLForConditionalGeneration": _paddle,
}
