"""What an answer teaches: the engine's own count corrects what is believed of its cache, its pace and its model."""

from collections.abc import Mapping, Sequence

from gateway.admission.gate import Answer
from gateway.attempt import Attempt
from gateway.relay import Relay
from gateway.routing import Fate
from gateway.settlement import NO_FATES, Move
from gateway.wire import Usage


def learn(relay: Relay, attempt: Attempt, usage: Usage, moves: Sequence[Move]) -> Mapping[Fate, int]:
    """Of an attempt that answered in full and still has its place, after these moves of its request. Returns what
    became of the prompt's tokens."""
    place, call, prompt_tokens = attempt.place, attempt.call, usage.prompt_tokens
    if place is None or (moves and any(move.kind == "continuation" for move in moves)):
        return NO_FATES  # what went on elsewhere was computed twice
    place.answered()
    if prompt_tokens is None:
        return NO_FATES
    fates = place.settle(prompt_tokens, usage.cached_tokens)
    if call.response_id is not None:
        return fates  # the prompt is more than we have seen of it
    output = usage.output_tokens
    one_output = output if output is None or call.answers == 1 else output // call.answers
    relay.estimates.of(call.model).learn(call.chain.size, prompt_tokens, one_output)
    now_s = relay.clock()
    if now_s >= relay.gate.learn_at_s:
        meter = attempt.meter
        first_s, tpot_s = (None, None) if meter is None else (meter.first_token_s, meter.tpot_s)
        ttft_s = None if first_s is None else first_s - attempt.sent_s
        relay.gate.learn(place, call, usage, Answer(attempt.there, now_s, ttft_s, tpot_s))
    if relay.precise is not None and not any(move.kind == "fallback" for move in moves):
        relay.precise.answered(attempt.replica, call)  # one who stands in may have tokens of its own for this text
    return fates
