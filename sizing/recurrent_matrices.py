"""The parameters of layers that mix recurrence with attention, by name and shape."""

from dataclasses import dataclass

from sizing.config_values import ConfigValues
from sizing.held import Split, Weight
from sizing.layers import Attention, Layer, Recurrent
from sizing.matrices import Parts, attention_matrices, experts, linear, mlp, norm, router, sole_attention
from sizing.model import ModelShape


def gated_delta(config: ConfigValues, shape: ModelShape, _: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    if isinstance(caches[0], Recurrent):
        yield from _delta_net(config, hidden)
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


def _delta_net(config: ConfigValues, hidden: int) -> Parts:
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


def nemotron_h(config: ConfigValues, shape: ModelShape, index: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    yield norm("norm", hidden)
    if not caches:
        yield linear("mixer.up_proj", shape.intermediate_size, hidden)
        yield linear("mixer.down_proj", hidden, shape.intermediate_size)
    elif isinstance(caches[0], Attention):
        yield from attention_matrices(shape, caches[0])
    else:
        heads = config.count("mamba_num_heads")
        mixer = _Mixer(
            heads,
            heads * config.count("mamba_head_dim"),
            config.count("n_groups"),
            config.count("ssm_state_size"),
            config.count("conv_kernel") + int(config.flag("use_conv_bias", default=True)),
        )
        yield from mixer.weights("mixer", hidden)


def granite_hybrid(config: ConfigValues, shape: ModelShape, _: int, caches: tuple[Layer, ...]) -> Parts:
    hidden = shape.hidden_size
    if isinstance(caches[0], Attention):
        yield from attention_matrices(shape, caches[0])
    else:
        mixer = _Mixer(
            config.count("mamba_n_heads"),
            config.count("mamba_expand") * hidden,
            config.count("mamba_n_groups"),
            config.count("mamba_d_state"),
            config.count("mamba_d_conv") + int(config.flag("mamba_conv_bias", default=True)),
        )
        yield from mixer.weights("mamba", hidden)
    yield from mlp("shared_mlp", hidden, config.count("shared_intermediate_size"))
    if shape.num_experts:
        yield from experts("block_sparse_moe.experts", hidden, shape.num_experts, shape.moe_intermediate_size)
        yield from router("block_sparse_moe.router", hidden, shape.num_experts, bias=False)
    yield norm("layernorm", hidden, times=2)


@dataclass(frozen=True)
class _Mixer:
    """A Mamba-2 mixer. A sole group of states is repeated on every rank, several are dealt out."""

    heads: int
    inner: int
    groups: int
    state_size: int
    per_channel: int
    """Numbers of the convolution for each channel."""

    def weights(self, name: str, hidden: int) -> Parts:
        grouped, split = 2 * self.groups * self.state_size, _groups_split(self.groups)
        yield linear(f"{name}.in_proj", 2 * self.inner + self.heads, hidden)
        yield linear(f"{name}.in_proj", grouped, hidden, split)
        yield linear(f"{name}.out_proj", hidden, self.inner)
        yield Weight(f"{name}.conv1d", (self.inner, self.per_channel), "sharded")
        yield Weight(f"{name}.conv1d", (grouped, self.per_channel), split)
        yield Weight(f"{name}.A_log", (3 * self.heads,), "sharded")
        yield Weight(f"{name}.norm", (self.inner,), "sharded")


def _groups_split(groups: int) -> Split:
    return "replicated" if groups == 1 else "sharded"
