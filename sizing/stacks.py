"""A model whose layers are of several kinds: each kind spelt out once, and the model counted from them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sizing.anatomy import Anatomy
from sizing.config_values import ConfigValues
from sizing.held import Weight
from sizing.layers import Attention, Latent, Layer
from sizing.matrices import Parts, linear, norm
from sizing.model import ParameterCount


@dataclass(frozen=True)
class Mixture:
    """A family's experts."""

    count: int
    active: int
    width: int
    layers: int
    shared: int = 0
    """How many that every token visits are as wide together as the shared ones."""
    hidden: int = 0
    """What goes into them, where that is narrower than the hidden states."""
    gated: bool = True


@dataclass(frozen=True)
class Kind:
    """Layers that are alike: what each keeps, and its parameters."""

    caches: tuple[Layer, ...]
    weights: tuple[Weight, ...]


@dataclass(frozen=True)
class Stack:
    """A model's layers."""

    order: tuple[str, ...]
    """Of each layer its kind."""
    kinds: Mapping[str, Kind]
    attention: Attention | Latent | None
    width: int
    """Of the widest matrix that a layer's work is divided by: a feed-forward one or a mixer's."""
    tied: bool
    mixture: Mixture | None = None


def counted(stack: Stack, config: ConfigValues) -> Anatomy:
    """Its layers, and the sums of their parameters and of the tables beside them."""
    hidden, rows = config.count("hidden_size"), 1 if stack.tied else 2
    sums = {"sharded": rows * config.count("vocab_size") * hidden, "kv": 0, "replicated": hidden, "experts": 0}
    for word, times in Counter(stack.order).items():
        for weight in stack.kinds[word].weights:
            sums[weight.split] += times * weight.num_elements
    total = ParameterCount(sums["sharded"] + sums["experts"], sums["kv"], sums["replicated"], rows)
    layers = tuple(stack.kinds[word].caches for word in stack.order)
    # without attention vLLM has no heads to divide; the mixer's own decide (see sizing.division)
    heads, width = _heads(stack.attention, config)
    mixture = stack.mixture
    if mixture is None:
        return Anatomy(layers, total, width, heads, stack.width)
    return Anatomy(
        layers,
        total,
        width,
        heads,
        stack.width,
        num_experts=mixture.count,
        num_experts_per_tok=mixture.active + mixture.shared,
        moe_intermediate_size=mixture.width,
        num_moe_layers=mixture.layers,
        num_shared_experts=mixture.shared,
        expert_hidden_size=mixture.hidden,
        gated_experts=mixture.gated,
    )


def _heads(attention: Attention | Latent | None, config: ConfigValues) -> tuple[int, int]:
    """Key-value heads and their width; those of latent vectors are the queries' own."""
    match attention:
        case Attention():
            return attention.num_kv_heads, attention.head_dim
        case Latent():
            return config.count("num_attention_heads"), attention.width
    return 1, 1


def attention_of(config: ConfigValues, *keys: str) -> Attention:
    """As wide as the first of these keys says, else a head's share of the hidden states."""
    heads = config.count("num_attention_heads")
    named = next((config.count(key) for key in keys if config.values.get(key) is not None), None)
    width = named if named is not None else config.count("hidden_size") // heads
    return Attention(config.count("num_key_value_heads", default=heads), width, width)


def attention_weights(
    config: ConfigValues, attention: Attention, name: str = "self_attn", *, bias: bool = False
) -> Parts:
    """Query, key, value and output projections under that name, perhaps with a bias each."""
    hidden, queries = config.count("hidden_size"), config.count("num_attention_heads") * attention.head_dim
    width = attention.num_kv_heads * attention.head_dim
    yield linear(f"{name}.q_proj", queries, hidden)
    yield linear(f"{name}.k_proj", width, hidden, "kv")
    yield linear(f"{name}.v_proj", width, hidden, "kv")
    yield linear(f"{name}.o_proj", hidden, queries)
    if bias:
        yield Weight(f"{name}.q_proj.bias", (queries,), "sharded")
        yield Weight(f"{name}.kv_proj.bias", (2 * width,), "kv")
        yield norm(f"{name}.o_proj.bias", hidden)
