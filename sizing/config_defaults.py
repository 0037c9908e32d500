"""What Transformers' config classes take for sizes that a file leaves out, as parts of a wrapper's file often do."""

from collections.abc import Mapping

_LLAMA: Mapping[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
_QWEN2: Mapping[str, object] = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}
_SIGLIP: Mapping[str, object] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
_GLM_VISION: Mapping[str, object] = {
    "depth": 24,
    "hidden_size": 1536,
    "image_size": 336,
    "intermediate_size": 13696,
    "num_heads": 12,
    "out_hidden_size": 4096,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_BY_TYPE: Mapping[str, Mapping[str, object]] = {
    # decoders
    "aria_text": {
        **_LLAMA,
        "intermediate_size": 4096,
        "moe_num_experts": 8,
        "moe_topk": 2,
        "moe_num_shared_experts": 2,
    },
    "cohere2": {
        "hidden_size": 8192,
        "intermediate_size": 22528,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
    },
    "gemma": {
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
    },
    "gemma2": {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
    },
    "glm4v_moe_text": {
        "hidden_size": 4096,
        "intermediate_size": 10944,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "vocab_size": 151424,
        "max_position_embeddings": 65536,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "attention_bias": True,
    },
    "glm4v_text": {
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "vocab_size": 151552,
        "max_position_embeddings": 32768,
        "attention_bias": False,
    },
    "glm_ocr_text": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 59392,
        "max_position_embeddings": 131072,
        "attention_bias": False,  # it has no such key, which vLLM takes for this
    },
    "granite": {**_LLAMA},
    "llama": _LLAMA,
    "mistral": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
    },
    "opt": {
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
    },
    "qwen2": _QWEN2,
    "qwen2_5_omni_text": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
    },
    "qwen3": {**_QWEN2, "head_dim": 128},
    # encoders of pictures
    "blip_2_vision_model": {
        "hidden_size": 1408,
        "intermediate_size": 6144,
        "num_hidden_layers": 39,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
    "exaone4_5_vision": {
        "depth": 32,
        "hidden_size": 3584,
        "intermediate_size": 3420,
        "num_heads": 16,
        "num_key_value_heads": 8,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "gemma4_unified_vision": {"patch_size": 16, "pooling_kernel_size": 3, "mm_embed_dim": 3840, "mm_posemb_size": 1120},
    "minicpmv4_6_vision": _SIGLIP,
    "clip_vision_model": {**_SIGLIP, "patch_size": 32},
    "glm4v_moe_vision": _GLM_VISION,
    "glm4v_vision": _GLM_VISION,
    "glm_ocr_vision": {
        **_GLM_VISION,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 1536,
    },
    "idefics3_vision": {**_SIGLIP, "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32},
    "internvl_vision": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "pixtral": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
    },
    "siglip2_vision_model": {
        **{key: size for key, size in _SIGLIP.items() if key != "image_size"},
        "num_patches": 256,
    },
    "siglip_vision_model": _SIGLIP,
    "smolvlm_vision": {**_SIGLIP, "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32},
    # encoders of sound, and what stands between those and the text
    "blip_2_qformer": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "encoder_hidden_size": 1408,
        "cross_attention_frequency": 2,
    },
    "granite_speech_encoder": {
        "input_dim": 160,
        "num_layers": 10,
        "hidden_dim": 1024,
        "feedforward_mult": 4,
        "num_heads": 8,
        "dim_head": 128,
        "output_dim": 42,
        "max_pos_emb": 512,
        "conv_kernel_size": 15,
        "conv_expansion_factor": 2,
    },
    "qwen2_audio_encoder": {
        "d_model": 1280,
        "encoder_ffn_dim": 5120,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "max_source_positions": 1500,
        "num_mel_bins": 128,
    },
    "whisper": {
        "d_model": 384,
        "encoder_ffn_dim": 1536,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "max_source_positions": 1500,
        "num_mel_bins": 80,
    },
}
TYPES = tuple(_BY_TYPE)


def class_defaults(model_type: object) -> Mapping[str, object]:
    """The sizes that a config class has by default; nothing for a type that is not known here."""
    return _BY_TYPE.get(str(model_type), {})


def completed(section: Mapping[str, object], model_type: str) -> dict[str, object]:
    """A part of a file with its class's defaults; `model_type` is what it is where it does not say, or not for sure."""
    defaults = class_defaults(section.get("model_type")) or class_defaults(model_type)
    return {**defaults, **{key: value for key, value in section.items() if value is not None or key not in defaults}}
