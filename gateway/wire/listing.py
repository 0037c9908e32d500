"""Pages of a list, as Anthropic's API cuts them: https://docs.anthropic.com/en/api/models-list."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.wire.fault import Fault

_LIMIT: Final = 20
_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """`names` of this page, and whether there are more in the direction that was asked for."""

    names: tuple[str, ...]
    has_more: bool


def page_of(names: Sequence[str], query: Mapping[str, str]) -> Page | Fault:
    """The page that `limit`, `after_id` and `before_id` of a query ask for; a Fault (400) for what they cannot be."""
    text = query.get("limit", str(_LIMIT))
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= _MOST:
        return Fault(400, f"'limit' must be a whole number from 1 to {_MOST}", param="limit")
    limit = int(text)
    after, before = query.get("after_id"), query.get("before_id")
    if after is not None and before is not None:
        return Fault(400, "only one of 'after_id' and 'before_id' can be set", param="before_id")
    cursor = after if after is not None else before
    if cursor is not None and cursor not in names:
        param = "before_id" if after is None else "after_id"
        return Fault(400, f"'{param}' is not the id of a model in this list", param=param)
    if before is not None:
        rest = names[: names.index(before)]
        return Page(tuple(rest[-limit:]), len(rest) > limit)
    rest = names[0 if after is None else names.index(after) + 1 :]
    return Page(tuple(rest[:limit]), len(rest) > limit)
