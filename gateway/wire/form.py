"""One multipart/form-data body -> Call: its text fields are read, its files are stepped over, nothing is copied twice.

Source: https://www.rfc-editor.org/rfc/rfc7578 and https://www.rfc-editor.org/rfc/rfc2046#section-5.1. The boundary is
taken from the first line, which is where every client puts it, and not from the content type.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.wire.dialect import Call, Endpoint
from gateway.wire.fault import Fault
from gateway.wire.path import is_yes

_NAME: Final = re.compile(rb'^content-disposition:[^\r\n]*?[;\s]name="?([^"\r\n;]+)"?', re.IGNORECASE | re.MULTILINE)
_MOST_PARTS: Final = 100
_USAGE: Final[tuple[str, ...]] = ("stream_include_usage", "stream_continuous_usage_stats")


@dataclass(frozen=True, slots=True)
class _Part:
    """One field: `body[start:end]` is its value."""

    name: str
    start: int
    end: int


def parse_form(endpoint: Endpoint, body: bytes) -> Call | Fault:
    """Read `body` for `endpoint`; a Fault (status 400) says in one line what is wrong with it.

    A stream that did not ask for usage asks for it here, as those of `gateway.wire.call` do.
    """
    boundary = body[: max(body.find(b"\r\n"), 0)]
    if len(boundary) < 3 or not boundary.startswith(b"--"):
        return Fault(400, "the request body must be multipart/form-data, with 'model' and 'file'", code="invalid_form")
    parts = list(_parts(body, boundary))
    if not parts or not body[parts[-1].end :].startswith(b"\r\n" + boundary + b"--"):
        return Fault(400, "the multipart body has no end: its last boundary is missing", code="invalid_form")
    fields = {part.name: part for part in parts}  # of several the last one, as engines read it
    model = _text(body, fields.get("model"))
    if not model:
        return Fault(400, "the form needs a field 'model'; GET /v1/models lists the names", param="model")
    if not is_yes(_text(body, fields.get("stream"))):
        return Call(endpoint, model, False, body)
    if is_yes(_text(body, fields.get(_USAGE[0]))):
        return Call(endpoint, model, True, body)
    return Call(endpoint, model, True, _with_usage(body, boundary, parts), strip_usage=True)


def with_model(body: bytes, model: str) -> bytes:
    """A form that was parsed before, with `model` as the value of its field of that name."""
    boundary = body[: max(body.find(b"\r\n"), 0)]
    pieces, at = [], 0
    for part in _parts(body, boundary):
        if part.name == "model":
            pieces += [body[at : part.start], model.encode()]
            at = part.end
    return b"".join([*pieces, body[at:]])


def _parts(body: bytes, boundary: bytes) -> Iterator[_Part]:
    """The parts in order, up to the last boundary or to where the body stops being one."""
    delimiter = b"\r\n" + boundary
    at = len(boundary)
    for _ in range(_MOST_PARTS):
        if body[at : at + 2] != b"\r\n":
            return  # "--": the last boundary
        blank = body.find(b"\r\n\r\n", at)
        end = body.find(delimiter, at + 2)
        if end == -1:
            return
        if blank == -1 or blank > end:  # a part without a value
            at = end + len(delimiter)
            continue
        name = _NAME.search(body, at + 2, blank)
        yield _Part(name[1].decode("utf-8", "replace") if name else "", blank + 4, end)
        at = end + len(delimiter)


def _text(body: bytes, part: _Part | None) -> str:
    return "" if part is None else body[part.start : part.end].decode("utf-8", "replace")


def _with_usage(body: bytes, boundary: bytes, parts: list[_Part]) -> bytes:
    """The form with usage asked for once, at its end, and the caller's own two fields about it set to false."""
    pieces, at = [], 0
    for part in parts:
        if part.name in _USAGE:
            pieces += [body[at : part.start], b"false"]
            at = part.end
    end = parts[-1].end
    asked = b'\r\n%b\r\nContent-Disposition: form-data; name="stream_include_usage"\r\n\r\ntrue' % boundary
    return b"".join([*pieces, body[at:end], asked, body[end:]])
