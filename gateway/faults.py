"""What a failed attempt means: which fault the caller is told, and whether another replica may do better."""

import logging
from collections.abc import Iterable
from typing import Final

from gateway.errors import AnswerError, SilentError, UpstreamError
from gateway.headers import Header
from gateway.wire import Fault, read_fault

_log = logging.getLogger("berth.gateway")
BEFORE_AN_ANSWER: Final = "before it answered"
BEFORE_A_KEPT_STREAM: Final = (
    "before it answered; it can stream a response again only where that was made with background and stream"
)
"""vLLM 0.32 breaks the connection of who asks for another one."""
_ELSEWHERE = {500, 502, 503, 504}  # an engine that is dying, full or away: another replica may do


def engine_fault(replica: str, status: int, body: bytes, headers: Iterable[Header] = ()) -> Fault:
    """An engine's refusal as the caller may see it; a refusal of our own key is not about the caller's."""
    fault = read_fault(status, body, headers)
    if status in (401, 403):
        # its own words are left out: providers repeat the key, or a piece of it
        message = f"{replica} does not accept the key the gateway has for it (HTTP {status})"
        return Fault(502, message, code="engine_refused_key", should_retry=False)
    return fault


def broken(request_id: str, replica: str, error: UpstreamError, when: str) -> Fault:
    """What the caller is told; where the engine listens and how the connection ended is for the log."""
    _log.error("%s: %s failed %s: %s", request_id, replica, when, error)
    if isinstance(error, SilentError):
        return Fault(504, f"the engine took too long: {error}", code="timeout")
    return Fault(502, f"the engine failed {when}", code="engine_failed", retry_after_s=1)


def overdue_in_line() -> Fault:
    """All the time that a request may take has passed before a replica had room. Nobody else is asked for it either."""
    return Fault(504, "no replica had room in all the time that a request may take", code="timeout", retry_after_s=1)


def endless(request_id: str, replica: str) -> Fault:
    """An engine's answer that is longer than the gateway will hold."""
    _log.error("%s: the answer of %s is too long to hold (max_answer_bytes, max_event_bytes)", request_id, replica)
    return Fault(502, "the engine's answer is too long", code="answer_too_long", should_retry=False)


def not_a_stream() -> Fault:
    """A stream that was kept alive turned out to be none: its document cannot follow what was sent."""
    return Fault(502, "the engine answered without a stream", code="not_a_stream", should_retry=False)


def unexpected(request_id: str) -> Fault:
    """A bug of ours; call it while the exception is being handled: the log gets its trace."""
    _log.exception("%s: unexpected error", request_id)
    return Fault(500, f"internal error; the gateway's log has {request_id}")


def too_large(size: int, limit_bytes: int) -> Fault:
    """A request body over the limit."""
    message = f"the request body has {size:,} bytes or more, the limit is {limit_bytes:,} (max_body_mib)"
    return Fault(413, message, code="request_too_large", should_retry=False)


def too_slow(timeout_s: float) -> Fault:
    """A request body that did not arrive."""
    message = f"the request body stopped coming: the gateway waits {timeout_s:g} s for each 16 KiB of it"
    return Fault(408, message, code="request_timeout")


def hidden_by_upgrade() -> Fault:
    """Java's HttpClient offers h2c unless told otherwise; httptools then takes the body for the other protocol's."""
    message = "the request offers to switch protocols (Upgrade), which hides its body; set the client to HTTP/1.1"
    return Fault(400, message, code="upgrade_not_supported", should_retry=False)


def worth_another(error: UpstreamError) -> bool:
    """Whether another replica may do: not for a refusal of the request itself."""
    return not isinstance(error, AnswerError) or error.fault.status in _ELSEWHERE
