"""What each layer of a model remembers of the tokens before, whole: before parallelism and number types divide it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Attention:
    """Keys and values: of every token, or of the last `window`, or of the current `chunk` of them."""

    num_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    chunk: int | None = None


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: one compressed vector per token, `width` elements wide, whole on every rank."""

    width: int
    indexed: bool = False
    """It picks its tokens by an indexer of its own, which keeps a cache beside it."""


@dataclass(frozen=True)
class Indexer:
    """The indexer's keys: one byte per element, and a float32 scale for each 128 of them."""

    head_dim: int

    @property
    def token_bytes(self) -> int:
        return self.head_dim + self.head_dim // 128 * 4


@dataclass(frozen=True)
class Recurrent:
    """A state of fixed size: the last inputs of a convolution, and one matrix per head (Mamba-2, gated delta net)."""

    conv_channels: int
    """Without the channels of `groups`."""
    conv_tokens: int
    heads: int
    head_elements: int
    state_bytes: int | None
    """Bytes per element of the matrices; None: as wide as the served type."""
    groups: int = 0
    """Shared by heads, as wide as `group_channels` each; repeated where there are more ranks than groups."""
    group_channels: int = 0
    checkpoints: Literal[0, 1] = 0
    """Blocks more that a request holds where the kernel exports the state inside a prefill (Mamba-2)."""

    def page_bytes(self, tensor_parallel_size: int, dtype_bytes: int) -> int:
        """One rank's state (vllm/model_executor/layers/mamba/mamba_utils.py: MambaStateShapeCalculator)."""
        tp = tensor_parallel_size
        groups = self.groups if self.groups % tp == 0 else tp
        channels = (self.conv_channels + groups * self.group_channels) // tp
        matrices = self.heads // tp * self.head_elements
        return channels * self.conv_tokens * dtype_bytes + matrices * (self.state_bytes or dtype_bytes)


Layer = Attention | Latent | Indexer | Recurrent
Layers = tuple[tuple[Layer, ...], ...]
"""The caches of each decoder layer: none where it shares another's or has no attention, two where it has an indexer."""
