"""Which architectures are sized (a closed table), and what is missing for the ones that are not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sizing.errors import UnsupportedModelError


@dataclass(frozen=True)
class Architecture:
    """How one architecture spells what decides its size: as its `config.json` and vLLM 0.32 read it."""

    bias: Literal["none", "qkv", "attention_bias"] = "none"
    """`qkv`: always on the three input projections; `attention_bias`: on all four where the config says so."""
    qk_norm: Literal["none", "head", "width"] = "none"
    """Query and key norms as wide as one head, or as wide as all heads together."""
    experts_key: str | None = None
    """The config's name for the number of experts in a mixture-of-experts layer."""
    expert_width_key: str = "intermediate_size"
    window: Literal["sliding_window", "use_sliding_window"] = "sliding_window"
    """What turns a sliding window on: the size alone, or a switch beside it."""
    window_by_default: bool = False
    """The config class assumes a window when the key is absent, so absence is not full attention."""
    plain_head_dim: bool = True
    """Without `head_dim` a head is hidden_size / num_attention_heads wide; else the key is required."""
    kv_heads_default_to_heads: bool = False
    tied_by_default: bool = False


# Each of these registers one full-attention KV cache layer per decoder layer in vllm/model_executor/models.
ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": Architecture(bias="attention_bias", kv_heads_default_to_heads=True),
    "LLaMAForCausalLM": Architecture(bias="attention_bias", kv_heads_default_to_heads=True),
    "MistralForCausalLM": Architecture(window_by_default=True),
    "Qwen2ForCausalLM": Architecture(bias="qkv", window="use_sliding_window"),
    "Qwen3ForCausalLM": Architecture(
        bias="attention_bias", qk_norm="head", window="use_sliding_window", plain_head_dim=False
    ),
    "Qwen3MoeForCausalLM": Architecture(
        bias="attention_bias",
        qk_norm="head",
        experts_key="num_experts",
        expert_width_key="moe_intermediate_size",
        window="use_sliding_window",
        plain_head_dim=False,
    ),
    "MixtralForCausalLM": Architecture(experts_key="num_local_experts"),
    "Phi3ForCausalLM": Architecture(),
    "GraniteForCausalLM": Architecture(bias="attention_bias"),
    "GemmaForCausalLM": Architecture(bias="attention_bias", plain_head_dim=False, tied_by_default=True),
    "Olmo2ForCausalLM": Architecture(bias="attention_bias", qk_norm="width"),
    "OlmoeForCausalLM": Architecture(bias="attention_bias", qk_norm="width", experts_key="num_experts"),
}


def supported(config: Mapping[str, object], *, name: str) -> tuple[str, Architecture]:
    """The architecture's name and its row of the table.

    Raises:
        UnsupportedModelError: naming the kind of layer that is not sized yet.
    """
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    if not isinstance(architecture, str):
        raise UnsupportedModelError(
            f"{name}: config.json names no architecture, so its layers are unknown; "
            'add "architectures": ["..."] as the model card gives it'
        )
    known = ARCHITECTURES.get(architecture)
    kind = unsized_layers(config, known)
    if known is None or kind is not None:
        reason = f"has {kind}, and that is" if kind else "is an architecture that is"
        raise UnsupportedModelError(
            f"{name}: {architecture} {reason} not sized yet; sized today are full-attention decoders: "
            + ", ".join(sorted(key.removesuffix("ForCausalLM") for key in ARCHITECTURES if key != "LLaMAForCausalLM"))
        )
    return architecture, known


def unsized_layers(config: Mapping[str, object], known: Architecture | None) -> str | None:
    """What kind of layer the config announces that full-attention arithmetic would get wrong, in words."""
    for keys, kind in _TELLTALES:
        if any(config.get(key) for key in keys):
            return kind
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list):
        others = sorted({str(layer_type) for layer_type in layer_types} - {"full_attention"})
        # vLLM takes the layers at their word: all full means that a window beside them is not used.
        return f"{' and '.join(others)} layers" if others else None
    return _window(config, known or Architecture())


def _window(config: Mapping[str, object], architecture: Architecture) -> str | None:
    if architecture.window == "use_sliding_window":
        return "sliding-window attention (use_sliding_window)" if config.get("use_sliding_window") else None
    if architecture.window_by_default and "sliding_window" not in config:
        return 'sliding-window attention of 4,096 tokens (its default; "sliding_window": null turns it off)'
    window = config.get("sliding_window")
    return f"sliding-window attention of {window} tokens" if window is not None else None


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
    (("num_nextn_predict_layers", "num_mtp_modules"), "multi-token prediction (MTP) layers"),
)
