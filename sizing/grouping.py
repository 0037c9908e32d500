"""Which layers share a block table: vLLM's grouping of layers of several kinds over one pool of equal blocks.

Equal to get_kv_cache_groups (v1/core/kv_cache_utils.py) of vLLM 0.32, and of older releases by their rules, for layouts
that keep a layer's blocks together, which are those of its dense, sliding, latent and recurrent attention backends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sizing.errors import UnsupportedModelError
from sizing.pages import (
    AttentionPage,
    ChunkedPage,
    FullPage,
    LatentPage,
    Page,
    SlidingLatentPage,
    SlidingPage,
    StatePage,
    same_kind,
)
from sizing.release import NEWEST, Release


@dataclass(frozen=True)
class Group:
    """Layers that one block table serves. Each needs the same blocks of a request; their pages may differ."""

    layers: tuple[int, ...]
    """Positions in the model, counting only what keeps a cache."""
    pages: tuple[Page, ...]


def group_layers(
    pages: Sequence[Page], release: Release = NEWEST, *, hybrid: bool = True, packed: bool = False
) -> tuple[Group, ...]:
    """The groups of a model whose layers, in order, have these pages.

    `hybrid`: the hybrid KV cache manager is on; without it windows and chunks beside full attention save nothing.
    `packed`: the backend lays all layers' pages of one block side by side (DeepSeek V4).

    Raises:
        UnsupportedModelError: pages that vLLM cannot bring to one size either.
    """
    if not pages:
        return ()
    if release.windows_keep_every_token or (
        release.chunks_turn_hybrid_off and any(isinstance(page, ChunkedPage) for page in pages)
    ):
        hybrid = False
    if not hybrid:
        pages = _as_kept(pages, release)
    if _share_a_group(pages, release):
        return (Group(tuple(range(len(pages))), tuple(pages)),)
    if not hybrid:
        raise _refusal(pages, release)
    if packed and len({page.page_bytes for page in pages}) > 1:
        return _packed(pages, release)
    unified = _of_one_size(pages, release)
    if unified is None:
        return (_all_as_full(pages, release),)
    return _of_equal_length(unified, release.longest_group_ratio)


def _as_kept(pages: Sequence[Page], release: Release) -> Sequence[Page]:
    """unify_hybrid_kv_cache_specs: windows and chunks beside full attention are allocated like it."""
    if _share_a_group(pages, release) and release.engine == "V1":
        return pages
    if not any(isinstance(page, FullPage | LatentPage) for page in pages) and release.engine == "V1":
        return pages
    return [_as_full(page, page.block_size) if isinstance(page, SlidingPage | ChunkedPage) else page for page in pages]


def _share_a_group(pages: Sequence[Page], release: Release) -> bool:
    distinct = set({id(page): page for page in pages}.values())
    if release.groups_unequal_pages or release.engine == "V0":
        return all(same_kind(pages[0], page) for page in distinct)
    return len(distinct) == 1


def _of_one_size(pages: Sequence[Page], release: Release) -> list[Page] | None:
    """unify_kv_cache_spec_page_size: every page as large as the largest; None where one cannot be."""
    largest = max(page.page_bytes for page in pages)
    grown = [page if page.page_bytes == largest else _grown(page, largest, release) for page in pages]
    return [page for page in grown if page is not None] if None not in grown else None


def _grown(page: Page, page_bytes: int, release: Release) -> Page | None:
    if not release.unifies_pages:
        return None
    larger = page.grown_to(page_bytes)
    padded = isinstance(larger, AttentionPage | StatePage) and larger.padded_bytes == page_bytes
    allowed = release.pads_states if isinstance(page, StatePage) else release.pads_attention
    return larger if allowed or not padded else None


def _of_equal_length(pages: Sequence[Page], longest_ratio: float) -> tuple[Group, ...]:
    """_get_kv_cache_groups_uniform_page_size: as many layers to a group as the rarest kind has.

    Where the most frequent kind is less than half as frequent again, groups are as long as that one instead, and the
    rarer kinds are padded. Layers are dealt out in turn, so that pipeline stages get their share of every group.
    """
    kinds: dict[Page, list[int]] = {}
    for layer, page in enumerate(pages):
        kinds.setdefault(page, []).append(layer)
    fewest = min(len(layers) for layers in kinds.values())
    most = max(len(layers) for layers in kinds.values())
    length = most if most < fewest * longest_ratio else fewest
    groups = []
    for page, layers in kinds.items():
        count = -(-len(layers) // length)
        for first in range(count):
            dealt = tuple(layers[first::count])
            groups.append(Group(dealt, (page,) * len(dealt)))
    return tuple(groups)


def _packed(pages: Sequence[Page], release: Release) -> tuple[Group, ...]:
    """_get_packed_kv_cache_groups: layers of one kind share a group, split so that all blocks are about as large.

    A kind with as many layers of each page size is a pattern that may be split between its repeats; one with several
    sizes stays whole and sets how many repeats the others' groups have.
    """
    if not release.packs_pages:
        raise UnsupportedModelError(
            f"packed pages are sized as vLLM 0.29 and newer lay them, not as {release} does; ask for 0.29 or newer"
        )
    buckets: list[list[int]] = []
    for layer, page in enumerate(pages):
        bucket = next((bucket for bucket in buckets if same_kind(pages[bucket[0]], page)), None)
        if bucket is None:
            buckets.append([layer])
        else:
            bucket.append(layer)
    by_size = [_by_size(bucket, pages) for bucket in buckets]
    balanced = [sizes for sizes in by_size if len({len(layers) for layers in sizes}) == 1]
    floor = max((len(sizes[0]) for sizes in balanced if len(sizes) > 1), default=0)
    repeats = _least_padding([len(sizes[0]) for sizes in balanced], floor) if floor else 0
    groups = []
    for bucket, sizes in zip(buckets, by_size, strict=True):
        count = -(-len(sizes[0]) // repeats) if repeats and sizes in balanced else 1
        if count == 1:
            groups.append(Group(tuple(bucket), tuple(pages[layer] for layer in bucket)))
            continue
        pattern = list(zip(*sizes, strict=True))
        for first in range(count):
            dealt = tuple(layer for repeat in pattern[first::count] for layer in repeat)
            groups.append(Group(dealt, tuple(pages[layer] for layer in dealt)))
    return tuple(groups)


def _by_size(layers: Sequence[int], pages: Sequence[Page]) -> list[list[int]]:
    sizes: dict[int, list[int]] = {}
    for layer in layers:
        sizes.setdefault(pages[layer].page_bytes, []).append(layer)
    return list(sizes.values())


def _least_padding(counts: Sequence[int], floor: int) -> int:
    """_approximate_gcd: the number from `floor` on whose multiples the counts exceed least, the largest of several."""
    return min(range(floor, max(counts) + 1), key=lambda size: (sum(-count % size for count in counts), -size))


def _all_as_full(pages: Sequence[Page], release: Release) -> Group:
    """_try_get_full_allocation_fallback_groups: windows beside MLA keep every token where no page size fits both."""
    full_sizes = {page.block_size for page in pages if isinstance(page, FullPage | LatentPage)}
    mixable = (
        release.keeps_all_beside_latent
        and any(isinstance(page, LatentPage) for page in pages)
        and any(isinstance(page, SlidingPage) for page in pages)
        and not any(isinstance(page, ChunkedPage | SlidingLatentPage) for page in pages)
    )
    promoted: list[Page] = []
    for page in pages:
        block_size = next(iter(full_sizes)) if len(full_sizes) == 1 else page.block_size
        promoted.append(_as_full(page, block_size) if isinstance(page, SlidingPage) else page)
    if not mixable or not all(same_kind(promoted[0], page) for page in promoted):
        raise _refusal(pages, release)
    return Group(tuple(range(len(pages))), tuple(promoted))


def _as_full(page: AttentionPage, block_size: int) -> FullPage:
    return FullPage(block_size, page.num_kv_heads, page.head_dim, page.value_dim, page.dtype_bytes)


def _refusal(pages: Sequence[Page], release: Release) -> UnsupportedModelError:
    kinds = " and ".join(sorted({type(page).__name__ for page in pages}))
    way_out = "use another --block-size" if release >= NEWEST else "use a newer vLLM"
    return UnsupportedModelError(
        f"pages of {kinds} cannot be brought to one size, and vLLM {release} refuses them; {way_out}"
    )
