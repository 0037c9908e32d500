"""The real `openai` and `anthropic` SDKs against the door: what they return, what they raise, when they retry."""

from collections.abc import Iterator
from contextlib import ExitStack

import anthropic
import openai
import pytest

from gateway.identity import new_key
from tests.fake_engine import FakeEngine, Script, chat_chunk, chat_stream, json_answer
from tests.gateway.harness import Door, door_before, stream_of, wait_until

COMPLETION = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "fake",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
MESSAGE = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "fake",
    "content": [{"type": "text", "text": "Paris."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
BUSY = json_answer({"error": {"message": "engine is currently busy", "code": 503}}, 503)
TOO_LONG = json_answer({"error": {"message": "maximum context length is 8", "param": "input_tokens", "code": 400}}, 400)


@pytest.fixture
def openai_client(door: Door) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK, its retries off so that a test sees the first answer."""
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(door: Door) -> Iterator[anthropic.Anthropic]:
    """Anthropic's SDK, likewise."""
    with anthropic.Anthropic(base_url=door.url, api_key="x", max_retries=0) as client:
        yield client


def _ask_openai(client: openai.OpenAI, model: str = "fake") -> str | None:
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    return answer.choices[0].message.content


def _ask_anthropic(client: anthropic.Anthropic, model: str = "fake") -> anthropic.types.Message:
    return client.messages.create(model=model, max_tokens=4, messages=[{"role": "user", "content": "hi"}])


# Answers
def test_openai_chat(fake: FakeEngine, openai_client: openai.OpenAI) -> None:
    fake.enqueue(json_answer(COMPLETION))
    assert _ask_openai(openai_client) == "Paris."


def test_openai_chat_stream(fake: FakeEngine, openai_client: openai.OpenAI) -> None:
    fake.enqueue(stream_of("chat"))
    stream = openai_client.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "The capital of France is"
    assert all(chunk.usage is None for chunk in chunks)


def test_openai_completions_stream(fake: FakeEngine, openai_client: openai.OpenAI) -> None:
    fake.enqueue(stream_of("completions"))
    chunks = openai_client.completions.create(model="fake", prompt="hi", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == " Paris.\n\n"


def test_openai_responses_stream(fake: FakeEngine, openai_client: openai.OpenAI) -> None:
    fake.enqueue(stream_of("responses"))
    events = list(openai_client.responses.create(model="fake", input="hi", stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "The capital of France"
    assert events[-1].type == "response.completed"


def test_openai_embeddings(fake: FakeEngine, openai_client: openai.OpenAI) -> None:
    row = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    fake.enqueue(json_answer({"object": "list", "model": "fake", "data": [row], "usage": {"prompt_tokens": 1}}))
    answer = openai_client.embeddings.create(model="fake", input="hi", encoding_format="float")
    assert answer.data[0].embedding == [0.5, 0.25]


def test_anthropic_message(fake: FakeEngine, anthropic_client: anthropic.Anthropic) -> None:
    fake.enqueue(json_answer(MESSAGE))
    answer = _ask_anthropic(anthropic_client)
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "Paris."
    assert answer._request_id is not None


def test_anthropic_stream(fake: FakeEngine, anthropic_client: anthropic.Anthropic) -> None:
    fake.enqueue(stream_of("messages"))
    with anthropic_client.messages.stream(
        model="fake", max_tokens=4, messages=[{"role": "user", "content": "hi"}]
    ) as stream:
        assert "".join(stream.text_stream) == "The capital of France"
        assert stream.get_final_message().usage.output_tokens == 4


def test_anthropic_count_tokens(fake: FakeEngine, anthropic_client: anthropic.Anthropic) -> None:
    fake.enqueue(json_answer({"input_tokens": 31}))
    count = anthropic_client.messages.count_tokens(model="fake", messages=[{"role": "user", "content": "hi"}])
    assert count.input_tokens == 31


# The models, in either shape
def test_openai_lists_and_retrieves_models(openai_client: openai.OpenAI) -> None:
    (model,) = openai_client.models.list()
    assert (model.id, model.object, model.owned_by) == ("fake", "model", "berth")
    assert model.created > 1_700_000_000
    assert openai_client.models.retrieve("fake") == model
    with pytest.raises(openai.NotFoundError, match="available: fake") as caught:
        openai_client.models.retrieve("nope")
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id is not None


def test_anthropic_lists_and_retrieves_models(anthropic_client: anthropic.Anthropic) -> None:
    (model,) = anthropic_client.models.list()
    assert (model.id, model.type, model.display_name, model.max_input_tokens) == ("fake", "model", "fake", 4096)
    assert model.created_at.tzinfo is not None
    assert anthropic_client.models.retrieve("fake") == model
    with pytest.raises(anthropic.NotFoundError, match="available: fake") as caught:
        anthropic_client.models.retrieve("nope")
    assert caught.value.request_id is not None


def test_a_model_with_a_slash_in_its_name(fake: FakeEngine, stack: ExitStack) -> None:
    fake.models = ("Qwen/Qwen3-0.6B",)
    door = stack.enter_context(door_before(fake))
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="x") as client:
        assert client.models.retrieve("Qwen/Qwen3-0.6B").id == "Qwen/Qwen3-0.6B"
        fake.enqueue(json_answer(COMPLETION))
        assert _ask_openai(client, "Qwen/Qwen3-0.6B") == "Paris."


# Errors
def test_openai_unknown_model(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        _ask_openai(openai_client, "nope")
    error = caught.value
    assert (error.status_code, error.code, error.param, error.type) == (
        404,
        "model_not_found",
        "model",
        "not_found_error",
    )
    assert str(error.request_id).startswith("req_")


def test_openai_context_too_long(fake: FakeEngine, openai_client: openai.OpenAI) -> None:
    fake.enqueue(TOO_LONG)
    with pytest.raises(openai.BadRequestError) as caught:
        _ask_openai(openai_client)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input_tokens")


def test_anthropic_context_too_long(fake: FakeEngine, anthropic_client: anthropic.Anthropic) -> None:
    fake.enqueue(TOO_LONG)
    with pytest.raises(anthropic.BadRequestError, match="maximum context length") as caught:
        _ask_anthropic(anthropic_client)
    assert caught.value.type == "invalid_request_error"
    assert str(caught.value.request_id).startswith("req_")


def test_anthropic_unknown_model(anthropic_client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="available: fake") as caught:
        _ask_anthropic(anthropic_client, "nope")
    assert caught.value.type == "not_found_error"


def test_both_busy(fake: FakeEngine, openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic) -> None:
    fake.enqueue(BUSY, BUSY)
    with pytest.raises(openai.InternalServerError) as busy:
        _ask_openai(openai_client)
    assert busy.value.status_code == 503
    with pytest.raises(anthropic.APIStatusError) as overloaded:
        _ask_anthropic(anthropic_client)
    assert (overloaded.value.status_code, overloaded.value.type) == (503, "overloaded_error")


def test_both_too_large(fake: FakeEngine, stack: ExitStack) -> None:
    door = stack.enter_context(door_before(fake, max_body_bytes=1000))
    text = "x" * 2000
    with (
        openai.OpenAI(base_url=f"{door.url}/v1", api_key="x") as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": text}])
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    with anthropic.Anthropic(base_url=door.url, api_key="x") as other, pytest.raises(anthropic.RequestTooLargeError):
        other.messages.create(model="fake", max_tokens=1, messages=[{"role": "user", "content": text}])


def test_both_keys(fake: FakeEngine, stack: ExitStack) -> None:
    key, stored = new_key("alice")
    door = stack.enter_context(door_before(fake, keys=(stored,)))
    fake.enqueue(json_answer(COMPLETION), json_answer(MESSAGE))
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key=key) as client:
        assert _ask_openai(client) == "Paris."
        assert [model.id for model in client.models.list()] == ["fake"]
    with anthropic.Anthropic(base_url=door.url, api_key=key) as other:
        assert _ask_anthropic(other).stop_reason == "end_turn"
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            _ask_openai(client)
        assert caught.value.code == "invalid_api_key"
    with anthropic.Anthropic(base_url=door.url, api_key="wrong") as other:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            _ask_anthropic(other)
        assert refused.value.type == "authentication_error"


# Retries
def test_the_sdk_retries_what_may_pass_and_succeeds(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(BUSY, json_answer(COMPLETION))
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="x", max_retries=1) as client:
        assert _ask_openai(client) == "Paris."
    assert len(fake.seen) == 2


def test_the_sdk_does_not_retry_what_cannot_pass(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(json_answer({"error": "Unauthorized"}, 401))  # a 502 to the caller, but with x-should-retry: false
    client = openai.OpenAI(base_url=f"{door.url}/v1", api_key="x", max_retries=2)
    with client, pytest.raises(openai.InternalServerError):
        _ask_openai(client)
    assert len(fake.seen) == 1


def test_the_sdk_never_retries_a_stream_that_has_begun(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(chunks=((0.0, chat_chunk({"content": "x"})),), ending="drop"))
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="x", max_retries=2) as client:
        stream = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi"}], stream=True)
        with pytest.raises(openai.APIError, match="the engine failed during the answer"):
            list(stream)
    assert len(fake.seen) == 1


def test_tool_calls_reasoning_and_unknown_fields_pass_through(fake: FakeEngine, openai_client: openai.OpenAI) -> None:
    call = {"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chunks = (chat_chunk({"reasoning": "hm"}), chat_chunk({"tool_calls": [call]}), chat_chunk({"novelty": [1]}))
    fake.enqueue(Script(chunks=(*((0.0, chunk) for chunk in chunks), (0.0, b"data: [DONE]\n\n"))))
    stream = openai_client.chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "hi"}], stream=True, extra_body={"top_k": 3}
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert deltas[0].model_extra == {"reasoning": "hm"}
    assert deltas[1].tool_calls is not None
    assert deltas[2].model_extra == {"novelty": [1]}
    assert b'"top_k":3' in fake.seen[0].body.replace(b" ", b"")


async def test_async_clients_that_stop_reading_free_the_engine(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(chunks=chat_stream().chunks[:2], ending="hang"))
    async with openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="x") as client:
        stream = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        async for _ in stream:
            break
        await stream.close()
    wait_until(lambda: fake.seen[0].aborted)
    wait_until(lambda: door.is_at_rest)
