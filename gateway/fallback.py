"""Who stands in for a model that cannot answer, and what of the request changes on the way there. Pure.

A chain is followed only before the first byte has gone out. The bytes of the request stay the caller's own but for the
model's name and what the one who stands in could not understand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from gateway.config import Chain, Remote, Step, Trouble
from gateway.errors import AnswerError, GatewayError, RefusedError, UpstreamError
from gateway.members import edited
from gateway.routing.chain import of_model
from gateway.wire import Call, Dialect, Endpoint, Usage

_FULL = {429, 503, 529}
_BROKEN = {500, 502, 504}
_MISSING_THERE = {402, 404}  # of a provider: not paid for, or no such model; that is not about the request
_REFUSALS: Mapping[str | None, Trouble] = {"not_ready": "failed", "overloaded": "saturated"}
_MILLION = 1_000_000

_BOUND_TO_A_TOKENIZER = frozenset({"allowed_token_ids", "logit_bias", "logprob_token_ids", "stop_token_ids"})
_BOUND_TO_AN_ENGINE = frozenset({"ec_transfer_params", "kv_transfer_params"})
_CANNOT_LEAVE = frozenset({"continue_final_message", "documents", "mm_payload", "previous_input_messages"})
"""vLLM's own ways to say what is asked: without them it would be another question."""

ENGINE_ONLY = frozenset(
    {
        *("add_generation_prompt", "add_special_tokens", "bad_words", "cache_salt", "chat_template"),
        *("chat_template_kwargs", "embed_dtype", "enable_response_messages", "endianness", "ignore_eos"),
        *(
            "include_reasoning",
            "include_stop_str_in_output",
            "length_penalty",
            "media_io_kwargs",
            "min_p",
            "min_tokens",
        ),
        *("min_tokens", "mm_processor_kwargs", "padding", "priority", "prompt_logprobs", "repetition_detection"),
        *("repetition_penalty", "request_id", "return_mm_kwargs", "return_prompt_text", "return_token_ids"),
        *("return_token_offsets", "return_tokens_as_token_ids", "routed_experts_prompt_start", "session_id"),
        *("skip_special_tokens", "spaces_between_special_tokens", "stream_interval", "structured_outputs"),
        *("thinking_token_budget", "top_k", "truncate_prompt_tokens", "truncation_side", "use_activation"),
        *("use_beam_search", "vllm_xargs", "watermarking"),
        *("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend"),
        *("guided_whitespace_pattern", "guided_options_request"),
    }
)
"""What vLLM takes beyond the OpenAI API, today or in an older release: a provider would refuse it, or not know it."""
_ENGINE_ONLY_IN: Mapping[Dialect, frozenset[str]] = {
    "chat": frozenset({"echo"}),
    "completions": frozenset({"response_format"}),
    "responses": frozenset({"frequency_penalty", "presence_penalty", "seed", "stop"}),
}
_KNOWN_IN: Mapping[Dialect, frozenset[str]] = {"messages": frozenset({"top_k"})}


@dataclass(frozen=True, slots=True)
class StandIn:
    """One step taken: `place` is where to go on from if it fails; `call.model` is the step's name."""

    place: int
    step: Step
    call: Call


def trouble_of(error: GatewayError, *, of_remote: bool = False) -> Trouble | None:
    """What `error`, the last of a model's or a step's own attempts, means to its chain; None: it is the request's own
    fault, or the gateway is closing, and nobody else would do better."""
    if isinstance(error, RefusedError):
        return _REFUSALS.get(error.fault.code)
    if isinstance(error, AnswerError):
        status = error.fault.status
        if status in _FULL:
            return "saturated"
        return "failed" if status in _BROKEN or (of_remote and status in _MISSING_THERE) else None
    return "failed" if isinstance(error, UpstreamError) else None


def next_stand_in(
    chain: Chain, place: int, trouble: Trouble, call: Call, is_there: Callable[[Step], bool]
) -> StandIn | None:
    """The first step from `place` on (0 at first) that can take `call`, the request as it came, after `trouble`."""
    if trouble not in chain.on:
        return None
    for at in range(place, len(chain.steps)):
        step = chain.steps[at]
        if is_there(step) and (moved := adapted(call, step)) is not None:
            return StandIn(at + 1, step, moved)
    return None


def adapted(call: Call, step: Step) -> Call | None:
    """The request as it is sent to `step`; None when it cannot be asked there."""
    remote, dialect = step.remote, call.endpoint.dialect
    if call.endpoint.body != "json" or dialect == "tokens" or call.response_id is not None:
        return None  # a model's tokens are its own, and what an engine keeps is with it alone
    if remote is not None and not (dialect in remote.speaks and _has(call.endpoint)):
        return None
    names = orjson.loads(call.body)
    if "prompt_embeds" in names or _is_of_token_ids(names.get("prompt")) or _is_of_token_ids(names.get("input")):
        return None
    changes: dict[str, bytes | None] = dict.fromkeys(_BOUND_TO_A_TOKENIZER | _BOUND_TO_AN_ENGINE)
    changes["model"] = orjson.dumps(step.name if remote is None else remote.model)
    if remote is not None:
        if any(names.get(name) for name in _CANNOT_LEAVE):
            return None
        changes.update(dict.fromkeys(_CANNOT_LEAVE | _engine_only(dialect)))
        if "stream_options" in names:  # vLLM knows more of them; that usage is wanted holds for every stream
            changes["stream_options"] = b'{"include_usage":true}' if call.stream else None
    return call.but(model=step.name, body=edited(call.body, changes), chain=of_model(call.chain, step.name))


def remote_path(endpoint: Endpoint) -> bytes:
    """Where a provider has `endpoint`: its base URL ends where ours has /v1."""
    return endpoint.raw_path.removeprefix(b"/v1")


def cost_usd(usage: Usage, remote: Remote) -> float | None:
    """What a provider asks for one answer; None when its prices or the tokens are not known."""
    tokens = (usage.prompt_tokens, usage.output_tokens)
    prices = (remote.input_usd, remote.output_usd)
    if None in tokens or None in prices:
        return None
    return sum(count * price for count, price in zip(tokens, prices, strict=True) if count and price) / _MILLION


def _has(endpoint: Endpoint) -> bool:
    """Whether a provider can have this path at all; vLLM has some that nobody else knows."""
    return endpoint.path.startswith("/v1/") and not endpoint.path.endswith("/batch")


def _engine_only(dialect: Dialect) -> frozenset[str]:
    none: frozenset[str] = frozenset()
    return (ENGINE_ONLY | _ENGINE_ONLY_IN.get(dialect, none)) - _KNOWN_IN.get(dialect, none)


def _is_of_token_ids(prompt: object) -> bool:
    """Numbers mean other words to another model."""
    if isinstance(prompt, list) and prompt:
        first = prompt[0]
        return isinstance(first, int) or (isinstance(first, list) and bool(first) and isinstance(first[0], int))
    return False
