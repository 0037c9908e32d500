from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import EventSplitter, event_data
from tests.gateway.harness import STREAMING, golden

# bytes that matter to a splitter, and a few that do not
_streams = st.lists(st.sampled_from([b"\n", b"\r", b"\n\n", b"\r\n\r\n", b"data: x", b"a", b":"]), max_size=30).map(
    b"".join
)
_cuts = st.lists(st.integers(min_value=0, max_value=200), max_size=12)


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


def _split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    return events, splitter.tail


@given(_streams | st.binary(max_size=100), _cuts)
def test_events_and_tail_join_to_exactly_what_was_fed(data: bytes, cuts: list[int]) -> None:
    events, tail = _split(_cut(data, cuts))
    assert b"".join(events) + tail == data


@given(_streams, _cuts)
def test_events_do_not_depend_on_how_the_stream_was_cut(data: bytes, cuts: list[int]) -> None:
    assert _split(_cut(data, cuts)) == _split([data])


@given(_streams, _cuts)
def test_each_event_ends_at_its_first_blank_line(data: bytes, cuts: list[int]) -> None:
    events, tail = _split(_cut(data, cuts))
    for event in events:
        end = 4 if event.endswith(b"\r\n\r\n") else 2
        assert event.endswith((b"\n\n", b"\r\n\r\n"))
        assert b"\n\n" not in event[:-1]
        assert b"\r\n\r\n" not in event[:-1] or end == 2
    assert b"\n\n" not in tail
    assert b"\r\n\r\n" not in tail


@pytest.mark.parametrize("dialect", STREAMING)
@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_a_real_stream_gives_the_same_events_in_pieces_of_any_size(dialect: str, size: int) -> None:
    data = golden(dialect)
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    events, tail = _split(pieces)
    assert events == [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]
    assert tail == b""


@pytest.mark.parametrize(
    ("pieces", "events"),
    [
        ([b"data: 1\n", b"\ndata: 2\n\n"], [b"data: 1\n\n", b"data: 2\n\n"]),
        ([b"data: 1\r\n\r", b"\ndata: 2\r\n\r\n"], [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"]),
        ([b"data: 1\r", b"\n", b"\r", b"\n"], [b"data: 1\r\n\r\n"]),
        ([b"data: 1\n\n" + b"data: 2\n\n" + b"data: 3"], [b"data: 1\n\n", b"data: 2\n\n"]),
        ([b": ping\n\n", b"data: 1\n\n"], [b": ping\n\n", b"data: 1\n\n"]),
        ([b"data: 1\r\n\r\ndata: 2\n\n"], [b"data: 1\r\n\r\n", b"data: 2\n\n"]),
    ],
    ids=["lf across", "crlf across", "crlf byte by byte", "two and a half", "comment", "both kinds"],
)
def test_separators(pieces: list[bytes], events: list[bytes]) -> None:
    assert _split(pieces)[0] == events


class _Counted(bytes):
    """Bytes that count how many of them are searched or copied."""

    work = 0

    def find(self, part: Any, start: Any = 0, *_: Any) -> int:
        found = super().find(part, start)
        _Counted.work += (len(self) if found == -1 else found + len(part)) - (start or 0)
        return found

    def __getitem__(self, place: Any) -> Any:
        piece = super().__getitem__(place)
        if not isinstance(piece, bytes):
            return piece
        _Counted.work += len(piece)
        return _Counted(piece)

    def __radd__(self, before: bytes) -> "_Counted":
        _Counted.work += len(before) + len(self)
        return _Counted(bytes(before) + bytes(self))

    def __add__(self, behind: Any) -> "_Counted":
        return _Counted(behind).__radd__(self)


EVENT = b"data: " + b"x" * 250 + b"\n\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [EVENT * 1000],
        [EVENT.replace(b"\n", b"\r\n") * 1000],
        [b"data: ", *[b"x" * 256] * 1000, b"\n\n"],
        [b"data: \r\n", *[b"x" * 256] * 1000, b"\r\n\r\n"],
        [b"data: x", *[b"\n\n" + EVENT * 10 + b"data: x"] * 100],
    ],
    ids=["many events at once", "the same with CRLF", "one event in pieces", "the same with CRLF", "across reads"],
)
def test_work_grows_with_what_is_fed_and_no_faster(pieces: list[bytes]) -> None:
    _Counted.work = 0
    events, tail = _split([_Counted(piece) for piece in pieces])
    assert b"".join(events) + tail == b"".join(pieces)
    assert _Counted.work <= 8 * sum(map(len, pieces))


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}'),
        (b'data: {"a":1}\r\n\r\n', b'{"a":1}'),
        (b'data:{"a":1}\n\n', b'{"a":1}'),
        (b"event: ping\ndata: {}\n\n", b"{}"),
        (b"data: {}\nevent: ping\n\n", b"{}"),
        (b"data: one\ndata: two\n\n", b"one\ntwo"),
        (b"data: one\ndata: two\n", b"one\ntwo"),
        (b"data: one", b"one"),
        (b"data: spaces at the end  \n\n", b"spaces at the end  "),
        (b"data:\n\n", b""),
        (b": keep-alive\n\n", None),
        (b"event: ping\n\n", None),
        (b"database: 1\n\n", None),
        (b"\n\n", None),
        (b"", None),
    ],
)
def test_event_data(event: bytes, data: bytes | None) -> None:
    assert event_data(event) == data
