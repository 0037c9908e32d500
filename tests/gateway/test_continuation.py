"""A stream broken anywhere and continued elsewhere is one stream to its caller: each text once, one start, one end."""

import itertools
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.continuation import Ask, Continuation, Trail
from gateway.meter import Meter
from gateway.wire import ENDPOINTS, Call, Dialect, EventSplitter, event_data, parse_call
from gateway.wire.partial import Partial
from gateway.wire.remainder import CannotContinueError

PROMPT = [7, 8, 9]
LIMIT = 40
DIALECTS: dict[Dialect, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": LIMIT}),
    "completions": ("/v1/completions", {"prompt": "hi", "max_tokens": LIMIT}),
    "messages": ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": LIMIT}),
    "responses": ("/v1/responses", {"input": "hi", "max_output_tokens": LIMIT}),
}
Pieces = list[str]
texts = st.lists(st.text('ab \n\t"\\{é漢🙂', min_size=1, max_size=3), max_size=12)


def call_of(dialect: Dialect, **more: object) -> Call:
    path, body = DIALECTS[dialect]
    call = parse_call(ENDPOINTS[path], orjson.dumps({"model": "m", "stream": True, **body, **more}))
    assert isinstance(call, Call)
    return call


def data(payload: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def event(payload: dict[str, Any]) -> bytes:
    return b"event: %b\n%b" % (payload["type"].encode(), data(payload))


def ids_of(text: str) -> list[int]:
    """One token a character."""
    return [ord(character) for character in text]


def stream_of(dialect: Dialect, pieces: Pieces, finish: str, *, with_ids: bool = False) -> list[bytes]:
    """What an engine answers, event by event."""
    tokens = sum(map(len, pieces))
    if dialect == "messages":
        return messages_stream(pieces, finish, tokens)
    if dialect == "responses":
        return responses_stream(pieces, finish, tokens)
    head = {"id": "first", "object": "o", "created": 5, "model": "m"}
    start = {"prompt_token_ids": PROMPT if with_ids else None}
    events = []
    if dialect == "chat":
        role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        events.append(data({**head, "choices": [role], **start}))
    for number, piece in enumerate([*pieces, ""]):
        said: dict[str, Any] = {"delta": {"content": piece}}
        if dialect == "completions":
            said = {"text": piece} | (start if number == 0 else {})
        ids = ids_of(piece) if with_ids else None
        reason = finish if number == len(pieces) else None
        events.append(data({**head, "choices": [{"index": 0, **said, "finish_reason": reason, "token_ids": ids}]}))
    usage = {"prompt_tokens": len(PROMPT), "completion_tokens": tokens, "total_tokens": len(PROMPT) + tokens}
    return [*events, data({**head, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]


def messages_stream(pieces: Pieces, finish: str, tokens: int) -> list[bytes]:
    message = {"id": "first", "type": "message", "role": "assistant", "content": [], "model": "m"}
    usage = {"input_tokens": len(PROMPT), "output_tokens": 0}
    block = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0}
    reason = {"stop": "end_turn", "length": "max_tokens"}[finish]
    end = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage | {"output_tokens": tokens}}
    deltas = [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": piece}, "index": 0} for piece in pieces
    ]
    opened = [block, *deltas, {"type": "content_block_stop", "index": 0}] if pieces else []
    start: dict[str, Any] = {"type": "message_start", "message": message | {"usage": usage}}
    parts: list[dict[str, Any]] = [start, *opened, end, {"type": "message_stop"}]
    return [event(part) for part in parts]


def responses_stream(pieces: Pieces, finish: str, tokens: int) -> list[bytes]:
    response = {"id": "first", "object": "response", "model": "m", "output": [], "status": "in_progress"}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "status": "in_progress"}
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    text = "".join(pieces)
    usage = {"input_tokens": len(PROMPT), "output_tokens": tokens, "total_tokens": len(PROMPT) + tokens}
    status = {"stop": "completed", "length": "incomplete"}[finish]
    parts: list[dict[str, Any]] = [
        {"type": "response.created", "response": response},
        {"type": "response.in_progress", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **where, "part": {"type": "output_text", "text": ""}},
        *({"type": "response.output_text.delta", **where, "delta": piece} for piece in pieces),
        {"type": "response.output_text.done", **where, "text": text},
        {"type": "response.content_part.done", **where, "part": {"type": "output_text", "text": text}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response | {"status": status, "usage": usage}},
    ]
    return [event({**part, "sequence_number": number}) for number, part in enumerate(parts)]


@dataclass
class Replica:
    """Another engine that would give the same answer: it knows the whole of it and goes on from what it is given."""

    answer: str
    finish: str
    group: int

    def plain(self, ask: Ask) -> bytes:
        body = orjson.loads(ask.body)
        assert not ask.is_stream
        if ask.path == "/detokenize":
            return orjson.dumps({"prompt": "".join(map(chr, body["tokens"]))})
        assert ask.path == "/tokenize"
        if "messages" in body or body.get("add_special_tokens"):
            return orjson.dumps({"tokens": PROMPT, "token_strs": list(map(chr, PROMPT))})
        return orjson.dumps({"tokens": ids_of(body["prompt"])})

    def stream(self, ask: Ask) -> list[bytes]:
        assert (ask.path, ask.is_stream) == ("/v1/completions", True)
        body = orjson.loads(ask.body)
        begun = body["prompt"][len(PROMPT) :]
        assert body["prompt"][: len(PROMPT)] == PROMPT
        assert begun == ids_of(self.answer)[: len(begun)]
        assert body["max_tokens"] == LIMIT - len(begun)
        rest = self.answer[len(begun) :]
        pieces = [rest[at : at + self.group] for at in range(0, len(rest), self.group)]
        events = stream_of("completions", pieces, self.finish, with_ids=True)
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(rest)}
        return [*events[:-2], data({"choices": [], "usage": usage}), events[-1]]


def go_on(call: Call, begun: list[bytes], replica: Replica, stop_after: int | None = None) -> list[bytes]:
    """What the caller gets after `begun`, or the first `stop_after` events of it."""
    trail = Trail(call.endpoint.dialect)
    for one in begun:
        trail.keep(one)
    continuation = Continuation(call, trail)
    step = continuation.first()
    while isinstance(step, Ask) and not step.is_stream:
        step = continuation.answered(200, replica.plain(step))
    if isinstance(step, bytes):
        return EventSplitter().feed(step)
    events = replica.stream(step)
    sent = b"".join(continuation.feed(one) for one in events[:stop_after])
    if stop_after is None:
        sent += continuation.end()
        assert continuation.broken_by is None
    return EventSplitter().feed(sent)


def outline(dialect: Dialect, events: list[bytes]) -> dict[str, Any]:
    """What a caller can tell of a stream, apart from where it was cut into events."""
    read = Partial(dialect)
    read.read(b"".join(events))
    assert read.odd is None
    found = [event_data(one) for one in events]
    payloads = [orjson.loads(one) for one in found if one is not None and one != b"[DONE]"]
    responses = [payload["response"] for payload in payloads if "response" in payload]
    choices = [choice for payload in payloads for choice in payload.get("choices", [])]
    usages = [payload["usage"] for payload in payloads + responses if payload.get("usage")]
    kinds = [payload.get("type") for payload in payloads]
    return {
        "text": "".join(read.text),
        "kinds": [kind for kind, _ in itertools.groupby(kinds)],
        "roles": sum("role" in choice.get("delta", {}) for choice in choices),
        "done": found.count(b"[DONE]"),
        "head": {(payload.get("id"), payload.get("created"), payload.get("model")) for payload in payloads},
        "ids": {response["id"] for response in responses},
        "numbers": [payload.get("sequence_number") for payload in payloads][:: max(1, len(payloads) - 1)],
        "is_numbered": all(payload.get("sequence_number", at) == at for at, payload in enumerate(payloads)),
        "finish": [choice["finish_reason"] for choice in choices if choice["finish_reason"]] or read.finish_reason,
        "usage": [
            (u.get("prompt_tokens", u.get("input_tokens")), u.get("completion_tokens", u.get("output_tokens")))
            for u in usages
        ],
        "status": responses[-1]["status"] if responses else None,
    }


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("dialect", list(DIALECTS))
@given(pieces=texts, finish=st.sampled_from(["stop", "length"]), group=st.integers(1, 3), at=st.data())
def test_a_break_anywhere_leaves_no_mark(
    dialect: Dialect, with_ids: bool, pieces: Pieces, finish: str, group: int, at: st.DataObject
) -> None:
    if finish == "length":
        pieces = list("x" * LIMIT)
    whole = stream_of(dialect, pieces, finish, with_ids=with_ids)
    begun = whole[: at.draw(st.integers(1, len(whole) - 1), label="events sent")]
    replica = Replica("".join(pieces), finish, group)
    call = call_of(dialect)
    once = [*begun, *go_on(call, begun, replica)]
    told, expected = outline(dialect, once), outline(dialect, whole)
    if dialect == "responses":  # as many numbers as events, and the continued stream may have fewer or more of them
        assert told["is_numbered"]
        for numbered in (told, expected):
            del numbered["numbers"]
            numbered["kinds"] = [kind for kind in numbered["kinds"] if kind != "response.in_progress"]
    if not pieces:  # an engine may open and close an empty text, or say nothing of it
        for empty in (told, expected):
            del empty["kinds"]
    assert told == expected


@pytest.mark.parametrize("dialect", list(DIALECTS))
@given(pieces=texts, first=st.integers(1, 8), second=st.integers(0, 8))
def test_the_replica_that_continues_may_die_as_well(dialect: Dialect, pieces: Pieces, first: int, second: int) -> None:
    whole = stream_of(dialect, pieces, "stop")
    replica = Replica("".join(pieces), "stop", 1)
    call = call_of(dialect)
    begun = whole[: min(first, len(whole) - 1)]
    begun += go_on(call, begun, replica, stop_after=second)
    ended = outline(dialect, [*begun, *go_on(call, begun, replica)])
    assert ended["text"] == "".join(pieces)
    assert ended["usage"][-1] == (len(PROMPT), len("".join(pieces)))
    assert ended["roles"] == (dialect == "chat")


def test_a_long_stream_takes_a_fraction_of_its_size() -> None:
    trail = Trail("chat")
    pieces = ["word "] * 5000
    events = stream_of("chat", pieces, "stop", with_ids=True)[:-2]
    for one in events:
        trail.keep(one)
    assert trail.held_bytes < sum(map(len, events)) / 8
    partial = trail.partial()
    assert "".join(partial.text) == "".join(pieces)
    assert partial.token_ids == ids_of("".join(pieces))


def test_a_stream_longer_than_is_kept_is_refused_and_no_longer_held() -> None:
    trail = Trail("chat")
    for one in stream_of("chat", ["x" * 1000] * 5000, "stop"):
        trail.keep(one)
    assert trail.held_bytes < 64 * 1024
    with pytest.raises(CannotContinueError, match="too much"):
        Continuation(call_of("chat"), trail)


@pytest.mark.parametrize(
    ("dialect", "more", "why"),
    [
        ("chat", {"n": 2}, "'n'"),
        ("chat", {"logprobs": True}, "'logprobs'"),
        ("completions", {"logprobs": 0}, "'logprobs'"),
        ("completions", {"echo": True}, "'echo'"),
        ("completions", {"best_of": 3}, "'best_of'"),
        ("completions", {"prompt": ["a", "b"]}, "several prompts"),
        ("chat", {"response_format": {"type": "json_object"}}, "'response_format'"),
        ("chat", {"structured_outputs": {"regex": "a"}}, "'structured_outputs'"),
        ("chat", {"tools": [{"type": "function"}]}, "'tools'"),
        ("chat", {"presence_penalty": 0.5}, "'presence_penalty'"),
        ("chat", {"stop": ["###"]}, "stop string"),
        ("messages", {"stop_sequences": ["##"]}, "stop string"),
        ("chat", {"some_new_field": 1}, "'some_new_field'"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "more than text"),
        ("messages", {"thinking": {"type": "adaptive"}}, "'thinking'"),
        ("responses", {"previous_response_id": "r"}, "'previous_response_id'"),
        ("responses", {"text": {"format": {"type": "json_schema"}}}, "'text'"),
        ("responses", {"input": [{"type": "reasoning"}]}, "more than messages"),
        ("chat", {"ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_the_reason(dialect: Dialect, more: dict[str, Any], why: str) -> None:
    begun = stream_of(dialect, ["a", "b"], "stop")[:5]
    with pytest.raises(CannotContinueError, match=why):
        go_on(call_of(dialect, **more), begun, Replica("ab", "stop", 1))


@pytest.mark.parametrize(
    ("more", "sent"),
    [
        ({"temperature": 0.7, "seed": 3, "top_p": 0.9}, {"temperature": 0.7, "seed": 3, "top_p": 0.9}),
        ({"stop": "\n"}, {"stop": ["\n"]}),
        ({"max_completion_tokens": 9}, {"max_tokens": 7}),
        ({"min_tokens": 5}, {"min_tokens": 3}),
        ({"tool_choice": "auto", "metadata": {}, "n": 1}, {"max_tokens": LIMIT - 2}),
    ],
)
def test_what_governs_the_rest_is_carried_over(more: dict[str, Any], sent: dict[str, Any]) -> None:
    trail = Trail("chat")
    for one in stream_of("chat", ["a", "b"], "stop", with_ids=True)[:3]:
        trail.keep(one)
    continuation = Continuation(call_of("chat", **more), trail)
    continuation.first()
    step = continuation.answered(200, orjson.dumps({"tokens": PROMPT}))
    assert isinstance(step, Ask)
    body = orjson.loads(step.body)
    assert sent.items() <= body.items()
    assert body["prompt"] == [*PROMPT, *ids_of("ab")]


@pytest.mark.parametrize("delta", [{"tool_calls": [{"index": 0}]}, {"reasoning": "hm"}, {"refusal": "no"}])
def test_an_answer_that_is_more_than_text_is_refused(delta: dict[str, Any]) -> None:
    begun = [data({"id": "a", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})]
    with pytest.raises(CannotContinueError, match="it holds"):
        go_on(call_of("chat"), begun, Replica("", "stop", 1))


def test_half_a_character_is_made_anew() -> None:
    """Its first token came without text: the ids handed on end where the text does."""
    whole = stream_of("chat", ["a"], "stop", with_ids=True)[:2]
    half = {"index": 0, "delta": {"content": ""}, "finish_reason": None, "token_ids": [999]}
    sent = go_on(call_of("chat"), [*whole, data({"id": "first", "choices": [half]})], Replica("a🙂", "stop", 1))
    assert "🙂".encode() in sent[0]


@pytest.mark.parametrize(
    ("joins", "read_as", "expected"),
    [
        (True, "a\n\nb", [ord("a"), 10, 10, ord("b")]),  # with a mark between them, the two blanks stay apart
        (True, "a \nb", [ord("a"), 1010, ord("b")]),  # pieces that do not read as the text are not its tokens
        (False, "", [ord("a"), 1010, ord("b")]),  # the mark is no token by itself
    ],
)
def test_tokens_are_read_back_from_pieces(joins: bool, read_as: str, expected: list[int]) -> None:
    """By a tokenizer that makes two line breaks one token, 1010."""
    trail = Trail("messages")
    for one in stream_of("messages", ["a", "\n", "\n", "b"], "stop")[:6]:
        trail.keep(one)
    continuation = Continuation(call_of("messages"), trail)
    step = continuation.first()
    while isinstance(step, Ask) and not step.is_stream:
        body = orjson.loads(step.body)
        answer: dict[str, Any] = {"prompt": read_as}
        if "messages" in body:
            answer = {"tokens": PROMPT, "token_strs": ["M", "x", "y"]}
        elif step.path == "/tokenize":
            text = body["prompt"].replace("\n\n", chr(1010)).replace("M", chr(PROMPT[0]) if joins else "")
            answer = {"tokens": ids_of(text)}
        step = continuation.answered(200, orjson.dumps(answer))
    assert isinstance(step, Ask)
    assert orjson.loads(step.body)["prompt"] == [*PROMPT, *expected]


def test_another_prompt_than_the_first_replica_counted_is_refused() -> None:
    trail = Trail("messages")
    for one in stream_of("messages", ["a"], "stop")[:3]:
        trail.keep(one)
    continuation = Continuation(call_of("messages"), trail)
    continuation.first()
    with pytest.raises(CannotContinueError, match="its prompt is 3 tokens and is read as 4"):
        continuation.answered(200, orjson.dumps({"tokens": [1, 2, 3, 4]}))


@pytest.mark.parametrize(("status", "body"), [(404, b"{}"), (200, b"no"), (200, b"[]"), (500, b'{"tokens":[1]}')])
def test_an_engine_without_tokenize_is_refused(status: int, body: bytes) -> None:
    trail = Trail("chat")
    trail.keep(stream_of("chat", ["a"], "stop")[0])
    continuation = Continuation(call_of("chat"), trail)
    continuation.first()
    with pytest.raises(CannotContinueError, match=f"answered {status}"):
        continuation.answered(status, body)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [data({"id": "x", "choices": [{"index": 0, "text": "b", "finish_reason": None}]})],
        [data({"error": {"message": "out of memory"}})],
        [b"data: {half\n\n"],
    ],
)
def test_a_continuation_that_breaks_says_so_and_closes_nothing(events: list[bytes]) -> None:
    trail = Trail("chat")
    trail.keep(stream_of("chat", ["a"], "stop", with_ids=True)[0])
    continuation = Continuation(call_of("chat"), trail)
    continuation.first()
    continuation.answered(200, orjson.dumps({"tokens": PROMPT}))
    for one in events:
        continuation.feed(one)
    assert continuation.end() == b""
    assert continuation.broken_by


def test_what_the_fast_lane_keeps_is_bounded_too() -> None:
    meter = Meter("chat", strip_usage=False, clock=lambda: 0.0, trail=Trail("chat"))
    one = stream_of("chat", ["x"], "stop")[1]
    passed = 0
    for _ in range(50_000):
        if meter.passes(one, 0, len(one)):
            passed += 1
        else:
            assert meter.feed(one) == one
    assert passed > 49_900
    assert meter.trail is not None
    assert meter.trail.held_bytes < 64 * 1024
    assert meter.trail.partial().odd == "too much of it has been sent"


def test_one_huge_event_is_not_squeezed_while_everybody_waits() -> None:
    trail = Trail("chat")
    huge = stream_of("chat", ["x" * 8 * 2**20], "stop")[1]

    def compress(data: bytes, _: int) -> bytes:
        raise AssertionError(len(data))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.continuation.zlib.compress", compress)
        trail.keep(huge)
    assert trail.held_bytes == 0
    assert trail.partial().odd == "too much of it has been sent"


def test_a_long_answer_from_the_fast_lane_is_kept() -> None:
    meter = Meter("chat", strip_usage=False, clock=lambda: 0.0, trail=Trail("chat"))
    one = stream_of("chat", ["x"], "stop")[1]
    meter.feed(one)
    for _ in range(15_000):
        assert meter.passes(one, 0, len(one))
    meter.feed(one + one)
    assert meter.trail is not None
    partial = meter.trail.partial()
    assert (partial.odd, "".join(partial.text)) == (None, "x" * 15_003)
