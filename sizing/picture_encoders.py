"""Encoders of pictures, family by family: which tower, how far it is built, and what joins it to the text."""

from collections.abc import Callable, Mapping

from sizing.config_values import ConfigValues
from sizing.sound_encoders import querying
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
    spectrum,
    taken_layers,
)

_CLIP_L: Mapping[str, object] = {  # what a LLaVA without a word about its tower has
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def _llava_tower(whole: ConfigValues, taken: object, *, last_norm: bool | None) -> Encoder:
    """vllm/model_executor/models/llava.py: init_vision_tower_for_llava."""
    given = whole.section("vision_config") or dict(_CLIP_L)
    vision = part(ConfigValues(whole.name, {"vision_config": given}), "vision_config", "clip_vision_model")
    kind = str(vision.values.get("model_type", "clip_vision_model"))
    if kind.startswith("pixtral"):
        return pixtral(vision, taken=taken)
    if kind.startswith("siglip"):
        return siglip(vision, taken=taken, last_norm=last_norm)
    return clip(vision, taken=taken, last_norm=last_norm)


def _vision_width(whole: ConfigValues) -> int:
    given = whole.section("vision_config") or dict(_CLIP_L)
    return part(ConfigValues(whole.name, {"vision_config": given}), "vision_config", "clip_vision_model").count(
        "hidden_size"
    )


def _llava(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Without the norm behind the last layer, whose output is never read."""
    taken = whole.values.get("vision_feature_layer", -2)
    biased = whole.flag("multimodal_projector_bias", default=True)
    width = _vision_width(whole)
    return _llava_tower(whole, taken, last_norm=False) + pair(width, text_hidden, text_hidden, bias=biased)


def _llava_next(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Features of several layers enter the projector side by side. A vector ends each row."""
    taken = whole.values.get("vision_feature_layer", -2)
    several = len(taken) if isinstance(taken, list) and taken else 1
    projector = pair(_vision_width(whole) * several, text_hidden, text_hidden)
    return _llava_tower(whole, taken, last_norm=None) + projector + Encoder(whole=text_hidden)


def _llava_video(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Its projector is of plain layers, and nothing ends a row."""
    tower = _llava_tower(whole, whole.values.get("vision_feature_layer", -2), last_norm=False)
    return tower + pair(_vision_width(whole), text_hidden, text_hidden).undivided()


def _llava_onevision(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    tower = _llava_tower(whole, whole.values.get("vision_feature_layer", -1), last_norm=False)
    projector = pair(_vision_width(whole), text_hidden, text_hidden)
    return tower + projector.undivided() + Encoder(whole=text_hidden)


def _internvl_chat(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Patches merged by two to the side, a norm and two plain layers behind them."""
    tower = intern_vit(vision, taken=whole.values.get("select_layer", -1))
    return tower + _shuffled(whole, vision.count("hidden_size"), text_hidden)


def _shuffled(whole: ConfigValues, hidden: int, out: int) -> Encoder:
    ratio = whole.values.get("downsample_ratio", 0.5)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1:
        raise whole.impossible("downsample_ratio", "must be a number above 0 and not above 1")
    wide = round(hidden / ratio**2)
    return Encoder(whole=2 * wide) + pair(wide, out, out).undivided()


def _internvl(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Transformers' spelling of it; the projections of its attention are plain layers (models/interns1_vit.py)."""
    vision = part(whole, "vision_config", "internvl_vision")
    return intern_vit(vision, whole_attention=True) + _shuffled(whole, vision.count("hidden_size"), text_hidden)


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


def _nvlm(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """InternViT with seven empty heads, and a projector as wide as the text's feed-forward layers."""
    text = ConfigValues(whole.name, whole.section("llm_config", "text_config"))
    wide, width = vision.count("hidden_size") * 4, text.count("intermediate_size")
    projector = Encoder(whole=2 * wide) + pair(wide, width, text_hidden, bias=False).undivided()
    return intern_vit(vision, taken=whole.values.get("select_layer", -1), more_heads=7) + projector


def _eagle(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    vision = part(whole, "vision_config", "siglip_vision_model")
    tower = siglip(vision, taken=whole.values.get("select_layer", -1))
    return tower + _shuffled(whole, vision.count("hidden_size"), text_hidden)


def _phi3v(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """CLIP-L, two vectors that part the tiles, two plain layers, and the text's table once more."""
    settings = ConfigValues(whole.name, whole.section("img_processor"))
    tower = clip(ConfigValues(whole.name, _CLIP_L), taken=settings.values.get("layer_idx", -2))
    wide = 4 * settings.count("image_dim_out", default=1024)
    projector = Encoder(whole=2 * wide) + pair(wide, text_hidden, text_hidden).undivided()
    return tower + projector + Encoder(whole.count("vocab_size") * text_hidden)


def _minicpm_v(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP, and queries that attend to what it made (vllm/model_executor/layers/resampler.py)."""
    vision = part(whole, "vision_config", "siglip_vision_model")
    hidden, dropped = vision.count("hidden_size"), whole.flag("drop_vision_last_layer", default=False)
    attention = 4 * text_hidden * (text_hidden + 1)
    queries = whole.count("query_num", default=64) * text_hidden
    widened = hidden * text_hidden if hidden != text_hidden else 0
    resampler = queries + widened + attention + text_hidden**2 + 6 * text_hidden
    places = _RESAMPLED_PLACES + (_RESAMPLED_FRAMES if str(whole.values.get("version")) == "4.5" else 0)
    tower = siglip(vision, taken=-2 if dropped else -1, last_norm=True)
    return tower + Encoder(whole=resampler, buffers=places * text_hidden)


_RESAMPLED_PLACES = 70 * 70
_RESAMPLED_FRAMES = 36_000


def _minicpm_o(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """And Whisper's encoder, which no rank divides, with two layers behind it."""
    found = _minicpm_v(whole, vision, text_hidden)
    if not whole.flag("init_audio", default=True):
        return found
    audio = part(whole, "audio_config", "whisper")
    projector = pair(audio.count("encoder_ffn_dim") // 4, text_hidden, text_hidden)
    return found + spectrum(audio, fused=False).undivided() + projector.undivided()


_MOLMO_ROWS = 128  # of the text's table beyond its vocabulary


def _molmo(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """CLIP-L up to its deepest layer but one; two layers' features are pooled by attention, then a gated projector."""
    tower = clip(ConfigValues(whole.name, _CLIP_L), taken=-2)
    hidden = 1024
    pooling = Encoder(3 * (2 * hidden * hidden + hidden) + hidden * hidden, hidden)
    width = whole.count("intermediate_size")
    projector = Encoder(hidden * width + width // 2 * text_hidden)
    return tower + pooling + projector + Encoder(_MOLMO_ROWS * text_hidden, 4 * hidden)


def _molmo2(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP without its last norm, pooled and projected as the first one's is."""
    vit, adapter = (ConfigValues(whole.name, whole.section(key)) for key in ("vit_config", "adapter_config"))
    hidden, width, total = (vit.count(key) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    chosen = adapter.numbers("vit_layers") or [-1]
    side = vit.count("image_patch_size", default=14)
    entry = 3 * side * side * hidden + hidden + vit.count("image_num_pos", default=577) * hidden
    tower = blocks(hidden, width, taken_layers(total, chosen))
    across, inner = adapter.count("hidden_size"), adapter.count("intermediate_size")
    pooling = Encoder(3 * (len(chosen) * hidden * across + across) + across * across, across)
    rows = ConfigValues(whole.name, whole.section("text_config")).count("additional_vocab_size", default=_MOLMO_ROWS)
    projector = Encoder(2 * across * inner + inner * text_hidden + rows * text_hidden)
    return Encoder(whole=entry) + tower + pooling + projector


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
    tower = clip(ConfigValues(whole.name, {**_CLIP_L, "image_size": 224}), last_norm=False)
    projector = ConfigValues(whole.name, whole.section("projector_config"))
    out = projector.count("n_embed", default=text_hidden)
    joined = line(projector.count("input_dim", default=2048), out) + Encoder(whole=2 * out)
    return tower + Encoder(whole=_SAM_B) + joined


def _deepseek_vl2(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Timm's SigLIP, of which only feed-forward parts are divided, with its pooling; two plain layers."""
    hidden, layers, width = 1152, vision.count("layers", default=27), 4304
    attention = 4 * hidden * hidden + 4 * hidden
    layer = Encoder(2 * hidden * width + width, attention + hidden + 4 * hidden)
    pooling = hidden + attention + 2 * hidden + 2 * hidden * width + width + hidden
    entry = 3 * 14 * 14 * hidden + hidden + 27 * 27 * hidden + 2 * hidden
    out = ConfigValues(whole.name, whole.section("projector_config")).count("n_embed", default=text_hidden)
    projector = pair(4 * hidden, out, out).undivided() + Encoder(whole=2 * out)
    return Encoder(layers * layer.sharded, layers * layer.whole + pooling + entry) + projector


def _dots_ocr(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Gated layers without biases between two norms, and Qwen's merger."""
    hidden = vision.count("embed_dim", default=1536)
    width, layers = vision.count("intermediate_size", default=4224), vision.count("num_hidden_layers", default=42)
    wide = hidden * vision.count("spatial_merge_size", default=2) ** 2
    entry = patches(vision, hidden, 14, bias=True) + Encoder(whole=hidden + hidden + 2 * hidden)
    return entry + blocks(hidden, width, layers, biased=False, gated=True, norms=2) + pair(wide, wide, text_hidden)


def _merged(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP, a norm and Qwen's two layers over neighbouring patches."""
    vision = part(whole, "vision_config", "siglip_vision_model")
    hidden, merge = vision.count("hidden_size"), vision.count("spatial_merge_size", default=2)
    wide = hidden * merge**2
    return siglip(vision) + Encoder(whole=2 * hidden) + pair(wide, wide, text_hidden)


def _keye(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """The same with a second table of positions."""
    hidden = part(whole, "vision_config", "siglip_vision_model").count("hidden_size")
    return _merged(whole, vision, text_hidden) + Encoder(whole=_KEYE_PLACES * hidden)


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


def _aria(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP without its last norm, queries that attend to what it made, and two divided layers."""
    vision = part(whole, "vision_config", "idefics3_vision")
    hidden = vision.count("hidden_size")
    queries = max((int(value) for value in _query_counts(whole)), default=256)
    attention = 3 * hidden * hidden + 4 * (hidden * hidden + hidden) + hidden * hidden + hidden
    reading = Encoder(whole=queries * hidden + attention + 6 * hidden)
    return siglip(vision, last_norm=False) + reading + pair(hidden, text_hidden, text_hidden, bias=False)


def _query_counts(whole: ConfigValues) -> list[int]:
    counts = whole.section("projector_patch_to_query_dict").values()
    return [count for count in counts if isinstance(count, int)]


def _blip2(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """EVA's tower, a querying transformer and one matrix."""
    vision, reader = (
        part(whole, "vision_config", "blip_2_vision_model"),
        part(whole, "qformer_config", "blip_2_qformer"),
    )
    hidden, width, layers = (vision.count(key) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    entry = patches(vision, hidden, bias=True) + positions(vision, hidden, more=1) + Encoder(whole=3 * hidden)
    queries = Encoder(whole=whole.count("num_query_tokens", default=32) * reader.count("hidden_size"))
    joined = queries + querying(reader, every=reader.count("cross_attention_frequency"))
    return entry + blocks(hidden, width, layers) + joined + line(reader.count("hidden_size"), text_hidden)


def _phi4mm(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP up to its last layer but one, and a conformer, as its one published model has them."""
    given = whole.section("img_processor")
    vision = ConfigValues(whole.name, {**_SO400M, "image_size": 448})
    tower = siglip(vision, taken=given.get("layer_idx", -2), last_norm=False)
    pictures = Encoder(whole=2 * 1152) + pair(1152, text_hidden, text_hidden).undivided()
    sounds = (
        Encoder(whole=_CASCADES)
        + (pair(1024, text_hidden, text_hidden) + pair(1024, text_hidden, text_hidden)).undivided()
    )
    return tower + pictures + sounds


_SO400M: Mapping[str, object] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
# vllm/model_executor/models/phi4mm_audio.py, 24 blocks of 1,024: what precedes them, their relative positions, they
_CASCADES = 12_616_704 + 16_000 + 160 + 24 * 17_858_560


def _ernie(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Qwen's tower with another entry, and a resampler over neighbours in space and then in time."""
    hidden, layers = vision.count("embed_dim", default=1280), vision.count("depth", default=32)
    tower = blocks(hidden, hidden * vision.count("mlp_ratio", default=4), layers)
    wide = hidden * whole.count("spatial_conv_size", default=2) ** 2
    inner = wide * whole.count("temporal_conv_size", default=2)
    spatial = Encoder(2 * (wide * wide + wide), 2 * wide)
    temporal = (
        Encoder(inner * wide + wide * wide + 2 * wide, 2 * wide)
        if whole.flag("use_temporal_conv", default=True)
        else Encoder()
    )
    last = Encoder(wide * text_hidden + text_hidden, text_hidden)
    return patches(vision, hidden, 14, bias=False) + Encoder(whole=2 * hidden) + tower + spatial + temporal + last


PICTURES: Mapping[str, Callable[[ConfigValues, ConfigValues, int], Encoder]] = {
    "AriaForConditionalGeneration": _aria,
    "Blip2ForConditionalGeneration": _blip2,
    "Cohere2VisionForConditionalGeneration": _cohere2_vision,
    "DeepseekOCRForCausalLM": _deepseek_ocr,
    "DeepseekVLV2ForCausalLM": _deepseek_vl2,
    "DotsOCRForCausalLM": _dots_ocr,
    "Eagle2_5_VLForConditionalGeneration": _eagle,
    "Ernie4_5_VLMoeForConditionalGeneration": _ernie,
    "Glm4vForConditionalGeneration": _glm4v,
    "Glm4vMoeForConditionalGeneration": _glm4v,
    "GlmOcrForConditionalGeneration": _glm_ocr,
    "H2OVLChatModel": _internvl_chat,
    "Idefics3ForConditionalGeneration": _idefics3,
    "InternS1ForConditionalGeneration": _internvl,
    "InternVLChatModel": _internvl_chat,
    "InternVLForConditionalGeneration": _internvl,
    "KeyeForConditionalGeneration": _keye,
    "LlavaForConditionalGeneration": _llava,
    "LlavaNextForConditionalGeneration": _llava_next,
    "LlavaNextVideoForConditionalGeneration": _llava_video,
    "LlavaOnevisionForConditionalGeneration": _llava_onevision,
    "MiniCPMO": _minicpm_o,
    "MiniCPMV": _minicpm_v,
    "Molmo2ForConditionalGeneration": _molmo2,
    "MolmoForCausalLM": _molmo,
    "NVLM_D": _nvlm,
    "Ovis2_5": _ovis2_5,
    "PaddleOCRVLForConditionalGeneration": _merged,
    "PaliGemmaForConditionalGeneration": _paligemma,
    "Phi3VForCausalLM": _phi3v,
    "Phi4MMForCausalLM": _phi4mm,
    "SkyworkR1VChatModel": _internvl_chat,
    "SmolVLMForConditionalGeneration": _idefics3,
}
