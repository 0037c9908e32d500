"""What vLLM makes of memory for the KV cache: blocks, tokens, concurrency, the refusal at start, the longest context.

Equal to vLLM 0.32 (v1/core/kv_cache_utils.py) for every kind of layer in sizing.pages, and to older releases by the
rules that sizing.release names; the tests compare them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sizing.grouping import Group, group_layers
from sizing.pages import Page, Request, keeps_every_token
from sizing.release import NEWEST, Release

Bytes = int | Sequence[int]
"""Of memory: the same on every pipeline stage, or one number for each."""


@dataclass(frozen=True)
class Capacity:
    """What vLLM logs about a cache: blocks, tokens, and how many requests of the longest length it holds."""

    num_blocks: int
    tokens: int
    max_concurrency: float


@dataclass(frozen=True)
class KvCache:
    """The KV cache of one engine. Every group takes its blocks from one pool, so all blocks are equally large.

    Byte sizes are those of one tensor-parallel rank; pipeline stages differ in the layers they hold.
    """

    groups: tuple[Group, ...]
    stages: tuple[range, ...]
    """The layers of each pipeline stage, by the positions that groups use."""
    block_size: int
    """Tokens in a block of the model's main attention, as `--block-size` means it."""
    in_flight_tokens: int = 0
    encoder_tokens: int = 0
    context_shards: int = 1
    release: Release = NEWEST
    pages: tuple[Page, ...] = ()
    """Of each layer before grouping changed any; releases before 0.14 decide on a start by these."""

    @cached_property
    def stage_block_bytes(self) -> tuple[int, ...]:
        """One block on each stage: the pages of the group that has most there (_get_kv_cache_bytes_per_block)."""
        if len(set(self.groups[0].pages)) > 1 and not self.release.projects_groups:
            return (self._whole_block_bytes,) * len(self.stages)
        return tuple(
            max(
                sum(page.page_bytes for layer, page in zip(group.layers, group.pages, strict=True) if layer in stage)
                for group in self.groups
            )
            for stage in self.stages
        )

    @property
    def block_bytes(self) -> int:
        """One block on the stage where it is largest."""
        return max(self.stage_block_bytes)

    @cached_property
    def bytes_per_token(self) -> int:
        """What each further token of a long context takes: windows and states have stopped growing by then."""
        growing = [group.pages[0].block_size for group in self.groups if keeps_every_token(group.pages[0])]
        return round(sum(self.block_bytes / block_size for block_size in growing) / self.context_shards)

    def blocks_per_request(self, max_model_len: int) -> int:
        """Blocks that one request of that length holds at most, of all groups together."""
        known = self._known_blocks.get(max_model_len)
        if known is None:
            request = self._request(max_model_len)
            known = sum(count * page.blocks(request) for page, count in self._first_pages)
            self._known_blocks[max_model_len] = known
        return known

    def needed_bytes(self, max_model_len: int) -> int:
        """What vLLM says one request of that length needs, on the stage with the largest blocks."""
        return max(self._needed_bytes(max_model_len))

    def num_blocks(self, available: Bytes) -> int:
        """Blocks in that memory: every stage gets as many as the poorest can hold."""
        return min(
            max(0, memory) // block
            for memory, block in zip(self._per_stage(available), self.stage_block_bytes, strict=True)
        )

    def capacity(self, available: Bytes, max_model_len: int) -> Capacity:
        """What is logged: get_kv_cache_configs, then get_kv_cache_capacity."""
        num_blocks = self.num_blocks(available)
        max_concurrency = num_blocks / self.blocks_per_request(max_model_len)
        if self.release.tokens_from_concurrency:
            return Capacity(num_blocks, int(max_concurrency * max_model_len), max_concurrency)
        tokens = num_blocks // len(self.groups) * min(group.pages[0].block_size for group in self.groups)
        if self.release.concurrency_from_tokens:
            max_concurrency = tokens / max_model_len
        return Capacity(num_blocks, tokens * self.context_shards, max_concurrency)

    def holds(self, available: Bytes, max_model_len: int) -> bool:
        """Whether vLLM starts: what its release says one request of that length needs is there."""
        if self.release.refusal == "tokens":
            return 0 < max_model_len <= self.num_blocks(available) * self.block_size
        return self._fits(self._usable(available), max_model_len)

    def longest_model_len(self, available: Bytes, limit: int) -> int:
        """The largest length up to `limit` that it starts with; 0 where none. vLLM's `--max-model-len auto`."""
        if self.release.refusal == "tokens":
            return min(limit, self.num_blocks(available) * self.block_size)
        usable = self._usable(available)
        if limit and self._fits(usable, limit):
            return limit
        shortest, longest = 0, limit if self._fits(usable, 1) else 0
        while shortest < longest:
            length = (shortest + longest + 1) // 2
            if self._fits(usable, length):
                shortest = length
            else:
                longest = length - 1
        return shortest

    def _fits(self, usable: Sequence[int], max_model_len: int) -> bool:
        needed = self._needed_bytes(max_model_len)
        return all(memory > 0 and need <= memory for memory, need in zip(usable, needed, strict=True))

    def requests_fit(self, available: Bytes, max_model_len: int) -> int:
        """Whole requests of that length at once, the null block left out."""
        return max(0, self.num_blocks(available) - 1) // self.blocks_per_request(max_model_len)

    @cached_property
    def _known_blocks(self) -> dict[int, int]:
        """Of a request by its length: one answer asks for the same several times, and a plan for each card."""
        return {}

    @cached_property
    def _first_pages(self) -> tuple[tuple[Page, int], ...]:
        """Of the groups, which are often alike: each page once, and how many groups have it first."""
        return tuple(Counter(group.pages[0] for group in self.groups).items())

    @property
    def _whole_block_bytes(self) -> int:
        """One block as if a single stage had all layers."""
        return max(sum(page.page_bytes for page in group.pages) for group in self.groups)

    def _request(self, max_model_len: int) -> Request:
        return Request(max_model_len, self.in_flight_tokens, self.encoder_tokens, self.context_shards)

    def _needed_bytes(self, max_model_len: int) -> list[int]:
        """One request on each stage, beside the null block, as the release counts it (Release.refusal)."""
        request, refusal = self._request(max_model_len), self.release.refusal
        if refusal == "layers":
            needed = [page.page_bytes * page.blocks(request) for page in self.pages]
            return [sum(needed[layer] for layer in stage) for stage in self.stages]
        if refusal.startswith("first group"):
            blocks = self.groups[0].pages[0].blocks(request)
        else:
            blocks = self.blocks_per_request(max_model_len)
        if refusal == "first group of all stages":
            return [blocks * self._whole_block_bytes] * len(self.stages)
        return [blocks * block for block in self.stage_block_bytes]

    def _usable(self, available: Bytes) -> list[int]:
        """Memory of each stage that a request may need, as the release counts it."""
        per_stage = self._per_stage(available)
        if self.release.refusal == "first group of all stages":
            return [min(per_stage)] * len(self.stages)
        if self.release.refusal != "groups and null block":
            return list(per_stage)
        return [memory - block for memory, block in zip(per_stage, self.stage_block_bytes, strict=True)]

    def _per_stage(self, available: Bytes) -> Sequence[int]:
        return [available] * len(self.stages) if isinstance(available, int) else available


def kv_cache(
    pages: Sequence[Page],
    *,
    block_size: int,
    stages: Sequence[range] | None = None,
    in_flight_tokens: int = 0,
    encoder_tokens: int = 0,
    context_shards: int = 1,
    release: Release = NEWEST,
    hybrid: bool = True,
    packed: bool = False,
) -> KvCache:
    """The cache of layers with these pages, in the model's order; `hybrid` and `packed` as for group_layers.

    Raises:
        UnsupportedModelError: pages that vLLM cannot bring to one size either.
    """
    stages = tuple(stages) if stages is not None else (range(len(pages)),)
    groups = group_layers(pages, release, hybrid=hybrid, packed=packed)
    return KvCache(groups, stages, block_size, in_flight_tokens, encoder_tokens, context_shards, release, tuple(pages))
