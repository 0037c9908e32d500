"""Who is calling: an API key, in either SDK's header, stands for a caller. Keys are kept hashed, never logged."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from gateway.admission.line import PRIORITIES, Priority
from gateway.admission.rates import CallerLimits
from gateway.errors import RefusedError
from gateway.wire import Fault

ANONYMOUS: Final = "anonymous"


@dataclass(frozen=True, slots=True)
class KeyHash:
    """A virtual key as stored: the caller it stands for and the SHA-256 (hex) of the key.

    Keys are 256 random bits, so one unsalted hash is enough: there is no dictionary to try.
    """

    caller: str
    sha256: str
    is_admin: bool = False
    priority: Priority = "normal"
    """The highest that its requests may have."""
    limits: CallerLimits = field(default_factory=CallerLimits)
    """Of its caller; the same in all keys of one."""


def new_key(caller: str) -> tuple[str, KeyHash]:
    """A fresh key, to be shown once, and what to store of it."""
    key = f"berth-{secrets.token_urlsafe(32)}"
    return key, hash_key(caller, key)


def hash_key(caller: str, key: str) -> KeyHash:
    """What to store of a key that was chosen elsewhere."""
    return KeyHash(caller, sha256(key.encode()).hexdigest())


class Keyring:
    """Finds the caller a key stands for."""

    def __init__(self, keys: Sequence[KeyHash]) -> None:
        # Looked up by hash: the time it takes tells nothing about how much of a guessed key was right.
        self._callers = {bytes.fromhex(key.sha256): key.caller for key in keys}
        self._admins = {bytes.fromhex(key.sha256) for key in keys if key.is_admin}
        self._priorities: dict[str, Priority] = {}
        for key in sorted(keys, key=lambda key: PRIORITIES.index(key.priority), reverse=True):
            self._priorities[key.caller] = key.priority
        self.has_terms = any(key.priority != "normal" or key.limits != CallerLimits() for key in keys)
        """Whether anything is said of any caller but who it is."""
        self.limits = {key.caller: key.limits for key in keys if key.limits != CallerLimits()}

    def identify(self, key: bytes | None) -> str:
        """The caller's name; "anonymous" when no keys are set. Raises RefusedError (401) for a missing or wrong key."""
        if not self._callers:
            return ANONYMOUS
        if key is None:
            message = "no API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise RefusedError(Fault(401, message, code="missing_api_key"))
        caller = self._callers.get(sha256(key).digest())
        if caller is None:
            message = "this API key is not known here; ask whoever runs this gateway for one"
            raise RefusedError(Fault(401, message, code="invalid_api_key"))
        return caller

    def priority(self, caller: str, asked: bytes | None) -> Priority:
        """The priority of a request: what its caller may have, or less if it asks for that (`x-berth-priority`). Raises
        RefusedError (400) for a word that is none."""
        most = self._priorities.get(caller, "normal")
        if asked is None:
            return most
        for priority in PRIORITIES:
            if asked == priority.encode():
                return max(most, priority, key=PRIORITIES.index)
        message = f"x-berth-priority must be one of {', '.join(PRIORITIES)}"
        raise RefusedError(Fault(400, message, code="invalid_priority", should_retry=False))

    def is_admin(self, key: bytes | None) -> bool:
        """Whether `key` is one that may also reload."""
        return key is not None and sha256(key).digest() in self._admins
