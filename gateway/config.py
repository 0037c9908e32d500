"""What the gateway can be told. Frozen values; reading files and the environment is `serving.config`'s work."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from gateway.access_log import LogFormat
from gateway.breaker import BreakerConfig
from gateway.identity import KeyHash
from gateway.outliers import OutlierConfig
from gateway.retry_budget import RetryBudgetConfig
from gateway.routing import PolicyName
from gateway.rules import Rule
from gateway.wire import Dialect

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits on waiting, in seconds.

    Of an engine: for the connection, for the first token (of an answer that is not streamed, for all of it), between
    two reads after that, and for everything together. After `keep_alive_s` of silence the caller of a stream gets a
    sign of life. `client_s` bounds the wait for a client: for the head of a request, for each 16 KiB of its body, and
    for it to read on.
    """

    connect_s: float = 5.0
    first_token_s: float = 600.0
    gap_s: float = 300.0
    total_s: float | None = None
    keep_alive_s: float = 15.0
    probe_s: float = 2.0
    client_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Health:
    """When replicas are taken out for how they answered, and how often a request may be sent again."""

    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    outliers: OutlierConfig = field(default_factory=OutlierConfig)
    retry_budget: RetryBudgetConfig = field(default_factory=RetryBudgetConfig)


Trouble = Literal["failed", "saturated", "late"]
"""What makes a request go on along its model's chain. failed: no replica could do it; saturated: all are full; late: no
first token before the deadline."""

TROUBLES: frozenset[Trouble] = frozenset(get_args(Trouble))
OPENAI_DIALECTS: frozenset[Dialect] = frozenset({"chat", "completions", "responses", "embeddings"})


@dataclass(frozen=True, slots=True)
class Remote:
    """One model of an OpenAI-compatible provider elsewhere. Prices are US dollars per million tokens."""

    name: str
    base_url: str
    """As an OpenAI SDK is given it: `https://api.example.com/v1`. No slash at its end."""
    model: str
    api_key: str | None = field(default=None, repr=False)
    input_usd: float | None = None
    output_usd: float | None = None
    speaks: frozenset[Dialect] = OPENAI_DIALECTS


@dataclass(frozen=True, slots=True)
class Step:
    """Who is asked next: another model served here, by its public name, or a remote one."""

    name: str
    remote: Remote | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """What stands in for a model, in order. A step's own chain is not followed: two models may back each other."""

    steps: tuple[Step, ...]
    on: frozenset[Trouble] = TROUBLES
    ttft_deadline_s: float | None = None
    """Without a first token so long after its arrival, a request goes on along the chain."""


@dataclass(frozen=True, slots=True)
class Hedge:
    """A second replica is asked too when the first one is slower than `quantile` of the recent first tokens."""

    quantile: float = 0.95
    min_s: float = 0.1
    share: float = 0.05
    """At most so many of the requests are sent twice."""


@dataclass(frozen=True, slots=True)
class Slo:
    """What is promised of a model, nine times in ten: arrival to first token, and each further token. None: nothing."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Queue:
    """The line before each model, for requests that no replica has room for."""

    is_enabled: bool = True
    """Without it every request goes to an engine at once, which has a line of its own, in the order they came."""
    max_waiting: int = 1024
    max_waiting_tokens: int = 8 * MIB
    """Prompts and likely outputs together; their bodies are kept meanwhile, about four bytes a token."""
    max_wait_s: float = 60.0
    """Who is not served by then is turned away; with an SLO, who could not have its first token in time any more."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """`keys` empty means open to whoever can reach the port; `serving.config` then allows loopback only."""

    keys: tuple[KeyHash, ...] = ()
    max_body_bytes: int = 64 * MIB
    max_answer_bytes: int = 256 * MIB
    """Of an answer that is not streamed: it is held until it is whole. A batch of embeddings can have 100 MB."""
    max_event_bytes: int = 64 * MIB
    """Of one event of a stream, held until it ends: an image has 20 MB, a response's last event repeats its text."""
    max_in_flight: int | None = None
    retries: int = 2
    """How many other replicas a request may be tried on before its first byte has gone out. Bounded, because a request
    that crashes its engine must not be handed round the whole fleet."""
    continue_streams: bool = True
    """Whether a stream whose engine dies goes on from another replica. Without it, nothing of a stream is kept."""
    probe_interval_s: float = 1.0
    timeouts: Timeouts = field(default_factory=Timeouts)
    health: Health = field(default_factory=Health)
    remotes: tuple[Remote, ...] = ()
    chains: Mapping[str, Chain] = field(default_factory=dict)
    hedges: Mapping[str, Hedge] = field(default_factory=dict)
    """Both by public model name; a model that is in neither has neither."""
    routing: PolicyName = "prefix"
    routings: Mapping[str, PolicyName] = field(default_factory=dict)
    """By public model name; the others have `routing`."""
    queue: Queue = field(default_factory=Queue)
    slos: Mapping[str, Slo] = field(default_factory=dict)
    """By public model name."""
    kv_events: bool = False
    """Whether engines are asked what their KV caches hold; those that do not publish it are known by what they were
    sent. Needs the `events` extra."""
    rules: tuple[Rule, ...] = ()
    """Which model a request is led to; the first that fits counts."""
    isolated: frozenset[str] = frozenset()
    """The callers that share no cached prefixes with anybody else."""
    origins: tuple[str, ...] = ()
    """The web pages that may call from a browser: scheme://host or scheme://host:port each, or "*" for all."""
    log_format: LogFormat = "text"
