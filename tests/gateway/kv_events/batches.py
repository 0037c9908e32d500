"""Batches as vLLM 0.32 publishes them: msgpack of [time, events, rank], each event a map."""

import msgspec


def batch(*events: object) -> bytes:
    """One batch of rank 0."""
    return msgspec.msgpack.encode([1796027897.5, list(events), 0])


def stored(hashes: list[int], parent: int | None, token_ids: list[int], **more: object) -> dict[str, object]:
    """Blocks of two tokens."""
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": token_ids,
        "block_size": 2,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
        **more,
    }


def removed(*hashes: int, **more: object) -> dict[str, object]:
    """Of the GPU's cache."""
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", "group_idx": 0, **more}


CLEARED = {"type": "AllBlocksCleared"}


class Told:
    """A sink that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stored(self, *fields: object) -> None:
        hashes, parent = fields[:2]
        self.lines.append(f"stored {_listed(hashes)} behind {parent}")

    def removed(self, hashes: object, group: int) -> None:
        self.lines.append(f"removed {_listed(hashes)}")

    def cleared(self) -> None:
        self.lines.append("cleared")

    def forgotten(self) -> None:
        self.lines.append("forgotten")


def _listed(hashes: object) -> str:
    return ",".join(str(each) for each in hashes) if isinstance(hashes, tuple) else "?"
