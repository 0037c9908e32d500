"""A head that comes again is told from any other, and what it does without a parser is what the parser would do."""

from typing import Any, NamedTuple, cast

import httptools
from hypothesis import given
from hypothesis import strategies as st

from gateway.connection import Connection
from gateway.errors import UpstreamError
from gateway.fork import Fork
from gateway.headers import Header
from gateway.repeated import repeated
from gateway.turn import Turn
from tests.gateway.loopless import FakeTransport, Wire

POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nContent-Length: %d\r\naccept: */*\r\n\r\n"


def _message(head: bytes, body: bytes) -> bytes:
    return head % len(body) + body


def test_the_same_head_with_another_length_is_known() -> None:
    known = repeated(_message(POST, b'{"a":1}'))
    assert known is not None
    longer = b'{"a":1234567}'
    assert longer == _message(POST, longer)[known.body_at(_message(POST, longer)) :]
    assert known.body_at(_message(POST, b"")) == len(POST % 0)


def test_what_only_a_parser_can_tell() -> None:
    known = repeated(_message(POST, b"{}"))
    assert known is not None
    for other in (
        POST % 2 + b"{",  # a part of the body is still to come
        POST % 2 + b"{}P",  # the next request has begun
        POST.replace(b"host: a", b"host: b") % 2 + b"{}",
        POST.replace(b"accept", b"Accept") % 2 + b"{}",
        POST.replace(b"%d", b"+2") + b"{}",
        POST.replace(b"%d", b" 2") + b"{}",
        POST.replace(b"%d", b"0x2") + b"{}",
        POST.replace(b"%d", b"2, 2") + b"{}",
        POST.replace(b"%d", b"") + b"{}",
        POST.replace(b"%d", b"0000000002") + b"{}",  # more digits than any body needs
        POST.replace(b"%d\r\n", b"2\n") + b"{}",
        (POST % 2)[:-20],
        b"",
    ):
        assert known.body_at(other) == 0, other


def test_heads_that_are_never_known() -> None:
    for message in (
        POST.replace(b"\r\n\r\n", b"\r\n") % 2 + b"{}",  # no end
        POST % 3 + b"{}",
        POST % 2 + b"{}P",
        POST.replace(b"accept: */*", b"content-length: 2") % 2 + b"{}",
        POST.replace(b"accept: */*", b"Transfer-Encoding: chunked") % 2 + b"{}",
        POST.replace(b"Content-Length: %d\r\n", b"") + b"",
        POST.replace(b"%d", b"\t2") + b"{}",
        POST.replace(b"%d", b"2 ") + b"{}",
    ):
        assert repeated(message) is None, message


# Requests
class _Told(NamedTuple):
    """A turn, as far as it came."""

    path: str
    headers: list[Header]
    forwarded: bytes
    announced_bytes: int
    is_modern: bool
    keep_alive: bool
    body: bytes
    is_whole: bool


class _Door:
    """The connection of a fork, which answers nothing."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.fork = Fork(cast(Any, self))
        self.parser = httptools.HttpRequestParser(self.fork)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.turns: list[Turn] = []
        self.others: list[tuple[bytes, list[Header]]] = []
        self.error: str | None = None
        self.known = 0

    def take(self, turn: Turn) -> None:
        self.turns.append(turn)

    def to_asgi(self, url: bytes, headers: list[Header]) -> None:
        self.others.append((url, headers))

    def asgi_body(self, body: bytes) -> None:
        self.others.append((body, []))

    def asgi_complete(self) -> None:
        self.others.append((b"end", []))

    def receive(self, data: bytes, *, by_parser_only: bool) -> None:
        if self.error is not None:
            return
        if not by_parser_only and self.fork.again(data):
            self.known += 1
            return
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.error = type(error).__name__
        self.fork.learn(data)

    def told(self) -> list[_Told]:
        return [
            _Told(
                turn._endpoint.path,
                turn._headers,
                turn._head.forwarded,
                turn._announced_bytes,
                turn._is_modern,
                turn.keep_alive,
                b"".join(turn._body),
                not turn.more_body,
            )
            for turn in self.turns
        ]


_LINES = (
    *(b"host: a", b"Authorization: Bearer k", b"x-session-id: 7") * 4,
    b"authorization: Bearer other",
    b"expect: 100-continue",
    b"connection: close",
    b"connection: upgrade\r\nupgrade: h2c",
    b"upgrade: h2c",
    b"transfer-encoding: chunked",
    b"content-length: 3",
)
_TARGETS = (b"POST /v1/chat/completions", b"POST /v1/embeddings", b"GET /v1/models", b"POST /v1/chat/completions?a=b")


@st.composite
def _requests(draw: st.DrawFn) -> list[bytes]:
    """Reads: mostly a request each, some of them torn or joined; few heads, so that they come again."""
    heads = draw(
        st.lists(
            st.tuples(
                st.sampled_from(_TARGETS),
                st.sampled_from((*(b"HTTP/1.1",) * 9, b"HTTP/1.0")),
                st.lists(st.sampled_from(_LINES), max_size=2),
                st.sampled_from((*(b"content-length: %d", b"Content-Length:%d") * 3, b"x: %d")),
            ),
            min_size=1,
            max_size=3,
        )
    )
    wire: list[bytes] = []
    for _ in range(draw(st.integers(1, 8))):
        target, version, lines, length = draw(st.sampled_from(heads))
        body = draw(st.sampled_from((b"", b"{}", b'{"a":1}', b"x" * 12, b"0\r\n\r\n")))
        head = b"%b %b\r\n" % (target, version) + b"".join(b"%b\r\n" % line for line in (*lines, length % len(body)))
        message = head + b"\r\n" + body
        how = draw(st.sampled_from(("whole", "whole", "whole", "torn", "joined")))
        cut = draw(st.integers(0, len(message)))
        if how == "torn":
            wire += [message[:cut], message[cut:]]
        elif how == "joined" and wire:
            wire[-1] += message[:cut]
            wire.append(message[cut:])
        else:
            wire.append(message)
    return [data for data in wire if data]


@given(_requests())
def test_requests_with_known_heads_are_what_the_parser_makes_of_them(wire: list[bytes]) -> None:
    quick, plain = _Door(), _Door()
    for data in wire:
        quick.receive(data, by_parser_only=False)
        plain.receive(data, by_parser_only=True)
        assert quick.told() == plain.told()
        assert quick.others == plain.others
        assert quick.error == plain.error


def test_most_requests_of_a_connection_need_no_parser() -> None:
    door = _Door()
    for number in range(10):
        door.receive(_message(POST, b"x" * number), by_parser_only=False)
    assert door.known == 9
    assert [len(told.body) for told in door.told()] == list(range(10))
    assert all(told.is_whole for told in door.told())


# Answers
class _Heard:
    """A sink that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def began(self, status: int, headers: list[Header]) -> None:
        self.told.append((status, [header for header in headers if header[0] != b"content-length"]))

    def received(self, data: bytes) -> None:
        self.told.append((data,))

    def passed(self, chunk: bytes, start: int) -> bool:
        return False

    def ended(self) -> None:
        self.told.append(("ended",))

    def failed(self, error: UpstreamError) -> None:
        self.told.append((str(error),))


_STATUS = (b"200 OK", b"200 OK", b"200 OK", b"404 Not Found", b"204 No Content", b"100 Continue")
_ANSWER_LINES = (
    b"date: now",
    b"date: later",
    b"connection: close",
    b"transfer-encoding: chunked",
    b"content-length: 3",
)


@st.composite
def _answers(draw: st.DrawFn) -> list[list[bytes]]:
    """The reads of each answer."""
    answers = []
    for _ in range(draw(st.integers(1, 8))):
        status = draw(st.sampled_from(_STATUS))
        lines = draw(st.lists(st.sampled_from(_ANSWER_LINES), max_size=1))
        body = draw(st.sampled_from((b"", b"{}", b'{"a":1}', b"x" * 12, b"0\r\n\r\n")))
        head = b"HTTP/1.1 %b\r\n" % status + b"".join(b"%b\r\n" % line for line in lines)
        message = head + b"content-length: %d\r\n\r\n" % len(body) + body
        if draw(st.integers(0, 4)) == 0:  # an interim answer, whose length is nobody's
            message = b"HTTP/1.1 103 Early Hints\r\ncontent-length: %d\r\n\r\n" % len(message) + message
        cut = draw(st.sampled_from((len(message), len(message), len(message), 5, len(message) - 1)))
        more = draw(st.sampled_from((b"", b"", b"", b"x", message)))
        answers.append([data for data in (message[:cut], message[cut:] + more) if data])
    return answers


def _hear(answers: list[list[bytes]], *, by_parser_only: bool) -> tuple[list[list[tuple[Any, ...]]], int]:
    """What the sink of each was told, and on how many connections they came."""
    wire, found, connections = Wire(), [], []
    for reads in answers:
        sink = _Heard()
        if wire.engine.idle:
            connection = wire.open()
            connection.send(b"POST", b"/", b"", b"", sink)
        else:
            connection = wire.connect(sink)
            connections.append(connection)
        for data in reads:
            if by_parser_only:
                wire.engine.known.head = None
            connection.data_received(data)
        if connection.is_cut or connection not in wire.engine.idle:
            connection.connection_lost(None)
        found.append(sink.told)
    return found, len(connections)


@given(_answers())
def test_answers_with_known_heads_are_what_the_parser_makes_of_them(answers: list[list[bytes]]) -> None:
    assert _hear(answers, by_parser_only=False) == _hear(answers, by_parser_only=True)


def test_most_answers_need_no_parser() -> None:
    wire = Wire()
    first = wire.connect(_Heard())
    first.data_received(b"HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 2\r\n\r\n{}")
    assert wire.engine.known.head is not None
    assert wire.engine.known.headers == [(b"date", b"now")]
    assert wire.engine.idle == [first]

    second = Connection(cast(Any, wire.engine))
    second._parser = None  # whoever asked it would fail
    heard = _Heard()
    second.connection_made(FakeTransport())
    second.send(b"POST", b"/", b"", b"", heard)
    second.data_received(b'HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: 7\r\n\r\n{"a":1}')
    assert heard.told == [(200, [(b"date", b"now")]), (b'{"a":1}',), ("ended",)]
    assert wire.engine.idle == [first, second]
