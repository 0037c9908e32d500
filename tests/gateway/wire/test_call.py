import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import ENDPOINTS, Call, Fault, parse_call
from tests.gateway.harness import PATHS, STREAMING, body_for
from tests.gateway.wire.calls import parts

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


@pytest.mark.parametrize("path", [e.path for e in ENDPOINTS.values() if e.body == "json" and not e.streams])
def test_what_cannot_stream_never_does(path: str) -> None:
    raw = b'{"model": "m", "stream": true}'
    assert (_call(raw, path).stream, _call(raw, path).body) == (False, raw)


@pytest.mark.parametrize(("stream", "path"), [(False, CHAT.path), (True, CHAT.path), (True, PATHS["messages"])])
def test_a_byte_order_mark_is_taken_off(stream: bool, path: str) -> None:
    raw = json.dumps({"model": "m", "stream": stream}).encode()
    assert parts(_call(b"\xef\xbb\xbf" + raw, path)) == parts(_call(raw, path))


def test_one_byte_order_mark_and_no_more() -> None:
    assert _fault(b"\xef\xbb\xbf" * 5000 + b"{}").code == "invalid_json"


@pytest.mark.parametrize("space", [b" ", b"\t", b"\n\r\n ", b"\xef\xbb\xbf  "])
def test_a_body_that_begins_with_space_is_asked_for_its_usage_too(space: bytes) -> None:
    call = _call(space + b'{ "stream":true,"model":"m" }')
    assert json.loads(call.body) == {"stream": True, "model": "m", "stream_options": {"include_usage": True}}


def test_of_a_key_that_is_there_twice_the_last_one_counts_as_it_does_for_the_engine() -> None:
    raw = (
        b'{"model":"a","stream":true,"stream":false,"model":"b","previous_response_id":"x","previous_response_id":null}'
    )
    assert parts(_call(raw))[1:6] == ("b", False, raw, False, None)
    assert parts(_call(raw, PATHS["responses"]))[1:6] == ("b", False, raw, False, None)
    raw = b'{"model":"a","stream":true,"stream_options":null,"stream_options":{"include_usage":true}}'
    assert (_call(raw).body, _call(raw).strip_usage) == (raw, False)
    raw = (
        b'{"model":"a","stream":true,"stream_options":{"include_usage":true},"stream_options":{"include_usage":false}}'
    )
    assert json.loads(_call(raw).body)["stream_options"] == {"include_usage": True}
    assert _call(raw).strip_usage


@pytest.mark.parametrize(
    "model", ["m\u0000", "\uff4d\u200b", "\u202ereversed", "\U0001f600", "a/b:c@d", "Qwen/Qwen3-8B", " m "]
)
def test_a_models_name_is_taken_letter_by_letter(model: str) -> None:
    for raw in (json.dumps({"model": model}).encode(), json.dumps({"model": model}, ensure_ascii=False).encode()):
        assert (_call(raw).model, _call(raw).body) == (model, raw)


def test_half_a_character_is_not_a_name() -> None:
    assert _fault(b'{"model":"\\ud83d"}').code == "invalid_json"


def test_what_goes_on_from_an_earlier_response_says_from_which() -> None:
    raw = b'{"model":"m","input":"hi","previous_response_id":"resp_1","stream":true}'
    call = _call(raw, PATHS["responses"])
    assert (call.response_id, call.stream, call.body) == ("resp_1", True, raw)
    assert _call(raw).response_id is None  # no other API knows the field
    assert _call(b'{"model":"m","previous_response_id":""}', PATHS["responses"]).response_id is None
    fault = parse_call(ENDPOINTS[PATHS["responses"]], b'{"model":"m","previous_response_id":7}')
    assert isinstance(fault, Fault)
    assert fault.param == "previous_response_id"


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=8).filter(lambda k: k != "stream_options"), _values, max_size=4), st.booleans())
def test_asking_for_usage_changes_nothing_else_whatever_the_body_is(fields: dict[str, object], spaced: bool) -> None:
    payload = {**fields, "model": "m", "stream": True}
    raw = json.dumps(payload, separators=(", ", ": ") if spaced else (",", ":")).encode()
    call = _call(raw)
    assert json.loads(call.body) == {**payload, "stream_options": {"include_usage": True}}
    assert call.body.endswith(raw[1:])


@pytest.mark.parametrize("path", [path for path, endpoint in ENDPOINTS.items() if endpoint.body == "json"])
def test_what_vllm_has_beyond_the_standard_goes_on_as_it_came(path: str) -> None:
    raw = (
        b'{"model":"m","top_k":3,"min_p":0.10,"structured_outputs":{"regex":"a+"},"return_token_ids":true,'
        b'"chat_template_kwargs":{"enable_thinking":false},"cache_salt":"\\u00e9","priority":-1,"logit_bias":{"5":1e1},'
        b'"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":"auto",'
        b'"messages":[{"role":"user","content":[{"type":"text","text":"{\\"model\\":1}"},{"type":"image_url",'
        b'"image_url":{"url":"data:image/png;base64,aGk="}},{"type":"input_audio","input_audio":{"data":"","format":"wav"}},'
        b'{"type":"video_url","video_url":{"url":"https://x/v.mp4"}}]}],"response_format":{"type":"json_schema"}}'
    )
    assert _call(raw, path).body is raw


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,model stream tru1', max_size=40).map(str.encode))
def test_no_bytes_whatever_make_parsing_fail(raw: bytes) -> None:
    assert isinstance(parse_call(CHAT, raw), Call | Fault)
