"""The parts of `berth.yaml` about waiting, health, stand-ins and how a model's requests are handled, checked."""

import ipaddress
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gateway.breaker import BreakerConfig
from gateway.config import OPENAI_DIALECTS, Health, Hedge, Queue, Timeouts, Trouble
from gateway.outliers import OutlierConfig
from gateway.retry_budget import RetryBudgetConfig
from gateway.routing import PolicyName
from gateway.wire import Dialect

Count = Annotated[int, Field(gt=0, strict=True)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Usd = Annotated[float, Field(ge=0)]
_HEDGE, _BREAKER, _OUTLIERS, _RETRIES = Hedge(), BreakerConfig(), OutlierConfig(), RetryBudgetConfig()
_TIMEOUTS, _QUEUE = Timeouts(), Queue()


class Section(BaseModel):
    """Frozen, and a key that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class HedgeSection(Section):
    """A second replica is asked when the first is slower than nearly all recent answers; off unless it is there."""

    quantile: Annotated[float, Field(ge=0.5, lt=1)] = _HEDGE.quantile
    min_s: Annotated[float, Field(ge=0)] = _HEDGE.min_s
    share: Share = _HEDGE.share


class SloSection(Section):
    """What is promised of a model; the gateway gives its engines no more than what keeps it."""

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None

    @model_validator(mode="after")
    def _promises_something(self) -> "SloSection":
        if self.ttft_s is None and self.tpot_s is None:
            raise ValueError("give ttft_s, tpot_s or both, or leave the slo out")
        return self


class HandlingSection(Section):
    """How requests for one model are handled, by its public name."""

    name: str = Field(min_length=1)
    fallbacks: tuple[str, ...] = ()
    """Who stands in, in this order, before the first byte has gone out: other models here, or `remotes`, by name."""
    fallback_on: tuple[Trouble, ...] | None = None
    ttft_deadline_s: Seconds | None = None
    hedge: HedgeSection | None = None
    slo: SloSection | None = None
    routing: PolicyName | None = None
    """Other than the gateway's."""

    @model_validator(mode="after")
    def _fallbacks_make_sense(self) -> Self:
        late = self.fallback_on is None or "late" in self.fallback_on
        if not self.fallbacks and (self.fallback_on is not None or self.ttft_deadline_s is not None):
            raise ValueError("fallback_on and ttft_deadline_s say when to use 'fallbacks', and there are none")
        if self.ttft_deadline_s is not None and not late:
            raise ValueError("ttft_deadline_s is only used with 'late' in fallback_on")
        if self.fallback_on is not None and late and self.ttft_deadline_s is None:
            raise ValueError("fallback_on 'late' needs ttft_deadline_s to say when that is")
        return self


class QueueSection(Section):
    """The line before each model; the keys and defaults are those of `gateway.config.Queue`."""

    enabled: bool = _QUEUE.is_enabled
    max_waiting: Count = _QUEUE.max_waiting
    max_waiting_tokens: Count = _QUEUE.max_waiting_tokens
    max_wait_s: Seconds = _QUEUE.max_wait_s

    def parsed(self) -> Queue:
        """As the gateway takes it."""
        return Queue(self.enabled, self.max_waiting, self.max_waiting_tokens, self.max_wait_s)


class RemoteSection(Section):
    """One model of an OpenAI-compatible provider elsewhere, for `fallbacks`. Prices: US dollars per million tokens."""

    name: str = Field(min_length=1)
    base_url: str
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(default=None, min_length=1)
    """The variable that holds the key; keys do not stand in files."""
    input_usd: Usd | None = None
    output_usd: Usd | None = None
    speaks: Annotated[tuple[Dialect, ...], Field(min_length=1)] = tuple(sorted(OPENAI_DIALECTS))

    @field_validator("base_url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("no user or password here: name a variable in api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"'{url}' is not like https://api.example.com/v1")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _keys_do_not_travel_in_the_clear(self) -> "RemoteSection":
        parts = urlsplit(self.base_url)
        if self.api_key_env and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise ValueError(f"the key would go to {self.base_url} unencrypted: use https")
        return self


class TimeoutsSection(Section):
    """How long the gateway waits, and for what; the keys and defaults are those of `gateway.config.Timeouts`."""

    connect_s: Seconds = _TIMEOUTS.connect_s
    first_token_s: Seconds = _TIMEOUTS.first_token_s
    gap_s: Seconds = _TIMEOUTS.gap_s
    total_s: Seconds | None = _TIMEOUTS.total_s
    keep_alive_s: Seconds = _TIMEOUTS.keep_alive_s
    probe_s: Seconds = _TIMEOUTS.probe_s
    client_s: Seconds = _TIMEOUTS.client_s

    def parsed(self) -> Timeouts:
        """As the gateway takes it."""
        return Timeouts(**self.model_dump())


class HealthSection(Section):
    """When a replica is given no requests for how it answered; the defaults suit most."""

    consecutive_failures: Count = _BREAKER.consecutive_failures
    error_rate: Share = _BREAKER.error_rate
    min_requests: Count = _BREAKER.min_requests
    window_s: Seconds = _BREAKER.window_s
    open_s: Seconds = _BREAKER.open_s
    open_max_s: Seconds = _BREAKER.open_max_s
    trials: Count = _BREAKER.trials
    slow_start_s: Annotated[float, Field(ge=0)] = _BREAKER.slow_start_s
    max_ejection_percent: Annotated[int, Field(ge=0, le=100)] = _OUTLIERS.max_ejection_percent
    retry_share: Annotated[float, Field(ge=0, le=1)] = _RETRIES.share
    retry_floor_per_s: Annotated[float, Field(ge=0)] = _RETRIES.floor_per_s

    @model_validator(mode="after")
    def _most_is_not_least(self) -> "HealthSection":
        if self.open_max_s < self.open_s:
            raise ValueError(f"open_max_s ({self.open_max_s:g}) is less than open_s ({self.open_s:g})")
        return self

    def parsed(self) -> Health:
        """As the gateway takes it."""
        return Health(
            BreakerConfig(
                consecutive_failures=self.consecutive_failures,
                error_rate=self.error_rate,
                min_requests=self.min_requests,
                window_s=self.window_s,
                open_s=self.open_s,
                open_max_s=self.open_max_s,
                trials=self.trials,
                slow_start_s=self.slow_start_s,
            ),
            OutlierConfig(max_ejection_percent=self.max_ejection_percent),
            RetryBudgetConfig(share=self.retry_share, floor_per_s=self.retry_floor_per_s),
        )
