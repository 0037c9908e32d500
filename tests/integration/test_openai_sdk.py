"""The real OpenAI SDK, by base URL alone, against real engines."""

from collections.abc import Iterator

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
