"""One request body -> Call: the few fields the gateway decides by, and the bytes to forward."""

from dataclasses import dataclass

import orjson

from gateway.wire.dialect import Endpoint
from gateway.wire.fault import Fault


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed request. `body` goes upstream: the client's own bytes unless `strip_usage`.

    `strip_usage`: the caller did not ask for usage in its stream, so the gateway asked for it (it always wants to know)
    and takes the extra event out again on the way back.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    body: bytes
    strip_usage: bool = False


def parse_call(endpoint: Endpoint, body: bytes) -> Call | Fault:
    """Read `body` for `endpoint`; a Fault (status 400) says what is wrong with it, where, in one line.

    Only what the gateway itself needs is checked; the engine checks the rest and its errors are passed on.
    """
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return Fault(400, f"the request body is not valid JSON: {error}", code="invalid_json")
    if not isinstance(payload, dict):
        return Fault(400, "the request body must be a JSON object", code="invalid_type")
    model = payload.get("model")
    if not isinstance(model, str) or not model:
        return Fault(400, "'model' must be a non-empty string; GET /v1/models lists the names", param="model")
    stream = payload.get("stream")
    if stream is not None and not isinstance(stream, bool):
        return Fault(400, "'stream' must be true or false", param="stream")
    if not (stream and endpoint.streams):
        return Call(endpoint, model, False, body)
    if endpoint.dialect not in ("chat", "completions"):
        return Call(endpoint, model, True, body)  # these dialects always send usage
    return _with_usage(endpoint, model, payload, body)


def _with_usage(endpoint: Endpoint, model: str, payload: dict[str, object], body: bytes) -> Call | Fault:
    options = payload.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        return Fault(400, "'stream_options' must be an object", param="stream_options")
    asked = options.get("include_usage")
    if asked is not None and not isinstance(asked, bool):
        return Fault(400, "'stream_options.include_usage' must be true or false", param="stream_options")
    if asked:
        return Call(endpoint, model, True, body)
    if "stream_options" not in payload:  # the usual case: the rest of the body stays the client's own bytes
        return Call(endpoint, model, True, body.replace(b"{", b'{"stream_options":{"include_usage":true},', 1), True)
    # `continuous_usage_stats` means nothing without `include_usage`: with ours it would put usage into every event
    kept = {name: value for name, value in options.items() if name != "continuous_usage_stats"}
    payload["stream_options"] = {**kept, "include_usage": True}
    try:
        return Call(endpoint, model, True, orjson.dumps(payload), strip_usage=True)
    except orjson.JSONEncodeError as error:
        return Fault(400, f"the request body cannot be passed on: {error}", code="invalid_json")
