"""Where a request leads: the endpoint of a method and path, or what to say of a path that leads nowhere."""

import difflib
import re
from typing import Final
from urllib.parse import parse_qs, quote

from gateway.wire.dialect import ENDPOINTS, Endpoint
from gateway.wire.fault import Fault

_KEPT: Final = re.compile(r"/v1/responses/([^/]+)(/cancel)?")
_NO_IDS: Final = {"input_tokens", "compact"}
"""Paths of OpenAI's under /v1/responses that vLLM does not have."""
_YES: Final = {"true", "1", "on", "yes", "t", "y"}
"""What pydantic, and so an engine, takes for true in a query or a form."""


def find_endpoint(method: bytes, path: str, query: str = "") -> Endpoint | None:
    """The data-plane endpoint of a request line, its `path` unquoted; None for everything else.

    A kept response is read with GET /v1/responses/{id} and stopped with POST /v1/responses/{id}/cancel.
    """
    if method == b"POST" and (endpoint := ENDPOINTS.get(path)):
        return endpoint
    kept = _KEPT.fullmatch(path)
    if kept is None or kept[1] in _NO_IDS or method != (b"POST" if kept[2] else b"GET"):
        return None
    own_path = f"/v1/responses/{quote(kept[1], safe='')}{kept[2] or ''}"
    streams = not kept[2] and is_yes(parse_qs(query).get("stream", [""])[-1])
    return Endpoint(
        own_path,
        "responses",
        streams,
        generates=False,
        body="none",
        method=method,
        query="" if kept[2] else query,
        response_id=kept[1],
    )


def is_yes(text: str) -> bool:
    """Whether a query or form value means true, as engines read it."""
    return text.strip().lower() in _YES


def allowed_method(path: str) -> str | None:
    """The one method that `path` takes when it is the data plane's, else None."""
    if path in ENDPOINTS:
        return "POST"
    kept = _KEPT.fullmatch(path)
    if kept is None or kept[1] in _NO_IDS:
        return None
    return "POST" if kept[2] else "GET"


def unknown_path(method: str, path: str) -> Fault:
    """What to answer to a path that nothing serves: most often a base URL with /v1 left out or said twice."""
    wanted = re.sub(r"^(/v1)*/?", "/v1/", path).rstrip("/")
    known = [*ENDPOINTS, "/v1/models"]
    near = [wanted] if wanted in known else difflib.get_close_matches(path, known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}? Served are " if near else "served are "
    message = f"{method} {path} is not served here; {hint}POST {', '.join(ENDPOINTS)}, and GET /v1/models"
    return Fault(404, message, code="unknown_url", should_retry=False)
