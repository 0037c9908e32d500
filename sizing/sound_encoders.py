"""Encoders of sound, family by family: which tower, and what joins it to the text."""

from collections.abc import Callable, Mapping

from sizing.config_values import ConfigValues
from sizing.towers import Encoder, line, pair, part, spectrum


def _ultravox(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Whisper's, and a gated projector over frames side by side."""
    audio = part(whole, "audio_config", "whisper")
    wide, width = (
        audio.count("d_model") * whole.count("stack_factor", default=8),
        whole.count("hidden_size", default=4096),
    )
    between = width // 2 if whole.values.get("projector_act", "swiglu") == "swiglu" else width
    normed = between if whole.flag("projector_ln_mid", default=False) else text_hidden
    return spectrum(audio) + Encoder(whole=wide + wide * width + between * text_hidden + normed)


def _audio_flamingo(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Transformers' own tower, which no rank divides, and two plain layers."""
    audio = _as_whisper(whole)
    projector = pair(audio.count("d_model"), text_hidden, text_hidden)
    return spectrum(audio, fused=False).undivided() + projector.undivided()


def _glm_asr(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Whisper's turned by angles instead of positions, and a projector over frames side by side."""
    audio = _as_whisper(whole)
    return spectrum(audio, places=False) + pair(audio.count("encoder_ffn_dim"), 2 * text_hidden, text_hidden)


def _kimi_audio(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Whisper's largest, whose file stands in a folder of its own, two plain layers and a norm."""
    projector = pair(whole.count("kimia_adaptor_input_dim", default=5120), text_hidden, text_hidden)
    return spectrum(ConfigValues(whole.name, _VOXTRAL)) + projector.undivided() + Encoder(whole=2 * text_hidden)


def _voxtral(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """Whisper's, and two plain matrices over frames side by side."""
    audio = _as_whisper(whole)
    wide = audio.count("d_model") * audio.count("downsample_factor", default=4)
    projector = line(wide, text_hidden, bias=False) + line(text_hidden, text_hidden, bias=False)
    more = audio.count("max_source_positions") * audio.count("d_model")  # its positions are kept in float32
    return spectrum(audio) + projector + Encoder(buffers=more)


_VOXTRAL: Mapping[str, object] = {
    "d_model": 1280,
    "encoder_ffn_dim": 5120,
    "encoder_layers": 32,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
}
_WHISPERS_NAMES = {
    "hidden_size": "d_model",
    "intermediate_size": "encoder_ffn_dim",
    "num_hidden_layers": "encoder_layers",
}


def _as_whisper(whole: ConfigValues) -> ConfigValues:
    """The tower's sizes under the names that Whisper's file has for them, and Voxtral's where none is given."""
    given = whole.section("audio_config").items()
    named = {_WHISPERS_NAMES.get(key, key): value for key, value in given if value is not None}
    return ConfigValues(whole.name, {**_VOXTRAL, **named})


def _granite_speech(whole: ConfigValues, _: ConfigValues, text_hidden: int) -> Encoder:
    """A conformer whose feed-forward parts alone are divided, and a querying transformer over windows of frames."""
    encoder = part(whole, "encoder_config", "granite_speech_encoder")
    hidden, layers = encoder.count("hidden_dim"), encoder.count("num_layers")
    width, inner = hidden * encoder.count("feedforward_mult"), hidden * encoder.count("conv_expansion_factor")
    across, head = encoder.count("num_heads") * encoder.count("dim_head"), encoder.count("dim_head")
    attention = 4 * hidden * across + hidden + (2 * encoder.count("max_pos_emb") + 1) * head
    convolution = hidden * 2 * inner + 2 * inner + inner * encoder.count("conv_kernel_size") + 2 * inner
    convolution += inner * hidden + hidden
    # two halves of a feed-forward layer around attention and convolution, and five norms
    sharded = layers * 2 * (2 * hidden * width + width)
    plain = layers * (2 * hidden + attention + convolution + 10 * hidden)
    out = encoder.count("output_dim")
    ends = Encoder(2 * hidden * out + out, hidden) + line(encoder.count("input_dim"), hidden)
    frames = whole.count("window_size", default=15) // whole.count("downsample_rate", default=5)
    projector = part(whole, "projector_config", "blip_2_qformer")
    queries = Encoder(whole=frames * projector.count("hidden_size"))
    return (
        Encoder(sharded, plain)
        + ends
        + queries
        + querying(projector, every=projector.count("cross_attention_frequency"))
        + line(projector.count("hidden_size"), text_hidden)
    )


def querying(config: ConfigValues, *, every: int) -> Encoder:
    """A BERT whose queries attend to what an encoder made, in every so-manieth layer; no rank divides it."""
    hidden, width, layers = (config.count(key) for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    read = config.count("encoder_hidden_size")
    own = 4 * (hidden * hidden + hidden) + 2 * hidden
    cross = 2 * (hidden * hidden + hidden) + 2 * (read * hidden + hidden) + 2 * hidden
    feed_forward = 2 * hidden * width + width + hidden + 2 * hidden
    crossed = sum(1 for layer in range(layers) if layer % every == 0)
    return Encoder(whole=2 * hidden + layers * (own + feed_forward) + crossed * cross)


SOUNDS: Mapping[str, Callable[[ConfigValues, ConfigValues, int], Encoder]] = {
    "AudioFlamingo3ForConditionalGeneration": _audio_flamingo,
    "GlmAsrForConditionalGeneration": _glm_asr,
    "GraniteSpeechForConditionalGeneration": _granite_speech,
    "GraniteSpeechPlusForConditionalGeneration": _granite_speech,
    "MoonshotKimiaForCausalLM": _kimi_audio,
    "UltravoxModel": _ultravox,
    "VoxtralForConditionalGeneration": _voxtral,
}
