"""How much more a tensor takes on a GPU than its own bytes: the rounding of PyTorch's caching allocator."""

_MIB = 1 << 20
_SMALL = _MIB  # up to here tensors share a pool of small blocks, which loses next to nothing
_LARGE = 10 * _MIB  # from here each tensor gets a segment of its own, below them several share one
_SHARED_SEGMENT = 20 * _MIB
_ROUNDING = 2 * _MIB


def slack_bytes(size: float) -> float:
    """What stays unused behind a tensor of that size and still counts as allocated.

    A segment's rest is given to others only where it is larger than 1 MiB (c10/cuda/CUDACachingAllocator.cpp:
    should_split, get_allocation_size). "Model loading took" counts it: 2.75 MiB in each layer of EXAONE-4.0-32B in FP8,
    2 MiB in each of Llama-3.2-3B in Q8_0. Tensors of 1 to 10 MiB are taken to share segments with their like.
    """
    if size <= _SMALL:
        return 0.0
    if size < _LARGE:
        fitting = _SHARED_SEGMENT // size
        rest = (_SHARED_SEGMENT - fitting * size) / fitting
        return rest if rest * fitting <= _SMALL else 0.0
    rest = -size % _ROUNDING
    return rest if rest <= _SMALL else 0.0
