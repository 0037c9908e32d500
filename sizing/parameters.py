"""How many parameters a shape has, and what tensor parallelism does to them."""

from sizing.architecture import ARCHITECTURES, WRAPPERS
from sizing.model import ModelShape, ParameterCount


def count_parameters(shape: ModelShape) -> ParameterCount:
    """Exact for every architecture of the table; checked against Transformers' own modules in the tests."""
    if shape.parameters is not None:
        return shape.parameters
    architecture = ARCHITECTURES[WRAPPERS.get(shape.architecture, shape.architecture)]
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    query_width = shape.num_attention_heads * shape.head_dim
    kv_width = shape.num_key_value_heads * shape.head_dim
    vocab_rows = 1 if shape.tie_word_embeddings else 2

    qkv_bias = int(shape.attention_bias or architecture.bias == "qkv")
    qk_norm = {"none": 0, "head": 2 * shape.head_dim, "width": query_width + kv_width}[architecture.qk_norm]
    # q and o projections, then the bias of q
    sharded = layers * (2 * hidden * query_width + qkv_bias * query_width)
    kv_projection = layers * 2 * (hidden + qkv_bias) * kv_width
    # two norms per layer and one at the end, and the o projection's bias
    replicated = layers * (2 * hidden + qk_norm + int(shape.attention_bias) * hidden) + hidden

    dense = _dense_mlp(shape)
    expert = 3 * hidden * shape.moe_intermediate_size  # gate, up and down projection
    sharded += (layers - shape.num_moe_layers) * dense[0] + shape.num_moe_layers * shape.num_experts * expert
    replicated += (layers - shape.num_moe_layers) * dense[1] + shape.num_moe_layers * hidden * shape.num_experts
    sharded += vocab_rows * shape.vocab_size * hidden
    return ParameterCount(sharded, kv_projection, replicated, vocab_rows)


def _dense_mlp(shape: ModelShape) -> tuple[int, int]:
    """Sharded and replicated parameters of one gated feed-forward layer."""
    bias = int(shape.mlp_bias)
    sharded = 3 * shape.hidden_size * shape.intermediate_size + bias * 2 * shape.intermediate_size
    return sharded, bias * shape.hidden_size
