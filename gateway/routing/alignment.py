"""Where in an engine's prompt, in tokens, a place in our own text of the same request is. No I/O.

A request is hashed as the text we make of it; its engine tokenizes what its chat template makes of it. Both hold the
same messages, with different things between them. So the one is laid beside the other from the front: on, while they
are the same; where they part, they are brought together again at the next place whose last 32 bytes are found in the
prompt, once. What cannot be placed so is left out.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

_ANCHOR_BYTES = 32
_WINDOW_BYTES = 64 * 1024
"""How much more than the text may stand in the prompt between two places: tools, a template's own words."""
_WORD_BYTES = 64
_SPACE = b" \t\r\n"


def token_counts(text: bytes, ends: Sequence[int], pieces: Sequence[str]) -> list[int | None]:
    """For each end in `text`, how many of the prompt's tokens are the same for all texts that are equal up to there.

    None where the place is not found. `pieces`: the tokens as the vocabulary spells them (/tokenize with
    return_token_strs). The last word before an end is left out: how it is cut into tokens depends on what follows.
    """
    spelt = _spelt(pieces)
    prompt = b"".join(spelt)
    token_ends = list(accumulate(len(each) for each in spelt))
    places = _places(text, ends, prompt)
    return [None if place is None else bisect_right(token_ends, _word_start(prompt, place)) for place in places]


def _places(text: bytes, ends: Sequence[int], prompt: bytes) -> list[int | None]:
    """For each end in `text`, the same place in `prompt`."""
    places: list[int | None] = []
    done = at = 0
    for end in ends:
        step = text[done:end]
        if prompt.startswith(step, at):
            place: int | None = at + len(step)
        else:
            place = _found(text[max(end - _ANCHOR_BYTES, done) : end], prompt, at, at + 2 * len(step) + _WINDOW_BYTES)
        places.append(place)
        if place is not None:
            done, at = end, place
    return places


def _found(anchor: bytes, prompt: bytes, start: int, end: int) -> int | None:
    """Behind the only occurrence of `anchor`; None when there is none, or more than one."""
    at = prompt.find(anchor, start, end)
    if at < 0 or len(anchor) < _ANCHOR_BYTES or prompt.find(anchor, at + 1, end) >= 0:
        return None
    return at + len(anchor)


def _word_start(prompt: bytes, place: int) -> int:
    """Where the space before the last word before `place` begins: most tokenizers cut there whatever follows."""
    least = max(place - _WORD_BYTES, 0)
    at = place
    while at > least and prompt[at - 1] not in _SPACE:
        at -= 1
    while at > least and prompt[at - 1] in _SPACE:
        at -= 1
    return at


def _spelt(pieces: Sequence[str]) -> list[bytes]:
    """The bytes that each token stands for.

    Two spellings are in use: one letter for each byte, of which the space is "\u0120" (GPT-2 and most since), and text
    with "\u2581" for a space and <0x0A> for single bytes (SentencePiece). A token with other letters is special, and
    stands for itself.
    """
    by_letters = sum("\u0120" in piece for piece in pieces) >= sum(piece.startswith("\u2581") for piece in pieces)
    return [_from_letters(piece) if by_letters else _from_sentence(piece) for piece in pieces]


def _from_letters(piece: str) -> bytes:
    try:
        return bytes(_BYTES[letter] for letter in piece)
    except KeyError:
        return piece.encode()


def _from_sentence(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("\u2581", " ").encode()


def _letters() -> dict[str, int]:
    """Printable letters of Latin-1 stand for themselves, the other bytes for letters from U+0100 on."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _letters()
