"""Token ids in a stream: asked for by the gateway, so that a broken answer can be continued exactly, never passed on.

vLLM puts `"token_ids":[...]` into each event when asked, and null otherwise; nothing else of a stream changes.
"""

import re

_MARK = b'token_ids":['
"""Of the answer or of its prompt. Cannot be text: a quote inside a JSON string has a backslash before it."""
_IDS = re.compile(rb'token_ids":\[[\d,]*\]')


def with_token_ids(body: bytes) -> bytes:
    """The same request, asking for token ids; unchanged where it says itself whether it wants them.

    With tools, an engine would send an event for each token that its parser keeps back: such a request is left alone.
    """
    if b'"return_token_ids"' in body or b'"tools"' in body:
        return body
    return body.replace(b"{", b'{"return_token_ids":true,', 1)


def without_token_ids(events: bytes) -> bytes:
    """The same events as an engine sends them that was not asked."""
    return _IDS.sub(b'token_ids":null', events)


def blanked_token_ids(chunk: bytes) -> bytes:
    """The same events with blanks where the ids were: as long as before, so that a chunk keeps the size it states."""
    start = chunk.find(_MARK)
    while start != -1:
        begin = start + len(_MARK) - 1
        end = chunk.find(b"]", begin)
        if end == -1:
            break
        width = end + 1 - begin
        chunk = chunk[:begin] + (b"null" if width >= len(b"null") else b"[]").ljust(width) + chunk[end + 1 :]
        start = chunk.find(_MARK, end)
    return chunk
