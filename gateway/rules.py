"""Which model a request is led to: conditional rules in order, the first that fits wins. Pure.

A rule names the conditions of a request and who takes it: one model, several by weight, or the same as before (a rule
may be there only to mirror). The model it leads to is served as it is: no rule is asked a second time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from hashlib import blake2b
from math import log

import orjson

from gateway.canary import RollbackConfig
from gateway.headers import Header
from gateway.session import opening, session_key
from gateway.wire import Call

_BYTES_A_TOKEN = 4
_MOST_CHARS = 4096  # of an opening: what is longer begins alike only if it is the same
_HASH_BYTES = 8
_HASHES = float(2 ** (8 * _HASH_BYTES))

Pattern = str
"""Exact, or a glob: `*` any characters, `?` one, `[ab]` one of these. Case matters."""


@dataclass(frozen=True, slots=True)
class When:
    """What a request must be like; every condition that is given has to hold."""

    model: Pattern | None = None
    caller: Pattern | None = None
    headers: tuple[tuple[str, Pattern], ...] = ()
    """By name, in lower case; of a header that comes several times one must fit."""
    metadata: tuple[tuple[str, Pattern], ...] = ()
    """By name, of the body's `metadata`; what is not text is compared as JSON has it."""
    over_tokens: int | None = None
    under_tokens: int | None = None
    """Of the prompt, estimated as a quarter of the body's bytes."""

    @property
    def is_open(self) -> bool:
        """Whether nothing but the model is asked for."""
        return self == When(model=self.model)

    def is_for(self, caller: str | None) -> bool:
        """Whether it may hold for requests of `caller`; None: for those of everybody."""
        return self.caller is None or (caller is not None and _is_like(caller, self.caller))


@dataclass(frozen=True, slots=True)
class Mirror:
    """A copy of a `share` of the requests goes to `to` as well; at most `max_in_flight` of them at a time."""

    to: str
    share: float = 1.0
    max_in_flight: int = 16


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `name`: the public name it belongs to, if it has one; its model condition is that name then."""

    when: When = field(default_factory=When)
    split: tuple[tuple[str, float], ...] = ()
    """Models by weight; one alone takes all, none leaves the request where it is."""
    name: str | None = None
    sticky: bool = True
    """Whether the requests of one conversation stay with one model of the split."""
    rollback: RollbackConfig | None = None
    mirror: Mirror | None = None


class Asked:
    """A request as rules see it; its body is read only if a rule asks for what is in it."""

    def __init__(self, call: Call, caller: str, session: bytes | None = None, headers: Sequence[Header] = ()) -> None:
        self.call = call
        self.caller = caller
        self.headers = headers
        self._session = session

    @property
    def prompt_tokens(self) -> int:
        """An estimate."""
        return len(self.call.body) // _BYTES_A_TOKEN

    @cached_property
    def session(self) -> int | None:
        """A key for the session it is part of, if it names one."""
        return session_key(self._session, self.call.session, self.caller)

    @cached_property
    def conversation(self) -> bytes | None:
        """What is the same for all requests of one conversation; None when nothing is known to be."""
        if self.session is not None:
            return self.session.to_bytes(8, "big")
        first = opening(self.call.endpoint.dialect, self._payload)
        return None if first is None else f"{self.caller}\0{first[:_MOST_CHARS]}".encode()

    def metadata(self, name: str) -> str | None:
        """A member of the body's metadata as text."""
        found = self._payload.get("metadata")
        value = found.get(name) if isinstance(found, dict) else None
        return value if value is None or isinstance(value, str) else orjson.dumps(value).decode()

    @cached_property
    def _payload(self) -> dict[str, object]:
        if self.call.endpoint.body != "json":
            return {}
        payload: dict[str, object] = orjson.loads(self.call.body)
        return payload


def first_rule(rules: Sequence[Rule], asked: Asked) -> Rule | None:
    """The first rule that fits; None when none does."""
    for rule in rules:
        if (rule.name is None or rule.name == asked.call.model) and fits(rule.when, asked):
            return rule
    return None


def fits(when: When, asked: Asked) -> bool:
    """Whether every condition holds; those that cost most come last."""
    tokens = asked.prompt_tokens
    return (
        _is_like(asked.call.model, when.model)
        and _is_like(asked.caller, when.caller)
        and (when.over_tokens is None or tokens > when.over_tokens)
        and (when.under_tokens is None or tokens < when.under_tokens)
        and all(_has_header(asked, name, pattern) for name, pattern in when.headers)
        and all(_is_there_and_like(asked.metadata(name), pattern) for name, pattern in when.metadata)
    )


def _is_like(value: str, pattern: Pattern | None) -> bool:
    return pattern is None or value == pattern or fnmatchcase(value, pattern)


def _is_there_and_like(value: str | None, pattern: Pattern) -> bool:
    return value is not None and _is_like(value, pattern)


def _has_header(asked: Asked, name: str, pattern: Pattern) -> bool:
    wanted = name.encode("latin-1")
    values = (value for header, value in asked.headers if header == wanted)
    return any(_is_like(value.decode("latin-1").strip(), pattern) for value in values)


def chosen(key: bytes, weights: Sequence[tuple[str, float]]) -> str:
    """One of the models, always the same for one `key`, each for a share of all keys as large as its weight.

    Weighted rendezvous hashing: highest weight / -ln(u), with u in (0, 1) from key and model. When a weight changes,
    only as many keys move as have to, and only from or to that model. At least one weight is above 0.
    """
    return max((model for model in weights if model[1] > 0), key=lambda model: model[1] / -log(_unit(key, model[0])))[0]


def _unit(key: bytes, model: str) -> float:
    digest = blake2b(model.encode() + b"\0" + key, digest_size=_HASH_BYTES).digest()
    # never 0 nor 1, of which the logarithm is no use
    return min((int.from_bytes(digest, "big") + 0.5) / _HASHES, 1 - 2**-53)
