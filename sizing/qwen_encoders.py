"""The encoders of Qwen's multimodal families: towers of pictures, of sound, and of both."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from sizing.config_values import ConfigValues
from sizing.towers import Encoder, blocks, line, pair, part, patches, spectrum


def _merger(hidden: int, merge: int, out: int, *, norm: int) -> Encoder:
    """Qwen's: neighbouring patches side by side through two layers."""
    wide = hidden * merge * merge
    return Encoder(whole=norm) + pair(wide, wide, out)


def _qwen2_vl(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    hidden = vision.count("embed_dim", default=1280)
    width = hidden * vision.count("mlp_ratio", default=4)
    merge = vision.count("spatial_merge_size", default=2)
    entry = patches(vision, hidden, 14, bias=False, frames=vision.count("temporal_patch_size", default=2))
    tower = blocks(hidden, width, vision.count("depth", default=32))
    return entry + tower + _merger(hidden, merge, text_hidden, norm=2 * hidden)


def _qwen2_5_vl(_: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    hidden = vision.count("hidden_size", default=1280)
    width, depth = vision.count("intermediate_size", default=3420), vision.count("depth", default=32)
    merge = vision.count("spatial_merge_size", default=2)
    entry = patches(vision, hidden, 14, bias=False, frames=vision.count("temporal_patch_size", default=2))
    out = vision.count("out_hidden_size", default=text_hidden)
    return entry + blocks(hidden, width, depth, gated=True, norms=2) + _merger(hidden, merge, out, norm=hidden)


def _qwen3_vl(_: ConfigValues, vision: ConfigValues, text_hidden: int, *, deepstack: int = 3) -> Encoder:
    hidden = vision.count("hidden_size", default=1152)
    tower = blocks(hidden, vision.count("intermediate_size", default=4304), vision.count("depth", default=27))
    merge, out = vision.count("spatial_merge_size", default=2), vision.count("out_hidden_size", default=text_hidden)
    entry = patches(vision, hidden, 16, bias=True, frames=vision.count("temporal_patch_size", default=2))
    places = Encoder(whole=vision.count("num_position_embeddings", default=2304) * hidden)
    if vision.values.get("deepstack_visual_indexes") is not None:
        deepstack = len(vision.numbers("deepstack_visual_indexes"))
    found = entry + places + tower + _merger(hidden, merge, out, norm=2 * hidden)
    for _index in range(deepstack):
        found += _merger(hidden, merge, out, norm=2 * hidden * merge * merge)
    return found


def _qwen3_5(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    return _qwen3_vl(whole, vision, text_hidden, deepstack=0)


def _exaone4_5(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Qwen 2.5's with fewer heads for keys and values than for queries."""
    vision = part(whole, "vision_config", "exaone4_5_vision")
    hidden, layers = vision.count("hidden_size"), vision.count("depth")
    narrower = hidden - hidden // vision.count("num_heads") * vision.count("num_key_value_heads")
    found = _qwen2_5_vl(whole, vision, text_hidden)
    return replace(found, sharded=found.sharded - layers * 2 * narrower * (hidden + 1))


def _qwen2_audio(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Transformers' own tower, which no rank divides, and one matrix."""
    audio = part(whole, "audio_config", "qwen2_audio_encoder")
    return spectrum(audio, fused=False).undivided() + line(audio.count("d_model"), text_hidden)


def _qwen2_5_omni(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    """Positions of sounds are computed; a vector stands before and one behind each."""
    audio = part(whole, "audio_config", "qwen2_audio_encoder")
    out = audio.count("output_dim", default=text_hidden)
    sound = spectrum(audio, fused=False, places=False).undivided() + line(audio.count("d_model"), out)
    table = 2 * audio.count("max_source_positions") * audio.count("d_model")  # in float32
    return sound + Encoder(whole=2 * out, buffers=table) + _qwen2_5_vl(whole, vision, text_hidden)


def _listener(whole: ConfigValues, text_hidden: int) -> Encoder:
    """Three convolutions over the spectrum as if it were a picture, each halving it, and two matrices at the end."""
    audio = part(whole, "audio_config", "qwen2_audio_encoder")
    hidden, channels = audio.count("d_model"), audio.count("downsample_hidden_size", default=480)
    bins = audio.count("num_mel_bins")
    for _ in range(3):
        bins = (bins + 1) // 2
    convolutions = 9 * channels + channels + 2 * (9 * channels * channels + channels) + channels * bins * hidden
    tower = blocks(hidden, audio.count("encoder_ffn_dim"), audio.count("encoder_layers"))
    ends = line(hidden, hidden) + line(hidden, audio.count("output_dim", default=text_hidden))
    table = 2 * audio.count("max_source_positions") * hidden  # in float32
    return tower + ends + Encoder(whole=convolutions + 2 * hidden, buffers=table)


def _qwen3_omni(whole: ConfigValues, vision: ConfigValues, text_hidden: int) -> Encoder:
    return _listener(whole, text_hidden) + _qwen3_vl(whole, vision, text_hidden)


def _qwen3_asr(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    return _listener(whole, text_hidden)


QWEN: Mapping[str, Callable[[ConfigValues, ConfigValues, int], Encoder]] = {
    "Exaone4_5_ForConditionalGeneration": _exaone4_5,
    "InternS2PreviewForConditionalGeneration": _qwen3_5,
    "OpenCUAForConditionalGeneration": _qwen2_5_vl,
    "Qwen2AudioForConditionalGeneration": _qwen2_audio,
    "Qwen2VLForConditionalGeneration": _qwen2_vl,
    "Qwen2_5OmniForConditionalGeneration": _qwen2_5_omni,
    "Qwen2_5OmniModel": _qwen2_5_omni,
    "Qwen2_5_VLForConditionalGeneration": _qwen2_5_vl,
    "Qwen3ASRForConditionalGeneration": _qwen3_asr,
    "Qwen3ASRRealtimeGeneration": _qwen3_asr,
    "Qwen3OmniMoeForConditionalGeneration": _qwen3_omni,
    "Qwen3VLForConditionalGeneration": _qwen3_vl,
    "Qwen3VLMoeForConditionalGeneration": _qwen3_vl,
    "Qwen3_5ForConditionalGeneration": _qwen3_5,
    "Qwen3_5MoeForConditionalGeneration": _qwen3_5,
}
