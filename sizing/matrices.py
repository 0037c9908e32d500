"""The parameters that families have in common: tables, norms, projections, feed-forward layers and experts."""

from collections.abc import Iterator

from sizing.held import Split, Weight
from sizing.layers import Attention, Layer
from sizing.model import ModelShape

Parts = Iterator[Weight]


def norm(name: str, width: int, *, times: int = 1) -> Weight:
    return Weight(name, (width,), copies=times)


def linear(name: str, out: int, into: int, split: Split = "sharded", *, copies: int = 1) -> Weight:
    return Weight(name, (out, into), split, linear=True, copies=copies)


def attention_matrices(shape: ModelShape, attention: Attention, *, gate: bool = False, keys: bool = True) -> Parts:
    """Query, key, value and output projections; `gate`: the query's is doubled by an output gate."""
    queries = shape.num_attention_heads * attention.head_dim
    width = attention.num_kv_heads * attention.head_dim
    yield linear("self_attn.q_proj", queries * (2 if gate else 1), shape.hidden_size)
    if keys:
        yield linear("self_attn.k_proj", width, shape.hidden_size, "kv")
        yield linear("self_attn.v_proj", width, shape.hidden_size, "kv")
    yield linear("self_attn.o_proj", shape.hidden_size, queries)


def mlp(name: str, hidden: int, width: int, *, gated: bool = True) -> Parts:
    if gated:
        yield linear(f"{name}.gate_proj", width, hidden)
    yield linear(f"{name}.up_proj", width, hidden)
    yield linear(f"{name}.down_proj", hidden, width)


def experts(name: str, hidden: int, count: int, width: int, *, gated: bool = True) -> Parts:
    if gated:
        yield linear(f"{name}.*.gate_proj", width, hidden, "experts", copies=count)
    yield linear(f"{name}.*.up_proj", width, hidden, "experts", copies=count)
    yield linear(f"{name}.*.down_proj", hidden, width, "experts", copies=count)


def router(name: str, hidden: int, count: int, *, bias: bool) -> Parts:
    """vLLM gives no quantization to routers."""
    yield Weight(name, (count, hidden))
    if bias:
        yield Weight(f"{name}.e_score_correction_bias", (count,))


def sole_attention(caches: tuple[Layer, ...]) -> Attention:
    attention = caches[0]
    if not isinstance(attention, Attention):
        raise TypeError(f"a layer of {attention} in a family that has only attention")
    return attention
