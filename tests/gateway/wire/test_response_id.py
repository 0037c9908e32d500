import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import read_response_id
from tests.gateway.harness import golden, golden_events


@pytest.mark.parametrize("name", ["responses", "responses_tools", "responses_reasoning", "responses_schema"])
def test_of_a_recorded_stream(name: str) -> None:
    stream = golden(name)
    found = read_response_id(stream)
    assert found is not None
    assert stream.count(f'"response":{{"id":"{found}"'.encode()) == 3  # created, in progress, completed


def test_its_first_event_is_enough() -> None:
    assert read_response_id(golden_events("responses")[0]) == read_response_id(golden("responses"))


@pytest.mark.parametrize(
    "data",
    [
        b'{"id":"resp_1","output":[{"id":"msg_2"}]}',
        b'{ "id" : "resp_1" }',
        b'{"output":[{"id":"msg_2"}],"id":"resp_1"}',
        b'{"id":"resp\\u005f1"}',
        b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_1"}}\n\n',
        b'event: response.created\ndata: {"sequence_number":0,"response":{"object":"response","id":"resp_1"}}\n\n',
        b': ping\n\nevent: response.created\r\ndata: {"response": {"id": "resp_1"}}\r\n\r\n',
    ],
)
def test_wherever_it_stands(data: bytes) -> None:
    assert read_response_id(data) == "resp_1"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"id":7}',
        b'{"id":""}',
        b"data: [DONE]\n\n",
        b"<html>",
        b": ping\n\n",
        b'{"output":[{"id":"m"}]}',
    ],
)
def test_where_there_is_none(data: bytes) -> None:
    assert read_response_id(data) is None


@given(st.text(min_size=1, max_size=30))
def test_whatever_the_id_is(name: str) -> None:
    assert read_response_id(json.dumps({"id": name}).encode()) == name
    assert read_response_id(b"data: " + json.dumps({"response": {"id": name}}).encode() + b"\n\n") == name
