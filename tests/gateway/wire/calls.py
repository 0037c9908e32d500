"""What a parsed request says, to be compared in one go."""

from gateway.wire import Call, Fault


def parts(call: Call | Fault) -> tuple[object, ...]:
    """Every field of it, in the order in which it is made of them."""
    assert isinstance(call, Call), call
    return (
        *(call.endpoint, call.model, call.stream, call.body, call.strip_usage),
        *(call.response_id, call.chain, call.most_output_tokens, call.session, call.cache_salt, call.answers),
    )
