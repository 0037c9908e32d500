"""The id under which an engine keeps a response of the Responses API, read off the first bytes of its answer."""

import re
from typing import Final

import orjson

from gateway.wire.sse import EventSplitter, event_data

_WHOLE: Final = re.compile(rb'\s*\{\s*"id"\s*:\s*"([^"\\]+)"')
_STREAM: Final = re.compile(
    rb'\bdata:\s*\{\s*(?:"type"\s*:\s*"response\.\w+"\s*,\s*)?"response"\s*:\s*\{\s*"id"\s*:\s*"([^"\\]+)"'
)


def read_response_id(data: bytes) -> str | None:
    """Of a whole answer, or of a stream that begins with whole events; None where there is none."""
    found = _WHOLE.match(data) or _STREAM.search(data, 0, 400)
    if found:
        return found[1].decode("utf-8", "replace")
    try:
        payload = orjson.loads(_document(data))
    except orjson.JSONDecodeError:
        return None
    if isinstance(payload, dict) and isinstance(payload.get("response"), dict):
        payload = payload["response"]
    name = payload.get("id") if isinstance(payload, dict) else None
    return name if isinstance(name, str) and name else None


def _document(data: bytes) -> bytes:
    if data.lstrip()[:1] == b"{":
        return data
    events = (event_data(event) for event in EventSplitter().feed(data))
    return next((found for found in events if found), b"")
