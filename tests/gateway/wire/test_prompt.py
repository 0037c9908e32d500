"""The prompt of a request as a chain: a longer conversation extends the chain of the shorter, and only that."""

import copy
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing import CUTS, Chain
from gateway.wire import ENDPOINTS, Call, Dialect, parse_call
from gateway.wire.prompt import answers_wanted, most_output_tokens, read_chain

LONG = "The quick brown fox jumps over the lazy dog. " * 20  # 900 bytes: three blocks
OTHER = "Lorem ipsum dolor sit amet, consectetur adipi. " * 20
GENERATING: tuple[Dialect, ...] = ("chat", "completions", "responses", "messages")
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "description": LONG}}}
PICTURE = "data:image/png;base64," + "iVBORw0KGgo" * 50_000


def chain(dialect: Dialect, payload: dict[str, Any], model: str = "m", salt: bytes = b"") -> Chain:
    """Of this body; reading it changes nothing of it."""
    before = copy.deepcopy(payload)
    made = read_chain(dialect, model, payload, 7, salt)
    assert payload == before
    assert len(made.hashes) == sum(end <= made.size for end in CUTS) or not made.hashes
    return made


def conversation(dialect: Dialect, *texts: str) -> dict[str, Any]:
    """One turn for each of `texts`, users' and assistants' in turn."""
    if dialect == "completions":
        return {"prompt": "".join(texts)}
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {("input" if dialect == "responses" else "messages"): turns}


def extends(longer: Chain, shorter: Chain) -> bool:
    """Whether `longer` begins with all blocks of `shorter`, of which there are some."""
    return bool(shorter.hashes) and longer.hashes[: len(shorter.hashes)] == shorter.hashes


@pytest.mark.parametrize("dialect", GENERATING)
def test_a_longer_conversation_extends_the_chain(dialect: Dialect) -> None:
    chains = [chain(dialect, conversation(dialect, *([LONG, OTHER] * 3)[:n])) for n in range(1, 7)]
    for shorter, longer in pairwise(chains):
        assert extends(longer, shorter)
        assert len(longer.hashes) > len(shorter.hashes)


@pytest.mark.parametrize("dialect", GENERATING)
def test_another_beginning_has_nothing_in_common(dialect: Dialect) -> None:
    one, other = (chain(dialect, conversation(dialect, first, LONG)) for first in ("a", "b"))
    assert not set(one.hashes) & set(other.hashes)


@pytest.mark.parametrize("dialect", GENERATING)
def test_another_end_has_the_beginning_in_common(dialect: Dialect) -> None:
    one, other = (chain(dialect, conversation(dialect, LONG, last)) for last in (LONG, OTHER))
    assert one.hashes[:3] == other.hashes[:3]
    assert one.hashes[-1] != other.hashes[-1]


@pytest.mark.parametrize("dialect", GENERATING)
@pytest.mark.parametrize(
    "changes",
    [
        {"cache_salt": "mine"},
        {"chat_template": "{{ messages }}"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "low"},
        {"reasoning": {"effort": "low"}},
        {"add_special_tokens": False},
        {"truncate_prompt_tokens": 100},
    ],
)
def test_what_changes_the_first_block_changes_all(dialect: Dialect, changes: dict[str, Any]) -> None:
    body = conversation(dialect, LONG)
    assert not set(chain(dialect, body).hashes) & set(chain(dialect, {**body, **changes}).hashes)


@pytest.mark.parametrize("dialect", GENERATING)
def test_a_model_and_a_salt_have_chains_of_their_own(dialect: Dialect) -> None:
    body = conversation(dialect, LONG)
    named = [("m", b""), ("m/adapter", b""), ("m", b"alice"), ("m", b"bob"), ("ma", b"lice")]
    firsts = {chain(dialect, body, model, salt).hashes[0] for model, salt in named}
    assert len(firsts) == len(named)


@pytest.mark.parametrize(
    ("dialect", "changes"),
    [
        ("chat", {"tools": [TOOL]}),
        ("chat", {"documents": [{"title": "t", "text": LONG}]}),
        ("responses", {"tools": [TOOL]}),
        ("responses", {"instructions": LONG}),
        ("messages", {"tools": [TOOL]}),
        ("messages", {"system": LONG}),
        ("messages", {"system": [{"type": "text", "text": LONG}]}),
    ],
)
def test_tools_and_system_come_before_the_turns(dialect: Dialect, changes: dict[str, Any]) -> None:
    one, other = (chain(dialect, {**conversation(dialect, text), **changes}) for text in (LONG, OTHER))
    assert one.hashes[:3] == other.hashes[:3]
    assert one.hashes != other.hashes
    assert not set(one.hashes) & set(chain(dialect, conversation(dialect, LONG)).hashes)


@pytest.mark.parametrize("dialect", GENERATING)
@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.3, "stream": True, "user": "u", "seed": 3, "metadata": {"a": "b"}},
        {"max_tokens": 7, "stop": ["x"], "logprobs": None},
        {"tools": [], "prompt_logprobs": None, "echo": False},
    ],
)
def test_how_it_is_sampled_is_no_part_of_the_prompt(dialect: Dialect, changes: dict[str, Any]) -> None:
    body = conversation(dialect, LONG)
    assert chain(dialect, {**changes, **body}) == chain(dialect, body)


def test_tool_calls_and_results_are_part_of_it() -> None:
    turns = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": LONG}}]},
        {"role": "tool", "tool_call_id": "1", "content": LONG},
    ]
    chains = [chain("chat", {"messages": turns[:n]}) for n in (1, 2, 3)]
    assert extends(chains[1], chains[0])
    assert extends(chains[2], chains[1])
    assert len({len(found.hashes) for found in chains}) == 3


def test_where_a_caller_has_its_cache_end_is_no_part_of_it() -> None:
    """Anthropic's clients mark the last block of the last message, and that moves with every turn."""
    mark = {"cache_control": {"type": "ephemeral"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": LONG}
    picture = {"type": "image", "source": {"type": "base64", "data": PICTURE}}
    question = {"type": "text", "text": LONG}
    for piece in (result, {**result, "content": [question, picture]}, picture, question):
        first = {"messages": [{"role": "user", "content": [{**piece, **mark}]}]}
        second = {
            "messages": [
                {"role": "user", "content": [piece]},
                {"role": "assistant", "content": LONG},
                {"role": "user", "content": [{"type": "text", "text": "more", **mark}]},
            ]
        }
        assert extends(chain("messages", second), chain("messages", first))


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PICTURE}},
        {"type": "input_image", "image_url": PICTURE},
        {"type": "image", "source": {"type": "base64", "data": PICTURE}},
        {"type": "input_audio", "input_audio": {"data": PICTURE}},
        {"type": "tool_result", "content": [{"type": "image", "source": {"type": "base64", "data": PICTURE}}]},
    ],
)
def test_a_picture_is_as_long_as_2_kib_of_text(part: dict[str, Any]) -> None:
    """Not as its 550 kB; another one is another prompt from there on."""
    content = [{"type": "text", "text": LONG}, part]
    seen = chain("chat", {"messages": [{"role": "user", "content": content}]})
    assert 2048 + 900 < seen.size < 2048 + 1100
    other = orjson.loads(orjson.dumps(content).replace(b"GgoiVB", b"GgoiVC"))
    changed = chain("chat", {"messages": [{"role": "user", "content": other}]})
    assert changed.hashes[:3] == seen.hashes[:3]
    assert changed.hashes[-1] != seen.hashes[-1]


def test_token_ids_are_as_long_as_their_text() -> None:
    ids = list(range(1000, 1200))
    seen = chain("completions", {"prompt": ids})
    assert (seen.size, len(seen.hashes)) == (800, 3)
    assert extends(chain("completions", {"prompt": [*ids, *range(100)]}), seen)
    assert chain("completions", {"prompt": [ids]}) == seen
    assert not set(chain("completions", {"prompt": [1, *ids]}).hashes) & set(seen.hashes)


def test_two_prompts_are_not_one() -> None:
    ids = list(range(1000, 1200))
    one, two = chain("completions", {"prompt": ids}), chain("completions", {"prompt": [ids[:50], ids[50:]]})
    assert not set(one.hashes) & set(two.hashes)
    texts = [LONG, OTHER]
    assert chain("completions", {"prompt": texts}).size > 1800
    assert chain("completions", {"prompt": texts}).hashes != chain("completions", {"prompt": texts[::-1]}).hashes


def test_several_conversations_in_one_request_count_in_full() -> None:
    batch = {"messages": [[{"role": "user", "content": LONG}], [{"role": "user", "content": OTHER}]]}
    assert chain("chat", batch).size > 1800


@pytest.mark.parametrize("dialect", GENERATING)
@pytest.mark.parametrize("changes", [{"prompt_logprobs": 1}, {"prompt_logprobs": 0}, {"echo": True}])
def test_a_prompt_of_which_vllm_reads_nothing_from_its_cache_has_no_blocks(
    dialect: Dialect, changes: dict[str, Any]
) -> None:
    body = conversation(dialect, LONG)
    assert chain(dialect, {**body, **changes}) == Chain((), CUTS, chain(dialect, body).size)


@pytest.mark.parametrize("dialect", ["embeddings", "pooling", "tokens"])
def test_what_is_not_cached_has_no_blocks_and_the_size_of_its_body(dialect: Dialect) -> None:
    assert chain(dialect, {"input": LONG}) == Chain((), CUTS, 7)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": LONG}]}),
        ("/v1/responses", {"input": LONG, "previous_response_id": "resp_1"}),
    ],
)
def test_what_computes_no_prompt_of_its_own_has_no_blocks(path: str, body: dict[str, Any]) -> None:
    """The one only counts; of the other the prompt begins with what the engine keeps, which we do not see."""
    raw = orjson.dumps({"model": "m", **body})
    call = parse_call(ENDPOINTS[path], raw)
    assert isinstance(call, Call)
    assert call.chain == Chain((), CUTS, len(raw))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, 6),
        ({"max_output_tokens": 7}, 7),
        ({"max_tokens": 0}, None),
        ({"max_tokens": -3}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": "9"}, None),
        ({"max_tokens": 2.5}, None),
        ({"max_tokens": 10**30}, 10**30),
    ],
)
def test_the_longest_output_that_is_wanted(payload: dict[str, object], expected: int | None) -> None:
    assert most_output_tokens("chat", payload) == expected


@pytest.mark.parametrize(
    ("dialect", "payload", "expected"),
    [
        ("chat", {}, 1),
        ("chat", {"n": 3}, 3),
        ("chat", {"n": 0}, 1),
        ("chat", {"n": True}, 1),
        ("chat", {"n": "4"}, 1),
        ("chat", {"n": 10**30}, 128),
        ("chat", {"n": 2, "messages": [{"role": "user"}, {"role": "user"}]}, 2),
        ("chat", {"messages": [[{"role": "user"}], [{"role": "user"}]]}, 2),  # a batch of conversations
        ("completions", {"n": 2, "best_of": 4, "prompt": "a"}, 4),
        ("completions", {"n": 2, "prompt": ["a", "b", "c"]}, 6),
        ("completions", {"prompt": [1, 2, 3]}, 1),
        ("completions", {"prompt": [[1, 2], [3]]}, 2),
        ("responses", {"input": ["a", "b"]}, 1),
    ],
)
def test_how_many_answers_are_computed_at_once(dialect: Dialect, payload: dict[str, object], expected: int) -> None:
    assert answers_wanted(dialect, payload) == expected


def _nested(depth: int) -> Any:
    made: Any = []
    for _ in range(depth):
        made = [made]
    return made


NAMES = st.sampled_from(
    [
        *("messages", "prompt", "input", "tools", "system", "instructions", "documents", "role", "content", "type"),
        *("text", "image_url", "cache_salt", "chat_template", "chat_template_kwargs", "echo", "prompt_logprobs"),
        "cache_control",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["\ud800", "\udfff tail", "text", "image", "tool_result", "\x1e\x1f\x1d"])
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=5)
)


@pytest.mark.parametrize("dialect", GENERATING)
@given(payload=st.dictionaries(NAMES, JSON, max_size=6), more=JSON)
def test_it_never_fails_and_an_appended_turn_extends_it(dialect: Dialect, payload: dict[str, Any], more: Any) -> None:
    seen = chain(dialect, payload)
    assert seen == chain(dialect, copy.deepcopy(payload))
    name = "input" if dialect == "responses" else "messages"
    turns = payload.get(name)
    if dialect != "completions" and isinstance(turns, list) and turns:
        longer = chain(dialect, {**payload, name: [*turns, more]})
        assert longer.hashes[: len(seen.hashes)] == seen.hashes


@pytest.mark.parametrize("dialect", GENERATING)
@pytest.mark.parametrize(
    "name", ["messages", "prompt", "input", "tools", "system", "chat_template_kwargs", "reasoning"]
)
@pytest.mark.parametrize("value", [_nested(300), _nested(1000), {"a": _nested(1000)}, 2**80, [2**80, -1], ["\ud800"]])
def test_odd_values_anywhere(dialect: Dialect, name: str, value: object) -> None:
    read_chain(dialect, "m\ud800", {name: value}, 1)
    read_chain(dialect, "m", {"messages": [{"role": "user", "content": [value, {name: value}], name: value}]}, 1)


def test_the_order_of_keys_matters_to_nobody_but_the_chain() -> None:
    """Clients keep theirs; two orders are two chains, which costs a hit and is never wrong."""
    one = {"messages": [{"role": "user", "content": LONG}]}
    other = {"messages": [{"content": LONG, "role": "user"}]}
    assert chain("chat", one).size == chain("chat", other).size
    assert chain("chat", {**one, "model": "m"}) == chain("chat", {"model": "m", **one})
