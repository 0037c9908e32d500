"""Which layers share a block table: vLLM's grouping of layers of several kinds over one pool of equal blocks.

Equal to vLLM 0.32's get_kv_cache_groups (v1/core/kv_cache_utils.py) for layouts that keep a layer's blocks together,
which are those of its dense, sliding, latent and recurrent attention backends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sizing.errors import UnsupportedModelError
from sizing.pages import ChunkedPage, FullPage, LatentPage, Page, SlidingPage, same_kind


@dataclass(frozen=True)
class Group:
    """Layers that one block table serves. Each needs the same blocks of a request; their pages may differ."""

    layers: tuple[int, ...]
    """Positions in the model, counting only what keeps a cache."""
    pages: tuple[Page, ...]


def group_layers(pages: Sequence[Page]) -> tuple[Group, ...]:
    """The groups of a model whose layers, in order, have these pages.

    Raises:
        UnsupportedModelError: pages that vLLM cannot bring to one size either.
    """
    if not pages:
        return ()
    if all(same_kind(pages[0], page) for page in dict.fromkeys(pages)):
        return (Group(tuple(range(len(pages))), tuple(pages)),)
    unified = _of_one_size(pages)
    if unified is None:
        return (_all_as_full(pages),)
    return _of_equal_length(unified)


def _of_one_size(pages: Sequence[Page]) -> list[Page] | None:
    """unify_kv_cache_spec_page_size: every page as large as the largest; None where one cannot be."""
    largest = max(page.page_bytes for page in pages)
    grown = [page if page.page_bytes == largest else page.grown_to(largest) for page in pages]
    return [page for page in grown if page is not None] if None not in grown else None


def _of_equal_length(pages: Sequence[Page]) -> tuple[Group, ...]:
    """_get_kv_cache_groups_uniform_page_size: as many layers to a group as the rarest kind has.

    Where the most frequent kind is less than half as frequent again, groups are as long as that one instead, and the
    rarer kinds are padded. Layers are dealt out in turn, so that pipeline stages get their share of every group.
    """
    kinds: dict[Page, list[int]] = {}
    for layer, page in enumerate(pages):
        kinds.setdefault(page, []).append(layer)
    fewest = min(len(layers) for layers in kinds.values())
    most = max(len(layers) for layers in kinds.values())
    length = most if most < fewest * 1.5 else fewest
    groups = []
    for page, layers in kinds.items():
        count = -(-len(layers) // length)
        for first in range(count):
            dealt = tuple(layers[first::count])
            groups.append(Group(dealt, (page,) * len(dealt)))
    return tuple(groups)


def _all_as_full(pages: Sequence[Page]) -> Group:
    """_try_get_full_allocation_fallback_groups: windows beside MLA keep every token where no page size fits both."""
    full_sizes = {page.block_size for page in pages if isinstance(page, FullPage | LatentPage)}
    mixable = (
        any(isinstance(page, LatentPage) for page in pages)
        and any(isinstance(page, SlidingPage) for page in pages)
        and not any(isinstance(page, ChunkedPage) for page in pages)
    )
    promoted = [_as_full(page, full_sizes) if isinstance(page, SlidingPage) else page for page in pages]
    if not mixable or not all(same_kind(promoted[0], page) for page in promoted):
        kinds = " and ".join(sorted({type(page).__name__ for page in pages}))
        raise UnsupportedModelError(
            f"pages of {kinds} cannot be brought to one size, and vLLM refuses them; use another --block-size"
        )
    return Group(tuple(range(len(pages))), tuple(promoted))


def _as_full(page: SlidingPage, full_sizes: set[int]) -> FullPage:
    block_size = next(iter(full_sizes)) if len(full_sizes) == 1 else page.block_size
    full = FullPage(page.block_size, page.num_kv_heads, page.head_dim, page.value_dim, page.dtype_bytes)
    return replace(full, block_size=block_size)
