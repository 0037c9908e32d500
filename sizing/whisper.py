"""Whisper: a decoder that attends to what an encoder made of the sound; the encoder itself is in sizing.encoders."""

from sizing.config_values import ConfigValues
from sizing.held import Weight
from sizing.layers import Attention, CrossAttention
from sizing.matrices import Parts, linear, norm
from sizing.stacks import Kind, Stack, attention_weights


def whisper(config: ConfigValues) -> Stack:
    """vllm/model_executor/models/whisper.py, whose fused projections have a bias for the keys too."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    width, head_dim = config.count("intermediate_size"), hidden // heads
    attention = Attention(heads, head_dim, head_dim)
    caches = (attention, CrossAttention(heads, head_dim))
    weights = (
        *attention_weights(config, attention, bias=True),
        *attention_weights(config, attention, "encoder_attn", bias=True),
        *_feed_forward(hidden, width),
        norm("layer_norm", hidden, times=6),  # three with a bias each
    )
    # beside the layers: a row for each position, and the bias of the norm behind the layers
    positions = Weight("embed_positions", (config.count("max_target_positions", default=448), hidden))
    kinds = {
        "first": Kind(caches, (*weights, positions, norm("layer_norm.bias", hidden))),
        "further": Kind(caches, weights),
    }
    order = ("first", *("further",) * (config.count("num_hidden_layers") - 1))
    return Stack(order, kinds, attention, width, tied=True)


def _feed_forward(hidden: int, width: int) -> Parts:
    yield linear("fc1", width, hidden)
    yield linear("fc2", hidden, width)
    yield Weight("fc1.bias", (width,), "sharded")
    yield norm("fc2.bias", hidden)
