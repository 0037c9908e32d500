"""A cache of prefixes for each caller: what one has asked must not show in how fast another is answered.

vLLM shares cached blocks only between requests with the same `cache_salt`. The gateway gives each isolated caller one
of its own, HMAC-SHA256 keyed with the stored hash of the caller's first key: the same after a restart, and on every
gateway with the same keys. A salt that a caller sends itself is mixed in, so it parts that caller's own users from each
other, and nobody can name another caller's.
"""

import hmac
from collections.abc import Collection, Sequence
from typing import Final

from gateway.identity import KeyHash
from gateway.members import edited
from gateway.wire import Call

SALTED: Final = frozenset(
    {
        *("/v1/chat/completions", "/v1/chat/completions/batch", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/embeddings", "/pooling", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
        "/generative_scoring",
    }
)
"""Where vLLM 0.32 takes a salt. It has none in /v2/embed and in transcriptions, which are not isolated; /tokenize,
/detokenize and count_tokens leave nothing in a cache."""
_PURPOSE: Final = b"berth cache salt"


class Salts:
    """The salts of the callers named in `isolated`."""

    def __init__(self, keys: Sequence[KeyHash] = (), isolated: Collection[str] = ()) -> None:
        self._secrets: dict[str, bytes] = {}
        for key in keys:  # the first key: another one may be added, and the caches stay warm
            if key.caller in isolated:
                self._secrets.setdefault(key.caller, bytes.fromhex(key.sha256))
        self._plain = {caller: _salt(secret, None) for caller, secret in self._secrets.items()}

    def seed(self, caller: str) -> bytes:
        """What tells this caller's prompts from others' in the router's index: they share no cached prefix either."""
        plain = self._plain.get(caller)
        return b"" if plain is None else plain.encode()

    def salted(self, call: Call, caller: str) -> Call:
        """`call` with its caller's salt in its body and in `cache_salt`; unchanged where it is not isolated, or an
        engine would not take it."""
        plain = self._plain.get(caller)
        if plain is None or call.endpoint.path not in SALTED:
            return call
        if call.cache_salt is None:  # the usual case: everything else stays the caller's own bytes
            body = call.body.replace(b"{", b'{"cache_salt":"%b",' % plain.encode(), 1)
            return call.but(body=body, cache_salt=plain)
        salt = _salt(self._secrets[caller], call.cache_salt)
        return call.but(body=edited(call.body, {"cache_salt": b'"%b"' % salt.encode()}), cache_salt=salt)


def _salt(secret: bytes, own: str | None) -> str:
    """64 hexadecimal digits: vLLM takes 128 characters at most, and not all of them."""
    said = _PURPOSE if own is None else _PURPOSE + b"\0" + own.encode()
    return hmac.digest(secret, said, "sha256").hex()
