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
class CrossAttention:
    """Keys and values of what an encoder made of the input, whole from the first step on."""

    num_kv_heads: int
    head_dim: int


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
    tokens_per_state: int = 1
    """More than 1: of compressed tokens (DeepSeek V4)."""

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
    chunk_tokens: int | None = None
    """Tokens that a Mamba kernel takes at a time; blocks that keep every state are multiples of it. None: none do."""

    def page_bytes(self, tensor_parallel_size: int, dtype_bytes: int, speculative_tokens: int = 0) -> int:
        """One rank's state (vllm/model_executor/layers/mamba/mamba_utils.py: MambaStateShapeCalculator)."""
        tp = tensor_parallel_size
        groups = self.groups if self.groups % tp == 0 else tp
        channels = (self.conv_channels + groups * self.group_channels) // tp
        matrices = self.heads // tp * self.head_elements
        tokens = self.conv_tokens + speculative_tokens
        return channels * tokens * dtype_bytes + matrices * (self.state_bytes or dtype_bytes)


@dataclass(frozen=True)
class IndexKeys:
    """The keys of an indexer beside ordinary attention, in the served type, whole on every rank (MiniMax M3)."""

    head_dim: int


@dataclass(frozen=True)
class Compressed:
    """DeepSeek V4's packed rows: one for so many tokens, or one for each of the last `window`."""

    head_dim: int
    rope_dim: int
    tokens_per_state: int = 1
    window: int | None = None

    @property
    def row_bytes(self) -> int:
        """fp8 without positions, bfloat16 with, and eight bytes of scales."""
        return self.head_dim - self.rope_dim + 2 * self.rope_dim + 8


@dataclass(frozen=True)
class CompressorState:
    """What DeepSeek V4's compressor has not folded into a row yet: float32 keys and scores of the last tokens."""

    head_dim: int
    tokens_per_state: int

    @property
    def overlap(self) -> int:
        """Rows of four tokens overlap by half."""
        return 2 if self.tokens_per_state == 4 else 1


Layer = Attention | CrossAttention | Latent | Indexer | IndexKeys | Compressed | CompressorState | Recurrent
Layers = tuple[tuple[Layer, ...], ...]
"""The caches of each decoder layer: none where it shares another's or has no attention, two where it has an indexer."""


def keeps_whole_context(layer: Layer) -> bool:
    """Whether the layer's cache grows with the context to its end."""
    match layer:
        case Attention():
            return layer.window is None and layer.chunk is None
        case Compressed():
            return layer.window is None
    return isinstance(layer, Latent | Indexer | IndexKeys)
