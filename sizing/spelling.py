"""What some families' files say under names of their own, or leave to their config class."""

from collections.abc import Callable, Mapping

from sizing.config_values import ConfigValues
from sizing.dense_spelling import DENSE_SPELLINGS
from sizing.mixture_spelling import MIXTURE_SPELLINGS
from sizing.nemotron import nemotron_order

# vllm/config/model.py: _get_and_verify_max_len, for a file without any key that bounds the context
UNBOUNDED_MODEL_LEN = 2048


def spelt(architecture: str, config: ConfigValues) -> ConfigValues:
    """The values with those that all families share under the names that all others have for them.

    Raises:
        ModelFileError: a size is missing or impossible.
    """
    family = _SPELLINGS.get(architecture)
    return config if family is None else ConfigValues(config.name, {**config.values, **family(config)})


def is_unbounded(architecture: str) -> bool:
    """Whether the context has no end: nothing in such a model counts positions, or only how far back they are."""
    return architecture in _MIXERS_ALONE or architecture == "BloomForCausalLM"


def has_encoder_of_its_own(architecture: str | None) -> bool:
    """Whether one file describes an encoder beside the decoder without a section for either."""
    return architecture == "WhisperForConditionalGeneration"


def _mamba1(config: ConfigValues) -> dict[str, object]:
    """Without heads it is the mixer's channels that tensor parallelism divides."""
    return {"num_attention_heads": config.count("expand", default=2) * config.count("hidden_size")}


def _mamba2(config: ConfigValues) -> dict[str, object]:
    return {"num_attention_heads": config.count("num_heads", default=128)}


def _nemotron_h(config: ConfigValues) -> dict[str, object]:
    """The list of layers says how many there are; what a file counts besides is not read, and newer ones do not."""
    return {"num_hidden_layers": len(nemotron_order(config))}


def _whisper(config: ConfigValues) -> dict[str, object]:
    """Its decoder's sizes; the encoder's keep their names."""
    return {
        "hidden_size": config.count("d_model"),
        "num_hidden_layers": config.count("decoder_layers"),
        "num_attention_heads": config.count("decoder_attention_heads"),
        "intermediate_size": config.count("decoder_ffn_dim"),
    }


_MIXERS_ALONE: Mapping[str, Callable[[ConfigValues], dict[str, object]]] = {
    "FalconMambaForCausalLM": _mamba1,
    "Mamba2ForCausalLM": _mamba2,
    "MambaForCausalLM": _mamba1,
}
_SPELLINGS: Mapping[str, Callable[[ConfigValues], dict[str, object]]] = {
    **_MIXERS_ALONE,
    **DENSE_SPELLINGS,
    **MIXTURE_SPELLINGS,
    "NemotronHForCausalLM": _nemotron_h,
    "WhisperForConditionalGeneration": _whisper,
}
