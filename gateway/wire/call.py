"""One request body -> Call: the few fields the gateway decides by, and the bytes to forward."""

from typing import Final

import orjson

from gateway.routing.chain import CUTS, Chain
from gateway.wire.dialect import Call, Endpoint
from gateway.wire.fault import Fault
from gateway.wire.form import parse_form
from gateway.wire.prompt import answers_wanted, most_output_tokens, read_chain
from gateway.wire.session import session_hint

_BOM: Final = b"\xef\xbb\xbf"
_ASKED: Final[tuple[str, ...]] = ("chat", "completions")
"""A stream of these brings usage only when asked to; the others always send it."""


def parse_call(endpoint: Endpoint, body: bytes, salt: bytes = b"") -> Call | Fault:
    """Read `body` for `endpoint`; a Fault (status 400) says what is wrong with it, where, in one line.

    Only what the gateway itself needs is checked; the engine checks the rest and its errors are passed on. `salt`: what
    the gateway will add to keep the caller's cached prefixes from others'.
    """
    if endpoint.body != "json":
        return _without_json(endpoint, body)
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return _not_json(endpoint, body, error, salt)
    if not isinstance(payload, dict):
        return Fault(400, "the request body must be a JSON object", code="invalid_type")
    model = payload.get("model")
    if not isinstance(model, str) or not model:
        return Fault(400, "'model' must be a non-empty string; GET /v1/models lists the names", param="model")
    stream = payload.get("stream")
    if stream is not None and not isinstance(stream, bool):
        return Fault(400, "'stream' must be true or false", param="stream")
    is_stream = bool(stream) and endpoint.streams
    chain, answers = Chain((), CUTS, len(body)), 1
    if endpoint.generates:  # the others compute nothing that is cached
        chain = read_chain(endpoint.dialect, model, payload, len(body), salt)
        answers = answers_wanted(endpoint.dialect, payload)
    most, session = most_output_tokens(endpoint.dialect, payload), session_hint(payload)
    return _read(Call(endpoint, model, is_stream, body, False, None, chain, most, session, None, answers), payload)


def _read(call: Call, payload: dict[str, object]) -> Call | Fault:
    if call.endpoint.dialect == "responses":
        earlier = payload.get("previous_response_id")
        if earlier is not None and not isinstance(earlier, str):
            return Fault(400, "'previous_response_id' must be a string", param="previous_response_id")
        if earlier:  # its prompt begins with what the engine keeps, which we do not see
            call = call.but(response_id=earlier, chain=Chain((), CUTS, len(call.body)))
    if "cache_salt" in payload:
        salt = payload["cache_salt"] or ""
        if not isinstance(salt, str):
            return Fault(400, "'cache_salt' must be a string", param="cache_salt")
        call = call.but(cache_salt=salt)
    return _with_usage(call, payload) if call.stream and call.endpoint.dialect in _ASKED else call


def _not_json(endpoint: Endpoint, body: bytes, error: ValueError, salt: bytes) -> Call | Fault:
    if body.startswith(_BOM) and not body.startswith(_BOM, len(_BOM)):  # Windows tools write one
        return parse_call(endpoint, body[len(_BOM) :], salt)
    return Fault(400, f"the request body is not valid JSON: {error}", code="invalid_json")


def _without_json(endpoint: Endpoint, body: bytes) -> Call | Fault:
    if endpoint.body == "form":
        return parse_form(endpoint, body)
    return Call(endpoint, "", endpoint.streams, body, response_id=endpoint.response_id)  # its owner knows the model


def _with_usage(call: Call, payload: dict[str, object]) -> Call | Fault:
    options = payload.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        return Fault(400, "'stream_options' must be an object", param="stream_options")
    asked = options.get("include_usage")
    if asked is not None and not isinstance(asked, bool):
        return Fault(400, "'stream_options.include_usage' must be true or false", param="stream_options")
    if asked:
        return call
    if "stream_options" not in payload:  # the usual case: the rest of the body stays the client's own bytes
        body = call.body.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
        return call.but(body=body, strip_usage=True)
    # `continuous_usage_stats` means nothing without `include_usage`: with ours it would put usage into every event
    kept = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
    payload["stream_options"] = {**kept, "include_usage": True}
    try:
        return call.but(body=orjson.dumps(payload), strip_usage=True)
    except orjson.JSONEncodeError as error:
        return Fault(400, f"the request body cannot be passed on: {error}", code="invalid_json")
