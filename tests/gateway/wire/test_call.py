import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import ENDPOINTS, Call, Fault, parse_call
from tests.gateway.harness import PATHS, STREAMING, body_for

CHAT = ENDPOINTS["/v1/chat/completions"]


def _call(raw: bytes, path: str = CHAT.path) -> Call:
    call = parse_call(ENDPOINTS[path], raw)
    assert isinstance(call, Call)
    return call


def _fault(raw: bytes) -> Fault:
    fault = parse_call(CHAT, raw)
    assert isinstance(fault, Fault)
    return fault


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"{'model': 1}", "invalid_json", None),
        (b'{"model": NaN}', "invalid_json", None),
        (b"\xff\xfe{}", "invalid_json", None),
        (b"[" * 2000, "invalid_json", None),
        (b"[]", "invalid_type", None),
        (b'"text"', "invalid_type", None),
        (b"null", "invalid_type", None),
        (b"{}", None, "model"),
        (b'{"model": null}', None, "model"),
        (b'{"model": 7}', None, "model"),
        (b'{"model": ""}', None, "model"),
        (b'{"model": "m", "stream": "yes"}', None, "stream"),
        (b'{"model": "m", "stream": 1}', None, "stream"),
        (b'{"model": "m", "stream": true, "stream_options": 3}', None, "stream_options"),
        (b'{"model": "m", "stream": true, "stream_options": {"include_usage": "yes"}}', None, "stream_options"),
    ],
)
def test_bad_input_is_a_400_that_says_where(raw: bytes, code: str | None, param: str | None) -> None:
    fault = _fault(raw)
    assert (fault.status, fault.code, fault.param) == (400, code, param)
    assert fault.message
    assert "\n" not in fault.message


@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/messages/count_tokens"])
def test_an_unstreamed_body_goes_on_as_it_came(path: str) -> None:
    raw = b' { "model" : "m",  "extra": 1e400000, "model_": [ ] } '.replace(b"1e400000", b"1.50")
    call = _call(raw, path)
    assert (call.body, call.model, call.stream, call.strip_usage) == (raw, "m", False, False)


@pytest.mark.parametrize("dialect", STREAMING)
def test_a_stream_that_brings_usage_goes_on_as_it_came(dialect: str) -> None:
    raw = json.dumps(body_for(dialect, stream=True)).encode()  # type: ignore[arg-type]  # STREAMING holds dialects
    call = _call(raw, PATHS[dialect])  # type: ignore[index]
    assert (call.body, call.stream, call.strip_usage) == (raw, True, False)


def test_usage_is_asked_for_where_the_caller_did_not_and_nothing_else_changes() -> None:
    raw = b' {"model": "m", "stream": true, "seed": 123456789012345678901234567890, "t": 0.10, "s": "\\u00e9{"}'
    call = _call(raw)
    assert call.strip_usage
    assert call.body == b' {"stream_options":{"include_usage":true},' + raw.lstrip()[1:]
    assert json.loads(call.body) == {**json.loads(raw), "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}, {"other": 1}])
def test_usage_is_asked_for_beside_the_callers_own_stream_options(options: object) -> None:
    call = _call(json.dumps({"model": "m", "stream": True, "stream_options": options}).encode())
    assert call.strip_usage
    kept = {"other": 1} if options == {"other": 1} else {}
    assert json.loads(call.body)["stream_options"] == {**kept, "include_usage": True}


def test_our_asking_for_usage_does_not_switch_on_usage_in_every_event() -> None:
    options = {"continuous_usage_stats": True}  # vLLM obeys it only beside include_usage, which this caller did not set
    call = _call(json.dumps({"model": "m", "stream": True, "stream_options": options}).encode())
    assert json.loads(call.body)["stream_options"] == {"include_usage": True}


def test_a_body_nested_deeper_than_can_be_written_back_is_a_400() -> None:
    deep = b'{"model":"m","stream":true,"stream_options":{},"x":' + b"[" * 300 + b"]" * 300 + b"}"
    assert _fault(deep).code == "invalid_json"


def test_embeddings_and_count_tokens_never_stream() -> None:
    raw = b'{"model": "m", "stream": true}'
    assert not _call(raw, "/v1/embeddings").stream
    assert not _call(raw, "/v1/messages/count_tokens").stream


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,model stream tru1', max_size=40).map(str.encode))
def test_no_bytes_whatever_make_parsing_fail(raw: bytes) -> None:
    assert isinstance(parse_call(CHAT, raw), Call | Fault)
