"""Which API a path speaks."""

from dataclasses import dataclass
from typing import Literal, get_args

Dialect = Literal["chat", "completions", "responses", "messages", "embeddings"]
"""The closed set of request dialects; `messages` is Anthropic's, the others are OpenAI's."""

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A data-plane path: the dialect it speaks and whether its answers can be streamed."""

    path: str
    dialect: Dialect
    streams: bool
    generates: bool = True
    """False for a question about a prompt: its answer is neither usage nor a duration worth a histogram."""

    @property
    def raw_path(self) -> bytes:
        """As it stands in a request line."""
        return self.path.encode()


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", "chat", streams=True),
        Endpoint("/v1/completions", "completions", streams=True),
        Endpoint("/v1/responses", "responses", streams=True),
        Endpoint("/v1/messages", "messages", streams=True),
        Endpoint("/v1/messages/count_tokens", "messages", streams=False, generates=False),
        Endpoint("/v1/embeddings", "embeddings", streams=False),
    )
}
