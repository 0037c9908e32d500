"""Which API a path speaks, and one call of it."""

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

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


class Call(NamedTuple):  # made for every request: a frozen dataclass would take three times as long
    """A parsed request. `body` goes upstream: the client's own bytes unless `strip_usage`.

    `strip_usage`: the caller did not ask for usage in its stream, so the gateway asked for it (it always wants to know)
    and takes the extra event out again on the way back. `response_id`: the kept response that this one is about or goes
    on from; only the engine that made it knows it. `chain` is the prompt, `most_output_tokens` what the caller limits
    its output to. `session`: how the body names its conversation or user. `cache_salt`: cached prefixes are shared with
    requests that have the same; "" where it was given as null. `answers`: how many outputs it makes.
    """

    endpoint: Endpoint
    model: str
    stream: bool
    body: bytes
    strip_usage: bool = False
    response_id: str | None = None
    chain: Chain = NO_CHAIN
    most_output_tokens: int | None = None
    session: str | None = None
    cache_salt: str | None = None
    answers: int = 1


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
