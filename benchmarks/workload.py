"""Seeded synthetic prompts of real words, each unlike every other so that a prefix cache cannot answer for the model.

A prompt is [shared prefix] [nonce] [filler], one word for one token: each of these words is a single token, with its
leading space, in the usual byte-pair vocabularies. The server's own count is reported beside what was asked.
"""

import hashlib
import random
from dataclasses import dataclass

from benchmarks.errors import ConfigError

NONCE_WORDS = 8
"""One word carries a byte: 64 bits tell any two prompts of any two runs apart."""

_TEXT = """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother
    area money story fact month lot right study book eye job word business issue side kind head house service friend
    father power hour game line end member law car city community name president team minute idea kid body
    information back parent face others level office door health person art history party result change morning
    reason research girl guy moment air teacher force education foot boy age policy music market sense nation plan
    college interest death experience effect use class control field development role effort rate heart show
    leader light voice wife police mind price report decision son view relationship town road arm difference value
    building action season society tax director position player record paper space ground form event matter center
    couple site project activity star table need court oil situation cost industry figure street image phone data
    picture practice piece land product doctor wall patient worker news test movie north love support technology
    step baby computer type attention film tree source organization hair look window culture chance brother energy
    period course summer plant opportunity term letter condition choice rule daughter south floor campaign material
    population call economy hospital church risk fire future bank treatment sky river stone garden winter animal
    machine bridge mountain island ocean forest village kitchen dinner bread coffee sugar metal glass paint sound
    song dance memory truth peace hope faith skill goal gift size color
"""
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to make. The token counts are what was asked for; what came is in the record."""

    index: int
    text: str
    prompt_tokens: int
    output_tokens: int


def build(
    requests: int, *, prompt_tokens: int, output_tokens: int, shared_prefix_tokens: int, seed: int, run_id: str
) -> tuple[Prompt, ...]:
    """`requests` prompts; the same arguments give the same bytes, another `run_id` shares no prefix with them.

    Every prompt begins with the same `shared_prefix_tokens` words; after them no two are alike. The shared part changes
    with the run too, so that a run finds it cold. ConfigError when no room is left for the nonce.
    """
    if prompt_tokens - shared_prefix_tokens < NONCE_WORDS:
        raise ConfigError(
            f"prompt-tokens {prompt_tokens} with shared-prefix-tokens {shared_prefix_tokens} leaves no room to make "
            f"each prompt unique: ask for at least {shared_prefix_tokens + NONCE_WORDS}"
        )
    shared = _words(f"{seed}:{run_id}:shared", shared_prefix_tokens)
    filler_tokens = prompt_tokens - shared_prefix_tokens - NONCE_WORDS
    return tuple(
        Prompt(
            index=index,
            text=" ".join((*shared, *_nonce(seed, run_id, index), *_words(f"{seed}:{run_id}:{index}", filler_tokens))),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
        for index in range(requests)
    )


def _nonce(seed: int, run_id: str, index: int) -> list[str]:
    digest = hashlib.blake2b(f"{seed}:{run_id}:{index}".encode(), digest_size=NONCE_WORDS).digest()
    return [WORDS[byte] for byte in digest]


def _words(key: str, count: int) -> list[str]:
    return random.Random(key).choices(WORDS, k=count)  # noqa: S311 - repeatable on purpose, nothing secret
