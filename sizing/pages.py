"""One layer's cache on one rank: the bytes of its page, and the blocks that one request holds of it.

Each class is one of vLLM 0.32's specs (v1/kv_cache_interface.py), named after what the layer remembers. Two layers
share blocks only where their pages are equal in every field, as vLLM compares its specs.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self


@dataclass(frozen=True)
class Request:
    """The most that one request can ask of a cache, in tokens."""

    max_model_len: int
    in_flight_tokens: int = 0
    """Scheduled and not settled yet (`max_in_flight_tokens`): a window cannot let go of what it may still read."""
    encoder_tokens: int = 0
    context_shards: int = 1
    """Ranks that share out the tokens of full and latent attention (`--decode-context-parallel-size`)."""

    @property
    def kept_tokens(self) -> int:
        """What one rank keeps of the whole context."""
        return -(-self.max_model_len // self.context_shards)


@dataclass(frozen=True)
class AttentionPage:
    """Keys and values of `block_size` tokens. Sizes in tokens, heads of this rank, elements and bytes."""

    block_size: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    dtype_bytes: int
    padded_bytes: int | None = None
    """The page vLLM lays it in, where that is larger than its content."""

    @property
    def content_bytes(self) -> int:
        return self.block_size * self.num_kv_heads * (self.head_dim + self.value_dim) * self.dtype_bytes

    @property
    def page_bytes(self) -> int:
        return self.content_bytes if self.padded_bytes is None else self.padded_bytes

    def grown_to(self, page_bytes: int) -> Self | None:
        """The same layer in a larger page: more tokens to a block where it divides, else padding."""
        if page_bytes % self.page_bytes == 0:
            return replace(self, block_size=self.block_size * (page_bytes // self.page_bytes))
        return replace(self, padded_bytes=page_bytes)


@dataclass(frozen=True)
class FullPage(AttentionPage):
    """Every token of the context (FullAttentionSpec)."""

    def blocks(self, request: Request) -> int:
        return -(-request.kept_tokens // self.block_size)


@dataclass(frozen=True, kw_only=True)
class SlidingPage(AttentionPage):
    """The last `window` tokens (SlidingWindowSpec)."""

    window: int
    retained_tokens: int = 0
    """What a chain of prediction modules reads past the window."""

    def blocks(self, request: Request) -> int:
        tokens = min(self.window - 1 + self.retained_tokens + request.in_flight_tokens, request.max_model_len)
        return -(-tokens // self.block_size) + 1  # a window may start inside a block


@dataclass(frozen=True, kw_only=True)
class ChunkedPage(AttentionPage):
    """The current chunk of `chunk` tokens (ChunkedLocalAttentionSpec)."""

    chunk: int

    def blocks(self, request: Request) -> int:
        tokens = min(self.chunk + request.in_flight_tokens, request.max_model_len)
        return -(-tokens // self.block_size)


@dataclass(frozen=True)
class CrossPage(AttentionPage):
    """The encoder's output, whole from the first step on (CrossAttentionSpec)."""

    def blocks(self, request: Request) -> int:
        return -(-request.encoder_tokens // self.block_size)


@dataclass(frozen=True)
class LatentPage:
    """One compressed vector per token, or per `tokens_per_state` of them, whole on every rank (MLAAttentionSpec)."""

    block_size: int
    state_bytes: int
    role: Literal["latent", "indexed", "indexer"] = "latent"
    """`indexed`: a latent layer that leads an indexer, which vLLM does not merge with one that has none."""
    tokens_per_state: int = 1
    alignment: int = 1

    @property
    def page_bytes(self) -> int:
        content = self.block_size // self.tokens_per_state * self.state_bytes
        return -(-content // self.alignment) * self.alignment

    def blocks(self, request: Request) -> int:
        return -(-request.kept_tokens // self.block_size)

    def grown_to(self, page_bytes: int) -> Self | None:
        """As for attention, but whole token rows leave no room for padding."""
        if page_bytes % self.page_bytes == 0:
            return replace(self, block_size=self.block_size * (page_bytes // self.page_bytes))
        return None


@dataclass(frozen=True)
class SlidingLatentPage(LatentPage):
    """One vector for each of the last `window` tokens (SlidingWindowMLASpec)."""

    window: int = 0
    retained_tokens: int = 0

    def blocks(self, request: Request) -> int:
        tokens = min(self.window - 1 + self.retained_tokens + request.in_flight_tokens, request.max_model_len)
        return -(-tokens // self.block_size) + 1


@dataclass(frozen=True)
class StatePage:
    """A recurrent state, the same bytes however long the context is (MambaSpec)."""

    block_size: int
    state_bytes: int
    request_blocks: int = 1
    """1, or 2 where prefix caching keeps the state of the last block boundary as well, and those of drafts."""
    padded_bytes: int | None = None
    every_block: bool = False
    """The state of every block boundary is kept, beside `request_blocks` of drafts."""

    @property
    def page_bytes(self) -> int:
        return self.state_bytes if self.padded_bytes is None else self.padded_bytes

    def blocks(self, request: Request) -> int:
        boundaries = -(-request.max_model_len // self.block_size) if self.every_block else 0
        return boundaries + self.request_blocks

    def grown_to(self, page_bytes: int) -> Self | None:
        return replace(self, padded_bytes=page_bytes)


Page = FullPage | SlidingPage | ChunkedPage | CrossPage | LatentPage | SlidingLatentPage | StatePage


def keeps_every_token(page: Page) -> bool:
    """Whether the layer's blocks grow with the context to its end."""
    return isinstance(page, FullPage | LatentPage) and not isinstance(page, SlidingLatentPage)


def same_kind(first: Page, other: Page) -> bool:
    """Whether both always need the same number of blocks (UniformTypeKVCacheSpecs.is_uniform_type)."""
    return first.block_size == other.block_size and _kind(first) == _kind(other)


def _kind(page: Page) -> tuple[object, ...]:
    match page:
        case SlidingLatentPage():
            return "latent window", page.window
        case FullPage() | LatentPage():
            return ("every token",)
        case SlidingPage():
            return "window", page.window
        case ChunkedPage():
            return "chunk", page.chunk
        case StatePage():
            return "state", page.page_bytes, page.request_blocks, page.every_block
        case CrossPage():
            return ("encoder",)
