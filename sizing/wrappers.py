"""Where a multimodal wrapper's file has its decoder, and which decoder that is where several may be."""

from collections.abc import Mapping

from sizing.architecture import ARCHITECTURES, FAMILIES, WRAPPERS, architecture_name
from sizing.config_defaults import class_defaults
from sizing.config_values import ConfigValues
from sizing.errors import ModelFileError

TEXT_SECTIONS = ("text_config", "llm_config", "language_config")
# The wrapper whose part of the file holds all the others: vLLM serves it alone.
_THINKER = "thinker_config"
# vLLM builds behind these whatever decoder their part of the file is of; WRAPPERS says what most of them have.
_ANY_DECODER = frozenset(
    {
        "InternS1ForConditionalGeneration",
        "InternVLChatModel",
        "InternVLForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "PaliGemmaForConditionalGeneration",
    }
)
# transformers/models/auto/modeling_auto.py: MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, for parts that name no architecture
_BY_TYPE: Mapping[str, str] = {
    "cohere2": "Cohere2ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "granite": "GraniteForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def unwrapped(values: Mapping[str, object]) -> Mapping[str, object]:
    """The file of a model that speaks as well, as if it were that of the part that thinks."""
    inner = values.get(_THINKER)
    if not isinstance(inner, dict):
        return values
    kept = {key: value for key, value in values.items() if key.endswith("dtype") or key == "quantization_config"}
    return {**kept, **inner, "architectures": values.get("architectures")}


def decoder_name(architecture: str | None, text: Mapping[str, object]) -> str | None:
    """The decoder behind a wrapper, whose part of the file `text` is; None where neither says."""
    usual = WRAPPERS.get(architecture or "")
    if usual is not None and architecture not in _ANY_DECODER:
        return usual
    named = architecture_name(text)
    if named in ARCHITECTURES or named in FAMILIES:
        return named
    by_type = _BY_TYPE.get(str(text.get("model_type")))
    return by_type or named or usual


def text_values(values: Mapping[str, object], *, name: str) -> Mapping[str, object]:
    """The decoder's part of a multimodal config, with what only the wrapper says about it, and its class's defaults.

    Raises:
        ModelFileError: there is none.
    """
    text = ConfigValues(name, values).section(*TEXT_SECTIONS)
    if not text and values.get("num_hidden_layers") is not None:
        return {key: value for key, value in values.items() if key not in ("vision_config", "audio_config")}  # one file
    if not text:
        raise ModelFileError(f"{name}: config.json has no text_config; use the file as its publisher ships it")
    inherited = ("dtype", "torch_dtype", "tie_word_embeddings", "quantization_config", "compression_config")
    outer = {key: values[key] for key in inherited if values.get(key) is not None}
    # a type that the text part names in the old spelling still comes before the wrapper's in the new one
    if text.get("dtype") is not None or text.get("torch_dtype") is not None:
        outer = {key: value for key, value in outer.items() if key not in ("dtype", "torch_dtype")}
    found = {**outer, **{key: value for key, value in text.items() if value is not None or key not in outer}}
    defaults = class_defaults(text.get("model_type"))
    return {**found, **{key: size for key, size in defaults.items() if found.get(key) is None}}
