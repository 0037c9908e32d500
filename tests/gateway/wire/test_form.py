"""Multipart forms are read without copying a file, and only what asks for usage is added."""

from email import message_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import ENDPOINTS, Call, Fault, parse_call
from tests.gateway.forms import SOUND, form
from tests.gateway.wire.calls import parts

AUDIO = ENDPOINTS["/v1/audio/transcriptions"]


def _call(body: bytes) -> Call:
    call = parse_call(AUDIO, body)
    assert isinstance(call, Call), call
    return call


def _read_back(body: bytes) -> dict[str, list[bytes]]:
    """Field by field, by the standard library's own reader of MIME."""
    boundary = body[2 : body.index(b"\r\n")]
    whole = message_from_bytes(b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n\r\n" + body)
    fields: dict[str, list[bytes]] = {}
    for part in whole.get_payload():
        name = str(part.get_param("name", header="content-disposition"))  # type: ignore[union-attr]
        fields.setdefault(name, []).append(part.get_payload(decode=True))  # type: ignore[union-attr, arg-type]
    return fields


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
def test_an_unstreamed_form_goes_on_as_it_came(path: str) -> None:
    body = form({"model": "whisper", "language": "en", "stream": "false"})
    call = parse_call(ENDPOINTS[path], body)
    assert parts(call) == parts(Call(ENDPOINTS[path], "whisper", False, body))


def test_the_file_may_come_first_and_hold_anything() -> None:
    head, _, rest = form({"model": "whisper"}).partition(b"\r\n")
    parts = rest.split(b"\r\n" + head)
    body = (
        head
        + b"\r\n"
        + parts[1].removeprefix(b"\r\n")
        + b"\r\n"
        + head
        + b"\r\n"
        + parts[0]
        + b"\r\n"
        + head
        + b"--\r\n"
    )
    assert _call(body).model == "whisper"
    assert (
        _call(form({"model": "m\u00fc"}, file=b'\r\nContent-Disposition: form-data; name="model"\r\n\r\nx')).model
        == "mü"
    )


def test_a_file_name_is_not_the_name_of_a_field() -> None:
    body = form({"x": "1"}).replace(b'filename="a.wav"', b'filename="model"')
    assert isinstance(parse_call(AUDIO, body), Fault)
    unquoted = form({"model": "m"}).replace(b'name="model"', b"name=model")
    assert _call(unquoted).model == "m"


@pytest.mark.parametrize("yes", ["true", "True", "1", "yes"])
def test_a_stream_is_asked_for_its_usage(yes: str) -> None:
    body = form({"model": "m", "stream": yes})
    call = _call(body)
    assert (call.stream, call.strip_usage) == (True, True)
    before, after = _read_back(body), _read_back(call.body)
    assert after == {**before, "stream_include_usage": [b"true"]}


def test_a_stream_that_asked_itself_goes_on_as_it_came() -> None:
    body = form({"model": "m", "stream": "true", "stream_include_usage": "true"})
    assert parts(_call(body)) == parts(Call(AUDIO, "m", True, body))


def test_our_asking_does_not_switch_on_usage_in_every_event() -> None:
    body = form(
        {"stream_include_usage": "false", "model": "m", "stream_continuous_usage_stats": "true", "stream": "true"}
    )
    after = _read_back(_call(body).body)
    assert after["stream_include_usage"] == [b"false", b"true"]  # of several an engine takes the last one
    assert after["stream_continuous_usage_stats"] == [b"false"]
    assert after["file"] == [SOUND]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "invalid_form", None),
        (b'{"model":"m"}', "invalid_form", None),
        (b"--\r\n", "invalid_form", None),
        (b"--b\r\n", "invalid_form", None),
        (b"--b--\r\n", "invalid_form", None),
        (form({"model": "m"})[:-10], "invalid_form", None),
        (form({"stream": "true"}), None, "model"),
        (form({"model": ""}), None, "model"),
    ],
)
def test_what_is_no_form_is_a_400(body: bytes, code: str | None, param: str | None) -> None:
    fault = parse_call(AUDIO, body)
    assert isinstance(fault, Fault)
    assert (fault.status, fault.code, fault.param) == (400, code, param)


def test_a_form_of_endless_parts_is_refused() -> None:
    assert isinstance(parse_call(AUDIO, form({f"f{i}": "x" for i in range(200)})), Fault)


@given(
    st.binary(max_size=80)
    | st.lists(st.sampled_from([b"--b", b"--", b"\r\n", b"\r\n\r\n", b'name="model"', b"x"])).map(b"".join)
)
def test_no_bytes_whatever_make_parsing_fail(raw: bytes) -> None:
    assert isinstance(parse_call(AUDIO, raw), Call | Fault)


@given(st.binary(max_size=200))
def test_whatever_the_file_is_it_arrives(sound: bytes) -> None:
    call = _call(form({"model": "m", "stream": "true"}, file=sound))
    assert b"\r\n\r\n" + sound + b"\r\n--" in call.body
