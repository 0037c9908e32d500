"""What attention by latent vectors learns: projections down, which are whole on every rank, and up, by heads."""

from sizing.config_values import ConfigValues
from sizing.matrices import Parts, linear, norm


def latent_matrices(config: ConfigValues, name: str = "self_attn") -> Parts:
    """One layer's, under that name (vllm/model_executor/models/deepseek_v2.py: DeepseekV2MLAAttention).

    Raises:
        ModelFileError: a size is missing or impossible.
    """
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    rank, rope = config.count("kv_lora_rank"), config.count("qk_rope_head_dim")
    nope, value = config.count("qk_nope_head_dim"), config.count("v_head_dim")
    query_rank = config.count_or_none("q_lora_rank")
    if query_rank is None:
        yield linear(f"{name}.q_proj", heads * (nope + rope), hidden)
    else:
        yield linear(f"{name}.q_a_proj", query_rank, hidden, "replicated")
        yield linear(f"{name}.q_b_proj", heads * (nope + rope), query_rank)
        yield norm(f"{name}.q_a_layernorm", query_rank)
    yield linear(f"{name}.kv_a_proj_with_mqa", rank + rope, hidden, "replicated")
    yield linear(f"{name}.kv_b_proj", heads * (nope + value), rank)
    yield linear(f"{name}.o_proj", hidden, heads * value)
    yield norm(f"{name}.kv_a_layernorm", rank)
