"""Encoders of pictures that only one or two families have, each with what joins it to the text."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from sizing.config_values import ConfigValues
from sizing.picture_encoders import CLIP_L, llava_tower, shuffled, vision_width
from sizing.release import Release
from sizing.sound_encoders import querying
from sizing.towers import (
    EVER,
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


def _nvlm(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """InternViT with seven empty heads, and a projector as wide as the text's feed-forward layers."""
    text = ConfigValues(whole.name, whole.section("llm_config", "text_config"))
    wide, width = vision.count("hidden_size") * 4, text.count("intermediate_size")
    projector = Encoder(whole=2 * wide) + pair(wide, width, text_hidden, bias=False).undivided()
    return intern_vit(vision, taken=whole.values.get("select_layer", -1), more_heads=7) + projector


def _eagle(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    vision = part(whole, "vision_config", "siglip_vision_model")
    tower = siglip(vision, taken=whole.values.get("select_layer", -1))
    return tower + shuffled(whole, vision.count("hidden_size"), text_hidden)


def _phi3v(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """CLIP-L, two vectors that part the tiles, two plain layers, and the text's table once more."""
    settings = ConfigValues(whole.name, whole.section("img_processor"))
    tower = clip(ConfigValues(whole.name, CLIP_L), taken=settings.values.get("layer_idx", -2))
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
    tower = clip(ConfigValues(whole.name, CLIP_L), taken=-2)
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
    """Qwen's tower with another entry, a resampler over neighbours in space and then in time, and experts of its own.

    Those stand beside the text's in each mixture, picked by a router of their own (models/ernie45_vl_moe.py), whose
    layers do not share a rotary table.
    """
    hidden, layers = vision.count("embed_dim", default=1280), vision.count("depth", default=32)
    tower = blocks(hidden, hidden * vision.count("mlp_ratio", default=4), layers)
    wide = hidden * whole.count("spatial_conv_size", default=2) ** 2
    inner = wide * whole.count("temporal_conv_size", default=2)
    spatial = Encoder(2 * (wide * wide + wide), 2 * wide)
    in_time = whole.flag("use_temporal_conv", default=True)
    temporal = Encoder(inner * wide + wide * wide + 2 * wide, 2 * wide) if in_time else Encoder()
    last = Encoder(wide * text_hidden + text_hidden, text_hidden)
    entry = patches(vision, hidden, 14, bias=False) + Encoder(whole=2 * hidden)
    return entry + tower + spatial + temporal + last + _ernie_experts(whole, text_hidden)


def _ernie_experts(whole: ConfigValues, hidden: int) -> Encoder:
    counts, widths = whole.numbers("moe_num_experts"), whole.numbers("moe_intermediate_size")
    if len(counts) < 2 or len(widths) < 2:
        return Encoder()
    num_layers = whole.count("num_hidden_layers")
    mixtures = num_layers - min([*whole.numbers("moe_layer_start_index")[1:], num_layers])
    heads = whole.count("num_attention_heads")
    table = _MROPE_LENGTHS * whole.count("max_position_embeddings") * (hidden // heads)
    shared = table // _MROPE_LENGTHS  # what one table for all layers takes is counted with the decoder
    return Encoder(
        mixtures * 3 * counts[1] * hidden * widths[1],
        mixtures * counts[1] * (hidden + 1),
        buffers=num_layers * table - shared,
    )


_MROPE_LENGTHS = 4  # room for the positions of images, see sizing.rotary


def _kanana(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Qwen 2's tower without its merger, and RegNet's convolutions before and behind a merging of patches."""
    hidden, layers = vision.count("embed_dim", default=1280), vision.count("depth", default=32)
    tower = blocks(hidden, hidden * vision.count("mlp_ratio", default=4), layers)
    frames = vision.count("temporal_patch_size", default=2)
    own = ConfigValues(whole.name, whole.section("projector_config"))
    width, merge = own.count("hidden_size", default=1024), own.count("merge_size", default=2)
    depth, out = own.count("depth", default=2), own.count("output_hidden_size", default=text_hidden)
    table = own.count("pos_emb_size", default=576) * hidden if own.flag("pos_emb", default=True) else 0
    convolved = _reg_stage(hidden, width, depth) + _reg_stage(merge**2 * width, width, depth)
    readout = width * out + out + (own.count("mlp_depth", default=2) - 1) * (out * out + out)
    return patches(vision, hidden, 14, bias=False, frames=frames) + tower + Encoder(whole=table + convolved + readout)


def _reg_stage(into: int, width: int, depth: int) -> int:
    """Timm's: bottlenecks of three convolutions, the middle one by channel, with squeeze and excitation."""
    found = 0
    for inputs in (into, *(width,) * (depth - 1)):
        squeezed = round(inputs / 4)
        convolutions = inputs * width + 9 * width + width * width + 3 * 2 * width
        excitation = width * squeezed + squeezed + squeezed * width + width
        shortcut = inputs * width + 2 * width if inputs != width else 0
        found += convolutions + excitation + shortcut
    return found


# vllm/transformers_utils/configs/radio.py: hidden size, layers and width of the towers that it knows by name
_RADIO: Mapping[str, tuple[int, int, int]] = {
    "vit_small_patch16_224": (384, 12, 1536),
    "vit_base_patch16_224": (768, 12, 3072),
    "vit_large_patch16_224": (1024, 24, 4096),
    "vit_huge_patch16_224": (1280, 32, 5120),
}


def _nano_vl(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """RADIO: InternViT's layers, positions for its largest picture and a vector per teacher; two plain layers.

    Of the encoder of sound that some have beside it nothing is known here.
    """
    settings = ConfigValues(whole.name, vision.section("args"))
    hidden, layers, width = _RADIO.get(str(settings.values.get("model")), _RADIO["vit_huge_patch16_224"])
    side = whole.count("patch_size", default=16)
    teachers = settings.values.get("teachers")
    vectors = len(teachers) if isinstance(teachers, list) and teachers else 1
    rows = (vision.count("max_resolution", default=2048) // side) ** 2
    entry = Encoder(whole=(3 * side * side + rows + vectors) * hidden)
    scales = Encoder(whole=layers * 2 * hidden)
    wide, between = 4 * hidden, whole.count("projector_hidden_size", default=4 * text_hidden)
    projector = Encoder(whole=wide) + pair(wide, between, text_hidden, bias=False).undivided()
    unheard = "the weights of its encoder of sound are not in the sum" if whole.section("sound_config") else ""
    return replace(entry + blocks(hidden, width, layers) + scales + projector, estimated=unheard)


def _perception(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """A tower with scales behind both parts of a layer, two convolutions that halve it, and one divided matrix."""
    hidden, layers, ratio = vision.count("width"), vision.count("layers"), vision.values.get("mlp_ratio", 4.0)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio <= 0:
        raise vision.impossible("mlp_ratio", "must be a positive number")
    begins, ends = (vision.flag(key, default=True) for key in ("use_ln_pre", "use_ln_post"))
    scaled = vision.values.get("ls_init_value") is not None
    first = vision.flag("use_cls_token", default=False)
    norms = 2 * hidden * (begins + ends) + (2 * layers * hidden if scaled else 0) + hidden * first
    halved = line(9 * hidden, 2 * hidden) + line(9 * 2 * hidden, 4 * hidden)
    entry = patches(vision, hidden, bias=False) + Encoder(whole=norms)
    if vision.flag("use_abs_posemb", default=True):
        entry += positions(vision, hidden, patch=None, more=int(first))
    biased = whole.flag("projector_bias", default=False)
    projector = Encoder(4 * hidden * text_hidden + (text_hidden if biased else 0))
    rows = positions(vision, hidden // vision.count("heads"), patch=None).whole
    turned = Encoder(buffers=2 * layers * rows)  # each layer has its own table of angles, in float32
    return turned + entry + blocks(hidden, int(hidden * ratio), layers) + halved + projector


def _bee(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    return _normed_projector(whole, text_hidden, 4 * text_hidden)


def _r(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    return _normed_projector(whole, text_hidden, text_hidden)


def _normed_projector(whole: ConfigValues, text_hidden: int, between: int) -> Encoder:
    """LLaVA-OneVision's tower, and two plain layers behind a norm."""
    width = vision_width(whole)
    tower = llava_tower(whole, whole.values.get("vision_feature_layer", -1), last_norm=False)
    projector = Encoder(whole=2 * width) + pair(width, between, text_hidden).undivided()
    return tower + projector + Encoder(whole=text_hidden)


def _phi4_siglip(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """The second SigLIP up to its last layer but one."""
    vision = part(whole, "vision_config", "siglip2_vision_model")
    return siglip(vision, taken=-2, last_norm=False) + pair(vision.count("hidden_size"), text_hidden, text_hidden)


def _lfm2_vl(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """The second SigLIP, and two plain layers over merged patches."""
    vision = part(whole, "vision_config", "siglip2_vision_model")
    wide = vision.count("hidden_size") * whole.count("downsample_factor", default=2) ** 2
    normed = 2 * wide if whole.flag("projector_use_layernorm", default=True) else 0
    biased = whole.flag("projector_bias", default=True)
    projector = pair(wide, whole.count("projector_hidden_size", default=2560), text_hidden, bias=biased)
    return siglip(vision) + projector.undivided() + Encoder(whole=normed)


def _isaac(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    vision = part(whole, "vision_config", "siglip2_vision_model")
    wide = vision.count("hidden_size") * vision.count("pixel_shuffle_scale_factor", default=1) ** 2
    return siglip(vision) + pair(wide, 4 * wide, text_hidden, bias=False)


def _pixtral(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Mistral's own format: the projector is of plain layers, and before 0.20 the tower was too."""
    vision = part(whole, "vision_config", "pixtral")
    hidden = vision.count("hidden_size")
    biased = vision.flag("adapter_bias", default=True)
    projector = pair(hidden, text_hidden, text_hidden, bias=biased).undivided()
    merge = vision.values.get("spatial_merge_size")
    merger = Encoder(whole=hidden + hidden * merge**2 * hidden) if isinstance(merge, int) and merge > 1 else Encoder()
    return replace(pixtral(vision) + projector + merger, whole_in=(EVER, Release(20)))


def _granite4_vision(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP, and for each layer that it feeds a querying transformer over windows."""
    vision = part(whole, "vision_config", "siglip_vision_model")
    hidden, fed = vision.count("hidden_size"), whole.values.get("deepstack_layer_map")
    projectors = len(fed) if isinstance(fed, list) else 0
    if whole.flag("use_spatial_sampling", default=False):
        projectors += len(whole.numbers("spatial_target_layers"))
    reader = {"hidden_size": hidden, "intermediate_size": 3072, "num_hidden_layers": 1, "encoder_hidden_size": hidden}
    queries, window = (int(side) for side in str(whole.values.get("downsample_rate") or "4/8").split("/"))
    one = querying(ConfigValues(whole.name, reader), every=1).num_parameters + 2 * hidden
    one += (queries**2 + window**2) * hidden + hidden * text_hidden + text_hidden
    newline = text_hidden if whole.flag("use_image_newline_parameter", default=True) else 0
    return siglip(vision, last_norm=False) + Encoder(whole=projectors * one + newline)


def _gemma4_unified(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """No tower: patches and sounds enter the decoder through a matrix or two."""
    vision = part(whole, "vision_config", "gemma4_unified_vision")
    width = vision.count("mm_embed_dim")
    wide = 3 * (vision.count("patch_size") * vision.count("pooling_kernel_size")) ** 2
    norms = 2 * wide + 4 * width
    table = 2 * vision.count("mm_posemb_size") * width
    found = Encoder(wide * width + width, norms + table + width * text_hidden)
    if not whole.section("audio_config"):
        return found
    heard = ConfigValues(whole.name, whole.section("audio_config")).count("audio_embed_dim", default=640)
    return found + Encoder(whole=heard * text_hidden)


def _minicpm_v4_6(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """SigLIP with attention over windows between its layers, each of which becomes one patch, and a merger."""
    vision = part(whole, "vision_config", "minicpmv4_6_vision")
    hidden, width = vision.count("hidden_size"), vision.count("intermediate_size")
    wide = 4 * hidden
    windows = Encoder(4 * hidden * hidden + 3 * hidden, hidden + 2 * hidden)
    joined = Encoder(whole=2 * wide) + pair(wide, 4 * width, hidden).undivided()
    merger = Encoder(whole=2 * wide) + pair(wide, wide, text_hidden).undivided()
    return siglip(vision, last_norm=True) + windows + joined + merger


FURTHER: Mapping[str, Callable[[ConfigValues, ConfigValues, int], Encoder]] = {
    "AriaForConditionalGeneration": _aria,
    "BeeForConditionalGeneration": _bee,
    "Blip2ForConditionalGeneration": _blip2,
    "Eagle2_5_VLForConditionalGeneration": _eagle,
    "Ernie4_5_VLMoeForConditionalGeneration": _ernie,
    "Gemma4UnifiedForConditionalGeneration": _gemma4_unified,
    "Granite4VisionForConditionalGeneration": _granite4_vision,
    "IsaacForConditionalGeneration": _isaac,
    "KananaVForConditionalGeneration": _kanana,
    "Lfm2VlForConditionalGeneration": _lfm2_vl,
    "MiniCPMO": _minicpm_o,
    "MiniCPMV": _minicpm_v,
    "MiniCPMV4_6ForConditionalGeneration": _minicpm_v4_6,
    "MiniCPMV4_7ForConditionalGeneration": _minicpm_v4_6,
    "Molmo2ForConditionalGeneration": _molmo2,
    "MolmoForCausalLM": _molmo,
    "NVLM_D": _nvlm,
    "NemotronH_Nano_Omni_Reasoning_V3": _nano_vl,
    "NemotronH_Nano_VL_V2": _nano_vl,
    "NemotronH_Omni_Reasoning_V3": _nano_vl,
    "NemotronH_Super_Omni_Reasoning_V3": _nano_vl,
    "Phi3VForCausalLM": _phi3v,
    "Phi4ForCausalLMV": _phi4_siglip,
    "Phi4MMForCausalLM": _phi4mm,
    "PixtralForConditionalGeneration": _pixtral,
    "RForConditionalGeneration": _r,
    "Step3p7ForConditionalGeneration": _perception,
    "StepVLForConditionalGeneration": _perception,
}
