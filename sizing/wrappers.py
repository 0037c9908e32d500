"""Where a multimodal wrapper's file has its decoder, and which decoder that is where several may be."""

from collections.abc import Callable, Mapping

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
        "AudioFlamingo3ForConditionalGeneration",
        "BeeForConditionalGeneration",
        "DeepseekVLV2ForCausalLM",
        "GlmAsrForConditionalGeneration",
        "KananaVForConditionalGeneration",
        "LightOnOCRForConditionalGeneration",
        "OpenCUAForConditionalGeneration",
        "Ovis",
        "PixtralForConditionalGeneration",
        "QianfanOCRForConditionalGeneration",
        "RForConditionalGeneration",
        "Eagle2_5_VLForConditionalGeneration",
        "GraniteSpeechForConditionalGeneration",
        "GraniteSpeechPlusForConditionalGeneration",
        "H2OVLChatModel",
        "InternS1ForConditionalGeneration",
        "InternVLChatModel",
        "InternVLForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "NVLM_D",
        "Ovis2_5",
        "Ovis2_6ForCausalLM",
        "Ovis2_6_MoeForCausalLM",
        "PaliGemmaForConditionalGeneration",
        "StepVLForConditionalGeneration",
        "SkyworkR1VChatModel",
        "UltravoxModel",
        "VoxtralForConditionalGeneration",
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
    "internlm2": "InternLM2ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "opt": "OPTForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def _minicpm(text: Mapping[str, object]) -> str:
    """vllm/model_executor/models/minicpmv.py: one name for many decoders, told apart by a version."""
    version = str(text.get("version") or "2.5")
    return {"2.5": "LlamaForCausalLM", "2.6": "Qwen2ForCausalLM", "4.0": "LlamaForCausalLM"}.get(
        version, "Qwen3ForCausalLM" if version == "4.5" else f"MiniCPM-V {version}"
    )


def _deepseek(text: Mapping[str, object]) -> str:
    return "DeepseekV2ForCausalLM" if text.get("use_mla", True) else "DeepseekForCausalLM"


def _molmo(text: Mapping[str, object]) -> str:
    return "Qwen2ForCausalLM" if text.get("qkv_bias", True) else "LlamaForCausalLM"


_TOLD_BY_FILE: Mapping[str, Callable[[Mapping[str, object]], str]] = {
    "DeepseekOCR2ForCausalLM": _deepseek,
    "DeepseekOCRForCausalLM": _deepseek,
    "DeepseekVLV2ForCausalLM": _deepseek,
    "MiniCPMO": _minicpm,
    "MiniCPMV": _minicpm,
    "MolmoForCausalLM": _molmo,
}


def _both_halves(text: Mapping[str, object]) -> dict[str, object]:
    """Molmo's width is that of gate and up projection together."""
    width = text.get("intermediate_size")
    return {"intermediate_size": width // 2} if isinstance(width, int) else {}


def _without_latent(text: Mapping[str, object]) -> dict[str, object]:
    """Keys of latent attention that a file has although its layers do not."""
    latent = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return {} if text.get("use_mla", True) else dict.fromkeys(latent)


def _aria(text: Mapping[str, object]) -> dict[str, object]:
    """A mixture of experts in each layer, under names of its own."""
    return {
        "n_routed_experts": text.get("moe_num_experts"),
        "num_experts_per_tok": text.get("moe_topk"),
        "n_shared_experts": text.get("moe_num_shared_experts"),
        "moe_intermediate_size": text.get("intermediate_size"),
        "num_key_value_heads": text.get("num_key_value_heads") or text.get("num_attention_heads"),
    }


def _texts_experts(text: Mapping[str, object]) -> dict[str, object]:
    """ERNIE's lists have the text's experts first and the pictures' second."""
    keys = ("moe_num_experts", "moe_intermediate_size", "moe_layer_start_index")
    lists = {key: text.get(key) for key in keys}
    return {key: value[0] for key, value in lists.items() if isinstance(value, list) and value}


_SPELLINGS: Mapping[str, Callable[[Mapping[str, object]], dict[str, object]]] = {
    "AriaForConditionalGeneration": _aria,
    "DeepseekOCR2ForCausalLM": _without_latent,
    "DeepseekOCRForCausalLM": _without_latent,
    "DeepseekVLV2ForCausalLM": _without_latent,
    "Ernie4_5_VLMoeForConditionalGeneration": _texts_experts,
    "MolmoForCausalLM": _both_halves,
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
    told = _TOLD_BY_FILE.get(architecture or "")
    if told is not None:
        return told(text)
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
    text = _part(values, name=name)
    spelling = _SPELLINGS.get(architecture_name(values) or "")
    return {**text, **spelling(text)} if spelling else text


def _part(values: Mapping[str, object], *, name: str) -> Mapping[str, object]:
    text = ConfigValues(name, values).section(*TEXT_SECTIONS)
    if not text and values.get("num_hidden_layers") is not None:
        return {key: value for key, value in values.items() if key not in ("vision_config", "audio_config")}  # one file
    elsewhere = values.get("text_model_id")
    if not text and elsewhere is not None:
        raise ModelFileError(
            f"{name}: config.json names its decoder only as {elsewhere}; add that model's config.json as text_config"
        )
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
