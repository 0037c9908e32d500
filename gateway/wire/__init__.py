"""The wire vocabulary of each API dialect: requests, streamed events, usage, faults. No I/O, no state.

dialect      the paths, what each speaks, and one call of them
path         method and path -> Endpoint, or what to say where there is none
call, form   one request body -> Call (model, stream, the bytes to forward), of JSON and of multipart forms
prompt       the prompt in it -> a chain of block hashes
session      how a request body names its conversation or user
sse          split a byte stream into server-sent events without changing a byte
event        one streamed event, or one whole body -> Sign (token? usage? error? end?)
template     what the text events of one stream have in common, to know the next one by its bytes
fault        one fault -> status, headers and body in the caller's dialect
engine_error what an engine says of its failures -> Fault, or its error event as the dialect has it
limits       what is left of a caller's limits -> headers
listing      pages of the list of models
response_id  the id under which an engine keeps a response
"""

from gateway.wire.call import parse_call
from gateway.wire.dialect import DIALECTS, ENDPOINTS, Call, Dialect, Endpoint
from gateway.wire.engine_error import own_error_event, read_event_fault, read_fault
from gateway.wire.event import Sign, TokenKind, Usage, count_plain_tokens, read_answer, read_event
from gateway.wire.fault import Fault, fault_body, fault_event, fault_headers
from gateway.wire.form import with_model
from gateway.wire.limits import Allowance, limit_headers
from gateway.wire.listing import Page, page_of
from gateway.wire.path import allowed_method, find_endpoint, unknown_path
from gateway.wire.prompt import is_one_prompt
from gateway.wire.response_id import read_response_id
from gateway.wire.sse import EventSplitter, event_data, keep_alive
from gateway.wire.template import Template, learn

__all__ = [
    "DIALECTS",
    "ENDPOINTS",
    "Allowance",
    "Call",
    "Dialect",
    "Endpoint",
    "EventSplitter",
    "Fault",
    "Page",
    "Sign",
    "Template",
    "TokenKind",
    "Usage",
    "allowed_method",
    "count_plain_tokens",
    "event_data",
    "fault_body",
    "fault_event",
    "fault_headers",
    "find_endpoint",
    "is_one_prompt",
    "keep_alive",
    "learn",
    "limit_headers",
    "own_error_event",
    "page_of",
    "parse_call",
    "read_answer",
    "read_event",
    "read_event_fault",
    "read_fault",
    "read_response_id",
    "unknown_path",
    "with_model",
]
