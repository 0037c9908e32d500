"""Encoders of pictures, family by family: which tower, how far it is built, and what joins it to the text."""

from collections.abc import Callable, Mapping

from sizing.config_values import ConfigValues
from sizing.towers import (
    Encoder,
    blocks,
    clip,
    intern_vit,
    line,
    pair,
    part,
    patches,
    pixtral,
    positions,
    siglip,
)

CLIP_L: Mapping[str, object] = {  # what a LLaVA without a word about its tower has
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def llava_tower(whole: ConfigValues, taken: object, *, last_norm: bool | None) -> Encoder:
    """vllm/model_executor/models/llava.py: init_vision_tower_for_llava."""
    vision = _vision(whole)
    kind = str(vision.values.get("model_type", "clip_vision_model"))
    if kind.startswith("pixtral"):
        return pixtral(vision, taken=taken)
    if kind.startswith("siglip"):
        return siglip(vision, taken=taken, last_norm=last_norm)
    return clip(vision, taken=taken, last_norm=last_norm)


def vision_width(whole: ConfigValues) -> int:
    return _vision(whole).count("hidden_size")


def _vision(whole: ConfigValues) -> ConfigValues:
    given = whole.section("vision_config") or dict(CLIP_L)
    return part(ConfigValues(whole.name, {"vision_config": given}), "vision_config", "clip_vision_model")


def _llava(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Without the norm behind the last layer, whose output is never read."""
    taken = whole.values.get("vision_feature_layer", -2)
    biased = whole.flag("multimodal_projector_bias", default=True)
    width = vision_width(whole)
    return llava_tower(whole, taken, last_norm=False) + pair(width, text_hidden, text_hidden, bias=biased)


def _llava_next(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Features of several layers enter the projector side by side. A vector ends each row."""
    taken = whole.values.get("vision_feature_layer", -2)
    several = len(taken) if isinstance(taken, list) and taken else 1
    projector = pair(vision_width(whole) * several, text_hidden, text_hidden)
    return llava_tower(whole, taken, last_norm=None) + projector + Encoder(whole=text_hidden)


def _llava_video(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Its projector is of plain layers, and nothing ends a row."""
    tower = llava_tower(whole, whole.values.get("vision_feature_layer", -2), last_norm=False)
    return tower + pair(vision_width(whole), text_hidden, text_hidden).undivided()


def _llava_onevision(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    tower = llava_tower(whole, whole.values.get("vision_feature_layer", -1), last_norm=False)
    projector = pair(vision_width(whole), text_hidden, text_hidden)
    return tower + projector.undivided() + Encoder(whole=text_hidden)


def internvl_chat(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Patches merged by two to the side, a norm and two plain layers behind them."""
    tower = intern_vit(vision, taken=whole.values.get("select_layer", -1))
    return tower + shuffled(whole, vision.count("hidden_size"), text_hidden)


def shuffled(whole: ConfigValues, hidden: int, out: int) -> Encoder:
    ratio = whole.values.get("downsample_ratio", 0.5)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise whole.impossible("downsample_ratio", "must be a number above 0 and not above 1")
    wide = round(hidden / ratio**2)
    return Encoder(whole=2 * wide) + pair(wide, out, out).undivided()


def _internvl(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Transformers' spelling of it; the projections of its attention are plain layers (models/interns1_vit.py)."""
    vision = part(whole, "vision_config", "internvl_vision")
    return intern_vit(vision, whole_attention=True) + shuffled(whole, vision.count("hidden_size"), text_hidden)


def _idefics3(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP, and one plain matrix over merged patches."""
    vision = part(whole, "vision_config", "idefics3_vision")
    scale = whole.count("scale_factor", default=2)
    connector = line(vision.count("hidden_size") * scale**2, text_hidden, bias=False)
    return siglip(vision, last_norm=True) + connector


def _paligemma(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    vision = part(whole, "vision_config", "siglip_vision_model")
    width = whole.section("vision_config").get("projection_dim") or whole.values.get("projection_dim")
    out = width if isinstance(width, int) else text_hidden
    return siglip(vision) + line(vision.count("hidden_size"), out)


def _glm4v(whole: ConfigValues, _: ConfigValues, __: int) -> Encoder:
    """Layers whose feed-forward part is as wide as the text, and a gated merger behind a convolution."""
    vision = part(whole, "vision_config", "glm4v_vision")
    hidden, out = vision.count("hidden_size"), vision.count("out_hidden_size")
    merge, width = vision.count("spatial_merge_size"), vision.count("intermediate_size")
    tower = blocks(hidden, out, vision.count("depth"), biased=False, gated=True, norms=2)
    entry = patches(vision, hidden, bias=True, frames=vision.count("temporal_patch_size"))
    merger = Encoder(out * out + 3 * out * width, 2 * out) + line(hidden * merge**2, out)
    return entry + positions(vision, hidden) + tower + merger + Encoder(whole=2 * hidden)


def _cohere2_vision(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP, and a gated projector over merged patches."""
    vision = part(whole, "vision_config", "siglip_vision_model")
    wide = vision.count("hidden_size") * whole.count("downsample_factor", default=2) ** 2
    width = whole.count("alignment_intermediate_size", default=36864)
    projector = Encoder(wide * width + width + width // 2 * text_hidden, text_hidden)
    return siglip(vision) + projector


PICTURES: Mapping[str, Callable[[ConfigValues, ConfigValues, int], Encoder]] = {
    "Cohere2VisionForConditionalGeneration": _cohere2_vision,
    "Glm4vForConditionalGeneration": _glm4v,
    "Glm4vMoeForConditionalGeneration": _glm4v,
    "H2OVLChatModel": internvl_chat,
    "Idefics3ForConditionalGeneration": _idefics3,
    "InternS1ForConditionalGeneration": _internvl,
    "InternVLChatModel": internvl_chat,
    "InternVLForConditionalGeneration": _internvl,
    "LlavaForConditionalGeneration": _llava,
    "LlavaNextForConditionalGeneration": _llava_next,
    "LlavaNextVideoForConditionalGeneration": _llava_video,
    "LlavaOnevisionForConditionalGeneration": _llava_onevision,
    "PaliGemmaForConditionalGeneration": _paligemma,
    "QianfanOCRForConditionalGeneration": internvl_chat,
    "SkyworkR1VChatModel": internvl_chat,
    "SmolVLMForConditionalGeneration": _idefics3,
}
