"""Rows of decoders with experts, told from each other by what vLLM 0.32's classes of these names build."""

from collections.abc import Mapping

from sizing.decoder_kinds import Decoder, Experts

_BAILING = Decoder(
    qkv_bias="qkv_bias",
    out_bias="use_bias",
    mlp_bias="use_bias",
    qk_norm="use_qk_norm",
    experts=Experts(
        "num_experts",
        "num_experts_per_tok",
        shared="num_shared_experts",
        shared_width="moe_shared_expert_intermediate_size",
        first="first_k_dense_replace",
        router_bias="moe_router_enable_expert_bias",
    ),
    windowed=False,
)
_GRANITE = Experts("num_local_experts", "num_experts_per_tok", width="intermediate_size")
_GRANITE_SHARED = Experts(
    "num_local_experts", "num_experts_per_tok", width="intermediate_size", shared_width="shared_intermediate_size"
)

MIXTURE_DECODERS: Mapping[str, Decoder] = {
    "AfmoeForCausalLM": Decoder(
        norms=4,
        qk_norm="head",
        attention_gate=True,
        experts=Experts(
            "num_experts",
            "num_experts_per_tok",
            shared="num_shared_experts",
            first="num_dense_layers",
            router_bias=True,
        ),
        full_every=4,
    ),
    "BailingMoeForCausalLM": _BAILING,
    "BailingMoeV2ForCausalLM": _BAILING,
    "Cohere2MoeForCausalLM": Decoder(
        norms=1,
        experts=Experts(
            "num_experts",
            "num_experts_per_tok",
            width="intermediate_size",
            dense_width="prefix_dense_intermediate_size",
            shared="num_shared_experts",
            listed=True,
            first="first_k_dense_replace",
        ),
        tied_by_default=True,
    ),
    "DbrxForCausalLM": Decoder(experts=Experts("moe_num_experts", "moe_top_k", width="intermediate_size")),
    "DeepseekForCausalLM": Decoder(
        experts=Experts(
            "n_routed_experts",
            "num_experts_per_tok",
            shared="n_shared_experts",
            first="first_k_dense_replace",
            every=True,
        ),
        windowed=False,
    ),
    **dict.fromkeys(
        ("ExaoneMoeForCausalLM", "ExaoneMoEForCausalLM"),
        Decoder(
            qkv_bias="attention_bias",
            out_bias="attention_bias",
            mlp_bias="mlp_bias",
            qk_norm="head",
            experts=Experts(
                "num_experts",
                "num_experts_per_tok",
                shared="num_shared_experts",
                listed=True,
                first="first_k_dense_replace",
                router_bias=True,
            ),
            full_every=4,
        ),
    ),
    "GraniteMoeForCausalLM": Decoder(experts=_GRANITE, windowed=False),
    "GraniteMoeSharedForCausalLM": Decoder(experts=_GRANITE_SHARED, windowed=False),
    "GraniteMoeSWAForCausalLM": Decoder(sinks=True, experts=_GRANITE_SHARED),
    "HYV3ForCausalLM": Decoder(
        qk_norm="use_qk_norm",
        experts=Experts(
            "num_experts",
            "num_experts_per_tok",
            width="expert_hidden_dim",
            shared="num_shared_experts",
            first="first_k_dense_replace",
            router_bias=True,
        ),
        windowed=False,
    ),
    "MiniCPMForCausalLM": Decoder(
        experts=Experts("num_experts", "num_experts_per_tok", width="intermediate_size"), tied_by_default=True
    ),
    "Param2MoEForCausalLM": Decoder(
        qkv_bias="use_qkv_bias",
        out_bias="use_bias",
        qk_norm="use_qk_norm",
        experts=Experts(
            "num_experts",
            "num_experts_per_tok",
            shared_width="shared_expert_intermediate_size",
            first="first_k_dense_replace",
            router_bias="moe_router_enable_expert_bias",
        ),
        windowed=False,
    ),
    "PhiMoEForCausalLM": Decoder(
        norm_bias=True,
        qkv_bias=True,
        out_bias=True,
        head_bias=True,
        experts=Experts("num_local_experts", "num_experts_per_tok", width="intermediate_size"),
    ),
    "SarvamMoEForCausalLM": _BAILING,
}
