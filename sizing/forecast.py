"""From a sized model and an engine's settings to how fast it is, what limits it, whom it serves and what it costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sizing.cards import Card
from sizing.cost import ApiPrice, BreakEven, HourlyCost, TokenCost, break_even, rented, token_cost
from sizing.efficiency import EFFICIENCY
from sizing.errors import QuestionError
from sizing.gpu import Link
from sizing.model import ModelShape
from sizing.roofline import Engine, Roofline
from sizing.speed import Estimate, Load, Pace, Speed, speed
from sizing.speed_shape import SpeedShape, speed_shape_of
from sizing.users import LatencyBound, Users, users_within

Limiter = Literal["memory bandwidth", "compute", "KV cache", "max_num_seqs", "latency"]
_CURVE = tuple(2**n for n in range(11))


@dataclass(frozen=True)
class Setup:
    """Replicas of one engine, each on tensor x pipeline parallel cards."""

    shape: SpeedShape
    card: Card
    link: Link
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    replicas: int = 1
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    """None: 8,192, vLLM's own for a server on a card of 70 GiB or more."""
    kv_cache_tokens: int | None = None
    """Of one replica, as the engine logs it; None: as many as are needed."""

    def __post_init__(self) -> None:
        for name in ("replicas", "max_num_seqs", "kv_cache_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise QuestionError(f"{name} is {value}; it has to be at least 1")

    @property
    def num_cards(self) -> int:
        return self.replicas * self.tensor_parallel_size * self.pipeline_parallel_size

    def engine(self, prompt_tokens: float, output_tokens: float) -> Engine:
        """One replica, its requests limited by `max_num_seqs` and by the cache, halfway through their answers."""
        limits = [self.max_num_seqs] if self.max_num_seqs else []
        if self.kv_cache_tokens:
            limits.append(max(1, int(self.kv_cache_tokens / (prompt_tokens + output_tokens / 2))))
        return Engine(
            self.card,
            self.link,
            self.tensor_parallel_size,
            max_running=min(limits) if limits else None,
            max_num_batched_tokens=self.max_num_batched_tokens or 8192,
            pipeline_parallel_size=self.pipeline_parallel_size,
        )


def setup(
    model: ModelShape | SpeedShape,
    card: Card,
    link: Link,
    *,
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    replicas: int = 1,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    kv_cache_tokens: int | None = None,
    kv_cache_dtype: str = "auto",
) -> Setup:
    """What is asked about, `kv_cache_tokens` and `max_num_seqs` of one replica.

    `speed_shape_of(model)` may be given in the model's place, which spares working it out for every question.
    """
    shape = model if isinstance(model, SpeedShape) else speed_shape_of(model, kv_cache_dtype=kv_cache_dtype)
    return Setup(
        shape,
        card,
        link,
        tensor_parallel_size,
        pipeline_parallel_size,
        replicas,
        max_num_seqs,
        max_num_batched_tokens,
        kv_cache_tokens,
    )


@dataclass(frozen=True)
class Forecast:
    """How fast all replicas together are at one load."""

    concurrency: float
    speed: Speed
    """Tokens per second are those of all replicas."""
    limiter: Limiter
    """What would have to be more for a higher throughput."""
    note: str | None
    """What happens where the requests in flight do not fit in the KV cache or the batch; None where they do."""
    num_cards: int


def forecast(
    asked: Setup, *, prompt_tokens: float, output_tokens: float, concurrency: float, prefix_hit_rate: float = 0.0
) -> Forecast:
    """TTFT, TPOT and throughput with `concurrency` requests in flight, spread evenly over the replicas.

    Raises:
        QuestionError: a load below one request or token, or a figure of the card that its maker does not publish.
    """
    used = min(float(asked.replicas), concurrency)  # a replica without a request does nothing
    load = Load(prompt_tokens, output_tokens, concurrency / used, prefix_hit_rate)
    engine = asked.engine(prompt_tokens, output_tokens)
    found = speed(asked.shape, engine, load)
    return Forecast(
        concurrency=concurrency,
        speed=_of_all(found, used, asked.num_cards),
        limiter=_limiter(asked, engine, load, found.pace),
        note=_note(asked, engine, load),
        num_cards=asked.num_cards,
    )


def curve(
    asked: Setup,
    *,
    prompt_tokens: float,
    output_tokens: float,
    concurrencies: Sequence[float] = _CURVE,
    prefix_hit_rate: float = 0.0,
) -> tuple[Forecast, ...]:
    """The same over loads: 1, 2, 4 ... 1,024 requests in flight unless told others."""
    return tuple(
        forecast(
            asked,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            concurrency=concurrency,
            prefix_hit_rate=prefix_hit_rate,
        )
        for concurrency in concurrencies
    )


def users(
    asked: Setup,
    bound: LatencyBound,
    *,
    prompt_tokens: float,
    output_tokens: float,
    think_time_s: float,
    percentile: float | None = None,
) -> Users:
    """How many people all replicas serve within the bound; `percentile` is the share of requests that have to keep it
    (0.9), None for the mean.

    Raises:
        QuestionError: a percentile that is not above 0 and below 1, or a question that `forecast` refuses.
    """
    found = users_within(
        asked.shape,
        asked.engine(prompt_tokens, output_tokens),
        bound if percentile is None else bound.of_means(percentile),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        think_time_s=think_time_s,
    )
    return replace(found, users=found.users * asked.replicas, concurrency=found.concurrency * asked.replicas)


@dataclass(frozen=True)
class Cost:
    """What tokens cost at a forecast's pace, and when an API would be cheaper."""

    tokens: TokenCost
    hourly: HourlyCost
    basis: str
    """Where the price per hour comes from, with its date."""
    break_even: BreakEven | None
    """None where no API's price was given."""


def cost(
    asked: Setup,
    found: Forecast,
    *,
    prompt_tokens: float,
    output_tokens: float,
    hourly: HourlyCost | None = None,
    utilization: float = 1.0,
    api: ApiPrice | None = None,
) -> Cost:
    """Dollars per million tokens, of all cards, kept up for `utilization` of all hours.

    `hourly` is `sizing.cost.rented` or `owned` for all cards; without it the catalogue's price is taken.

    Raises:
        QuestionError: no price is given and none is listed for the card.
    """
    basis = "as given"
    if hourly is None:
        price = asked.card.price
        if price is None:
            raise QuestionError(
                f"no price of {asked.card.name} is listed; give one per hour, or a purchase price and years"
            )
        hourly = rented(price.usd_per_hour, asked.num_cards)
        basis = f"{price.usd_per_hour:.2f} USD/h per card ({price.kind}, {price.source}, {price.as_of})"
    pace = found.speed.pace
    return Cost(
        tokens=token_cost(
            pace, hourly, prompt_tokens=prompt_tokens, output_tokens=output_tokens, utilization=utilization
        ),
        hourly=hourly,
        basis=basis,
        break_even=break_even(pace, hourly, api, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        if api is not None
        else None,
    )


def _of_all(found: Speed, replicas: float, num_cards: int) -> Speed:
    def times(estimate: Estimate, factor: float) -> Estimate:
        return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor)

    pace = found.pace
    return replace(
        found,
        output_tokens_s=times(found.output_tokens_s, replicas),
        output_tokens_s_per_card=times(found.output_tokens_s, replicas / num_cards),
        pace=replace(
            pace,
            requests_s=pace.requests_s * replicas,
            output_tokens_s=pace.output_tokens_s * replicas,
            running=pace.running * replicas,
        ),
    )


def _limiter(asked: Setup, engine: Engine, load: Load, pace: Pace) -> Limiter:
    if engine.max_running is not None and load.concurrency > engine.max_running:
        return "max_num_seqs" if engine.max_running == asked.max_num_seqs else "KV cache"
    roofline = Roofline(asked.shape, engine, EFFICIENCY)
    step_s = roofline.decode_s(pace.running, load.prompt_tokens + load.output_tokens / 2)
    if pace.prefill_share > 1 / 2 or roofline.decode_computes(pace.running):
        return "compute"
    return "latency" if roofline.fixed_s > step_s / 2 else "memory bandwidth"


def _note(asked: Setup, engine: Engine, load: Load) -> str | None:
    if engine.max_running is not None and load.concurrency > engine.max_running:
        waiting = math.ceil(load.concurrency - engine.max_running)
        return f"about {waiting:,} of {math.ceil(load.concurrency):,} requests per replica wait for others to leave"
    needed = load.concurrency * (load.prompt_tokens + load.output_tokens)
    if asked.kv_cache_tokens is not None and needed > asked.kv_cache_tokens:
        return (
            f"all requests at their longest need {needed:,.0f} tokens of KV cache, and {asked.kv_cache_tokens:,} are "
            "there: some will be preempted"
        )
    return None
