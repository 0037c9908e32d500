"""The OpenAPI document is true: requests made from it get the statuses it names and no 5xx."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from gateway.wire import ENDPOINTS
from tests.gateway.harness import Door

PATHS = ("/health", "/ready", "/status", "/metrics", "/v1/models", "/v1/models/{name}")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
_MANY = settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_of_the_document(door: Door, path: str) -> None:
    operation = schemathesis.openapi.from_url(f"{door.url}/openapi.json")[path]["GET"]

    @given(case=operation.as_strategy())
    @_MANY
    def ask(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(checks=CHECKS)

    ask()


def test_the_document_is_whole(door: Door) -> None:
    assert sorted(door.get("/openapi.json").json()["paths"]) == sorted([*PATHS, "/admin/reload"])


def test_people_get_all_of_it_and_the_data_plane_from_a_page_that_fetches_nothing(door: Door) -> None:
    answer = door.get("/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for path in (*ENDPOINTS, *PATHS, "/admin/reload", "/v1/responses/{id}/cancel"):
        assert f"<code>{path}</code>" in answer.text
    assert not [mark for mark in ("<script", "http://", "https://", "src=", "@import", "url(") if mark in answer.text]
    assert door.get("/redoc").status_code == 404


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["model", "stream", "stream_options", "messages", "input", "prompt", "max_tokens"])


@pytest.mark.parametrize("path", ENDPOINTS)
def test_any_json_on_the_data_plane_is_answered_or_refused_with_a_reason(door: Door, path: str) -> None:
    @given(body=st.dictionaries(FIELDS, JSON | st.just("fake")) | JSON)
    @_MANY
    def ask(body: object) -> None:
        answer = door.post(path, body)
        assert answer.status_code in (200, 400, 404)
        assert answer.status_code == 200 or answer.json()["error"]["message"]

    ask()
    assert door.is_at_rest
