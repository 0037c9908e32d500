"""Models and cards that the speed tests share: facts of published `config.json` files, and a card for sums by hand."""

from sizing.cards import Card, card
from sizing.efficiency import Efficiency
from sizing.roofline import Engine

LLAMA_70B: dict[str, object] = {  # meta-llama/Llama-3.1-70B-Instruct
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "intermediate_size": 28672,
}
GPT_OSS_120B: dict[str, object] = {  # openai/gpt-oss-120b
    "hidden_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 201088,
    "intermediate_size": 2880,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "quantization_config": {"quant_method": "mxfp4"},
}
MINIMAX_M2: dict[str, object] = {  # MiniMaxAI/MiniMax-M2.5
    "hidden_size": 3072,
    "num_hidden_layers": 62,
    "num_attention_heads": 48,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 200064,
    "intermediate_size": 1536,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
    "quantization_config": {"quant_method": "fp8", "fmt": "float8_e4m3fn"},
}
KIMI_K2: dict[str, object] = {  # moonshotai/Kimi-K2.5, its text part as the publisher nests it
    "text_config": {
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "vocab_size": 163840,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 384,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
        },
    },
    "vision_config": {"patch_size": 14},
}

ROUND = Card("round", 1e12, 100e12, 200e12, 200e12, 400e12, 200e9, 500, (9, 0), "round numbers", None)
"""1 TB/s, 100 TFLOP/s in 16 bits, 100 GB/s each way."""

IDEAL = Efficiency(
    expert_bandwidth=1.0,
    expert_bandwidth_fp4=1.0,
    routing_independence=1.0,
    kv_bandwidth=1.0,
    expert_compute=1.0,
    expert_layer_s=0.0,
    all_reduce_s=0.0,
    sequence_s=0.0,
    prefill_layer_s=0.0,
    request_s=0.0,
    layer_s=0.0,
    dense_bandwidth=1.0,
    dense_bandwidth_4bit=1.0,
    dense_compute=1.0,
    narrow_gain=1.0,
    step_s=0.0,
    link_share=1.0,
    opening_share=0.0,
)
"""Everything at its published speed and nothing lost in between."""


def engine(name: str, tensor_parallel_size: int = 1, **changes: int) -> Engine:
    return Engine(card(name), "nvlink", tensor_parallel_size, **changes)
