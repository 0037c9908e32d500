"""What a family's builder finds in a `config.json`: its layers, its parameters and its feed-forward widths."""

from dataclasses import dataclass

from sizing.layers import Layers
from sizing.model import ParameterCount


@dataclass(frozen=True)
class Anatomy:
    """One model, counted. Widths in elements."""

    layers: Layers
    parameters: ParameterCount
    head_dim: int
    num_key_value_heads: int
    intermediate_size: int
    """Of a dense layer; where there is none, of one expert."""
    num_experts: int = 0
    num_experts_per_tok: int = 0
    """Shared ones included."""
    moe_intermediate_size: int = 0
    num_moe_layers: int = 0
    num_shared_experts: int = 0
    """Of those per token: as many as the shared ones are wide, which no router picks."""
    expert_hidden_size: int = 0
    """What goes into an expert, where that is narrower than the hidden states."""
    gated_experts: bool = True


def gated_mlp(hidden: int, width: int) -> ParameterCount:
    """Gate, up and down projection."""
    return ParameterCount(sharded=3 * hidden * width)


def projections(hidden: int, query_width: int, kv_width: int, *, gate: bool = False) -> ParameterCount:
    """Query, key, value and output projection; `gate`: the query's is doubled by an output gate."""
    return ParameterCount(
        sharded=(3 if gate else 2) * hidden * query_width,
        kv_projection=2 * hidden * kv_width,
    )


def ends(hidden: int, vocab: int, *, tied: bool) -> ParameterCount:
    """Embedding, output layer and last norm."""
    rows = 1 if tied else 2
    return ParameterCount(sharded=rows * vocab * hidden, replicated=hidden, vocab_rows=rows)


def experts(hidden: int, num_experts: int, width: int, *, shared_width: int = 0, router_bias: bool) -> ParameterCount:
    """A mixture of gated experts, those that every token visits, and the router."""
    return ParameterCount(
        sharded=3 * hidden * (num_experts * width + shared_width),
        replicated=num_experts * (hidden + int(router_bias)),
    )
