"""Models and cards that the speed tests share: facts of published `config.json` files, and a card for sums by hand."""

import math

from sizing.cards import Card, card
from sizing.config_json import parse_config
from sizing.efficiency import Efficiency
from sizing.roofline import Engine
from sizing.speed_shape import SpeedShape, WeightFormat, speed_shape_of
from tests.sizing.models import published

KIMI_K2_5: dict[str, object] = {  # moonshotai/Kimi-K2.5, the text part
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "kimi_k2",
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 262144,
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
}


def shape(name: str, weights: WeightFormat | None = None, **changes: object) -> SpeedShape:
    """A published model, its weights in that format."""
    return speed_shape_of(published(name, quantization_config=None, **changes), weights=weights)


SHAPES = {
    "llama": shape("meta-llama/Llama-3.1-70B-Instruct", "fp8"),
    "gpt-oss": shape("openai/gpt-oss-120b", "mxfp4"),
    "minimax": shape("MiniMaxAI/MiniMax-M2.5", "fp8"),
    "kimi": speed_shape_of(parse_config(KIMI_K2_5, name="kimi"), weights="int4"),
}

ROUND = Card("round", 1e12, 100e12, 200e12, 200e12, 400e12, 200e9, 500, (9, 0), "round numbers", None)
"""1 TB/s, 100 TFLOP/s in 16 bits, 100 GB/s each way."""

IDEAL = Efficiency(
    expert_on_chip_bandwidth=math.inf,
    expert_on_chip_bandwidth_fused=math.inf,
    routing_independence=1.0,
    kv_bandwidth=1.0,
    expert_compute=1.0,
    expert_compute_fused=1.0,
    expert_layer_s=0.0,
    all_reduce_s=0.0,
    sequence_s=0.0,
    prefill_layer_s=0.0,
    request_s=0.0,
    prompt_token_s=0.0,
    layer_s=0.0,
    dense_bandwidth=1.0,
    on_chip_bandwidth=math.inf,
    narrow_layer_s=0.0,
    dense_compute=1.0,
    opening_share=0.0,
    on_chip_bandwidth_4bit=math.inf,
    narrow_gain=1.0,
    step_s=0.0,
    link_share=1.0,
    fabric_hop_s=0.0,
)
"""Everything at its published speed and nothing lost in between."""


def engine(name: str, tensor_parallel_size: int = 1, **changes: int) -> Engine:
    return Engine(card(name), "nvlink", tensor_parallel_size, **changes)
