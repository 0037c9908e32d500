"""Cards as people and logs describe them: "A100 40GB (p4d)", "RTX 4090 (WSL)", "GB10 (DGX Spark)"."""

import re

from sizing.errors import UnknownGpuError
from sizing.gpu import GIB, Device, catalogue, gpu

_GPU_SIZE = re.compile(r"(\d+)\s*GB", re.IGNORECASE)


def described_card(name: str, total_gib: float | None = None) -> Device:
    """The catalogue's card where the name is one or holds one; else a card of that memory, as far as it is given.

    Raises:
        UnknownGpuError: naming the nearest cards.
    """
    try:
        return gpu(name)
    except UnknownGpuError:
        found = _mentioned(name)
        if found is not None:
            return found
        if total_gib is None:
            raise
    return Device("cuda", name, int(total_gib * GIB), int(total_gib * GIB), link="pcie")


def _mentioned(text: str) -> Device | None:
    """A card that a description names among other words: "A100 40GB (p4d)", "GB10 (DGX Spark)", "H100 SXM 80GB".

    Of several cards of that name (A100-40GB, A100-80GB) the one of the size that the text gives.
    """
    if " + " in text:  # cards used together: the smallest speaks for all
        together = [_mentioned(part) for part in text.split(" + ")]
        return min((card for card in together if card), key=lambda card: card.memory_bytes, default=None)
    words = re.findall(r"[a-z0-9]+", text.lower())
    if {"laptop", "mobile"} & set(words):  # a card of its own, whatever its name begins with
        return None
    joined = {"".join(words[first:last]) for first in range(len(words)) for last in range(first + 1, len(words) + 1)}
    known = {re.sub(r"[^a-z0-9]", "", card.name.lower()): card for card in catalogue()}
    named = [key for key in known if key in joined]
    if named:
        longest = max(named, key=len)
        # "H100, L4" names two cards, "A100 40GB" one
        return known[longest] if all(key in longest for key in named) else None
    size = _GPU_SIZE.search(text)
    alike = [card for key, card in known.items() if any(key.startswith(word) for word in joined if len(word) > 3)]
    if size and alike:
        return min(alike, key=lambda card: abs(card.memory_bytes / GIB - int(size[1])))
    return None
