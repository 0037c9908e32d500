"""Which conversation or user a request body says that it is from; callers have many names for it."""

from collections.abc import Mapping
from typing import Final

_FIRST: Final[tuple[str, ...]] = ("session_id", "prompt_cache_key")


def session_hint(payload: Mapping[str, object]) -> str | None:
    """The narrowest name there is: of a session or conversation before that of a user; None when there is none.

    `session_id` is vLLM's, `prompt_cache_key`, `conversation` and `user` are OpenAI's, `metadata.user_id` is
    Anthropic's (its command line tool puts the session into it). A few look-ups: every request is asked.
    """
    for name in _FIRST:
        value = payload.get(name)
        if value and isinstance(value, str):
            return value
    conversation = payload.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    if conversation and isinstance(conversation, str):
        return conversation
    return _of_metadata_or_user(payload)


def _of_metadata_or_user(payload: Mapping[str, object]) -> str | None:
    found, user = payload.get("metadata"), payload.get("user")
    metadata = found if isinstance(found, dict) else {}
    for value in (metadata.get("session_id"), user, metadata.get("user_id")):
        if value and isinstance(value, str):
            return value
    return None
