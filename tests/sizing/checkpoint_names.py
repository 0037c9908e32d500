"""The tensors of checkpoints that name them their own way, as published files of these families do, by shape.

Sizes are those of sizing's small models (tests.sizing.text_models): three layers, 256 wide, eight heads.
"""

from collections.abc import Mapping, Sequence

Shapes = Mapping[str, Sequence[int]]


def _swiglu(width: int = 512, *names: str) -> Shapes:
    gate, up, down = names or ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    return {f"{gate}.weight": (width, 256), f"{up}.weight": (width, 256), f"{down}.weight": (256, width)}


def _experts(prefix: str, width: int, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Shapes:
    found: dict[str, Sequence[int]] = {}
    for expert in range(4):
        found |= _swiglu(width, *(f"{prefix}.{expert}.{name}" for name in (gate, up, down)))
    return found


def _norms(*names: str) -> Shapes:
    return {f"{name}.weight": (256,) for name in names}


def _attention(prefix: str = "self_attn", output: str = "o_proj", *, kv_width: int = 128) -> Shapes:
    return {
        f"{prefix}.q_proj.weight": (256, 256),
        f"{prefix}.k_proj.weight": (kv_width, 256),
        f"{prefix}.v_proj.weight": (kv_width, 256),
        f"{prefix}.{output}.weight": (256, 256),
    }


_LATENT: Shapes = {
    "q_a_proj.weight": (96, 256),
    "q_a_layernorm.weight": (96,),
    "q_b_proj.weight": (384, 96),
    "kv_a_proj_with_mqa.weight": (80, 256),
    "kv_a_layernorm.weight": (64,),
    "kv_b_proj.weight": (512, 64),
    "o_proj.weight": (256, 256),
}
_LLAMA_NORMS = _norms("input_layernorm", "post_attention_layernorm")


def _named(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def _model(root: str, layers: Sequence[Shapes], ends: Shapes) -> dict[str, tuple[int, ...]]:
    found = {
        f"{root}.{index}.{name}": tuple(shape) for index, layer in enumerate(layers) for name, shape in layer.items()
    }
    return found | {name: tuple(shape) for name, shape in ends.items()}


_ROWS = (4096, 256)
_ENDS: Shapes = {"model.embed_tokens.weight": _ROWS, "model.norm.weight": (256,), "lm_head.weight": _ROWS}
_BAILING_ENDS: Shapes = {"model.word_embeddings.weight": _ROWS, "model.norm.weight": (256,), "lm_head.weight": _ROWS}
_BAILING_ATTENTION: Shapes = {"attention.query_key_value.weight": (512, 256), "attention.dense.weight": (256, 256)}

CHECKPOINTS: Mapping[str, dict[str, tuple[int, ...]]] = {
    "ChatGLM": _model(
        "transformer.encoder.layers",
        [
            {
                **_LLAMA_NORMS,
                "self_attention.query_key_value.weight": (384, 256),
                "self_attention.query_key_value.bias": (384,),
                "self_attention.dense.weight": (256, 256),
                "mlp.dense_h_to_4h.weight": (1024, 256),
                "mlp.dense_4h_to_h.weight": (256, 512),
            }
        ]
        * 3,
        {
            "transformer.embedding.word_embeddings.weight": _ROWS,
            "transformer.encoder.final_layernorm.weight": (256,),
            "transformer.output_layer.weight": _ROWS,
            "transformer.rotary_pos_emb.inv_freq": (8,),
        },
    ),
    "DBRX": _model(
        "transformer.blocks",
        [
            {
                **_norms("norm_attn_norm.norm_1", "norm_attn_norm.norm_2"),
                "norm_attn_norm.attn.Wqkv.weight": (512, 256),
                "norm_attn_norm.attn.out_proj.weight": (256, 256),
                "ffn.router.layer.weight": (4, 256),
                **{f"ffn.experts.mlp.{name}": (512, 256) for name in ("w1", "v1", "w2")},
            }
        ]
        * 3,
        {"transformer.wte.weight": _ROWS, "transformer.norm_f.weight": (256,), "lm_head.weight": _ROWS},
    ),
    "EXAONE 3.5": _model(
        "transformer.h",
        [
            {
                **_norms("ln_1", "ln_2"),
                **_attention("attn.attention", "out_proj"),
                **_swiglu(512, "mlp.c_fc_0", "mlp.c_fc_1", "mlp.c_proj"),
            }
        ]
        * 3,
        {"transformer.wte.weight": _ROWS, "transformer.ln_f.weight": (256,), "lm_head.weight": _ROWS},
    ),
    "GPT-2": _model(
        "h",
        [
            {
                **{f"{norm}.{kind}": (256,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")},
                "attn.bias": (1, 1, 1024, 1024),
                "attn.c_attn.weight": (256, 768),
                "attn.c_attn.bias": (768,),
                "attn.c_proj.weight": (256, 256),
                "attn.c_proj.bias": (256,),
                "mlp.c_fc.weight": (256, 1024),
                "mlp.c_fc.bias": (1024,),
                "mlp.c_proj.weight": (1024, 256),
                "mlp.c_proj.bias": (256,),
            }
        ]
        * 3,
        {"wte.weight": _ROWS, "wpe.weight": (1024, 256), "ln_f.weight": (256,), "ln_f.bias": (256,)},
    ),
    "Granite 3 with experts": _model(
        "model.layers",
        [
            {
                **_LLAMA_NORMS,
                **_attention(),
                "block_sparse_moe.input_linear.weight": (4, 1024, 256),
                "block_sparse_moe.output_linear.weight": (4, 256, 512),
                "block_sparse_moe.router.layer.weight": (4, 256),
            }
        ]
        * 3,
        {name: shape for name, shape in _ENDS.items() if name != "lm_head.weight"},
    ),
    "InternLM 2.5": _model(
        "model.layers",
        [
            {
                **_norms("attention_norm", "ffn_norm"),
                "attention.wqkv.weight": (512, 256),
                "attention.wo.weight": (256, 256),
                **_swiglu(512, "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
            }
        ]
        * 3,
        {"model.tok_embeddings.weight": _ROWS, "model.norm.weight": (256,), "output.weight": _ROWS},
    ),
    "Ling": _model(
        "model.layers",
        [
            {
                **_LLAMA_NORMS,
                **_BAILING_ATTENTION,
                "mlp.gate.weight": (4, 256),
                **_swiglu(256, *(f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down"))),
                **_experts("mlp.experts", 128),
            }
        ]
        * 3,
        _BAILING_ENDS,
    ),
    "LongCat Flash": _model(
        "model.layers",
        [
            {
                **_named("self_attn.0", _LATENT),
                **_named("self_attn.1", _LATENT),
                **_swiglu(512, *(f"mlps.0.{name}_proj" for name in ("gate", "up", "down"))),
                **_swiglu(512, *(f"mlps.1.{name}_proj" for name in ("gate", "up", "down"))),
                **_norms("input_layernorm.0", "input_layernorm.1"),
                **_norms("post_attention_layernorm.0", "post_attention_layernorm.1"),
                "mlp.router.classifier.weight": (6, 256),
                "mlp.router.e_score_correction_bias": (6,),
                **_experts("mlp.experts", 128),
            }
        ]
        * 3,
        {**_ENDS, "model.mtp.embed_tokens.weight": _ROWS},
    ),
    "MiMo V2 Flash": _model(
        "model.layers",
        [
            {
                "self_attn.q_proj.weight": (384, 256),
                "self_attn.k_proj.weight": (96, 256),
                "self_attn.v_proj.weight": (64, 256),
                "self_attn.o_proj.weight": (256, 256),
                **_LLAMA_NORMS,
                **_swiglu(),
            },
            *[
                {
                    "self_attn.q_proj.weight": (384, 256),
                    "self_attn.k_proj.weight": (192, 256),
                    "self_attn.v_proj.weight": (128, 256),
                    "self_attn.o_proj.weight": (256, 256),
                    "self_attn.attention_sink_bias": (8,),
                    **_LLAMA_NORMS,
                    "mlp.gate.weight": (4, 256),
                    "mlp.gate.e_score_correction_bias": (4,),
                    **_experts("mlp.experts", 128),
                }
            ]
            * 2,
        ],
        _ENDS,
    ),
    "MiniCPM with experts": _model(
        "model.layers",
        [
            {
                **_LLAMA_NORMS,
                **_attention(),
                "mlp.gate.weight": (4, 256),
                **_experts("mlp.experts", 512, "w1", "w3", "w2"),
            }
        ]
        * 3,
        _ENDS,
    ),
    "Step 3": _model(
        "model.layers",
        [
            {
                "self_attn.q_proj.weight": (128, 256),
                "self_attn.k_proj.weight": (32, 256),
                "self_attn.v_proj.weight": (32, 256),
                "self_attn.wq.weight": (256, 128),
                "self_attn.o_proj.weight": (256, 256),
                "self_attn.inter_norm.weight": (128,),
                **_LLAMA_NORMS,
                **further,
            }
            for further in (
                _swiglu(),
                *[
                    {
                        "moe.gate.weight": (4, 256),
                        "moe.gate_proj.weight": (4, 128, 256),
                        "moe.up_proj.weight": (4, 128, 256),
                        "moe.down_proj.weight": (4, 256, 128),
                        **_swiglu(128, *(f"share_expert.{name}_proj" for name in ("gate", "up", "down"))),
                    }
                ]
                * 2,
            )
        ],
        _ENDS,
    ),
    "TeleChat 2": _model(
        "transformer.h",
        [
            {
                **_LLAMA_NORMS,
                "self_attention.query.weight": (256, 256),
                "self_attention.key_value.weight": (256, 256),
                "self_attention.dense.weight": (256, 256),
                "self_attention.dense.bias": (256,),
                **_swiglu(),
                "mlp.down_proj.bias": (256,),
            }
        ]
        * 3,
        {"transformer.word_embeddings.weight": _ROWS, "transformer.ln_f.weight": (256,), "lm_head.weight": _ROWS},
    ),
}
