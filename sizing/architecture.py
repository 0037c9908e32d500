"""Which architectures are sized (closed tables), and what is missing for the ones that are not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sizing.anatomy import Anatomy
from sizing.config_values import ConfigValues
from sizing.decoders import DECODERS, decoder
from sizing.errors import UnsupportedModelError
from sizing.hybrids import HYBRIDS, hybrid
from sizing.latent import deepseek, deepseek_sparse, deepseek_v4, kimi_linear
from sizing.recurrent import qwen3_5, qwen3_next
from sizing.uneven import decilm, minimax_m3, step3p5
from sizing.windowed import exaone4, gemma2, gemma3, gemma3n, gemma4, gpt_oss, llama4, minimax_m2


@dataclass(frozen=True)
class Architecture:
    """How a plain decoder spells what decides its size: as its `config.json` and vLLM 0.32 read it."""

    bias: Literal["none", "qkv", "attention_bias"] = "none"
    """`qkv`: always on the three input projections; `attention_bias`: on all four where the config says so."""
    qk_norm: Literal["none", "head", "width"] = "none"
    """Query and key norms as wide as one head, or as wide as all heads together."""
    experts_key: str | None = None
    """The config's name for the number of experts in a mixture-of-experts layer."""
    expert_width_key: str = "intermediate_size"
    window: Literal["sliding_window", "use_sliding_window"] = "sliding_window"
    """What turns a sliding window on: the size alone, or a switch beside it."""
    default_window: int | None = None
    """The window that the config class assumes when the key is absent."""
    layer_types: Literal["each", "same", "none"] = "none"
    """`each`: vLLM gives each layer the window its type says; `same`: it refuses a mixture; `none`: not known."""
    plain_head_dim: bool = True
    """Without `head_dim` a head is hidden_size / num_attention_heads wide; else the key is required."""
    kv_heads_default_to_heads: bool = False
    tied_by_default: bool = False


_LLAMA = Architecture(bias="attention_bias", layer_types="each", kv_heads_default_to_heads=True)
_QWEN2 = Architecture(bias="qkv", window="use_sliding_window", default_window=4096, layer_types="same")

# Each of these registers one KV cache layer of keys and values per decoder layer in vllm/model_executor/models.
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": _LLAMA,
    "LLaMAForCausalLM": _LLAMA,
    "MistralForCausalLM": Architecture(default_window=4096, layer_types="each"),
    "Qwen2ForCausalLM": _QWEN2,
    "MiMoForCausalLM": _QWEN2,
    "Qwen3ForCausalLM": Architecture(
        bias="attention_bias",
        qk_norm="head",
        window="use_sliding_window",
        default_window=4096,
        layer_types="same",
        plain_head_dim=False,
    ),
    "Qwen3MoeForCausalLM": Architecture(
        bias="attention_bias",
        qk_norm="head",
        experts_key="num_experts",
        expert_width_key="moe_intermediate_size",
        window="use_sliding_window",
        default_window=4096,
        plain_head_dim=False,
    ),
    "MixtralForCausalLM": Architecture(experts_key="num_local_experts"),
    "Phi3ForCausalLM": Architecture(),
    "GraniteForCausalLM": Architecture(bias="attention_bias"),
    "GemmaForCausalLM": Architecture(bias="attention_bias", plain_head_dim=False, tied_by_default=True),
    "Olmo2ForCausalLM": Architecture(bias="attention_bias", qk_norm="width"),
    "OlmoeForCausalLM": Architecture(bias="attention_bias", qk_norm="width", experts_key="num_experts"),
}

# DeepSeek's layers under other names, and in keys that sizing.mixture_spelling translates
LIKE_DEEPSEEK = (
    "AXK1ForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "MistralLarge3ForCausalLM",
    "PanguUltraMoEForCausalLM",
    "SarvamMLAForCausalLM",
)

FAMILIES: dict[str, Callable[[ConfigValues], Anatomy]] = {
    "DeciLMForCausalLM": decilm,
    "DeepseekV2ForCausalLM": deepseek,
    "DeepseekV3ForCausalLM": deepseek,
    "DeepseekV32ForCausalLM": deepseek_sparse,
    "DeepseekV4ForCausalLM": deepseek_v4,
    "Exaone4ForCausalLM": exaone4,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Gemma3nForCausalLM": gemma3n,
    "Gemma4ForCausalLM": gemma4,
    "GlmMoeDsaForCausalLM": deepseek_sparse,
    "GptOssForCausalLM": gpt_oss,
    "KimiLinearForCausalLM": kimi_linear,
    "Llama4ForCausalLM": llama4,
    "MiniMaxM2ForCausalLM": minimax_m2,
    "MiniMaxM3ForCausalLM": minimax_m3,
    "MiniMaxM3SparseForCausalLM": minimax_m3,
    "Qwen3NextForCausalLM": qwen3_next,
    "Qwen3_5ForCausalLM": qwen3_5,
    "Qwen3_5MoeForCausalLM": qwen3_5,
    "Step3p5ForCausalLM": step3p5,
    **dict.fromkeys(LIKE_DEEPSEEK, deepseek),
    **{name: partial(decoder, name) for name in DECODERS},
    **{name: partial(hybrid, name) for name in HYBRIDS},
}

# The decoder behind a multimodal wrapper; its values are the wrapper's `text_config`.
WRAPPERS: dict[str, str] = {
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "Gemma3nForConditionalGeneration": "Gemma3nForCausalLM",
    "Gemma4ForConditionalGeneration": "Gemma4ForCausalLM",
    "KimiK25ForConditionalGeneration": "DeepseekV3ForCausalLM",
    "KimiK3ForConditionalGeneration": "KimiLinearForCausalLM",
    "KimiVLForConditionalGeneration": "DeepseekV3ForCausalLM",
    "Lfm2VlForConditionalGeneration": "Lfm2ForCausalLM",
    "Llama4ForConditionalGeneration": "Llama4ForCausalLM",
    "LlavaNextForConditionalGeneration": "MistralForCausalLM",
    "MiniMaxM3SparseForConditionalGeneration": "MiniMaxM3SparseForCausalLM",
    "Mistral3ForConditionalGeneration": "MistralForCausalLM",
    "NemotronH_Nano_VL_V2": "NemotronHForCausalLM",
    "Qwen2VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen3VLForConditionalGeneration": "Qwen3ForCausalLM",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3MoeForCausalLM",
    "Qwen3_5ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForConditionalGeneration": "Qwen3_5MoeForCausalLM",
    "Step3p7ForConditionalGeneration": "Step3p5ForCausalLM",
    "AudioFlamingo3ForConditionalGeneration": "Qwen2ForCausalLM",
    "BeeForConditionalGeneration": "Qwen3ForCausalLM",
    "DeepseekOCR2ForCausalLM": "DeepseekForCausalLM",
    "Ernie4_5_VLMoeForConditionalGeneration": "Ernie4_5_MoeForCausalLM",
    "Exaone4_5_ForConditionalGeneration": "Exaone4ForCausalLM",
    "Gemma4UnifiedForConditionalGeneration": "Gemma4ForCausalLM",
    "GlmAsrForConditionalGeneration": "LlamaForCausalLM",
    "Granite4VisionForConditionalGeneration": "GraniteForCausalLM",
    "IsaacForConditionalGeneration": "Qwen3ForCausalLM",
    "KeyeVL1_5ForConditionalGeneration": "Qwen3ForCausalLM",
    "LightOnOCRForConditionalGeneration": "Qwen3ForCausalLM",
    "MiniCPMV4_6ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "MiniCPMV4_7ForConditionalGeneration": "Qwen3_5ForCausalLM",
    "MoonshotKimiaForCausalLM": "Qwen2ForCausalLM",
    "NemotronH_Nano_Omni_Reasoning_V3": "NemotronHForCausalLM",
    "NemotronH_Omni_Reasoning_V3": "NemotronHForCausalLM",
    "NemotronH_Super_Omni_Reasoning_V3": "NemotronHForCausalLM",
    "OpenCUAForConditionalGeneration": "Qwen2ForCausalLM",
    "Ovis": "Qwen2ForCausalLM",
    "Phi4ForCausalLMV": "Phi3ForCausalLM",
    "PixtralForConditionalGeneration": "MistralForCausalLM",
    "QianfanOCRForConditionalGeneration": "Qwen3ForCausalLM",
    "RForConditionalGeneration": "Qwen3ForCausalLM",
    "AriaForConditionalGeneration": "DeepseekForCausalLM",
    "Cohere2VisionForConditionalGeneration": "Cohere2ForCausalLM",
    "DeepseekOCRForCausalLM": "DeepseekForCausalLM",
    "DeepseekVLV2ForCausalLM": "DeepseekV2ForCausalLM",
    "DotsOCRForCausalLM": "Qwen2ForCausalLM",
    "Eagle2_5_VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Glm4vForConditionalGeneration": "Glm4ForCausalLM",
    "Glm4vMoeForConditionalGeneration": "Glm4MoeForCausalLM",
    "GlmOcrForConditionalGeneration": "Glm4ForCausalLM",
    "GraniteSpeechForConditionalGeneration": "GraniteForCausalLM",
    "GraniteSpeechPlusForConditionalGeneration": "GraniteForCausalLM",
    "H2OVLChatModel": "MistralForCausalLM",
    "Idefics3ForConditionalGeneration": "LlamaForCausalLM",
    "InternS1ForConditionalGeneration": "Qwen3ForCausalLM",
    "InternS2PreviewForConditionalGeneration": "Qwen3_5MoeForCausalLM",
    "InternVLChatModel": "Qwen2ForCausalLM",
    "InternVLForConditionalGeneration": "Qwen2ForCausalLM",
    "KananaVForConditionalGeneration": "LlamaForCausalLM",
    "KeyeForConditionalGeneration": "Qwen3ForCausalLM",
    "LlavaForConditionalGeneration": "LlamaForCausalLM",
    "LlavaNextVideoForConditionalGeneration": "LlamaForCausalLM",
    "LlavaOnevisionForConditionalGeneration": "Qwen2ForCausalLM",
    "MiniCPMO": "Qwen2ForCausalLM",
    "MiniCPMV": "Qwen2ForCausalLM",
    "Molmo2ForConditionalGeneration": "Qwen3ForCausalLM",
    "MolmoForCausalLM": "Qwen2ForCausalLM",
    "NVLM_D": "Qwen2ForCausalLM",
    "Ovis2_5": "Qwen3ForCausalLM",
    "Ovis2_6ForCausalLM": "Qwen3ForCausalLM",
    "Ovis2_6_MoeForCausalLM": "Qwen3MoeForCausalLM",
    "PaddleOCRVLForConditionalGeneration": "Ernie4_5ForCausalLM",
    "PaliGemmaForConditionalGeneration": "GemmaForCausalLM",
    "Phi3VForCausalLM": "LlamaForCausalLM",
    "Phi4MMForCausalLM": "LlamaForCausalLM",
    "Qwen2AudioForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen2_5OmniForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen2_5OmniModel": "Qwen2ForCausalLM",
    "Qwen3ASRForConditionalGeneration": "Qwen3ForCausalLM",
    "Qwen3ASRRealtimeGeneration": "Qwen3ForCausalLM",
    "Qwen3OmniMoeForConditionalGeneration": "Qwen3MoeForCausalLM",
    "SkyworkR1VChatModel": "Qwen2ForCausalLM",
    "SmolVLMForConditionalGeneration": "LlamaForCausalLM",
    "StepVLForConditionalGeneration": "Qwen3ForCausalLM",
    "UltravoxModel": "LlamaForCausalLM",
    "VoxtralForConditionalGeneration": "LlamaForCausalLM",
}


def architecture_name(config: Mapping[str, object]) -> str | None:
    """The first architecture that a config names; None where it names none."""
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    return architecture if isinstance(architecture, str) else None


def check_supported(config: Mapping[str, object], architecture: str, *, name: str) -> None:
    """Raises UnsupportedModelError where a plain decoder's config announces a layer that is not sized in it."""
    kind = unsized_layers(config) if architecture in ARCHITECTURES else None
    if kind is not None:
        known = sorted(
            {key.removesuffix("ForCausalLM") for key in (*ARCHITECTURES, *FAMILIES) if key != "LLaMAForCausalLM"}
        )
        raise UnsupportedModelError(
            f"{name}: {architecture} has {kind}, and that is not sized yet; sized today are {', '.join(known)}"
        )


def unsized_layers(config: Mapping[str, object]) -> str | None:
    """What kind of layer the config announces that a plain decoder's arithmetic would get wrong, in words."""
    for keys, kind in _TELLTALES:
        if any(config.get(key) for key in keys):
            return kind
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list):
        others = sorted({str(layer_type) for layer_type in layer_types} - {"full_attention", "sliding_attention"})
        return f"{' and '.join(others)} layers" if others else None
    return None


# Config keys that only such layers have. First match wins, so the more telling ones come first.
_TELLTALES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("vision_config", "audio_config", "text_config", "thinker_config"), "a multimodal wrapper with its own encoder"),
    (("index_topk", "compress_ratios"), "sparse attention with an indexer cache beside multi-head latent attention"),
    (("kv_lora_rank",), "multi-head latent attention (MLA)"),
    (("linear_num_value_heads", "linear_attn_config"), "linear attention (GDN) layers"),
    (("mamba_d_state", "ssm_state_size", "state_size", "mamba_num_heads", "hybrid_override_pattern"), "Mamba layers"),
    (("is_encoder_decoder", "encoder_layers"), "an encoder with cross-attention"),
    (("attention_chunk_size",), "chunked local attention"),
    (("num_kv_shared_layers",), "layers that share their KV cache"),
    (("block_configs",), "layers of differing shape"),
)
