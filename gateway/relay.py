"""What all requests share on their way, and what those who do a part of one's work have to be able to ask of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gateway.admission.door import Admission
from gateway.admission.gate import Gate
from gateway.admission.rates import Accounts
from gateway.cache_salt import Salts
from gateway.config import GatewayConfig
from gateway.cost import Cost
from gateway.headers import RequestIds
from gateway.hedging import HedgeCount
from gateway.identity import Keyring
from gateway.junction import Junction
from gateway.ledger import Ledger
from gateway.metrics import Metrics
from gateway.origins import Origins
from gateway.owners import Owners
from gateway.precise import Precise
from gateway.replica import Pool
from gateway.routing import Estimates
from gateway.settlement import Outcome
from gateway.tracing import Tracing
from gateway.upstream import Upstream
from gateway.watch import Watch
from gateway.wire import Fault


class Client(Protocol):
    """The caller's end of one request: takes its answer, whole or in pieces."""

    @property
    def is_slow(self) -> bool:
        """Whether what it was sent already has not gone out."""

    @property
    def raw(self) -> Callable[[bytes], None] | None:
        """Where whole chunks of a stream may be written as they are on the wire; None where nobody can read them."""

    def answer(self, status: int, headers: bytes, body: bytes) -> None:
        """A whole answer; `headers` are complete lines."""

    def start(self, status: int, headers: bytes, data: bytes) -> None:
        """The head of an answer whose length nobody knows, and its first bytes."""

    def write(self, data: bytes) -> None:
        """The next bytes; not empty."""

    def end(self, data: bytes) -> None:
        """The last bytes, if any, and the end."""

    def close(self) -> None:
        """Break off an answer that cannot be finished."""


@dataclass(slots=True)
class Relay:
    """What all requests share. A reload puts another `config` and `keyring` in; whoever needs one reads it anew."""

    config: GatewayConfig
    pool: Pool
    upstream: Upstream
    admission: Admission
    gate: Gate
    accounts: Accounts
    metrics: Metrics
    clock: Callable[[], float]
    keyring: Keyring
    request_ids: RequestIds
    ledger: Ledger
    cost: Cost
    tracing: Tracing | None = None
    owners: Owners = field(default_factory=Owners)
    watch: Watch = field(default_factory=Watch)
    estimates: Estimates = field(default_factory=Estimates)
    hedges: HedgeCount = field(default_factory=HedgeCount)
    origins: Origins = field(default_factory=Origins)
    salts: Salts = field(default_factory=Salts)
    junction: Junction | None = None
    precise: Precise | None = None
    """None: no engine says what its KV cache holds."""


class Request(Protocol):
    """One request, as those see it that do a part of its work: what is here ends it, exactly once."""

    relay: Relay
    client: Client
    request_id: str

    def end_with(self, fault: Fault, outcome: Outcome) -> None:
        """The answer is this, or the end of it, where the caller has been sent something."""

    def end_stream(self, event: bytes, status: int, outcome: Outcome) -> None:
        """The end of its stream is `event`, and what it says has this status."""

    def settle(self, outcome: Outcome, status: int) -> None:
        """The caller has been sent all that it gets, under this status."""

    def stumble(self) -> None:
        """A bug of ours, whose exception is being handled: it must not take a connection, place or count with it."""
