"""Responses that an engine keeps: read, cancelled and gone on from only where they were made."""

import json
from contextlib import ExitStack
from typing import Any

import httpx2
import openai
import pytest

from gateway.identity import new_key
from tests.fake_engine import FakeEngine, Script, json_answer
from tests.gateway.harness import Door, door_before, golden, golden_events, stream_of, wait_until
from tests.gateway.test_continuation import stream_of as stream_in_pieces
from tests.gateway.test_resumption import PIECES, body_of, broken, continuing

PATH = "/v1/responses"


def _response(name: str) -> dict[str, Any]:
    usage = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    return {"id": name, "object": "response", "status": "completed", "output": [], "usage": usage}


def _make(door: Door, engine: FakeEngine, name: str = "resp_1", key: str = "x") -> None:
    engine.enqueue(json_answer(_response(name)))
    assert door.post(PATH, {"model": "fake", "input": "hi"}, x_api_key=key).status_code == 200


def _error(answer: httpx2.Response, status: int, code: str) -> str:
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    message: str = error["message"]
    return message


def test_all_that_is_about_a_response_goes_to_its_replica(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    _make(pair, fake, "resp_a")
    _make(pair, second, "resp_b")  # they take turns
    for _ in range(3):
        second.enqueue(json_answer(_response("resp_b")), json_answer(_response("resp_b")), json_answer(_response("c")))
        assert pair.get(f"{PATH}/resp_b").json() == _response("resp_b")
        assert pair.post(f"{PATH}/resp_b/cancel").status_code == 200
        later = {"model": "fake", "input": "and?", "previous_response_id": "resp_b"}
        assert pair.post(PATH, later).headers["x-berth-replica"] == "e1"
    assert len(fake.seen) == 1
    lines = [seen.line for seen in second.seen[1:]]
    assert lines == ["GET /v1/responses/resp_b", "POST /v1/responses/resp_b/cancel", "POST /v1/responses"] * 3
    assert pair.is_at_rest


def test_the_id_of_a_stream_is_known_by_its_first_event(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    name = json.loads(golden_events("responses")[0].partition(b"data: ")[2])["response"]["id"]
    fake.enqueue(stream_of("responses"))
    answer = pair.post(PATH, {"model": "fake", "input": "hi", "stream": True})
    assert answer.content == golden("responses")
    fake.enqueue(json_answer(_response(name)))
    assert pair.get(f"{PATH}/{name}").headers["x-berth-replica"] == "e0"
    assert second.seen == []


def test_a_response_that_another_replica_ended_is_kept_by_nobody(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    fake.enqueue(broken("responses", stream_in_pieces("responses", PIECES, "stop")[:6], "killed"))
    second.reply = continuing()
    answer = pair.post(PATH, body_of("responses"))
    assert b"response.completed" in answer.content
    wait_until(lambda: pair.gateway.pool.replicas[0].state == "ready")
    asked = len(fake.seen), len(second.seen)
    for lost in (pair.get(f"{PATH}/first"), pair.post(f"{PATH}/first/cancel")):
        assert "e0 failed in the middle of it" in _error(lost, 404, "response_not_found")
    later = {"model": "fake", "input": "and?", "previous_response_id": "first"}
    assert "as 'input'" in _error(pair.post(PATH, later), 404, "previous_response_not_found")
    assert (len(fake.seen), len(second.seen)) == asked
    assert pair.is_at_rest


def test_a_kept_stream_is_taken_up_where_it_was_left(fake: FakeEngine, door: Door) -> None:
    _make(door, fake)
    rest = golden_events("responses")[3:]
    fake.enqueue(Script(chunks=tuple((0.0, data) for data in rest)))
    answer = door.get(f"{PATH}/resp_1?stream=true&starting_after=2")
    assert answer.content == b"".join(rest)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert fake.seen[1].line == "GET /v1/responses/resp_1?stream=true&starting_after=2"


def test_reading_again_is_neither_usage_nor_a_first_token(fake: FakeEngine, door: Door) -> None:
    _make(door, fake)
    fake.enqueue(json_answer(_response("resp_1")), stream_of("responses"))
    door.get(f"{PATH}/resp_1")
    door.get(f"{PATH}/resp_1?stream=true")
    wait_until(lambda: door.total("berth_requests_total", outcome="ok") == 3)
    assert door.total("berth_output_tokens_total") == 2
    assert door.total("berth_time_to_first_token_seconds_count") == 0
    assert door.total("berth_request_duration_seconds_count") == 1


def test_an_unknown_response(fake: FakeEngine, door: Door) -> None:
    for answer in (door.get(f"{PATH}/resp_x"), door.post(f"{PATH}/resp_x/cancel")):
        assert "'resp_x' not found" in _error(answer, 404, "response_not_found")
        assert answer.headers["x-should-retry"] == "false"
    body = {"model": "fake", "input": "hi", "previous_response_id": "resp_x"}
    assert "as 'input'" in _error(door.post(PATH, body), 404, "previous_response_not_found")
    assert fake.seen == []
    assert door.is_at_rest


def test_a_response_that_the_engine_did_not_keep(fake: FakeEngine, door: Door) -> None:
    _make(door, fake)
    error = {"message": "Response with id 'resp_1' not found.", "param": "response_id", "code": 404}
    fake.enqueue(json_answer({"error": error}, 404))
    assert "VLLM_ENABLE_RESPONSES_API_STORE=1" in _error(door.get(f"{PATH}/resp_1"), 404, "response_not_found")


def test_another_callers_response_is_unknown(fake: FakeEngine, stack: ExitStack) -> None:
    (alices, alice), (bobs, bob) = new_key("alice"), new_key("bob")
    door = stack.enter_context(door_before(fake, keys=(alice, bob)))
    _make(door, fake, key=alices)
    _error(door.get(f"{PATH}/resp_1", x_api_key=bobs), 404, "response_not_found")
    _error(door.get(f"{PATH}/resp_1"), 401, "missing_api_key")
    fake.enqueue(json_answer(_response("resp_1")))
    assert door.get(f"{PATH}/resp_1", x_api_key=alices).status_code == 200


def test_while_its_replica_is_away_no_other_is_asked(fake: FakeEngine, second: FakeEngine, pair: Door) -> None:
    _make(pair, fake)
    fake.healthy = False
    wait_until(lambda: pair.gateway.pool.replicas[0].state == "unhealthy")
    answer = pair.get(f"{PATH}/resp_1")
    assert "e0" in _error(answer, 503, "not_ready")
    assert answer.headers["retry-after"] == "5"
    assert second.seen == []


def test_a_replica_that_breaks_is_not_replaced_by_one_that_cannot_know(
    fake: FakeEngine, second: FakeEngine, pair: Door
) -> None:
    _make(pair, fake)
    fake.enqueue(Script(ending="drop"))
    assert pair.get(f"{PATH}/resp_1").status_code == 502
    assert second.seen == []
    wait_until(lambda: pair.is_at_rest)


def test_one_whose_connection_just_broke_may_still_have_it(
    fake: FakeEngine, second: FakeEngine, stack: ExitStack
) -> None:
    pair = stack.enter_context(door_before(fake, second, probe_interval_s=600))
    _make(pair, fake)
    fake.healthy = False
    fake.enqueue(Script(chunks=((0.0, b""),), ending="drop"), json_answer({"id": "resp_1"}))
    answer = pair.get(f"{PATH}/resp_1?stream=true")  # as vLLM 0.32 does where it was no stream
    assert "made with background and stream" in _error(answer, 502, "engine_failed")
    assert pair.gateway.pool.replicas[0].is_suspect
    assert pair.get(f"{PATH}/resp_1").json() == {"id": "resp_1"}


def test_a_model_that_is_not_served_is_so_whatever_it_goes_on_from(fake: FakeEngine, door: Door) -> None:
    _make(door, fake)
    _error(door.post(PATH, {"model": "nope", "previous_response_id": "resp_1"}), 404, "model_not_found")


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
def test_what_cannot_be_done_with_a_response(door: Door, method: str) -> None:
    with door.client() as client:
        answer = client.request(method, f"{PATH}/resp_1")
    _error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


def test_the_sdk_retrieves_streams_and_cancels(fake: FakeEngine, door: Door) -> None:
    _make(door, fake)
    fake.enqueue(json_answer(_response("resp_1")), stream_of("responses"), json_answer(_response("resp_1")))
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key="x", max_retries=0) as client:
        assert client.responses.retrieve("resp_1").status == "completed"
        events = list(client.responses.retrieve("resp_1", stream=True, starting_after=0))
        assert events[-1].type == "response.completed"
        assert client.responses.cancel("resp_1").id == "resp_1"
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.retrieve("resp_2")
    assert caught.value.code == "response_not_found"
    assert fake.seen[2].line == "GET /v1/responses/resp_1?starting_after=0&stream=true"
