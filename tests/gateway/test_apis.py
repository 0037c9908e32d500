"""Every API of an engine passes through the door: there and back byte for byte, counted, streamed where it can be."""

import pytest

from gateway.wire import ENDPOINTS
from tests.fake_engine import FakeEngine, Script, chat_chunk, event
from tests.gateway.forms import content_type, form
from tests.gateway.harness import Door, wait_until

JSON = [path for path, endpoint in ENDPOINTS.items() if endpoint.body == "json"]
FORMS = [path for path, endpoint in ENDPOINTS.items() if endpoint.body == "form"]


@pytest.mark.parametrize("path", JSON)
def test_there_and_back(fake: FakeEngine, door: Door, path: str) -> None:
    sent = b'{ "model":"fake", "query":"caf\\u00e9", "documents":["a",{"text":"b"}], "top_n" : 1.0, "novelty":null }'
    back = b'{ "usage": {"prompt_tokens":5},"results":[{"relevance_score":0.10}] }'
    fake.enqueue(Script(chunks=((0.0, back),), content_type="application/json", headers=(("metadata", "x"),)))
    answer = door.post(path, content=sent)
    assert (answer.status_code, answer.content) == (200, back)
    assert answer.headers["metadata"] == "x"  # where vLLM says what is in an answer that is not JSON
    assert (fake.seen[0].line, fake.seen[0].body) == (f"POST {path}", sent)
    assert door.is_at_rest


@pytest.mark.parametrize("path", [p for p in JSON if ENDPOINTS[p].dialect in ("pooling", "tokens")])
def test_what_is_counted(fake: FakeEngine, door: Door, path: str) -> None:
    back = b'{"usage":{"prompt_tokens":5,"total_tokens":5},"count":9}'
    fake.enqueue(Script(chunks=((0.0, back),), content_type="application/json"))
    door.post(path, {"model": "fake"})
    dialect = ENDPOINTS[path].dialect
    wait_until(lambda: door.total("berth_requests_total", dialect=dialect, outcome="ok") == 1)
    assert door.total("berth_prompt_tokens_total", dialect=dialect) == (5 if dialect == "pooling" else 0)


def test_vectors_come_back_as_the_bytes_they_are(fake: FakeEngine, door: Door) -> None:
    vectors = bytes(range(256)) * 9
    fake.enqueue(Script(chunks=((0.0, vectors),), content_type="application/octet-stream"))
    answer = door.post("/pooling", {"model": "fake", "encoding_format": "bytes"})
    assert (answer.content, answer.headers["content-type"]) == (vectors, "application/octet-stream")


@pytest.mark.parametrize("path", FORMS)
def test_a_recording_arrives_as_it_was_sent(fake: FakeEngine, door: Door, path: str) -> None:
    body = form({"model": "fake", "language": "en"})
    fake.enqueue(Script(chunks=((0.0, b'{"text":"hi"}'),), content_type="application/json"))
    answer = door.post(path, content=body, content_type=content_type(body))
    assert answer.json() == {"text": "hi"}
    assert fake.seen[0].body == body
    assert fake.seen[0].headers["Content-Type"] == content_type(body)


@pytest.mark.parametrize("path", FORMS)
def test_the_usage_of_a_transcript_is_known_and_not_shown_to_who_did_not_ask(
    fake: FakeEngine, door: Door, path: str
) -> None:
    words = [chat_chunk({"content": word}) for word in ("Hello", " there")]
    usage = event({"choices": [], "usage": {"prompt_tokens": 200, "completion_tokens": 2, "total_tokens": 202}})
    fake.enqueue(Script(chunks=tuple((0.0, data) for data in (*words, usage, b"data: [DONE]\n\n"))))
    body = form({"model": "fake", "stream": "true"})
    answer = door.post(path, content=body, content_type=content_type(body))
    assert answer.content == b"".join(words) + b"data: [DONE]\n\n"
    assert b'name="stream_include_usage"\r\n\r\ntrue' in fake.seen[0].body
    wait_until(lambda: door.total("berth_output_tokens_total", dialect="audio") == 2)
    assert door.total("berth_prompt_tokens_total", dialect="audio") == 200
    assert door.total("berth_time_to_first_token_seconds_count", dialect="audio") == 1


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model":"fake"}', 400, "invalid_form"),
        (form({"model": "nope"}), 404, "model_not_found"),
        (form({"language": "en"}), 400, None),
    ],
)
def test_a_form_that_cannot_be_taken(
    fake: FakeEngine, door: Door, path: str, body: bytes, status: int, code: str | None
) -> None:
    answer = door.post(path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert fake.seen == []


def test_an_api_that_this_model_has_not_is_said_in_words(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(Script(chunks=((0.0, b'{"detail":"Not Found"}'),), status=404, content_type="application/json"))
    answer = door.post("/v1/rerank", {"model": "fake", "query": "a", "documents": ["b"]})
    assert answer.status_code == 404
    assert "does not serve this API" in answer.json()["error"]["message"]


def test_what_the_engine_says_about_coming_back_reaches_the_caller(fake: FakeEngine, door: Door) -> None:
    fake.enqueue(
        Script(
            chunks=((0.0, b"busy"),),
            status=429,
            content_type="text/plain",
            headers=(("retry-after", "17"), ("x-should-retry", "true")),
        )
    )
    answer = door.post("/v1/messages", {"model": "fake", "max_tokens": 1, "messages": []})
    assert answer.json()["error"] == {"type": "rate_limit_error", "message": "busy"}
    assert (answer.headers["retry-after"], answer.headers["x-should-retry"]) == ("17", "true")
