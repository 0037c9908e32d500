"""Requests that two parsers could read in two ways: whatever they are, an engine sees at most the one that was meant.

`llhttp` refuses most of them; the table holds it, and what we add, to that.
"""

import threading

import pytest

from tests.fake_engine import BEFORE_HEADERS, FakeEngine, Script
from tests.gateway.harness import PATHS, Door, golden_events, receive_rest, receive_until, request_bytes, wait_until

CHAT = PATHS["chat"]
BODY = b'{"model":"fake"}'
STREAM = b'{"model":"fake","stream":true}'
CHUNKED = b"10\r\n" + BODY + b"\r\n0\r\n\r\n"
TE = b"transfer-encoding: chunked"


def _post(*lines: bytes, body: bytes = BODY, target: bytes = CHAT.encode(), length: bool = True) -> bytes:
    head = [b"POST %b HTTP/1.1" % target, b"host: x", b"connection: close", *lines]
    if length:
        head.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*head, b"", b""]) + body


def _chunked(body: bytes, *lines: bytes) -> bytes:
    return _post(*(lines or (TE,)), body=body, length=False)


REFUSED = {
    "a length and chunks": _post(TE, body=b"0\r\n\r\n"),
    "a short length and chunks": _post(b"content-length: 3", TE, body=b"0\r\n\r\n", length=False),
    "two lengths": _post(b"content-length: 17"),
    "the same length twice": _post(b"content-length: 16"),
    "a list of lengths": _post(b"content-length: 16, 16", length=False),
    "a signed length": _post(b"content-length: +16", length=False),
    "a negative length": _post(b"content-length: -16", length=False),
    "a hexadecimal length": _post(b"content-length: 0x10", length=False),
    "a length with a gap": _post(b"content-length: 1 6", length=False),
    "a length past 64 bits": _post(b"content-length: 99999999999999999999999", length=False),
    "a chunk size that is none": _chunked(b"zz\r\nhello\r\n0\r\n\r\n"),
    "a negative chunk size": _chunked(b"-1\r\nhello\r\n0\r\n\r\n"),
    "a chunk size past 64 bits": _chunked(b"fffffffffffffffff1\r\nhello\r\n0\r\n\r\n"),
    "a chunk size with 0x": _chunked(b"0x" + CHUNKED),
    "a chunk shorter than its data": _chunked(b"2\r\n" + CHUNKED[4:]),
    "chunks with bare line feeds": _chunked(CHUNKED.replace(b"\r\n", b"\n")),
    "chunked, then something else": _chunked(CHUNKED, b"transfer-encoding: chunked, identity"),
    "chunked twice": _chunked(CHUNKED, TE, TE),
    "nearly chunked": _chunked(CHUNKED, b"transfer-encoding: xchunked"),
    "chunked behind a tab": _chunked(CHUNKED, b"transfer-encoding: \x0bchunked"),
    "an encoding nobody knows": _chunked(BODY, b"transfer-encoding: gzip"),
    "a folded header": _post(b"anthropic-beta: a\r\n x-data-parallel-rank: 3"),
    "bare line feeds": _post().replace(b"\r\n", b"\n"),
    "a bare carriage return": _post(b"anthropic-beta: a\rx-data-parallel-rank: 3"),
    "a gap before the colon": _post(b"content-length : 16", length=False),
    "a gap in a name": _post(b"x y: 16"),
    "a gap before a name": _post(b" x: 16"),
    "a name of no letters": _post(b": 16"),
    "a line without a colon": _post(b"x"),
    "a NUL in a value": _post(b"anthropic-beta: a\x00b"),
    "a NUL in a name": _post(b"anthropic\x00-beta: a"),
    "a NUL in the target": _post(target=b"/v1/chat\x00/completions"),
    "a target outside ASCII": _post(target=b"/v1/chat/completions\xc3\xa9"),
    "an absolute target without a path": _post(target=b"http://evil"),
    "CONNECT": _post(target=b"x:80").replace(b"POST", b"CONNECT"),
    "a method in lower case": _post().replace(b"POST", b"post"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_what_can_be_read_in_two_ways_is_a_400_and_the_end(fake: FakeEngine, door: Door, sent: bytes) -> None:
    with door.connection() as sock:
        sock.sendall(sent + request_bytes("/v1/completions", BODY))
        answer = receive_rest(sock)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert fake.seen == []
    wait_until(lambda: door.is_at_rest)


@pytest.mark.parametrize(
    "target",
    [
        "//v1/chat/completions",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/x/../v1/chat/completions",
        "/v1/chat/./completions",
        "/v1/chat/completions;x",
        "/v1/chat/completions%00",
        "/V1/chat/completions",
        "/v1\\chat\\completions",
        "*",
    ],
)
def test_paths_are_not_made_to_fit(fake: FakeEngine, door: Door, target: str) -> None:
    with door.connection() as sock:
        sock.sendall(_post(target=target.encode()))
        assert receive_rest(sock).startswith(b"HTTP/1.1 404")
    assert fake.seen == []


@pytest.mark.parametrize(
    "sent",
    [
        _chunked(CHUNKED, b"transfer-encoding: identity, chunked"),
        _post(target=b"http://elsewhere/v1/chat/completions"),
        _post(b"connection: upgrade"),
    ],
    ids=["identity, chunked", "an absolute target", "an upgrade to nothing"],
)
def test_what_can_be_read_in_one_way_only_is_answered(fake: FakeEngine, door: Door, sent: bytes) -> None:
    with door.connection() as sock:
        sock.sendall(sent)
        assert receive_rest(sock).startswith(b"HTTP/1.1 200")
    assert [(seen.path, seen.body) for seen in fake.seen] == [(CHAT, BODY)]


@pytest.mark.parametrize("target", [CHAT, "/v1/models"])
@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
def test_what_an_offer_to_switch_protocols_hides_is_no_request(
    fake: FakeEngine, door: Door, target: str, protocol: str
) -> None:
    hidden = request_bytes(CHAT, BODY)
    head = request_bytes(target, hidden, "connection: upgrade", f"upgrade: {protocol}")[: -len(hidden)]
    with door.connection() as sock:
        sock.sendall(head)
        receive_until(sock, b"\r\n\r\n")
        sock.sendall(hidden)  # in a read of its own: httptools has lost sight of the length by now
        receive_rest(sock)
    assert fake.seen == []


def test_headers_that_come_after_the_body_change_nothing(fake: FakeEngine, door: Door) -> None:
    trailers = b"0\r\nanthropic-beta: late\r\ntraceparent: late\r\n\r\n"
    with door.connection() as sock:
        sock.sendall(_chunked(CHUNKED.replace(b"0\r\n\r\n", trailers), TE, b"trailer: anthropic-beta"))
        assert receive_rest(sock).startswith(b"HTTP/1.1 200")
    assert "late" not in str(fake.seen[0].headers)
    assert fake.seen[0].body == BODY


@pytest.mark.parametrize("begun", [True, False], ids=["of a stream", "of an answer not yet begun"])
def test_nonsense_from_a_client_is_not_answered_in_the_middle(fake: FakeEngine, door: Door, begun: bool) -> None:
    events = golden_events("chat")
    gates = {3: threading.Event()} if begun else {BEFORE_HEADERS: threading.Event()}
    fake.enqueue(Script(chunks=tuple((0.0, event) for event in events), gates=gates))
    with door.connection() as sock:
        sock.sendall(request_bytes(CHAT, STREAM.replace(b"}", b',"stream_options":{"include_usage":true}}')))
        answer = receive_until(sock, events[2]) if begun else b""
        wait_until(lambda: fake.running == 1)
        sock.sendall(b"\x00 nonsense\r\n\r\n")
        answer += receive_rest(sock)
    assert b"HTTP/1.1 400" not in answer
    wait_until(lambda: fake.seen[0].aborted)
    wait_until(lambda: door.is_at_rest)


def test_headers_that_steer_an_engine_do_not_reach_it(fake: FakeEngine, door: Door) -> None:
    steering = {
        "x-request-id": "mine",
        "X-Request-Id": "mine",
        "x_request_id": "mine",
        "x-data-parallel-rank": "3",
        "X-Data-Parallel-Rank": "3",
        "x-session-id": "mine",
        "x-forwarded-for": "mine",
        "x-api-key": "mine",
        "authorization": "Bearer mine",
        "cookie": "mine",
        "te": "trailers",
        "accept-encoding": "gzip",
    }
    with door.connection() as sock:
        sock.sendall(_post(*(f"{name}: {value}".encode() for name, value in steering.items()), b"traceparent: kept"))
        assert receive_rest(sock).startswith(b"HTTP/1.1 200")
    reached = {name.lower(): value for name, value in fake.seen[0].headers.items()}
    assert reached.keys() == {"host", "content-length", "content-type", "x-request-id", "traceparent"}
    assert reached["x-request-id"].startswith("req_")
    assert "mine" not in reached.values()
