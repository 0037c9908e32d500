"""Which API a path speaks, and one call of it."""

from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from gateway.routing.chain import CUTS, Chain

Dialect = Literal["chat", "completions", "responses", "messages", "embeddings", "pooling", "tokens", "audio"]
"""The closed set of request dialects; `messages` is Anthropic's. `pooling` scores, ranks and classifies, `tokens` turns
text into token ids and back, `audio` writes down what was said."""

DIALECTS: Final[tuple[Dialect, ...]] = get_args(Dialect)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A data-plane path: the dialect it speaks and whether its answers can be streamed."""

    path: str
    dialect: Dialect
    streams: bool
    generates: bool = True
    """False for a question about a prompt or a kept answer: it is neither usage nor a duration worth a histogram."""
    body: Literal["json", "form", "none"] = "json"
    """How a request is written down: form is multipart/form-data, none leaves everything to the path."""
    method: bytes = b"POST"
    query: str = ""
    response_id: str | None = None
    """The kept response that the path names; its engine alone can answer."""
    raw_path: bytes = field(init=False)
    """Path and query as they stand in a request line."""

    def __post_init__(self) -> None:
        target = f"{self.path}?{self.query}" if self.query else self.path
        object.__setattr__(self, "raw_path", target.encode("latin-1"))


NO_CHAIN: Final = Chain((), CUTS, 0)


class Call:  # made for every request: as a class of its own it is made in machine code, a NamedTuple is not
    """A parsed request. `body` goes upstream: the client's own bytes unless `strip_usage`.

    `strip_usage`: the caller did not ask for usage in its stream, so the gateway asked for it (it always wants to know)
    and takes the extra event out again on the way back. `response_id`: the kept response that this one is about or goes
    on from; only the engine that made it knows it. `chain` is the prompt, `most_output_tokens` what the caller limits
    its output to. `session`: how the body names its conversation or user. `cache_salt`: cached prefixes are shared with
    requests that have the same; "" where it was given as null. `answers`: how many outputs it makes.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        stream: bool,
        body: bytes,
        strip_usage: bool = False,
        response_id: str | None = None,
        chain: Chain = NO_CHAIN,
        most_output_tokens: int | None = None,
        session: str | None = None,
        cache_salt: str | None = None,
        answers: int = 1,
    ) -> None:
        self.endpoint: Final = endpoint
        self.model: Final = model
        self.stream: Final = stream
        self.body: Final = body
        self.strip_usage: Final = strip_usage
        self.response_id: Final = response_id
        self.chain: Final = chain
        self.most_output_tokens: Final = most_output_tokens
        self.session: Final = session
        self.cache_salt: Final = cache_salt
        self.answers: Final = answers

    def but(
        self,
        *,
        model: str | None = None,
        body: bytes | None = None,
        strip_usage: bool | None = None,
        response_id: str | None = None,
        chain: Chain | None = None,
        cache_salt: str | None = None,
    ) -> "Call":
        """The same call with these in place of its own; None leaves what it has."""
        return Call(
            self.endpoint,
            self.model if model is None else model,
            self.stream,
            self.body if body is None else body,
            self.strip_usage if strip_usage is None else strip_usage,
            self.response_id if response_id is None else response_id,
            self.chain if chain is None else chain,
            self.most_output_tokens,
            self.session,
            self.cache_salt if cache_salt is None else cache_salt,
            self.answers,
        )


ENDPOINTS: Final[dict[str, Endpoint]] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", "chat", streams=True),
        Endpoint("/v1/completions", "completions", streams=True),
        Endpoint("/v1/responses", "responses", streams=True),
        Endpoint("/v1/messages", "messages", streams=True),
        Endpoint("/v1/messages/count_tokens", "messages", streams=False, generates=False),
        Endpoint("/v1/embeddings", "embeddings", streams=False),
        Endpoint("/v1/chat/completions/batch", "chat", streams=False),
        Endpoint("/v2/embed", "embeddings", streams=False),
        Endpoint("/v1/rerank", "pooling", streams=False),
        Endpoint("/v2/rerank", "pooling", streams=False),
        Endpoint("/rerank", "pooling", streams=False),
        Endpoint("/v1/score", "pooling", streams=False),
        Endpoint("/score", "pooling", streams=False),
        Endpoint("/generative_scoring", "pooling", streams=False),
        Endpoint("/pooling", "pooling", streams=False),
        Endpoint("/classify", "pooling", streams=False),
        Endpoint("/tokenize", "tokens", streams=False, generates=False),
        Endpoint("/detokenize", "tokens", streams=False, generates=False),
        Endpoint("/v1/audio/transcriptions", "audio", streams=True, body="form"),
        Endpoint("/v1/audio/translations", "audio", streams=True, body="form"),
    )
}
"""By path: what an engine answers for a model. None of its switches (sleep, profile, adapters, RPC) is among them."""
