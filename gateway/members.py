"""Change single members of a JSON object in its bytes; everything else stays the caller's own."""

import re
from collections.abc import Iterator, Mapping

import orjson

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
