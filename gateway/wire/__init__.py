"""The wire vocabulary of each API dialect: requests, streamed events, usage, faults. No I/O, no state.

sse        split a byte stream into server-sent events without changing a byte
call       one request body -> Call (model, stream, the bytes to forward)
event      one streamed event, or one whole body -> Sign (token? usage? error? end?)
template   what the text events of one stream have in common, to know the next one by its bytes
fault      one fault -> status, headers and body in the caller's dialect; engine errors -> Fault
"""

from gateway.wire.call import Call, parse_call
from gateway.wire.dialect import DIALECTS, ENDPOINTS, Dialect, Endpoint
from gateway.wire.event import Sign, TokenKind, Usage, count_plain_tokens, read_answer, read_event
from gateway.wire.fault import Fault, fault_body, fault_event, fault_headers, read_fault
from gateway.wire.sse import EventSplitter, event_data
from gateway.wire.template import Template, learn

__all__ = [
    "DIALECTS",
    "ENDPOINTS",
    "Call",
    "Dialect",
    "Endpoint",
    "EventSplitter",
    "Fault",
    "Sign",
    "Template",
    "TokenKind",
    "Usage",
    "count_plain_tokens",
    "event_data",
    "fault_body",
    "fault_event",
    "fault_headers",
    "learn",
    "parse_call",
    "read_answer",
    "read_event",
    "read_fault",
]
