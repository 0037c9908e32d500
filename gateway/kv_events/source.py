"""Where an engine publishes its KV events: its answer to GET /kv_event_sources, and whether we can listen to it."""

from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlsplit

import orjson

from gateway.errors import ConfigError

PATH = "/kv_event_sources"
_NEEDED = ("zmq", "msgspec")


@dataclass(frozen=True, slots=True)
class Source:
    """One data-parallel rank of an engine. The endpoints are ZeroMQ's, to connect to."""

    rank: int
    endpoint: str
    replay_endpoint: str | None
    """Where missed batches are to be had again; without it each gap costs all that was known."""
    topic: str


def require_extra() -> None:
    """Raises ConfigError when the packages that precise routing needs are not installed."""
    if any(find_spec(module) is None for module in _NEEDED):
        raise ConfigError("routing by KV events needs the events extra: pip install 'berth[events]'")


def read_sources(body: bytes, url: str) -> tuple[Source, ...]:
    """The sources in an engine's answer, by rank; empty when it publishes nothing (or is older than the question).

    `url` is the engine's own (`http://host:port` or `unix:/path`): a publisher that listens on all addresses is reached
    where its engine is. Raises ValueError when the answer cannot be read.
    """
    try:
        answer = orjson.loads(body)
        found = [_source(int(rank), row, url) for rank, row in answer.items() if row["publisher"] == "zmq"]
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{url}{PATH} did not answer with publishers by rank: {body[:80]!r}") from error
    return tuple(sorted(found, key=lambda source: source.rank))


def _source(rank: int, row: dict[str, str | None], url: str) -> Source:
    endpoint, replay = row["endpoint"], row.get("replay_endpoint")
    if not endpoint:
        raise ValueError("a publisher without an endpoint")
    return Source(rank, _reachable(endpoint, url), _reachable(replay, url) if replay else None, row.get("topic") or "")


def _reachable(endpoint: str, url: str) -> str:
    """`tcp://*:5557` is where it binds; where to connect is the engine's own host."""
    for everywhere in ("tcp://*:", "tcp://0.0.0.0:", "tcp://[::]:"):
        if endpoint.startswith(everywhere):
            host = "127.0.0.1" if url.startswith("unix:") else urlsplit(url).hostname or "127.0.0.1"
            return f"tcp://{f'[{host}]' if ':' in host else host}:{endpoint.removeprefix(everywhere)}"
    return endpoint
