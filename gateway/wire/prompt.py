"""The prompt of a request as text, so rendered that an appended turn only makes it longer, and its chain of hashes.

Not what the chat template makes of it, which only the engine knows, but equal where that is equal: tools, system
prompt, then the messages in order. A picture stands as its hash.
"""

from typing import Final

import orjson
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from gateway.routing.chain import CUTS, Chain, chain_of
from gateway.wire.dialect import Dialect, Endpoint

_NO_TOKEN: Final = b"\xff" * 4  # between prompts of one request
_TURN: Final = "\x1e"
_FIELD: Final = "\x1f"
_PART: Final = "\x1d"
_PICTURE_HASHES: Final = 128  # times 16 characters: as long as text of some 500 tokens, which is what a picture costs
_BEFORE: Final[dict[Dialect, tuple[str, ...]]] = {
    "chat": ("tools", "documents"),
    "responses": ("tools", "instructions"),
    "messages": ("tools", "system"),
}
_TURNS: Final[dict[Dialect, str]] = {
    "chat": "messages",
    "completions": "prompt",
    "responses": "input",
    "messages": "messages",
}
_SEEDED: Final[tuple[str, ...]] = (
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "reasoning_effort",  # some templates say it in their first line
    "reasoning",
    "add_special_tokens",
    "truncate_prompt_tokens",
)
_MOST_ANSWERS: Final = 128  # OpenAI's own limit of `n`; an engine computes no more at once
_LIMITS: Final[tuple[str, ...]] = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def read_chain(dialect: Dialect, model: str, payload: dict[str, object], size: int, salt: bytes = b"") -> Chain:
    """The chain of a request's prompt; of one that nothing is cached for, `size` bytes and no block.

    `salt`: what the gateway itself adds to keep one caller's cache from another's.
    """
    data = read_text(dialect, payload)
    if data is None:
        return Chain((), CUTS, size)
    if payload.get("prompt_logprobs") is not None or payload.get("echo"):
        return Chain((), CUTS, len(data))  # vLLM computes all of such a prompt, whatever is in its cache
    return chain_of(_seed(model, payload, salt), data)


def read_text(dialect: Dialect, payload: dict[str, object]) -> bytes | None:
    """What a chain is made of besides its seed; None where nothing is cached."""
    turns = _TURNS.get(dialect)
    if turns is None:
        return None
    texts: list[str] = []
    for name in _BEFORE.get(dialect, ()):
        value = payload.get(name)
        if value:
            texts.append(_FIELD + name + _FIELD + (value if isinstance(value, str) else _dumped(value)))
    data = _add_turns(texts, payload.get(turns))
    return "".join(texts).encode("utf-8", "surrogatepass") + data if texts else data


def is_one_prompt(endpoint: Endpoint, body: bytes) -> bool:
    """Whether `body`, which was parsed before, is about a single prompt, whose size its chain has: several are computed
    each for itself, and of those that are only scored or embedded nobody has told them apart."""
    if endpoint.dialect not in _TURNS or endpoint.path.endswith("/batch"):
        return False
    if endpoint.dialect != "completions":
        return True
    prompt = orjson.loads(body).get("prompt")
    return not isinstance(prompt, list) or len(prompt) < 2 or type(prompt[0]) is int


def most_output_tokens(dialect: Dialect, payload: dict[str, object]) -> int | None:
    """The longest output the caller wants, in tokens; None where it does not say, or where there is no output: for
    Cohere's embeddings `max_tokens` is how much of a text is read."""
    for name in _LIMITS if dialect in _TURNS else ():
        value = payload.get(name)
        if type(value) is int and value > 0:
            return value
    return None


def answers_wanted(dialect: Dialect, payload: dict[str, object]) -> int:
    """How many answers a request has computed, each with an output of its own: `n` (or `best_of`) to each of its
    prompts. 128 at most, 1 where it is not said or wrong."""
    prompts, turns = 1, payload.get(_TURNS[dialect]) if dialect in _TURNS else None
    if type(turns) is list and len(turns) > 1:
        kind = type(turns[0])
        if kind is list or (kind is str and dialect == "completions"):
            prompts = len(turns)
    n, best_of = payload.get("n"), payload.get("best_of")
    if n is None and best_of is None:
        return min(prompts, _MOST_ANSWERS)
    each = max([1, *(value for value in (n, best_of) if type(value) is int)])
    return min(prompts * each, _MOST_ANSWERS)


def _seed(model: str, payload: dict[str, object], salt: bytes) -> int:
    seed = b"%b\x1f%b" % (model.encode("utf-8", "surrogatepass"), salt)
    for name in _SEEDED:
        value = payload.get(name)
        if value is not None:
            seed += b"\x1f%b=%b" % (name.encode(), _dumped(value).encode())
    return xxh3_64_intdigest(seed)


def _add_turns(texts: list[str], turns: object) -> bytes:
    """Append what can be said in text; returns token ids as bytes, four each, which is what their text would have."""
    if isinstance(turns, str):
        texts.append(turns)
    elif isinstance(turns, list):
        first = turns[0] if turns else None
        if type(first) is int or (isinstance(first, list) and first and type(first[0]) is int):
            return _ids(turns)
        for turn in turns:
            _add_turn(texts, turn)
    return b""


def _ids(turns: list[object]) -> bytes:
    rows = [turns] if type(turns[0]) is int else [row for row in turns if isinstance(row, list)]
    return _NO_TOKEN.join([_row(row) for row in rows])


def _row(row: list[object]) -> bytes:
    return b"".join([token.to_bytes(4, "big") for token in row if type(token) is int and 0 <= token < 2**32])


def _add_turn(texts: list[str], turn: object) -> None:
    if not isinstance(turn, dict):
        texts.append(_TURN + (turn if isinstance(turn, str) else _dumped(turn)))
        return
    texts.append(_TURN)
    for name, value in turn.items():
        if isinstance(value, str):
            texts += (_FIELD, name, _FIELD, value)
        elif isinstance(value, list):
            texts += (_FIELD, name)
            for part in value:
                texts += (_PART, _part(part))
        elif value is not None:
            texts += (_FIELD, name, _FIELD, _dumped(value))


def _part(part: object) -> str:
    """One piece of a message's content: its text, or what stands for a picture, a sound or a call. Where a caller has
    its cache end (`cache_control`) moves from turn to turn and is no part of the prompt."""
    if not isinstance(part, dict):
        return part if isinstance(part, str) else _dumped(part)
    kind, text, content = part.get("type"), part.get("text"), part.get("content")
    if isinstance(text, str):
        return text
    rest = {name: value for name, value in part.items() if name != "cache_control"}
    if isinstance(kind, str) and ("image" in kind or "audio" in kind or "video" in kind or "file" in kind):
        return xxh3_64_hexdigest(_dumped(rest).encode()) * _PICTURE_HASHES
    if not isinstance(content, list):
        return _dumped(rest)
    del rest["content"]  # of a tool's result; it may be text, and pictures
    return _dumped(rest) + "".join([_PART + (_part(piece) if _is_flat(piece) else _dumped(piece)) for piece in content])


def _is_flat(piece: object) -> bool:
    return not isinstance(piece, dict) or not isinstance(piece.get("content"), list)


def _dumped(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # a number beyond 64 bits, or so deep that no engine will take it
        try:
            return repr(value)
        except RecursionError:
            return "too deep"
