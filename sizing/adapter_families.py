"""Which layers vLLM gives LoRA adapters to, by architecture: closed tables, held to its classes by the tests.

Read from vLLM 0.32, model_executor/models: SupportsLoRA, embedding_modules, packed_modules_mapping, is_3d_moe_weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["column", "row", "whole"]
"""How tensor parallelism divides a layer: by outputs, by inputs, or not at all."""

KINDS: Mapping[str, Kind] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "q_b_proj", "kv_b_proj"), "column"),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z", "in_proj_ba", "in_proj", "conv1d"), "column"),
    "per_layer_model_projection": "column",
    **dict.fromkeys(("o_proj", "down_proj", "out_proj"), "row"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa", "gate", "router", "proj", "shared_expert_gate"), "whole"),
    **dict.fromkeys(("per_layer_input_gate", "per_layer_projection"), "whole"),
}
"""By the last part of a weight's name in sizing.blueprint; what is not here has none."""
FUSED: Mapping[str, str] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    **dict.fromkeys(("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj"),
    **dict.fromkeys(("in_proj_qkv", "in_proj_z"), "in_proj_qkvz"),
}
"""The layer that vLLM makes of several; naming one of them means all."""


@dataclass(frozen=True)
class Family:
    """What an architecture's class says of its adapters."""

    embedding: bool = False
    output: bool = False
    """Whether the tables of the vocabulary have adapters too."""
    slices: Mapping[str, int] = field(default_factory=dict)
    """A matrices of a layer; 1 where it is not named, 0 for a part of a layer whose first part has the one for all."""
    fused_experts: bool = False
    """One A matrix for an expert's gate and up projections."""


_WHOLE_QKV = {"k_proj": 0, "v_proj": 0}
_WHOLE_GATE_UP = {"up_proj": 0}
_DELTA_NET = {"in_proj_qkv": 3, "in_proj_ba": 2}
_BOTH_TABLES = Family(embedding=True, output=True)
_EMBEDDING_ONLY = Family(embedding=True)

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        (
            *("Ernie4_5ForCausalLM", "Exaone4ForCausalLM", "GraniteForCausalLM", "LLaMAForCausalLM"),
            *("Llama4ForCausalLM", "LlamaForCausalLM", "MixtralForCausalLM", "NemotronForCausalLM"),
            *("NemotronHForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
            *("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM", "GraniteMoeForCausalLM", "GraniteSWAForCausalLM"),
            *("HyperCLOVAXForCausalLM", "IQuestCoderForCausalLM", "InternLM3ForCausalLM", "PhiMoEForCausalLM"),
            *("SolarForCausalLM", "TeleChat2ForCausalLM", "TeleChat3ForCausalLM", "TeleFLMForCausalLM"),
        ),
        _BOTH_TABLES,
    ),
    **dict.fromkeys(  # the second half runs on vLLM's Transformers backend
        (
            *("Cohere2ForCausalLM", "CohereForCausalLM"),
            *("ArceeForCausalLM", "HunYuanDenseV1ForCausalLM", "Olmo2ForCausalLM", "PhiForCausalLM"),
            *("SeedOssForCausalLM", "SmolLM3ForCausalLM", "Starcoder2ForCausalLM"),
        ),
        _EMBEDDING_ONLY,
    ),
    **dict.fromkeys(
        (
            *("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"),
            *("Ernie4_5_MoeForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma4ForCausalLM"),
            *("GemmaForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM", "MiMoForCausalLM", "MiniMaxM2ForCausalLM"),
            *("MistralForCausalLM", "OlmoeForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM"),
            *("AXK1ForCausalLM", "DeepseekForCausalLM", "Glm4MoeLiteForCausalLM", "HYV3ForCausalLM"),
            *("Ministral3ForCausalLM", "MistralLarge3ForCausalLM", "OPTForCausalLM", "PanguEmbeddedForCausalLM"),
            *("PanguUltraMoEForCausalLM", "SarvamMLAForCausalLM"),
        ),
        Family(),
    ),
    **dict.fromkeys(
        (*("BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", "InternLM2ForCausalLM", "SarvamMoEForCausalLM"),),
        Family(slices=_WHOLE_QKV),
    ),
    **dict.fromkeys(
        ("ChatGLMForConditionalGeneration", "ChatGLMModel", "Plamo3ForCausalLM"),
        Family(slices={**_WHOLE_QKV, **_WHOLE_GATE_UP}),
    ),
    "Param2MoEForCausalLM": Family(embedding=True, output=True, slices=_WHOLE_QKV),
    "GlmForCausalLM": Family(embedding=True, slices=_WHOLE_GATE_UP),
    "GptOssForCausalLM": Family(fused_experts=True),
    "GraniteMoeHybridForCausalLM": Family(embedding=True, output=True, slices=_WHOLE_GATE_UP),
    "Phi3ForCausalLM": Family(embedding=True, output=True, slices={**_WHOLE_QKV, **_WHOLE_GATE_UP}),
    "Qwen3NextForCausalLM": Family(slices={"in_proj_z": 0}),
    "Qwen3_5ForCausalLM": Family(embedding=True, output=True, slices=_DELTA_NET),
    "Qwen3_5MoeForCausalLM": Family(embedding=True, output=True, slices=_DELTA_NET),
    # wrappers that say more than the decoder behind them
    "Qwen3VLMoeForConditionalGeneration": Family(embedding=True, output=True, fused_experts=True),
    "Qwen3_5MoeForConditionalGeneration": Family(embedding=True, output=True, slices=_DELTA_NET, fused_experts=True),
}
"""Of what is not here, and is no wrapper of one that is, nobody has looked: DeepSeek V3.2 and V4 and GLM-5 have layers
of their own on NVIDIA cards, DeciLM's are known by their number only, and Falcon-H1, Jamba, LFM2, OLMo Hybrid, Whisper
and Nemotron's experts without a gate are too new here. So are AFM, Apertus, EXAONE 3, Granite's shared experts, Laguna,
LongCat, MiniCPM and Rnj, which have layers that no table here names."""

NO_ADAPTERS = frozenset(
    {
        *("FalconMambaForCausalLM", "Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
        *("KimiK25ForConditionalGeneration", "KimiK3ForConditionalGeneration", "KimiLinearForCausalLM"),
        *("Mamba2ForCausalLM", "MambaForCausalLM", "Zamba2ForCausalLM"),
        *("KimiVLForConditionalGeneration", "MiniMaxM3ForCausalLM", "MiniMaxM3SparseForCausalLM"),
        *("BailingMoeV2_5ForCausalLM", "BloomForCausalLM", "Cohere2MoeForCausalLM", "DbrxForCausalLM"),
        *("FalconForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM"),
        *("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM", "OrionForCausalLM", "StableLmForCausalLM"),
        *("Step1ForCausalLM", "Step3TextForCausalLM"),
        *("MiniMaxM3SparseForConditionalGeneration", "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"),
        *("AriaForConditionalGeneration", "BeeForConditionalGeneration", "Cohere2VisionForConditionalGeneration"),
        *("DeepseekVLV2ForCausalLM", "KananaVForConditionalGeneration", "LlavaOnevisionForConditionalGeneration"),
        *("MoonshotKimiaForCausalLM", "Ovis", "Ovis2_5", "Ovis2_6ForCausalLM", "Ovis2_6_MoeForCausalLM"),
        *("PaddleOCRVLForConditionalGeneration", "Phi3VForCausalLM", "Phi4ForCausalLMV", "SkyworkR1VChatModel"),
        *("Qwen2AudioForConditionalGeneration", "RForConditionalGeneration", "StepVLForConditionalGeneration"),
    }
)
"""vLLM ends at start with these and --enable-lora."""

WRAPPERS_LOOKED_AT = frozenset(
    {
        *("Gemma3ForConditionalGeneration", "Gemma4ForConditionalGeneration", "Llama4ForConditionalGeneration"),
        *("Lfm2VlForConditionalGeneration", "LlavaNextForConditionalGeneration", "Mistral3ForConditionalGeneration"),
        *("NemotronH_Nano_VL_V2", "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
        *("Qwen3VLForConditionalGeneration", "Qwen3_5ForConditionalGeneration"),
    }
)
"""These give adapters to the layers of the decoder behind them as that does alone; of the others nobody has looked."""
