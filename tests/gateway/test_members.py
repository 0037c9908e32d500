"""Members are changed in the bytes, and nothing else is."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.members import edited, with_text

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"a","n":1}', b'{"model":"b","n":1}'),
        (b' {\n "model" : "a" ,\n "n" : 1 }\n', b'{\n "model" :"b",\n "n" : 1 }'),
        (b'{"messages":[{"model":"a"}],"model":"a"}', b'{"messages":[{"model":"a"}],"model":"b"}'),
        (b'{"x":"\\",\\"model\\":\\"a","model":"a"}', b'{"x":"\\",\\"model\\":\\"a","model":"b"}'),
        (b'{"x":"{[","model":"a"}', b'{"x":"{[","model":"b"}'),
        (b'{"mod\\u0065l":"a"}', b'{"mod\\u0065l":"b"}'),
        (b'{"model":"a","model":{"c":[1,2]}}', b'{"model":"b","model":"b"}'),  # whoever reads it takes one of them
        (b'{"model":"a","seed":1234567890123456789012345}', b'{"model":"b","seed":1234567890123456789012345}'),
        (b'{"t":1.0e-3,"model":"a","min_tokens":{"a":[1]}}', b'{"t":1.0e-3,"model":"b"}'),
        (b'{"min_tokens":1}', b"{}"),
        (b"{}", b"{}"),
        (b"{ }", b"{}"),
    ],
)
def test_by_hand(body: bytes, expected: bytes) -> None:
    assert edited(body, {"model": b'"b"', "min_tokens": None}) == expected


@given(st.dictionaries(st.text() | st.sampled_from(["model", "gone"]), JSON), st.sampled_from([0, orjson.OPT_INDENT_2]))
def test_whatever_the_object(value: dict[str, object], style: int) -> None:
    changed = edited(orjson.dumps(value, option=style), {"model": b'"new"', "gone": None})
    expected = {name: "new" if name == "model" else member for name, member in value.items() if name != "gone"}
    assert orjson.loads(changed) == expected
    assert list(orjson.loads(changed)) == list(expected)


@given(st.dictionaries(st.text(), JSON))
def test_without_changes_all_bytes_stay(value: dict[str, object]) -> None:
    body = orjson.dumps(value)
    assert edited(body, {}) == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","n":1}',
        b' {\n "n" : 1 , "model" :\t"a" }\n',
        b'{"messages":[{"model":"x"}],"model":"a"}',
        b'{"x":"model","model":"a"}',
        b'{"x":"\\"model\\":\\"a","model":"a"}',
        b'{"model":"a","model":"c"}',
        b'{"mod\\u0065l":"a","x":{"model":"c"}}',
        b'{"mod\\u0065l":"a"}',
        b'{"model":"\\u00e9\\"","x":"\\u00e9"}',
    ],
)
def test_one_text_is_changed_as_all_are(body: bytes) -> None:
    quick, slow = with_text(body, "model", 'n"w'), edited(body, {"model": b'"n\\"w"'})
    assert orjson.loads(quick) == orjson.loads(slow)
    assert orjson.loads(quick)["model"] == 'n"w'
    assert orjson.loads(quick).get("x") == orjson.loads(body).get("x")


@given(st.dictionaries(st.text() | st.sampled_from(["x", "\u006dodel"]), JSON), st.text(), st.text(), st.booleans())
def test_whatever_stands_beside_it(value: dict[str, object], old: str, new: str, is_ascii: bool) -> None:
    body = json.dumps({**value, "model": old}, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    assert orjson.loads(with_text(body, "model", new)) == {**value, "model": new}
