"""What the gateway can be told. Frozen values; reading files and the environment is `serving.config`'s work."""

from dataclasses import dataclass, field

from gateway.identity import KeyHash

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits on waiting, in seconds. `silence_s` bounds the wait for each next byte of an engine, the first too;
    `client_s` the wait for a client: for the head of a request, for each 16 KiB of its body, and for it to read on."""

    connect_s: float = 5.0
    silence_s: float = 600.0
    probe_s: float = 2.0
    client_s: float = 60.0


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
    probe_interval_s: float = 1.0
    timeouts: Timeouts = field(default_factory=Timeouts)
