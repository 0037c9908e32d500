"""A settlement to begin with; tests change what they are about."""

from typing import Any

from gateway.settlement import Settlement
from gateway.tracing import Trace
from gateway.wire import Usage

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7", is_sampled=True)


def settled(**changed: Any) -> Settlement:
    """One that went well, but for what is changed in it."""
    plain: dict[str, Any] = {
        "request_id": "req_1",
        "caller": "alice",
        "model": "m",
        "replica": "m/0",
        "url": "http://10.0.0.5:8001",
        "dialect": "chat",
        "generates": True,
        "stream": True,
        "outcome": "ok",
        "status": 200,
        "arrived_s": 100.0,
        "ended_s": 102.5,
        "ttft_s": 0.5,
        "tpot_s": 0.25,
        "usage": Usage(prompt_tokens=70, output_tokens=9, cached_tokens=64),
        "predicted_tokens": 60,
        "fates": {"hit": 64, "no_reuse": 6},
    }
    return Settlement(**{**plain, **changed})


DONE = settled()
