from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gateway.kv_events.feed import Feed
from tests.gateway.kv_events.batches import Told, batch, removed, stored


def one(seq: int) -> bytes:
    """A batch that can be told from others: the block of its own number is stored."""
    return batch(stored([seq], None, [seq, seq]))


def started() -> tuple[Feed, Told]:
    """Has heard that nothing was ever published."""
    told = Told()
    feed = Feed(told)
    feed.restart()
    feed.nothing_before(0)
    assert told.lines == ["forgotten", "cleared"]
    told.lines.clear()
    return feed, told


def replay(feed: Feed, seqs: Sequence[int]) -> list[bool]:
    return [feed.replayed(seq, one(seq), is_first=not at) for at, seq in enumerate(seqs)]


def test_what_is_published_is_told() -> None:
    feed, told = started()
    assert feed.live(0, batch(stored([7], None, [1, 2]), removed(7)))
    assert feed.live(1, one(1))
    assert told.lines == ["stored 7 behind None", "removed 7", "stored 1 behind None"]


def test_a_gap_is_filled_before_what_follows() -> None:
    feed, told = started()
    feed.live(0, one(0))
    assert not feed.live(3, one(3))
    assert feed.next == 1
    assert replay(feed, [1, 2, 3, 4]) == [True] * 4
    assert feed.live(3, one(3))
    assert feed.live(4, one(4))  # both have come in the replay
    assert told.lines == [f"stored {seq} behind None" for seq in range(5)]


def test_what_is_not_kept_any_more_costs_all_that_was_known() -> None:
    feed, told = started()
    feed.live(0, one(0))
    assert not feed.live(9, one(9))
    replay(feed, [8, 9])
    assert told.lines == ["stored 0 behind None", "forgotten", "stored 8 behind None", "stored 9 behind None"]


def test_without_a_replay_too() -> None:
    feed, told = started()
    feed.live(0, one(0))
    assert not feed.live(2, one(2))
    feed.nothing_before(2)
    assert feed.live(2, one(2))
    assert told.lines == ["stored 0 behind None", "forgotten", "stored 2 behind None"]


def test_a_replay_with_a_hole_is_asked_for_again_from_there() -> None:
    feed, told = started()
    assert not feed.live(5, one(5))
    assert replay(feed, [0, 1, 4]) == [True, True, False]
    assert feed.next == 2
    replay(feed, [2, 3, 4, 5])
    assert told.lines == [f"stored {seq} behind None" for seq in range(6)]


def test_a_late_listener_hears_it_all_if_all_is_kept() -> None:
    told = Told()
    feed = Feed(told)
    feed.restart()
    replay(feed, [0, 1])
    assert told.lines == ["forgotten", "cleared", "stored 0 behind None", "stored 1 behind None"]


def test_and_knows_that_it_does_not_know_all_otherwise() -> None:
    told = Told()
    feed = Feed(told)
    feed.restart()
    replay(feed, [40, 41])
    feed.nothing_before(0)
    assert feed.live(42, one(42))
    assert told.lines == ["forgotten", *(f"stored {seq} behind None" for seq in (40, 41, 42))]


def test_a_number_that_comes_again_is_another_publisher() -> None:
    feed, told = started()
    for seq in range(3):
        feed.live(seq, one(seq))
    told.lines.clear()
    assert not feed.live(1, one(1))
    assert feed.next == 0
    replay(feed, [0, 1])
    assert feed.live(1, one(1))
    assert told.lines == ["forgotten", "cleared", "stored 0 behind None", "stored 1 behind None"]


def test_a_batch_that_cannot_be_read_may_have_been_a_removal() -> None:
    feed, told = started()
    assert feed.live(0, b"\xc1")
    assert feed.live(1, one(1))
    assert told.lines == ["forgotten", "stored 1 behind None"]


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 29))
def test_whatever_gets_lost_the_rest_comes_once_and_in_order(heard: list[bool], kept: int) -> None:
    """Batches that are not heard are lost on their way; the publisher keeps the last ones, `kept` and one."""
    feed, told = started()
    for seq, is_heard in enumerate(heard):
        if is_heard and not feed.live(seq, one(seq)):
            replay(feed, range(max(feed.next, seq - kept), seq + 1))
            assert feed.live(seq, one(seq))
    last = max((seq for seq, is_heard in enumerate(heard) if is_heard), default=-1)
    told_seqs = [int(line.split()[1]) for line in told.lines if line != "forgotten"]
    assert told_seqs == sorted(set(told_seqs))
    assert told_seqs[-1:] == [last][: last + 1]
    if "forgotten" not in told.lines:
        assert told_seqs == list(range(last + 1))


def test_what_was_heard_is_counted() -> None:
    feed, _ = started()
    feed.live(0, batch(stored([7], None, [1, 2]), removed(7)))
    assert not feed.live(3, one(3))
    replay(feed, [1, 2, 3])
    assert feed.live(3, one(3))
    assert feed.live(4, b"no batch")
    feed.restart()
    feed.restart()  # nothing was known any more
    heard = feed.heard
    assert (heard.events, heard.gaps, heard.losses) == (5, 1, 2)
