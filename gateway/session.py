"""What holds the requests of one conversation together: a session that is named, or the words it began with."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from gateway.wire import Dialect

_KEY_BYTES: Final = 8


def session_key(header: bytes | None, hint: str | None, caller: str) -> int | None:
    """A 64-bit key for the session named by a header (it wins) or the body; None when neither names one.

    The caller is part of it: what two callers both call "1" are two sessions.
    """
    named = header or (hint.encode() if hint else None)
    if named is None:
        return None
    return int.from_bytes(blake2b(caller.encode() + b"\0" + named, digest_size=_KEY_BYTES).digest(), "big")


def opening(dialect: Dialect, payload: Mapping[str, object]) -> str | None:
    """The text of the first user message, which stays the same while a conversation grows; None where there is none.

    What stands before it is left out: a system prompt is the same for everybody. So is everything but text: clients
    move their cache marks from turn to turn.
    """
    if dialect in ("chat", "messages"):
        messages = payload.get("messages")
    elif dialect == "responses":
        messages = payload.get("input")
    else:
        return None
    if isinstance(messages, str):
        return messages or None
    if not isinstance(messages, list):
        return None
    for message in messages:
        if isinstance(message, dict) and message.get("role") == "user":
            return _text(message.get("content")) or None
    return None


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))
