"""The real OpenAI SDK, by base URL alone, against real engines."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.integration.stack import KEY, MODEL, Stack

pytestmark = pytest.mark.engine
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key=KEY, max_retries=0) as sdk:
        yield sdk


def test_chat_completion_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=20
    )
    assert "Paris" in str(answer.choices[0].message.content)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 20
    assert 5 < answer.usage.completion_tokens <= 20


def test_chat_stream_carries_usage_only_when_asked(client: openai.OpenAI) -> None:
    def words(**options: object) -> tuple[str, list[object]]:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=20,
            stream=True,
            **options,  # type: ignore[call-overload]  # the SDK types each combination of options by itself
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        return text, [c.usage for c in chunks if c.usage]

    text, usage = words()
    assert "Paris" in text
    assert usage == []
    text, usage = words(stream_options={"include_usage": True})
    assert "Paris" in text
    assert len(usage) == 1


def test_completion_both_ways(client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    whole = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=4)
    pieces = client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=4, stream=True)
    streamed = "".join(piece.choices[0].text for piece in pieces)
    assert streamed == whole.choices[0].text
    assert "Paris" in streamed


def test_responses_both_ways(client: openai.OpenAI) -> None:
    whole = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=20)
    assert "Paris" in whole.output_text
    events = list(
        client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=20, stream=True)
    )
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert "Paris" in text


def test_a_response_is_kept_read_and_gone_on_from_where_it_was_made(client: openai.OpenAI) -> None:
    """Two replicas, each with its own memory: every one of these must reach the right one."""
    for _ in range(4):
        first = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=20)
        assert client.responses.retrieve(first.id).output_text == first.output_text
        later = client.responses.create(
            model=MODEL, input="And of Italy?", previous_response_id=first.id, temperature=0, max_output_tokens=5
        )
        assert first.usage is not None
        assert later.usage is not None
        assert later.usage.input_tokens > first.usage.input_tokens + 20  # the conversation so far is in the prompt
        with pytest.raises(openai.BadRequestError, match="synchronous"):
            client.responses.cancel(first.id)


def test_a_background_response_is_followed_again_and_cancelled(client: openai.OpenAI) -> None:
    done = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=8, background=True, stream=True)
    events = list(done)
    assert events[0].type == "response.created"
    again = list(client.responses.retrieve(events[0].response.id, stream=True, starting_after=2))
    assert [event.type for event in again] == [event.type for event in events[3:]]
    long = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=1900, background=True)
    assert long.status in ("queued", "in_progress")
    assert client.responses.cancel(long.id).status == "cancelled"
    assert client.responses.retrieve(long.id).status == "cancelled"


def test_a_response_nobody_keeps(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.responses.retrieve("resp_0123")
    assert raised.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError) as raised:
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_0123")
    assert raised.value.code == "previous_response_not_found"
    unkept = client.responses.create(model=MODEL, input="hi", max_output_tokens=1, store=False)
    with pytest.raises(openai.NotFoundError, match="VLLM_ENABLE_RESPONSES_API_STORE"):
        client.responses.retrieve(unkept.id)


def test_tokens_there_and_back(client: openai.OpenAI) -> None:
    tokens = client.post("/../tokenize", body={"model": MODEL, "prompt": QUESTION}, cast_to=dict[str, Any])
    assert tokens["count"] == len(tokens["tokens"]) > 3
    text = client.post("/../detokenize", body={"model": MODEL, "tokens": tokens["tokens"]}, cast_to=dict[str, Any])
    assert text == {"prompt": QUESTION}


def test_a_tool_call_is_streamed_as_the_engine_makes_it(client: openai.OpenAI) -> None:
    function: Any = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "The weather in Paris?"}],
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        temperature=0,
        max_tokens=30,
        stream=True,
    )
    calls = [call for chunk in stream for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert calls[0].function is not None
    assert calls[0].function.name == "weather"


def test_logprobs_and_a_schema_and_what_only_vllm_has(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=40,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        extra_body={"structured_outputs": {"choice": ["Paris", "Rome"]}, "return_token_ids": True},
    )
    (choice,) = answer.choices
    assert choice.message.content in ("Paris", "Rome")
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert choice.model_extra is not None
    assert choice.model_extra["token_ids"]


def test_apis_that_this_model_does_not_have_say_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not serve this API"):
        client.post("/rerank", body={"model": MODEL, "query": "a", "documents": ["b"]}, cast_to=object)
    with pytest.raises(openai.NotFoundError, match="does not serve this API"):
        client.audio.transcriptions.create(model=MODEL, file=("a.wav", b"RIFF"))


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="available: smollm2") as raised:
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "hi"}])
    assert raised.value.code == "model_not_found"
    assert raised.value.request_id


def test_context_too_long_has_openais_own_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 5000}])
    assert raised.value.code == "context_length_exceeded"


def test_wrong_type_names_the_parameter(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            temperature="hot",  # type: ignore[call-overload]  # wrong on purpose
        )
    assert raised.value.param == "temperature"


def test_embeddings_of_a_model_that_has_none_is_a_clear_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="hi")


def test_wrong_key(stack: Stack) -> None:
    with (
        openai.OpenAI(base_url=f"{stack.url}/v1", api_key="wrong", max_retries=0) as sdk,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert raised.value.code == "invalid_api_key"
