"""Rows of decoders without experts, told from each other by what vLLM 0.32's classes of these names build."""

from collections.abc import Mapping

from sizing.decoder_kinds import Decoder

_LLAMA = Decoder(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias")
_BIASED = Decoder(norm_bias=True, gated=False, qkv_bias=True, out_bias=True, mlp_bias=True, windowed=False)
_FALCON = Decoder(
    norms="num_ln_in_parallel_attn",
    norm_bias=True,
    gated=False,
    qkv_bias="bias",
    out_bias="bias",
    mlp_bias="bias",
    tied_by_default=True,
    windowed=False,
)
_CHATGLM = Decoder(qkv_bias="add_qkv_bias", out_bias="add_bias_linear", mlp_bias="add_bias_linear", windowed=False)

DENSE_DECODERS: Mapping[str, Decoder] = {
    "ApertusForCausalLM": Decoder(
        gated=False,
        qkv_bias="attention_bias",
        out_bias="attention_bias",
        mlp_bias="mlp_bias",
        activation_parameters=2,
        qk_norm="head",
    ),
    "BloomForCausalLM": Decoder(
        norm_bias=True,
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        embedding_norm=True,
        tied_by_default=True,
        windowed=False,
    ),
    "ChatGLMForConditionalGeneration": _CHATGLM,
    "ChatGLMModel": _CHATGLM,
    "ExaoneForCausalLM": _LLAMA,
    "FalconForCausalLM": _FALCON,
    "GPT2LMHeadModel": Decoder(
        norm_bias=True,
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        positions=0,
        tied_by_default=True,
        windowed=False,
    ),
    "GPTJForCausalLM": Decoder(norms=1, norm_bias=True, gated=False, mlp_bias=True, head_bias=True, windowed=False),
    "GraniteSWAForCausalLM": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", sinks=True, tied_by_default=True
    ),
    "HyperCLOVAXForCausalLM": Decoder(
        norms="num_norms", qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "IQuestCoderForCausalLM": _LLAMA,
    "InternLM2ForCausalLM": Decoder(),
    "InternLM3ForCausalLM": Decoder(qkv_bias="qkv_bias", out_bias="bias", mlp_bias="mlp_bias"),
    "Ministral3ForCausalLM": Decoder(),
    "OPTForCausalLM": Decoder(
        norm_bias=True,
        gated=False,
        qkv_bias="enable_bias",
        out_bias="enable_bias",
        mlp_bias="enable_bias",
        bias_by_default=True,
        positions=2,
        tied_by_default=True,
        windowed=False,
    ),
    "OrionForCausalLM": Decoder(norm_bias=True),
    "PanguEmbeddedForCausalLM": Decoder(qkv_bias="qkv_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
    "Plamo3ForCausalLM": Decoder(norms=4, qk_norm="head", full_every=8),
    "Rnj1ForCausalLM": Decoder(norms=4, qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head"),
    "SolarForCausalLM": _LLAMA,
    "StableLmForCausalLM": Decoder(norm_bias=True, qkv_bias="use_qkv_bias"),
    "Step1ForCausalLM": Decoder(
        qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", tied_by_default=True, windowed=False
    ),
    "TeleChat2ForCausalLM": Decoder(out_bias=True, down_bias=True),
    "TeleChat3ForCausalLM": _LLAMA,
    "TeleFLMForCausalLM": _LLAMA,
}
