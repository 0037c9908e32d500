"""Change single members of a JSON object in its bytes; everything else stays the caller's own."""

import re
from collections.abc import Iterator, Mapping

import orjson

_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_TEXT = re.compile(rb'\s*:\s*("[^"\\]*")')
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]', re.DOTALL)


def edited(body: bytes, changes: Mapping[str, bytes | None]) -> bytes:
    """`body`, which is a valid JSON object, with the value of each member named in `changes` replaced, or the member
    left out where that is None. A member that is not there is not added; one that is there twice is changed twice."""
    kept: list[bytes] = []
    for start, colon, end in _members(body):
        name = orjson.loads(body[start:colon])
        if name not in changes:
            kept.append(body[start:end])
        elif (value := changes[name]) is not None:
            kept.append(body[start : colon + 1] + value)
    return b"{" + b",".join(kept) + b"}"


def with_text(body: bytes, name: str, text: str) -> bytes:
    """`body` with `text` as the value of its member `name`, which is there, is text, and has a name of plain letters.

    The same as `edited`, which walks through all of the body; here that is done only where the name, or a letter of it
    as an escape, stands anywhere else.
    """
    value = orjson.dumps(text)
    quoted = b'"%b"' % name.encode()
    if body.count(quoted) == 1 and not _has_escaped_ascii(body):
        found = _TEXT.match(body, body.find(quoted) + len(quoted))
        if found is not None:
            return body[: found.start(1)] + value + body[found.end(1) :]
    return edited(body, {name: value})


def _has_escaped_ascii(body: bytes) -> bool:
    return b"\\u00" in body and _ESCAPED_ASCII.search(body) is not None


def _members(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each member of the outermost object starts, has its colon, and ends."""
    depth = start = colon = 0
    for token in _TOKEN.finditer(body):
        mark, at = body[token.start()], token.start()
        if mark in b"{[":
            depth += 1
            start = at + 1 if depth == 1 else start
        elif mark in b"}]":
            depth -= 1
        elif depth == 1 and mark in b":":
            colon = at
        if colon and ((depth == 1 and mark in b",") or depth == 0):
            yield start, colon, at
            start, colon = at + 1, 0
        if depth == 0:
            return
