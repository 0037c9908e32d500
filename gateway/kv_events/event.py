"""One published batch of KV events, decoded: blocks stored, removed, or all cleared.

Wire format (vLLM's `distributed/kv_events.py`): msgpack of `[time, [event, ...], rank]`. An event is a map with its
name under "type"; releases before 0.30 or so wrote an array with its name first. Fields are added now and then, so
what is not known here is passed over; what is known and unlike what we know is an error, because a removal that is not
understood must not leave its block behind.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

EngineHash = int | bytes
"""An engine's own name for a block; it means nothing to another engine."""
Extra = tuple[object, ...]

_GPU = "GPU"
_MOST_TOKENS = 2**31
_STORED_FIELDS = (
    "type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
    "extra_keys", "group_idx",
)  # fmt: skip
_REMOVED_FIELDS = ("type", "block_hashes", "medium", "group_idx")


class Stored(NamedTuple):
    """These blocks can be found in the cache now, each behind the one before it, the first behind `parent`."""

    hashes: tuple[EngineHash, ...]
    parent: EngineHash | None
    """None: the first block is a prompt's first."""
    token_ids: tuple[int, ...]
    block_tokens: int
    extras: tuple[Extra, ...]
    """For each block what its hash is made of besides tokens: adapter, images, cache salt."""
    lora: str | None
    group: int
    """Of layers that share a block table; models that mix kinds of attention have several."""


class Removed(NamedTuple):
    """These blocks cannot be found any more."""

    hashes: tuple[EngineHash, ...]
    group: int


class Cleared(NamedTuple):
    """Nothing can."""


Event = Stored | Removed | Cleared


def read_batch(payload: bytes) -> tuple[Event, ...]:
    """The events of one batch about the GPU's own cache (vLLM calls it that on every device), in their order.

    Raises ValueError when the batch, or an event of a kind that is known here, is not as it should be.
    """
    try:
        batch = msgspec.msgpack.decode(payload)
        events = [_read_event(raw) for raw in batch[1]]
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"KV events that cannot be read: {error}") from error
    return tuple(event for event in events if event is not None)


def _read_event(raw: object) -> Event | None:
    fields = _fields(raw)
    kind = fields["type"]
    if kind == "AllBlocksCleared":
        return Cleared()
    if kind not in ("BlockStored", "BlockRemoved"):
        return None
    if (fields.get("medium") or _GPU) != _GPU:  # a copy in host memory or on a disk
        return None
    group = fields.get("group_idx") or 0
    hashes = _hashes(fields["block_hashes"])
    if not isinstance(group, int):
        raise ValueError("group_idx is not a number")
    return Removed(hashes, group) if kind == "BlockRemoved" else _stored(fields, hashes, group)


def _fields(raw: object) -> dict[str, object]:
    if isinstance(raw, dict):
        return raw
    if isinstance(raw, list):
        names = _REMOVED_FIELDS if raw[0] == "BlockRemoved" else _STORED_FIELDS
        return dict(zip(names, raw, strict=False))
    raise TypeError("an event is neither a map nor an array")


def _stored(fields: dict[str, object], hashes: tuple[EngineHash, ...], group: int) -> Stored:
    parent, lora, block_tokens = fields.get("parent_block_hash"), fields.get("lora_name"), fields["block_size"]
    if not (parent is None or isinstance(parent, int | bytes)) or not (lora is None or isinstance(lora, str)):
        raise ValueError("parent_block_hash is not a hash, or lora_name not a name")
    if not isinstance(block_tokens, int) or block_tokens < 1:
        raise ValueError("block_size is not a number of tokens")
    extras = _extras(fields.get("extra_keys"), len(hashes))
    return Stored(hashes, parent, _token_ids(fields["token_ids"]), block_tokens, extras, lora, group)


def _hashes(value: object) -> tuple[EngineHash, ...]:
    if not isinstance(value, list) or not all(isinstance(each, int | bytes) for each in value):
        raise ValueError("block_hashes are not hashes")
    return tuple(value)


def _token_ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(isinstance(each, int) and 0 <= each < _MOST_TOKENS for each in value):
        raise ValueError("token_ids are not token ids")
    return tuple(value)


def _extras(value: object, count: int) -> tuple[Extra, ...]:
    if value is None:
        return ((),) * count
    if not isinstance(value, list) or len(value) != count:
        raise ValueError("extra_keys are not one for each block")
    return tuple(_frozen(each) for each in value)


def _frozen(value: Sequence[object] | None) -> Extra:
    return tuple(tuple(each) if isinstance(each, list) else each for each in value or ())
