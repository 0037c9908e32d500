import msgspec
import pytest

from gateway.kv_events.event import Cleared, Removed, Stored, read_batch
from tests.gateway.kv_events.batches import CLEARED, batch, removed, stored


def test_blocks_are_stored_behind_one_another() -> None:
    payload = batch(stored([2**64 - 1, 12], None, [5, 6, 7, 8], extra_keys=[["salt"], None]))
    assert read_batch(payload) == (Stored((2**64 - 1, 12), None, (5, 6, 7, 8), 2, (("salt",), ()), lora=None, group=0),)


def test_events_come_in_their_order() -> None:
    assert read_batch(batch(CLEARED, removed(11), stored([12], 11, [7, 8]))) == (
        Cleared(),
        Removed((11,), 0),
        Stored((12,), 11, (7, 8), 2, ((),), None, 0),
    )


def test_hashes_may_be_bytes() -> None:
    (event,) = read_batch(batch({"type": "BlockRemoved", "block_hashes": [b"\x01" * 32], "medium": "GPU"}))
    assert event == Removed((b"\x01" * 32,), 0)


def test_what_later_releases_add_is_passed_over() -> None:
    payload = msgspec.msgpack.encode(
        [1.0, [removed(11, shade="red"), {"type": "BlockLent", "to": 4}, stored([12], 11, [7, 8], era=[1])], 0, "more"]
    )
    assert [type(event) for event in read_batch(payload)] == [Removed, Stored]


def test_older_releases_wrote_arrays() -> None:
    payload = msgspec.msgpack.encode(
        [1.0, [["BlockStored", [12], 11, [7, 8], 2, None, "GPU"], ["BlockRemoved", [11], "GPU"], ["AllBlocksCleared"]]]
    )
    assert read_batch(payload) == (
        Stored((12,), 11, (7, 8), 2, ((),), None, 0),
        Removed((11,), 0),
        Cleared(),
    )


@pytest.mark.parametrize("medium", ["CPU", "STORAGE"])
def test_copies_elsewhere_do_not_count(medium: str) -> None:
    assert read_batch(batch(stored([1], None, [1, 2], medium=medium), removed(1, medium=medium))) == ()


def test_an_image_is_part_of_its_block() -> None:
    (event,) = read_batch(batch(stored([1], None, [1, 2], extra_keys=[[["image-hash", 0]]])))
    assert isinstance(event, Stored)
    assert event.extras == ((("image-hash", 0),),)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        b"",
        msgspec.msgpack.encode(7),
        msgspec.msgpack.encode([1.0]),
        batch("BlockRemoved"),
        batch([]),
        batch({"block_hashes": [1]}),
        batch({"type": "BlockRemoved"}),
        batch({"type": "BlockRemoved", "block_hashes": ["a"]}),
        batch(removed(1, group_idx="a")),
        batch(stored([1], None, [1, 2], block_size=0)),
        batch(stored([1], None, [1, 2], parent_block_hash=1.5)),
        batch(stored([1], None, [1, 2], lora_name=3)),
        batch({**stored([1], None, []), "token_ids": "12"}),
        batch(stored([1], None, [1, -2])),
        batch(stored([1], None, [1, 2], extra_keys=[None, None])),
    ],
)
def test_what_cannot_be_read_is_an_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match="KV events that cannot be read"):
        read_batch(payload)
