"""Zamba2: Mamba-2 layers, before some of which one of a few shared transformer blocks stands."""

from sizing.config_values import ConfigValues
from sizing.held import Weight
from sizing.layers import Attention
from sizing.matrices import Parts, linear, norm
from sizing.mixers import Mamba2
from sizing.stacks import Kind, Stack


def zamba2(config: ConfigValues) -> Stack:
    """vllm/model_executor/models/zamba2.py; a shared block stands with the layer that has it first.

    A block reads the hidden states beside the token's embedding, so its attention is twice as wide as they are.
    """
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    wide, inner = 2 * hidden, config.count("mamba_expand", default=2) * hidden
    mixers = config.count("n_mamba_heads", default=8)
    mixer = Mamba2(
        mixers,
        inner // mixers,
        config.count("mamba_ngroups", default=1),
        config.count("mamba_d_state", default=64),
        config.count("mamba_d_conv", default=4),
        conv_bias=config.flag("use_conv_bias", default=True),
        bias=config.flag("add_bias_linear", default=False),
        chunk_tokens=config.count("chunk_size", default=256),
    )
    attention = Attention(heads, wide // heads, wide // heads)
    width = config.count("intermediate_size", default=4 * hidden)
    mamba = (norm("input_layernorm", hidden), *mixer.weights("mamba", hidden))
    hybrid = (*mamba, linear("linear", hidden, hidden, "replicated"), *_adapters(config, hidden, width))
    kinds = {
        "mamba": Kind((mixer.state(),), mamba),
        "hybrid": Kind((attention, mixer.state()), hybrid),
        "hybrid, block's first": Kind((attention, mixer.state()), (*hybrid, *_block(config, hidden, width))),
    }
    # its class ties the output layer whatever the file says
    return Stack(_order(config), kinds, attention, max(width, inner), tied=True)


def _order(config: ConfigValues) -> tuple[str, ...]:
    num_layers, words = config.count("num_hidden_layers"), config.words("layers_block_type")
    known = {"mamba": "mamba", "linear_attention": "mamba", "hybrid": "hybrid"}
    if words is None or len(words) != num_layers or set(words) - known.keys():
        raise config.impossible("layers_block_type", f"must name mamba or hybrid for each of {num_layers} layers")
    order, left = [], config.count("num_mem_blocks", default=1)
    for word in words:
        first = word == "hybrid" and left > 0
        left -= int(first)
        order.append("hybrid, block's first" if first else known[word])
    return tuple(order)


def _block(config: ConfigValues, hidden: int, width: int) -> Parts:
    wide, biased = 2 * hidden, config.flag("add_bias_linear", default=False)
    yield linear("shared_transformer.self_attn.qkv_proj", 3 * wide, wide)
    yield linear("shared_transformer.self_attn.o_proj", hidden, wide)
    yield linear("shared_transformer.feed_forward.gate_up_proj", 2 * width, hidden)
    yield linear("shared_transformer.feed_forward.down_proj", hidden, width)
    yield norm("shared_transformer.layernorm", wide + hidden)
    if biased:
        yield Weight("shared_transformer.feed_forward.gate_up_proj.bias", (2 * width,), "sharded")
        yield norm("shared_transformer.feed_forward.down_proj.bias", hidden)


def _adapters(config: ConfigValues, hidden: int, width: int) -> Parts:
    """What makes a shared block a layer's own: low ranks beside its projections."""
    rank, wide = config.count("adapter_rank", default=128), 2 * hidden
    yield linear("feed_forward.adapter.0", rank, hidden)
    yield linear("feed_forward.adapter.1", 2 * width, rank)
    if config.flag("use_shared_attention_adapter", default=False):
        yield linear("self_attn.adapter.0", rank, wide, copies=3)
        yield linear("self_attn.adapter.1", wide, rank, copies=3)
