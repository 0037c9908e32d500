"""The real Anthropic SDK, by base URL alone, against real engines."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.integration.stack import KEY, MODEL, Stack

pytestmark = pytest.mark.engine
QUESTION = "What is the capital of France?"
GREEDY = {"temperature": 0}  # the SDK dropped the argument in 2.x; the API here takes it


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=stack.url, api_key=KEY, max_retries=0) as sdk:
        yield sdk


def test_message_answers(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=20, extra_body=GREEDY, messages=[{"role": "user", "content": QUESTION}]
    )
    assert message.content[0].type == "text"
    assert "Paris" in message.content[0].text
    assert message.usage.input_tokens > 20
    assert 5 < message.usage.output_tokens <= 20


def test_message_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=20, extra_body=GREEDY, messages=[{"role": "user", "content": QUESTION}]
    ) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 3
    assert "Paris" in "".join(pieces)
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens >= len(pieces)


def test_count_tokens(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": QUESTION}])
    message = client.messages.create(model=MODEL, max_tokens=1, messages=[{"role": "user", "content": QUESTION}])
    assert counted.input_tokens == message.usage.input_tokens


def test_a_tool_call_is_streamed_as_the_engine_makes_it(client: anthropic.Anthropic) -> None:
    tool: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    events = client.messages.create(
        model=MODEL,
        max_tokens=30,
        extra_body=GREEDY,
        messages=[{"role": "user", "content": "The weather in Paris?"}],
        tools=[tool],
        tool_choice={"type": "tool", "name": "weather"},
        stream=True,
    )
    blocks = [event.content_block for event in events if event.type == "content_block_start"]
    assert [(block.type, getattr(block, "name", None)) for block in blocks] == [("tool_use", "weather")]


def test_models_in_pages(client: anthropic.Anthropic) -> None:
    page = client.models.list(limit=1)
    assert [model.id for model in page.data] == [MODEL]
    assert not page.has_more
    assert client.models.list(after_id=MODEL).data == []
    with pytest.raises(anthropic.BadRequestError, match="limit"):
        client.models.list(limit=0)


def test_models_in_anthropics_shape(client: anthropic.Anthropic) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == [MODEL]
    assert models[0].type == "model"


def test_unknown_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as raised:
        client.messages.create(model="claude", max_tokens=1, messages=[{"role": "user", "content": "hi"}])
    assert raised.value.body == {
        "type": "error",
        "error": {"type": "not_found_error", "message": "model 'claude' is not served here; available: smollm2"},
        "request_id": raised.value.request_id,
    }


def test_missing_field_is_anthropics_error_though_the_engine_speaks_openai(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as raised:
        client.post("/v1/messages", body={"model": MODEL, "messages": []}, cast_to=object)
    assert isinstance(raised.value.body, dict)
    assert raised.value.body["error"]["type"] == "invalid_request_error"
    assert "max_tokens" in raised.value.body["error"]["message"]


def test_the_older_key_header_works_too(stack: Stack) -> None:
    with anthropic.Anthropic(
        base_url=stack.url, api_key="unused", max_retries=0, default_headers={"authorization": "", "x-api-key": KEY}
    ) as sdk:
        assert [model.id for model in sdk.models.list()] == [MODEL]
