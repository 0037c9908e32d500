"""The read that is one whole chunk: whatever is taken for one is one to the parser too."""

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.connection import _one_chunk

EVENT = b'data: {"text":"hi"}\n\n'


class Heard:
    """What the parser made of it."""

    def __init__(self) -> None:
        self.body: list[bytes] = []
        self.whole_chunks = 0
        self.is_over = False

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_chunk_complete(self) -> None:
        self.whole_chunks += 1

    def on_message_complete(self) -> None:
        self.is_over = True


def parsed(data: bytes) -> Heard:
    heard = Heard()
    parser = httptools.HttpResponseParser(heard)
    parser.feed_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    parser.feed_data(data)
    return heard


@given(st.binary(min_size=1, max_size=5000))
def test_one_chunk_is_known(content: bytes) -> None:
    data = b"%x\r\n%b\r\n" % (len(content), content)
    start = _one_chunk(data)
    assert data[start:-2] == content
    heard = parsed(data)
    assert (b"".join(heard.body), heard.whole_chunks, heard.is_over) == (content, 1, False)


@given(st.one_of(st.binary(max_size=60), st.from_regex(rb"[0-9a-fA-F]{1,3}\r?\n[a-z\r\n]{0,40}\r\n", fullmatch=True)))
@example(b"0\r\n\r\n")
@example(b"5\r\nhello\r\n" * 2)
def test_nothing_else_is_taken_for_one(data: bytes) -> None:
    start = _one_chunk(data)
    if start:
        heard = parsed(data)
        assert (b"".join(heard.body), heard.whole_chunks, heard.is_over) == (data[start:-2], 1, False)


@pytest.mark.parametrize(
    "size_line", [b"015", b"0x15", b" 15", b"+15", b"1_5", b"15;x=y", b"14", b"16", b"-1", b"", b"15\r"]
)
def test_a_size_in_another_spelling_or_wrong_is_left_to_the_parser(size_line: bytes) -> None:
    assert len(EVENT) == 0x15
    assert _one_chunk(size_line + b"\r\n" + EVENT + b"\r\n") == 0
    assert _one_chunk(b"15\r\n" + EVENT + b"\r\n") == 4
