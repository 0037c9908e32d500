"""The parameters of layers of gated delta nets and of the attention beside them, by name and shape."""

from sizing.config_values import ConfigValues
from sizing.held import Weight
from sizing.layers import Layer, Recurrent
from sizing.matrices import Parts, attention_matrices, experts, linear, mlp, norm, router, sole_attention
from sizing.model import ModelShape


def gated_delta(config: ConfigValues, shape: ModelShape, _: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    if isinstance(caches[0], Recurrent):
        yield from delta_net(config, hidden)
    else:
        attention = sole_attention(caches)
        yield from attention_matrices(shape, attention, gate=True)
        yield norm("self_attn.qk_norm", 2 * attention.head_dim)
    yield norm("layernorm", hidden, times=2)
    if not shape.num_experts:
        yield from mlp("mlp", hidden, shape.intermediate_size)
        return
    yield from experts("mlp.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
    yield from mlp("mlp.shared_expert", hidden, config.count("shared_expert_intermediate_size"))
    yield from router("mlp.gate", hidden, shape.num_experts, bias=False)
    yield Weight("mlp.shared_expert_gate", (1, hidden))


def delta_net(config: ConfigValues, hidden: int) -> Parts:
    key_dim, value_dim = (
        config.count("linear_key_head_dim", default=128),
        config.count("linear_value_head_dim", default=128),
    )
    heads = config.count("linear_num_value_heads", default=32)
    keys, values = config.count("linear_num_key_heads", default=16) * key_dim, heads * value_dim
    yield linear("linear_attn.in_proj_qkv", 2 * keys + values, hidden)
    yield linear("linear_attn.in_proj_z", values, hidden)
    yield linear("linear_attn.out_proj", hidden, values)
    # too narrow for any format's blocks, and left alone by every published quantization
    yield Weight("linear_attn.in_proj_ba", (2 * heads, hidden), "sharded")
    yield Weight(
        "linear_attn.conv1d", (2 * keys + values, config.count("linear_conv_kernel_dim", default=4)), "sharded"
    )
    yield Weight("linear_attn.A_log", (2 * heads,), "sharded")  # and the bias of the time steps
    yield norm("linear_attn.norm", value_dim)
