"""What became of the prompt tokens of one request: found in the KV cache, or computed, and why."""

from typing import Final, Literal, NamedTuple

from gateway.routing.lost import Loss

Fate = Literal["hit", "no_reuse", "evicted", "routed_elsewhere", "restarted"]
"""no_reuse: nobody had computed them, or not yet; routed_elsewhere: another replica had them, but too much to do;
evicted: the KV cache had no room left for them; restarted: their replica had lost everything."""


class Expected(NamedTuple):
    """What was known of a request's prefix when its replica was chosen. Tokens from the start of the prompt."""

    here_tokens: int
    """The replica holds so many."""
    anywhere_tokens: int
    """The one that holds most, so many."""
    once_tokens: int
    """With those that a replica held once, so many; not less than `anywhere_tokens`."""
    loss: Loss
    """Why it holds the last of them no more."""

    def of(self, prompt_tokens: int, estimated_tokens: int) -> "Expected":
        """The same of a prompt that was estimated, and has `prompt_tokens`."""
        if prompt_tokens == estimated_tokens:
            return self
        here, anywhere, once, loss = self
        ratio = prompt_tokens / max(estimated_tokens, 1)
        return Expected(int(here * ratio), int(anywhere * ratio), int(once * ratio), loss)


NOTHING: Final = Expected(0, 0, 0, "evicted")
"""Of a prompt that nobody had seen."""


def fates(expected: Expected, prompt_tokens: int, cached_tokens: int, loss: Fate) -> dict[Fate, int]:
    """Every prompt token by its fate. `loss` is what became of those that the replica was expected to hold and had to
    compute. Sums to `prompt_tokens`."""
    found: dict[Fate, int] = {}
    at = 0

    def up_to(end: int, fate: Fate) -> None:
        nonlocal at
        end = min(end, prompt_tokens)
        if end > at:
            found[fate] = found.get(fate, 0) + end - at
            at = end

    up_to(cached_tokens, "hit")
    up_to(expected.here_tokens, loss)
    up_to(expected.anywhere_tokens, "routed_elsewhere")
    up_to(expected.once_tokens, expected.loss)
    up_to(prompt_tokens, "no_reuse")
    return found
