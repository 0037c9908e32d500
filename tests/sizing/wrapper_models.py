"""Facts of published multimodal `config.json` files, whole, with what their publishers say they weigh."""

from dataclasses import dataclass

Values = dict[str, object]


@dataclass(frozen=True)
class Wrapped:
    """One wrapper's file, and how the tests build it."""

    config: Values
    parameters: float | None = None
    """As published, in billions, without what vLLM leaves out."""
    base: str | None = None
    """The file comes with a class of its own: what that class extends, empty where that is nothing."""
    splits: bool = True
    """Whether two ranks can share it."""
    built: bool = True
    """Whether vLLM builds it without a further package (timm, a folder of weights beside the file)."""


def _clip() -> Values:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    }


def _siglip(layers: int = 27, image: int = 384, patch: int = 14, kind: str = "siglip_vision_model") -> Values:
    return {
        "model_type": kind,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "image_size": image,
        "patch_size": patch,
        "vision_use_head": False,
    }


def _second_siglip(layers: int = 27) -> Values:
    sizes: Values = {**_siglip(layers, patch=16, kind="siglip2_vision_model"), "num_patches": 256, "num_channels": 3}
    sizes |= {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "attention_dropout": 0.0}
    return {key: value for key, value in sizes.items() if key != "image_size"}


def _intern_vit(*, large: bool = False) -> Values:
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": 3200 if large else 1024,
        "intermediate_size": 12800 if large else 4096,
        "num_hidden_layers": 45 if large else 24,
        "num_attention_heads": 25 if large else 16,
        "image_size": 448,
        "patch_size": 14,
        "qkv_bias": not large,
        "qk_normalization": large,
        "norm_type": "rms_norm" if large else "layer_norm",
        "hidden_act": "gelu",
        "initializer_factor": 1.0,
        "layer_norm_eps": 1e-6,
        "num_channels": 3,
    }


def _text(
    kind: str, hidden: int, width: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: object
) -> Values:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        **more,
    }


def _qwen2_7b(vocab: int = 152064, **more: object) -> Values:
    return _text("qwen2", 3584, 18944, 28, 28, 4, vocab, architectures=["Qwen2ForCausalLM"], **more)


def _flat(text: Values) -> Values:
    return {key: value for key, value in text.items() if key not in ("architectures", "model_type")}


def _file(architecture: str, kind: str, **more: object) -> Values:
    return {"architectures": [architecture], "model_type": kind, "dtype": "bfloat16", **more}


def _whisper(**more: object) -> Values:
    sizes: Values = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
    return {**sizes, "num_mel_bins": 128, "max_source_positions": 1500, **more}


def _moe(**more: object) -> Values:
    text = _text("deepseek_v2", 1280, 6848, 12, 10, 10, 129280, architectures=["DeepseekV2ForCausalLM"])
    text |= {"moe_intermediate_size": 896, "n_shared_experts": 2, "n_routed_experts": 64, "num_experts_per_tok": 6}
    text |= {"first_k_dense_replace": 1, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "q_lora_rank": None}
    return {**text, **more}


_MROPE: Values = {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"}
_CHAT: Values = {"downsample_ratio": 0.5, "force_image_size": 448, "ps_version": "v2", "select_layer": -1}
_CHAT |= {"dynamic_image_size": True, "use_thumbnail": True, "max_dynamic_patch": 12, "min_dynamic_patch": 1}
_GLM_TEXT: Values = {"attention_bias": True, "partial_rotary_factor": 0.5}
_GLM_TEXT |= {"rope_scaling": {"type": "default", "mrope_section": [8, 12, 12]}}
_MINICPM: Values = {"query_num": 64, "drop_vision_last_layer": False, "image_size": 448, "slice_mode": True}
_MINICPM |= {"vision_config": _siglip(image=980)}
_OMNI_VISION: Values = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14}
_OMNI_VISION |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "out_hidden_size": 3584}
_OMNI3_VISION: Values = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16}
_OMNI3_VISION |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 2048, "image_size": 768}
_OMNI3_VISION |= {"deepstack_visual_indexes": [8, 16, 24], "apply_vit_abs_pos_embed": True}
_SPEECH3: Values = {"downsample_hidden_size": 480, "output_dim": 2048, "n_window": 50, "n_window_infer": 800}
_MOLMO_HEADS: Values = {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72, "float32_attention": True}

WRAPPED: dict[str, Wrapped] = {
    "llava-1.5-7b": Wrapped(
        _file(
            "LlavaForConditionalGeneration",
            "llava",
            # as little as its file says of its decoder
            text_config={
                "architectures": ["LlamaForCausalLM"],
                "model_type": "llama",
                "max_position_embeddings": 4096,
                "vocab_size": 32064,
            },
            vision_config=_clip(),
            vision_feature_layer=-2,
            image_token_index=32000,
        ),
        7.063,
    ),
    "pixtral-12b": Wrapped(
        _file(
            "LlavaForConditionalGeneration",
            "llava",
            text_config=_text("mistral", 5120, 14336, 40, 32, 8, 131072, head_dim=128, sliding_window=None),
            vision_config={"model_type": "pixtral", "head_dim": 64, "hidden_act": "gelu", "image_size": 1024},
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_token_index=10,
        ),
        12.68,
    ),
    "llava-v1.6-vicuna-7b": Wrapped(
        _file(
            "LlavaNextForConditionalGeneration",
            "llava_next",
            text_config={"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
            vision_config=_clip(),
            vision_feature_layer=-2,
        ),
        7.06,
    ),
    "LLaVA-NeXT-Video-7B": Wrapped(
        _file(
            "LlavaNextVideoForConditionalGeneration",
            "llava_next_video",
            text_config={"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064},
            vision_config=_clip(),
            vision_feature_layer=-2,
        ),
        7.06,
    ),
    "llava-onevision-qwen2-0.5b": Wrapped(
        _file(
            "LlavaOnevisionForConditionalGeneration",
            "llava_onevision",
            text_config=_text("qwen2", 896, 4864, 24, 14, 2, 151936) | {"tie_word_embeddings": True},
            vision_config=_siglip(26),
            vision_feature_layer=-1,
            vision_aspect_ratio="anyres_max_9",
            tie_word_embeddings=True,
        ),
        0.894,
    ),
    "InternVL3-8B": Wrapped(
        _file("InternVLChatModel", "internvl_chat", llm_config=_qwen2_7b(151674), vision_config=_intern_vit(), **_CHAT),
        7.94,
        base="",
    ),
    "InternVL3-8B-hf": Wrapped(
        _file(
            "InternVLForConditionalGeneration",
            "internvl",
            text_config=_qwen2_7b(151674),
            vision_config={
                "model_type": "internvl_vision",
                "image_size": [448, 448],
                "patch_size": [14, 14],
                "attention_bias": True,
            },
            tie_word_embeddings=False,
        ),
        7.94,
    ),
    "InternVL2.5-38B": Wrapped(
        _file(
            "InternVLChatModel",
            "internvl_chat",
            llm_config=_text("qwen2", 5120, 27648, 64, 40, 8, 151674, architectures=["Qwen2ForCausalLM"]),
            vision_config=_intern_vit(large=True),
            **_CHAT,
        ),
        38.4,
        base="",
    ),
    "Skywork-R1V-38B": Wrapped(
        _file(
            "SkyworkR1VChatModel",
            "skywork_chat",
            llm_config=_text("qwen2", 5120, 27648, 64, 40, 8, 152064, architectures=["Qwen2ForCausalLM"]),
            vision_config=_intern_vit(large=True),
            **_CHAT,
        ),
        38.4,
        base="",
    ),
    "h2ovl-mississippi-2b": Wrapped(
        _file(
            "H2OVLChatModel",
            "h2ovl_chat",
            llm_config=_text("llama", 2560, 6912, 24, 32, 8, 32010, architectures=["LlamaForCausalLM"]),
            vision_config=_intern_vit(),
            use_msac=True,
            **_CHAT,
        ),
        2.15,
        base="",
    ),
    "NVLM-D-72B": Wrapped(
        _file(
            "NVLM_D",
            "NVLM_D",
            llm_config=_text("qwen2", 8192, 29568, 80, 64, 8, 152064, architectures=["Qwen2ForCausalLM"]),
            vision_config=_intern_vit(large=True),
            **_CHAT,
        ),
        79.4,
        base="",
    ),
    "Eagle2.5-8B": Wrapped(
        _file(
            "Eagle2_5_VLForConditionalGeneration",
            "eagle_2_5_vl",
            text_config=_qwen2_7b(151674),
            vision_config=_siglip(image=448),
            use_pixel_shuffle=True,
            mlp_connector_layers=2,
            max_dynamic_tiles=12,
            min_dynamic_tiles=1,
            pad2square=False,
            **_CHAT,
        ),
        base="",
    ),
    "Idefics3-8B-Llama3": Wrapped(
        _file(
            "Idefics3ForConditionalGeneration",
            "idefics3",
            text_config=_text("llama", 4096, 14336, 32, 32, 8, 128259),
            vision_config=_siglip(image=364, kind="idefics3_vision"),
            scale_factor=2,
        ),
        8.46,
    ),
    "SmolVLM-256M": Wrapped(
        _file(
            "SmolVLMForConditionalGeneration",
            "smolvlm",
            text_config=_text("llama", 576, 1536, 30, 9, 3, 49280),
            vision_config={
                "model_type": "smolvlm_vision",
                "hidden_size": 768,
                "num_attention_heads": 12,
                "image_size": 512,
                "patch_size": 16,
            },
            scale_factor=4,
            tie_word_embeddings=False,
        ),
        0.2565,
        splits=False,
    ),
    "paligemma-3b-224": Wrapped(
        _file(
            "PaliGemmaForConditionalGeneration",
            "paligemma",
            text_config={
                "model_type": "gemma",
                "hidden_size": 2048,
                "intermediate_size": 16384,
                "num_attention_heads": 8,
                "num_hidden_layers": 18,
                "num_key_value_heads": 1,
                "vocab_size": 257216,
            },
            vision_config={key: value for key, value in _siglip(image=224).items() if key != "image_size"}
            | {"projection_dim": 2048},
            projection_dim=2048,
            hidden_size=2048,
        ),
        2.923,
    ),
    "GLM-4.1V-9B": Wrapped(
        _file(
            "Glm4vForConditionalGeneration",
            "glm4v",
            text_config=_text("glm4v_text", 4096, 13696, 40, 32, 2, 151552, **_GLM_TEXT),
            vision_config={"model_type": "glm4v"},
        ),
        10.29,
    ),
    "GLM-4.5V": Wrapped(
        _file(
            "Glm4vMoeForConditionalGeneration",
            "glm4v_moe",
            text_config=_text("glm4v_moe_text", 4096, 10944, 46, 96, 8, 151552, head_dim=128, use_qk_norm=False)
            | {"n_routed_experts": 128, "moe_intermediate_size": 1408, "n_shared_experts": 1, "num_experts_per_tok": 8}
            | {"first_k_dense_replace": 1, **_GLM_TEXT},
            vision_config={"model_type": "glm4v_moe", "intermediate_size": 10944},
        ),
        107.7,
    ),
    "GLM-OCR": Wrapped(
        _file(
            "GlmOcrForConditionalGeneration",
            "glm_ocr",
            text_config=_text("glm_ocr_text", 1536, 4608, 16, 16, 8, 59392, head_dim=128)
            | {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 10000}}
            | {"partial_rotary_factor": 1.0},
            vision_config={"model_type": "glm_ocr_vision", "out_hidden_size": 1536},
        ),
    ),
    "command-a-vision": Wrapped(
        _file(
            "Cohere2VisionForConditionalGeneration",
            "cohere2_vision",
            text_config=_text("cohere2", 12288, 36864, 64, 96, 8, 256000, head_dim=128, tie_word_embeddings=True),
            vision_config=_siglip(image=512, patch=16),
            downsample_factor=2,
            alignment_intermediate_size=36864,
        ),
        112.0,
    ),
    "Phi-3.5-vision": Wrapped(
        _file(
            "Phi3VForCausalLM",
            "phi3_v",
            **_flat(_text("", 3072, 8192, 32, 32, 32, 32064)),
            embd_layer={"use_hd_transform": True, "with_learnable_separator": True, "hd_transform_order": "sub_glb"},
            img_processor={"image_dim_out": 1024, "num_img_tokens": 144, "name": "clip_vision_model"},
        ),
        4.147 + 0.098,  # the table of the vocabulary is held twice
        base="phi3",
    ),
    "Phi-4-multimodal": Wrapped(
        _file(
            "Phi4MMForCausalLM",
            "phi4mm",
            **_flat(_text("", 3072, 8192, 32, 24, 8, 200064) | {"tie_word_embeddings": True}),
            partial_rotary_factor=0.75,
            rope_theta=10000.0,
            mlp_bias=False,
            attention_bias=False,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            img_processor=None,
            embd_layer={
                "embedding_cls": "image_audio",
                "image_embd_layer": {
                    "crop_size": 448,
                    "hd_transform_order": "sub_glb",
                    "image_token_compression_cls": "avg_pool_2d",
                    "projection_cls": "mlp",
                    "use_hd_transform": True,
                    "with_learnable_separator": True,
                },
                "audio_embd_layer": {"compression_rate": 8, "downsample_rate": 1, "embedding_cls": "audio"}
                | {"projection_cls": "mlp", "use_conv_downsample": False, "use_qformer": False},
            },
            audio_processor={
                "name": "cascades",
                "config": {
                    "activation": "swish",
                    "attention_dim": 1024,
                    "attention_heads": 16,
                    "batch_norm": False,
                    "bias_in_glu": True,
                    "causal": True,
                    "chunk_size": -1,
                    "cnn_layer_norm": True,
                    "conv_activation": "swish",
                    "conv_glu_type": "swish",
                    "depthwise_multiplier": 1,
                    "depthwise_seperable_out_channel": 1024,
                    "dropout_rate": 0.0,
                    "encoder_embedding_config": {"input_size": 80},
                    "ext_pw_kernel_size": 1,
                    "ext_pw_out_channel": 1024,
                    "input_layer": "nemo_conv",
                    "input_size": 80,
                    "kernel_size": 3,
                    "left_chunk": 18,
                    "linear_units": 1536,
                    "nemo_conv_settings": {"conv_channels": 1024},
                    "num_blocks": 24,
                    "relative_attention_bias_args": {"t5_bias_max_distance": 500, "type": "t5"},
                    "time_reduction": 8,
                },
            },
        ),
        4.71,  # of the 5.57 in its files, 0.86 are adapters
        base="phi3",
    ),
    "MiniCPM-V-2.6": Wrapped(
        _file("MiniCPMV", "minicpmv", version=2.6, **_flat(_qwen2_7b(151666)), **_MINICPM), 8.1, base="qwen2"
    ),
    "MiniCPM-V-4.5": Wrapped(
        _file(
            "MiniCPMV",
            "minicpmv",
            version=4.5,
            **_flat(_text("", 4096, 12288, 36, 32, 8, 151748, head_dim=128)),
            **_MINICPM,
        ),
        8.7,
        base="qwen3",
    ),
    "MiniCPM-o-2.6": Wrapped(
        _file(
            "MiniCPMO",
            "minicpmo",
            version="2.6",
            **_flat(_qwen2_7b(151700)),
            **_MINICPM,
            audio_pool_step=2,
            audio_config={
                "model_type": "whisper",
                **_whisper(d_model=1024, encoder_layers=24, encoder_attention_heads=16, encoder_ffn_dim=4096),
                "num_mel_bins": 80,
            },
        ),
        base="qwen2",
    ),
    "Molmo-7B-D": Wrapped(
        _file(
            "MolmoForCausalLM",
            "molmo",
            **_flat(_qwen2_7b()) | {"intermediate_size": 37888},
            embedding_size=152064,
            attention_layer_norm=False,
            norm_after=False,
            layer_norm_type="rms",
            qkv_bias=True,
            weight_tying=False,
            layer_norm_eps=1e-6,
            rope_theta=1e6,
        ),
        8.02,
        base="llama",
    ),
    "Molmo2-4B": Wrapped(
        _file(
            "Molmo2ForConditionalGeneration",
            "molmo2",
            vit_config={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "image_default_input_size": [378, 378],
                "image_patch_size": 14,
                "image_num_pos": 729,
                "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6,
                **_MOLMO_HEADS,
            },
            adapter_config={
                "vit_layers": [-3, -9],
                "hidden_size": 1152,
                "intermediate_size": 9728,
                "text_hidden_size": 2560,
                "hidden_act": "silu",
                "pooling_attention_mask": True,
                "image_feature_dropout": 0.0,
                **_MOLMO_HEADS,
            },
            text_config=_text("molmo2_text", 2560, 9728, 36, 32, 8, 151936, head_dim=128)
            | {"additional_vocab_size": 128, "qkv_bias": False, "use_qk_norm": True, "qk_norm_type": "qwen3"}
            | {"hidden_act": "silu", "layer_norm_eps": 1e-6, "norm_after": False, "rope_theta": 1e6}
            | {"rope_scaling_layers": None, "rope_scaling": None},
            image_patch_id=151938,
        ),
        base="",
    ),
    "Ovis2.5-2B": Wrapped(
        _file(
            "Ovis2_5",
            "ovis2_5",
            hidden_size=2048,
            vocab_size=151936,
            visual_vocab_size=65536,
            llm_config=_text("qwen3", 2048, 6144, 28, 16, 8, 151936, architectures=["Qwen3ForCausalLM"], head_dim=128)
            | {"tie_word_embeddings": True},
            vit_config=_siglip(image=512, patch=16)
            | {"model_type": "siglip2_navit", "num_patches": -1, "num_channels": 3, "hidden_stride": 2}
            | {"window_size": 112, "temporal_patch_size": 1, "preserve_original_pe": True, "use_rope": True}
            | {"fullatt_block_indexes": None, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
            | {"attention_dropout": 0.0},
        ),
        2.57,
        base="",
    ),
    "DeepSeek-OCR": Wrapped(
        _file(
            "DeepseekOCRForCausalLM",
            "deepseek_vl_v2",
            candidate_resolutions=[[1024, 1024]],
            global_view_pos="head",
            tile_tag="2D",
            language_config=_moe(
                use_mla=False, kv_lora_rank=None, qk_nope_head_dim=0, qk_rope_head_dim=0, v_head_dim=0
            ),
            vision_config={"model_type": "vision", "model_name": "deeplip_b_l", "image_size": 1024},
            projector_config={
                "model_type": "mlp_projector",
                "n_embed": 1280,
                "input_dim": 2048,
                "projector_type": "linear",
            },
        ),
        3.336,
    ),
    "dots.ocr": Wrapped(
        _file(
            "DotsOCRForCausalLM",
            "dots_ocr_tested",
            **_flat(_text("", 1536, 8960, 28, 12, 2, 151936)),
            vision_config={
                "embed_dim": 1536,
                "hidden_size": 1536,
                "intermediate_size": 4224,
                "num_hidden_layers": 42,
                "num_attention_heads": 12,
                "num_channels": 3,
                "patch_size": 14,
                "post_norm": True,
                "rms_norm_eps": 1e-5,
                "spatial_merge_size": 2,
                "temporal_patch_size": 1,
                "use_bias": False,
                "attn_implementation": "flash_attention_2",
                "is_causal": False,
            },
        ),
        3.04,
        base="qwen2",
    ),
    "Keye-VL-8B": Wrapped(
        _file(
            "KeyeForConditionalGeneration",
            "Keye",
            **_flat(_text("", 4096, 12288, 36, 32, 8, 151936, head_dim=128)),
            rope_theta=10000,
            rope_parameters={**_MROPE, "rope_theta": 10000},
            vision_config={**_siglip(), "spatial_merge_size": 2},
        ),
        8.7,
        base="qwen3",
    ),
    "PaddleOCR-VL": Wrapped(
        _file(
            "PaddleOCRVLForConditionalGeneration",
            "paddleocr_vl_tested",
            **_flat(_text("", 1024, 3072, 18, 16, 2, 103424, head_dim=128)),
            use_bias=False,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            rope_theta=500000,
            rope_parameters={**_MROPE, "rope_theta": 500000},
            vision_config={**_siglip(), "spatial_merge_size": 2, "num_channels": 3},
        ),
        0.906,  # 0.959 in its files, with a head of its tower and a table of positions that vLLM leaves out
        base="",
    ),
    "Aria": Wrapped(
        _file(
            "AriaForConditionalGeneration",
            "aria",
            text_config=_text("aria_text", 2560, 1664, 28, 20, 20, 100352)
            | {"moe_num_experts": 64, "moe_topk": 6, "moe_num_shared_experts": 2},
            vision_config=_siglip(image=980, kind="idefics3_vision"),
        ),
        25.3,
    ),
    "Qwen2-Audio-7B": Wrapped(
        _file(
            "Qwen2AudioForConditionalGeneration",
            "qwen2_audio",
            text_config=_text("qwen2", 4096, 11008, 32, 32, 32, 156032),
            audio_config={"model_type": "qwen2_audio_encoder"},
        ),
        8.397,
    ),
    "Qwen2.5-Omni-7B": Wrapped(
        _file(
            "Qwen2_5OmniModel",
            "qwen2_5_omni",
            thinker_config={
                "model_type": "qwen2_5_omni_thinker",
                "dtype": "bfloat16",
                "text_config": {
                    **_flat(_qwen2_7b()),
                    "model_type": "qwen2_5_omni_text",
                    "rope_scaling": _MROPE,
                },
                "vision_config": {"model_type": "qwen2_5_omni_vision_encoder", **_OMNI_VISION},
                "audio_config": {"model_type": "qwen2_5_omni_audio_encoder", **_whisper(output_dim=3584)},
            },
        ),
        8.93,
    ),
    "Qwen3-Omni-30B-A3B": Wrapped(
        _file(
            "Qwen3OmniMoeForConditionalGeneration",
            "qwen3_omni_moe",
            thinker_config={
                "model_type": "qwen3_omni_moe_thinker",
                "dtype": "bfloat16",
                "text_config": _text("qwen3_omni_moe_text", 2048, 768, 48, 32, 4, 152064, head_dim=128)
                | {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8}
                | {"rope_scaling": {"interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"}},
                "vision_config": {"model_type": "qwen3_omni_moe_vision_encoder", **_OMNI3_VISION},
                "audio_config": {"model_type": "qwen3_omni_moe_audio_encoder", **_whisper(**_SPEECH3)},
            },
        ),
    ),
    "Qwen3-ASR-1.7B": Wrapped(
        _file(
            "Qwen3ASRForConditionalGeneration",
            "qwen3_asr",
            thinker_config={
                "model_type": "qwen3_asr",
                "dtype": "bfloat16",
                "text_config": _text("qwen3", 2048, 6144, 28, 16, 8, 151936, head_dim=128)
                | {"tie_word_embeddings": True, "rope_scaling": {**_MROPE, "mrope_section": [24, 20, 20]}},
                "audio_config": {
                    "model_type": "qwen3_asr_audio_encoder",
                    **_whisper(d_model=1024, encoder_layers=24, encoder_attention_heads=16, encoder_ffn_dim=4096),
                    **_SPEECH3,
                },
            },
        ),
    ),
    "ultravox-v0.3": Wrapped(
        _file(
            "UltravoxModel",
            "ultravox",
            audio_config={"model_type": "whisper", **_whisper()},
            text_config=_text("llama", 4096, 14336, 32, 32, 8, 128256, architectures=["LlamaForCausalLM"]),
            hidden_size=4096,
            vocab_size=128256,
            stack_factor=8,
            projector_act="swiglu",
            projector_ln_mid=True,
            norm_init=0.4,
        ),
    ),
    "Voxtral-Mini-3B": Wrapped(
        _file(
            "VoxtralForConditionalGeneration",
            "voxtral",
            audio_config={
                "model_type": "whisper",
                "is_encoder_decoder": True,
                "downsample_factor": 4,
                "window_size": 400,
                "sampling_rate": 16000,
                "hop_length": 160,
                "max_position_embeddings": 1500,
                **_whisper(),
            },
            text_config=_text("llama", 3072, 8192, 30, 32, 8, 131072, head_dim=128),
        ),
        4.68,
    ),
    "granite-speech-3.3-2b": Wrapped(
        _file(
            "GraniteSpeechForConditionalGeneration",
            "granite_speech",
            encoder_config={"model_type": "granite_speech_encoder", "num_layers": 16},
            projector_config={
                "model_type": "blip_2_qformer",
                "hidden_size": 1024,
                "num_hidden_layers": 2,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "encoder_hidden_size": 1024,
                "cross_attention_frequency": 1,
            },
            text_config=_text("granite", 2048, 8192, 40, 32, 8, 49160) | {"tie_word_embeddings": True},
        ),
    ),
    "audio-flamingo-3": Wrapped(
        _file(
            "AudioFlamingo3ForConditionalGeneration",
            "audioflamingo3",
            audio_config={"model_type": "audioflamingo3_encoder"},
            text_config=_qwen2_7b(151672),
        ),
    ),
    "GLM-ASR-Nano": Wrapped(
        _file(
            "GlmAsrForConditionalGeneration",
            "glmasr",
            audio_config={"model_type": "glmasr_encoder"},
            text_config=_text("llama", 2048, 6144, 28, 16, 4, 59264),
            tie_word_embeddings=False,
        ),
    ),
    "LightOnOCR-1B": Wrapped(
        _file(
            "LightOnOCRForConditionalGeneration",
            "mistral3",
            vision_config={"model_type": "pixtral", "patch_size": 14, "image_size": 1540, "head_dim": 64},
            text_config=_text("qwen3", 1024, 3072, 28, 16, 8, 151936, head_dim=128),
            spatial_merge_size=2,
            multimodal_projector_bias=False,
            vision_feature_layer=-1,
            tie_word_embeddings=False,
        ),
    ),
    "Qianfan-OCR": Wrapped(
        _file(
            "QianfanOCRForConditionalGeneration",
            "internvl_chat_tested",
            llm_config=_text("qwen3", 2560, 9728, 36, 32, 8, 151936, architectures=["Qwen3ForCausalLM"], head_dim=128),
            vision_config=_intern_vit(),
            **_CHAT,
        ),
        base="",
    ),
    "Bee-8B": Wrapped(
        _file(
            "BeeForConditionalGeneration",
            "llava_onevision",
            text_config=_text("qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128),
            vision_config=_siglip(),
            vision_feature_layer=-1,
        ),
    ),
    "R-4B": Wrapped(
        _file(
            "RForConditionalGeneration",
            "llava_onevision",
            text_config=_text("qwen3", 2560, 9728, 36, 32, 8, 151936, head_dim=128),
            vision_config=_siglip(),
            vision_feature_layer=-1,
        ),
    ),
    "EXAONE-4.5": Wrapped(
        _file(
            "Exaone4_5_ForConditionalGeneration",
            "exaone4_5",
            text_config=_text("exaone4", 5120, 27392, 64, 40, 8, 153600, architectures=["Exaone4ForCausalLM"])
            | {"head_dim": 128},
            vision_config={"model_type": "exaone4_5_vision", "out_hidden_size": 5120},
        ),
    ),
    "Keye-VL-1.5-8B": Wrapped(
        _file(
            "KeyeVL1_5ForConditionalGeneration",
            "KeyeVL1_5",
            **_flat(_text("", 4096, 12288, 36, 32, 8, 151936, head_dim=128)),
            rope_theta=10000,
            rope_parameters={**_MROPE, "rope_theta": 10000},
            vision_config={**_siglip(), "spatial_merge_size": 2},
        ),
        base="qwen3",
    ),
    "Phi-4-SigLIP": Wrapped(
        _file(
            "Phi4ForCausalLMV",
            "phi4-siglip",
            **_flat(_text("", 3072, 8192, 32, 24, 8, 200064)),
            partial_rotary_factor=0.75,
            rope_theta=10000.0,
            mm_projector_type="mlp2x_gelu",
            mm_hidden_size=1152,
            max_num_patches=3600,
            min_num_patches=256,
            vision_config=_second_siglip(),
        ),
        base="phi3",
    ),
    "Ovis2-2B": Wrapped(
        _file(
            "Ovis",
            "ovis",
            hidden_size=1536,
            conversation_formatter_class="QwenConversationFormatter",
            llm_config=_text("qwen2", 1536, 8960, 28, 12, 2, 151936, architectures=["Qwen2ForCausalLM"]),
            visual_tokenizer_config={
                "model_type": "aimv2_visual_tokenizer",
                "vocab_size": 65536,
                "hidden_stride": 2,
                "tokenize_function": "softmax",
                "backbone_config": {
                    "model_type": "aimv2",
                    "hidden_size": 1024,
                    "intermediate_size": 2816,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 8,
                    "image_size": 448,
                    "patch_size": 14,
                    "num_channels": 3,
                    "qkv_bias": False,
                    "use_bias": False,
                    "rms_norm_eps": 1e-5,
                    "projection_dropout": 0.0,
                    "attention_dropout": 0.0,
                },
            },
        ),
    ),
    "DeepSeek-OCR-2": Wrapped(
        _file(
            "DeepseekOCR2ForCausalLM",
            "deepseek_vl_v2",
            candidate_resolutions=[[1024, 1024]],
            global_view_pos="head",
            tile_tag="2D",
            language_config=_moe(use_mla=False, kv_lora_rank=None)
            | {"qk_nope_head_dim": 0, "qk_rope_head_dim": 0, "v_head_dim": 0},
            vision_config={"model_type": "vision", "model_name": "deepencoder2", "image_size": 1024},
            projector_config={"model_type": "mlp_projector", "n_embed": 1280, "input_dim": 896}
            | {"projector_type": "linear"},
        ),
        3.39,
    ),
    "Isaac": Wrapped(
        _file(
            "IsaacForConditionalGeneration",
            "isaac",
            **_flat(_text("", 2048, 6144, 28, 16, 8, 151936, head_dim=128)),
            rope_theta=10000,
            rope_parameters={**_MROPE, "rope_theta": 10000},
            vision_config={**_second_siglip(), "model_type": "pixel_shuffle_siglip2", "pixel_shuffle_scale_factor": 2},
        ),
    ),
    "LFM2-VL-1.6B": Wrapped(
        _file(
            "Lfm2VlForConditionalGeneration",
            "lfm2_vl",
            text_config=_text("lfm2", 2048, 12288, 16, 32, 8, 65536)
            | {"layer_types": ["conv", "full_attention"] * 8, "conv_L_cache": 3, "conv_dim": 2048, "conv_dim_out": 2048}
            | {"block_dim": 2048, "block_ff_dim": 12288, "block_auto_adjust_ff_dim": True, "block_multiple_of": 256}
            | {"block_ffn_dim_multiplier": 1.0, "tie_word_embeddings": True},
            vision_config=_second_siglip(26),
        ),
    ),
    "OpenCUA-7B": Wrapped(
        _file(
            "OpenCUAForConditionalGeneration",
            "opencua",
            text_config=_qwen2_7b(),
            vision_config={**_OMNI_VISION, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu"}
            | {"in_channels": 3},
        ),
        base="",
    ),
    "MiniCPM-V-4.6": Wrapped(
        _file(
            "MiniCPMV4_6ForConditionalGeneration",
            "minicpmv4_6",
            text_config=_text("qwen3_5_text", 1024, 3584, 24, 8, 2, 248320, head_dim=256)
            | {"layer_types": ["linear_attention", "full_attention"] * 12, "linear_num_value_heads": 16}
            | {"linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
            | {"linear_conv_kernel_dim": 4, "mamba_ssm_dtype": "float32"},
            vision_config={"model_type": "minicpmv4_6_vision"},
        ),
    ),
    "Pixtral in Mistral's format": Wrapped(
        _file(
            "PixtralForConditionalGeneration",
            "pixtral_tested",
            text_config=_text("mistral", 5120, 14336, 40, 32, 8, 131072, architectures=["MistralForCausalLM"])
            | {"head_dim": 128, "sliding_window": None},
            vision_config={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "num_channels": 3,
                "image_size": 1024,
                "patch_size": 16,
                "rope_theta": 10000.0,
                "adapter_bias": True,
                "image_token_id": 10,
            },
        ),
        12.68,
        base="",
    ),
    "granite-vision-4": Wrapped(
        _file(
            "Granite4VisionForConditionalGeneration",
            "granite4_vision",
            text_config=_text("granite", 2560, 8192, 40, 40, 8, 100352),
            vision_config=_siglip(),
            deepstack_layer_map=[[-19, 9], [-13, 6], [-7, 3], [-1, 0]],
            downsample_rate="4/8",
            use_image_newline_parameter=True,
            use_spatial_sampling=True,
            spatial_target_layers=[12, 15, 18, 21],
            image_grid_pinpoints=[[384, 384]],
        ),
    ),
    "Gemma 4 without a tower": Wrapped(
        _file(
            "Gemma4UnifiedForConditionalGeneration",
            "gemma4_unified",
            text_config=_text("gemma4_unified_text", 3840, 15360, 48, 16, 8, 262144, head_dim=256)
            | {"global_head_dim": 512, "sliding_window": 1024, "enable_moe_block": False}
            | {"tie_word_embeddings": True},
            vision_config={"model_type": "gemma4_unified_vision"},
            audio_config={"model_type": "gemma4_unified_audio"},
        ),
    ),
    "ERNIE-4.5-VL-28B-A3B": Wrapped(
        _file(
            "Ernie4_5_VLMoeForConditionalGeneration",
            "ernie4_5_moe_vl_tested",
            **_flat(_text("", 2560, 12288, 28, 20, 4, 103424) | {"tie_word_embeddings": True}),
            use_bias=False,
            moe_num_experts=[64, 64],
            moe_intermediate_size=[1536, 512],
            moe_k=6,
            moe_num_shared_experts=2,
            moe_layer_start_index=[1, 1],
            moe_layer_end_index=[29, 28],
            moe_layer_interval=1,
            moe_use_aux_free=True,
            use_temporal_conv=True,
            use_rmsnorm=True,
            vision_start_token_id=101304,
            im_patch_id=100295,
            pixel_hidden_size=1280,
            spatial_conv_size=2,
            temporal_conv_size=2,
            freq_allocation=20,
            hidden_act="silu",
            rms_norm_eps=1e-5,
            rope_theta=500000,
            vision_config={
                "attn_sep": True,
                "depth": 32,
                "embed_dim": 1280,
                "hidden_act": "quick_gelu",
                "hidden_size": 1280,
                "in_channels": 3,
                "in_chans": 3,
                "mlp_ratio": 4,
                "model_type": "DFNRope_vision_transformer",
                "num_heads": 16,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "spatial_patch_size": 14,
                "vit_first_fwd_bsz": 128,
            },
        ),
        29.4,
        base="",
    ),
    "deepseek-vl2-small": Wrapped(
        _file(
            "DeepseekVLV2ForCausalLM",
            "deepseek_vl_v2",
            language_config=_text("deepseek_v2", 2048, 10944, 27, 16, 16, 102400)
            | {"architectures": ["DeepseekV2ForCausalLM"], "moe_intermediate_size": 1408, "n_shared_experts": 2}
            | {"n_routed_experts": 64, "num_experts_per_tok": 6, "first_k_dense_replace": 1, "topk_method": "greedy"}
            | {"kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
            | {"v_head_dim": 128},
            vision_config={"layers": 27, "patch_size": 14, "width": 1152},
            projector_config={"n_embed": 2048},
        ),
        16.15,
        built=False,
    ),
    "kanana-1.5-v-3b": Wrapped(
        _file(
            "KananaVForConditionalGeneration",
            "kanana-1.5-v",
            text_config=_text("llama", 2048, 8192, 28, 24, 8, 128259, architectures=["LlamaForCausalLM"], head_dim=128),
            vision_config={"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14},
            projector_config={
                "depth": 2,
                "encoder_hidden_size": 1280,
                "hidden_size": 1024,
                "output_hidden_size": 2048,
                "merge_size": 2,
                "mlp_depth": 2,
                "pos_emb": True,
                "pos_emb_size": 576,
            },
        ),
        built=False,
    ),
    "Kimi-Audio-7B": Wrapped(
        _file(
            "MoonshotKimiaForCausalLM",
            "kimi_audio",
            **_flat(_qwen2_7b(168448)),
            kimia_adaptor_input_dim=5120,
            kimia_mimo_layers=6,
        ),
        built=False,
    ),
    "Nemotron Nano VL": Wrapped(
        _file(
            "NemotronH_Nano_VL_V2",
            "NemotronH_Nano_VL_V2",
            text_config=_text("nemotron_h", 4480, 15680, 2, 40, 8, 131072, architectures=["NemotronHForCausalLM"])
            | {"dtype": "bfloat16", "hybrid_override_pattern": "M*", "head_dim": 128, "ssm_state_size": 128}
            | {"mamba_num_heads": 128, "mamba_head_dim": 80, "n_groups": 8, "conv_kernel": 4, "expand": 2}
            | {"mamba_hidden_act": "silu", "mlp_hidden_act": "relu2", "layer_norm_epsilon": 1e-5, "use_bias": False}
            | {"use_conv_bias": True, "mlp_bias": False, "attention_bias": False, "mamba_proj_bias": False},
            force_image_size=512,
            patch_size=16,
            downsample_ratio=0.5,
            ps_version="v2",
            template="nemotron",
            image_tag_type="internvl",
            vit_hidden_size=1280,
            projector_hidden_size=20480,
            use_thumbnail=True,
            img_context_token_id=20,
            img_context_token="<image>",
            video_context_token="<video>",
            norm_mean=[0.5, 0.5, 0.5],
            norm_std=[0.5, 0.5, 0.5],
            max_num_tiles=12,
            vision_config={
                "args": {
                    "model": "vit_huge_patch16_224",
                    "cls_token_per_teacher": True,
                    "teachers": [{"name": name} for name in ("clip", "siglip", "dino_v2", "sam")],
                    "register_multiple": None,
                },
                "max_resolution": 2048,
                "patch_size": 16,
                "preferred_resolution": [512, 512],
                "version": "radio_v2.5-h",
                "min_num_patches": None,
            },
        ),
        base="",
    ),
    "Gemma 3n": Wrapped(
        _file(
            "Gemma3nForConditionalGeneration",
            "gemma3n",
            text_config=_text("gemma3n_text", 2048, 8192, 30, 8, 2, 262400, head_dim=256)
            | {"num_kv_shared_layers": 10, "sliding_window": 512, "hidden_size_per_layer_input": 256}
            | {"vocab_size_per_layer_input": 262144, "altup_num_inputs": 4, "laurel_rank": 64}
            | {"layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 6, "tie_word_embeddings": True},
        ),
        5.44,
        built=False,
    ),
    "Step3-VL-10B": Wrapped(
        _file(
            "StepVLForConditionalGeneration",
            "step_tested",
            text_config=_text(
                "qwen3", 4096, 12288, 36, 32, 8, 151936, architectures=["Qwen3ForCausalLM"], head_dim=128
            ),
            vision_config={
                "width": 1536,
                "layers": 47,
                "heads": 16,
                "image_size": 728,
                "patch_size": 14,
                "mlp_ratio": 8960 / 1536,
                "ls_init_value": 0.1,
                "hidden_act": "quick_gelu",
                "output_dim": None,
                "use_abs_posemb": True,
                "use_cls_token": False,
                "use_rope2d": True,
                "use_ln_pre": True,
                "use_ln_post": False,
            },
            projector_bias=False,
            understand_projector_stride=2,
            hidden_size=4096,
            image_token_id=151679,
        ),
        base="",
    ),
    "blip2-opt-2.7b": Wrapped(
        _file(
            "Blip2ForConditionalGeneration",
            "blip-2",
            # as little as its file says of its parts
            text_config={
                "model_type": "opt",
                "hidden_size": 2560,
                "ffn_dim": 10240,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "word_embed_proj_dim": 2560,
                "vocab_size": 50304,
            },
            vision_config={"model_type": "blip_2_vision_model"},
            qformer_config={"model_type": "blip_2_qformer"},
        ),
        3.745,
    ),
}
