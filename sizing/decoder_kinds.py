"""How families of decoders differ from a plain one: what a row of the tables of them may say."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Experts:
    """What a family's config calls the sizes of its mixtures of experts."""

    count: str
    active: str
    width: str = "moe_intermediate_size"
    dense_width: str = "intermediate_size"
    """Of layers without a mixture."""
    shared: str = ""
    """How many shared ones there are, each as wide as the others or as `shared_width` says."""
    shared_width: str = ""
    """How wide the shared ones are; all of them together, where the config does not count them."""
    first: str = ""
    """The first layer that has a mixture."""
    every: bool = False
    """From there on only layers that are multiples of `moe_layer_freq` have one."""
    listed: bool = False
    """`mlp_layer_types` says which layers have one, where it is there."""
    shared_gate: bool = False
    router_bias: str | bool = False
    """Always or never, or the config's key that says so."""


@dataclass(frozen=True)
class Decoder:
    """One family as vLLM's class of its name builds it (vllm/model_executor/models)."""

    norms: int | str = 2
    """In each layer, or the config's key that says how many."""
    norm_bias: bool = False
    gated: bool = True
    qkv_bias: str | bool = False
    """Always or never, or the config's key that says so; so are the next two, and that of the output layer."""
    out_bias: str | bool = False
    mlp_bias: str | bool = False
    head_bias: str | bool = False
    bias_by_default: bool = False
    """Where the key is absent."""
    down_bias: bool = False
    """On the feed-forward layer's last matrix alone."""
    activation_parameters: int = 0
    """What the activation of a feed-forward layer learns (xIELU)."""
    qk_norm: Literal["none", "head", "heads", "use_qk_norm", "use_qk_norm heads"] = "none"
    """As wide as a head, or as all of them together, always or where the config says so."""
    attention_gate: bool = False
    """A projection of the hidden states gates what attention found."""
    sinks: bool = False
    """A number per head that attention may fall back on."""
    experts: Experts | None = None
    windowed: bool = True
    """Whether a sliding window in the config is used."""
    full_every: int = 0
    """Without `layer_types` every so-manieth layer has no window; 0: all have one."""
    positions: int | None = None
    """Rows of a learned table of positions beyond those of the context; None: there is no such table."""
    embedding_norm: bool = False
    """Behind the embedding."""
    tied_by_default: bool = False
