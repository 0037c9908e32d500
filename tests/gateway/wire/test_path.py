import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import ENDPOINTS, Call, allowed_method, find_endpoint, parse_call, unknown_path
from tests.gateway.wire.calls import parts

_SWITCHES = [
    "sleep", "wake_up", "is_sleeping", "pause", "resume", "collective_rpc", "reset_prefix_cache", "reset_mm_cache",
    "v1/load_lora_adapter", "v1/unload_lora_adapter", "start_profile", "stop_profile", "scale_elastic_ep",
    "abort_requests", "inference/v1/generate", "update_weights", "server_info", "invocations", "load", "metrics",
]  # fmt: skip


@pytest.mark.parametrize("path", ENDPOINTS)
def test_every_path_is_found_by_its_method_alone(path: str) -> None:
    assert find_endpoint(b"POST", path) is ENDPOINTS[path]
    assert find_endpoint(b"GET", path) is None
    assert allowed_method(path) == "POST"
    assert ENDPOINTS[path].raw_path == path.encode()


@pytest.mark.parametrize("path", _SWITCHES)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_no_switch_of_an_engine_can_be_reached(path: str, method: bytes) -> None:
    assert find_endpoint(method, f"/{path}") is None


@pytest.mark.parametrize("path", ["/v1/responses/input_tokens", "/v1/responses/compact"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_what_openai_alone_has_beside_responses_is_no_response(path: str, method: bytes) -> None:
    assert find_endpoint(method, path) is None
    assert allowed_method(path) is None


def test_a_kept_response_is_read_whole_or_as_a_stream() -> None:
    found = find_endpoint(b"GET", "/v1/responses/resp_1")
    assert found is not None
    assert (found.method, found.response_id, found.streams, found.generates) == (b"GET", "resp_1", False, False)
    assert found.raw_path == b"/v1/responses/resp_1"
    query = "stream=true&starting_after=4"
    found = find_endpoint(b"GET", "/v1/responses/resp_1", query)
    assert found is not None
    assert found.streams
    assert found.raw_path == b"/v1/responses/resp_1?stream=true&starting_after=4"
    assert parts(parse_call(found, b"")) == parts(Call(found, "", True, b"", response_id="resp_1"))


@pytest.mark.parametrize(
    ("query", "streams"),
    [
        ("stream=True", True),
        ("stream=1", True),
        ("stream=false", False),
        ("stream=", False),
        ("stream=0&stream=1", True),
    ],
)
def test_whether_it_streams_is_read_as_the_engine_reads_it(query: str, streams: bool) -> None:
    found = find_endpoint(b"GET", "/v1/responses/r", query)
    assert found is not None
    assert found.streams is streams


def test_a_kept_response_is_cancelled() -> None:
    found = find_endpoint(b"POST", "/v1/responses/resp_1/cancel", "x=1")
    assert found is not None
    assert (found.method, found.response_id, found.streams) == (b"POST", "resp_1", False)
    assert found.raw_path == b"/v1/responses/resp_1/cancel"
    assert parts(parse_call(found, b"{}")) == parts(Call(found, "", False, b"{}", response_id="resp_1"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"DELETE", "/v1/responses/r"),
        (b"POST", "/v1/responses/r"),
        (b"GET", "/v1/responses/r/cancel"),
        (b"GET", "/v1/responses/r/input_items"),
        (b"GET", "/v1/responses/"),
        (b"GET", "/v1/responses"),
        (b"GET", "/v1/responses/a/b"),
    ],
)
def test_what_is_not_there(method: bytes, path: str) -> None:
    assert find_endpoint(method, path) is None


def test_methods_of_kept_responses() -> None:
    assert allowed_method("/v1/responses/r") == "GET"
    assert allowed_method("/v1/responses/r/cancel") == "POST"
    assert allowed_method("/v1/responses/r/other") is None


@given(st.text(min_size=1, max_size=20))
def test_an_id_cannot_leave_its_place_in_the_request_line(name: str) -> None:
    found = find_endpoint(b"GET", f"/v1/responses/{name}")
    if found is not None:
        tail = found.raw_path.removeprefix(b"/v1/responses/")
        assert not set(tail) & set(b"/?# \r\n")
        assert tail.isascii()


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/v1/embedding", "/v1/embeddings"),
        ("/messages", "/v1/messages"),
        ("/models", "/v1/models"),
        ("/v1/tokenize", "/tokenize"),
    ],
)
def test_a_path_that_is_nearly_right_is_told_the_right_one(path: str, meant: str) -> None:
    fault = unknown_path("POST", path)
    assert (fault.status, fault.code, fault.should_retry) == (404, "unknown_url", False)
    assert f"did you mean {meant}?" in fault.message


@pytest.mark.parametrize("path", ["/", "/sleep", "/favicon.ico", "/v1"])
def test_a_path_that_is_like_none_is_told_all(path: str) -> None:
    message = unknown_path("GET", path).message
    assert "did you mean" not in message
    assert all(endpoint in message for endpoint in ENDPOINTS)
