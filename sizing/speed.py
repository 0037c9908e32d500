"""How fast an engine answers: time to first token, time per token and tokens per second at a steady load.

Requests arrive as fast as others finish, `concurrency` of them in flight. A step advances every running sequence by
one token; a prompt that comes in is computed in the same steps and makes them longer for all (chunked prefill). With
P the steps that carry one prompt, p what it adds to them, d a step without prompts, n the requests in flight and u the
requests finished per second, prompts of others take a share q = u p (n - 1) / n of the time, so that

    TPOT = d / (1 - q)        TTFT = request + launches + P / (1 - q) + w TPOT        n = u (TTFT + (output - 1) TPOT)

where w = (n - 1) / 2n is the part of a step that a request waits for others to end theirs

(the mean-value analysis of a closed network with one queue), which is a quadratic equation in u.
"""

import math
from dataclasses import dataclass

from sizing.efficiency import EFFICIENCY, FIT, Efficiency, FitRecord
from sizing.errors import QuestionError
from sizing.roofline import Engine, Roofline, half_rate
from sizing.speed_shape import FOUR_BIT, SpeedShape

_WIDER = 1.5
"""Each way in which a question lies outside the fitted rows makes the band this much wider, as an exponent."""
_FITTED_CAPABILITIES = {
    "dense": {(8, 0), (8, 9), (9, 0), (10, 0), (10, 3)},
    "experts": {(9, 0), (10, 0), (10, 3)},
}
_FITTED_CARDS = {
    "dense": "the fitted cards are A100, L4, RTX 4090, H100, H200, B200 and B300",
    "experts": "mixtures of experts were fitted on H200, B200 and B300",
}
_FITTED_TOKENS = {"prompt": (128, 8192), "output": (100, 8192)}
_MOST_FITTED_CONCURRENCY = 1024
_MOST_FITTED_CARDS = 8


@dataclass(frozen=True)
class Load:
    """Requests of one size, always `concurrency` of them in flight."""

    prompt_tokens: float
    output_tokens: float
    concurrency: float
    prefix_hit_rate: float = 0.0
    """Of the prompts' tokens, those found in the prefix cache: they are read but not computed."""

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens", "concurrency"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 1):
                raise QuestionError(f"{name} is {value}; it has to be at least 1")
        if not 0 <= self.prefix_hit_rate <= 1:
            raise QuestionError(f"prefix_hit_rate is {self.prefix_hit_rate}; it has to be between 0 and 1")

    @property
    def computed_tokens(self) -> float:
        """Of a prompt, what is computed: the last token always is."""
        return max(1.0, self.prompt_tokens * (1 - self.prefix_hit_rate))


@dataclass(frozen=True)
class Pace:
    """The steady state, as times in seconds and rates per second, without a band."""

    ttft_s: float
    tpot_s: float | None
    """None where an answer has one token only."""
    requests_s: float
    output_tokens_s: float
    running: float
    """Requests inside the engine; the others wait."""
    prefill_share: float
    """Of the engine's time, what goes into prompts; the rest goes into answers."""


@dataclass(frozen=True)
class Estimate:
    """A value, and the band that nine of ten measurements of the fitted kind fell into."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Speed:
    """The answer: seconds and tokens per second."""

    ttft_s: Estimate
    tpot_s: Estimate | None
    output_tokens_s: Estimate
    output_tokens_s_per_card: Estimate
    pace: Pace
    outside: tuple[str, ...]
    """Why the band is wider than the fit's own: what of this question no fitted row was like."""


def speed(
    shape: SpeedShape, engine: Engine, load: Load, *, efficiency: Efficiency = EFFICIENCY, fit: FitRecord = FIT
) -> Speed:
    """TTFT, TPOT and throughput with their bands. Speculative decoding is not counted on.

    Raises:
        QuestionError: a figure of the card that the catalogue does not have, or a load below one request or token.
    """
    found = pace(shape, engine, load, efficiency=efficiency)
    reasons = outside(shape, engine, load)
    per_replica = load.concurrency / engine.data_parallel_size
    spread = fit.few if per_replica <= fit.few_at_most else fit.many
    wider = _WIDER ** len(reasons)

    def band(value: float, log_width: float) -> Estimate:
        factor = math.exp(log_width * wider)
        return Estimate(value, value / factor, value * factor)

    return Speed(
        ttft_s=band(found.ttft_s, spread.ttft),
        tpot_s=None if found.tpot_s is None else band(found.tpot_s, spread.tpot),
        output_tokens_s=band(found.output_tokens_s, spread.output_rate),
        output_tokens_s_per_card=band(found.output_tokens_s / engine.num_cards, spread.output_rate),
        pace=found,
        outside=reasons,
    )


def pace(shape: SpeedShape, engine: Engine, load: Load, *, efficiency: Efficiency = EFFICIENCY) -> Pace:
    """The steady state of continuous batching at that load.

    Raises:
        QuestionError: a figure of the card that the catalogue does not have.
    """
    roofline = Roofline(shape, engine, efficiency)
    # Replicas that share experts keep step, so a prompt on one holds up all; others are engines of their own.
    lockstep = engine.data_parallel_size == 1 or bool(shape.experts)
    limit = engine.max_running or load.concurrency
    running = min(load.concurrency, max(1.0, limit))
    queue = running if lockstep else max(1.0, running / engine.data_parallel_size)
    prompt = _prompt(roofline, load, running, queue)
    step_s = roofline.decode_s(running, load.prompt_tokens + load.output_tokens / 2)
    start_s = efficiency.request_s + efficiency.prompt_token_s * load.prompt_tokens + roofline.fixed_s
    rate, share = _balance(queue, start_s, prompt, step_s, load.output_tokens)
    rate *= running / queue
    tpot_s = step_s / (1 - share)
    opening_s = efficiency.opening_share * (queue - 1) / 2 * prompt.opening_s
    waiting_s = (load.concurrency - running) / rate
    ttft_s = start_s + prompt.own_s / (1 - share) + _begun(queue) * tpot_s + opening_s + waiting_s
    requests_s = load.concurrency / (ttft_s + (load.output_tokens - 1) * tpot_s)
    return Pace(
        ttft_s=ttft_s,
        tpot_s=tpot_s if load.output_tokens > 1 else None,
        requests_s=requests_s,
        output_tokens_s=requests_s * load.output_tokens,
        running=running,
        prefill_share=min(1.0, requests_s * prompt.held_s / (1 if lockstep else engine.data_parallel_size)),
    )


@dataclass(frozen=True)
class _Prompt:
    """The times of one prompt, in seconds. With several stages as many prompts are under way at once, so each holds up
    others by its share of the stages."""

    own_s: float
    """The steps that carry it."""
    held_s: float
    """What it adds to them, the weights being read for the others anyway."""
    opening_s: float
    """The same where nothing else runs yet."""


def _prompt(roofline: Roofline, load: Load, running: float, queue: float) -> _Prompt:
    engine, tokens = roofline.engine, load.computed_tokens
    cached, others = load.prompt_tokens - tokens, running - running / queue
    together = max(1.0, queue / load.output_tokens)  # an answer takes as many steps as it has tokens
    beside_s = 0.0
    if others:
        step_s = roofline.decode_s(others, load.prompt_tokens + load.output_tokens / 2) - roofline.fixed_s
        beside_s = step_s * max(1.0, tokens / engine.max_num_batched_tokens)
    return _Prompt(
        own_s=roofline.prefill_s(tokens, cached, beside=others) + beside_s,
        held_s=roofline.prefill_s(tokens, cached, beside=others, together=together) / engine.pipeline_parallel_size,
        opening_s=roofline.prefill_s(tokens, cached) / engine.pipeline_parallel_size,
    )


def _begun(queue: float) -> float:
    """Of a step, what is left of it when a request comes in: half, where one is under way, and alone none is."""
    return (queue - 1) / (2 * queue)


def _balance(n: float, start_s: float, prompt: _Prompt, step_s: float, output_tokens: float) -> tuple[float, float]:
    """Requests per second u and the share q of time that others' prompts take.

    n = u (a + b / (1 - q)) with q = u k, a what no one queues for and b what prompts stretch.
    """
    k = prompt.held_s * (n - 1) / n
    a, b = start_s, prompt.own_s + (output_tokens - 1 + _begun(n)) * step_s
    middle = a + b + n * k
    rate = 2 * n / (middle + math.sqrt(middle * middle - 4 * a * k * n))
    return rate, rate * k


def outside(shape: SpeedShape, engine: Engine, load: Load) -> tuple[str, ...]:
    """What of a question no fitted row was like, in words."""
    card = engine.card
    tokens = {"prompt": load.prompt_tokens, "output": load.output_tokens}
    unlike = {name: value for name, value in tokens.items() if not _within(value, _FITTED_TOKENS[name])}
    several = engine.num_cards > 1
    kind = "experts" if shape.experts else "dense"
    four_bit = not shape.experts and shape.dense_format in FOUR_BIT
    found = [
        (four_bit, "a dense model in four bits; the fitted ones have 8 or 16"),
        (card.compute_capability not in _FITTED_CAPABILITIES[kind], f"{card.name}; {_FITTED_CARDS[kind]}"),
        (several and engine.link != "nvlink", f"cards linked by {engine.link}; the fitted ones are linked by NVLink"),
        (engine.pipeline_parallel_size > 1, "pipeline parallel; no fitted row has stages"),
        (load.prefix_hit_rate > 0, "prompts found in the prefix cache; no fitted row counts on that"),
        (engine.num_cards > _MOST_FITTED_CARDS, "an engine over more cards than one box has"),
        (load.concurrency > _MOST_FITTED_CONCURRENCY, f"more than {_MOST_FITTED_CONCURRENCY:,} requests in flight"),
        (load.concurrency > (engine.max_running or load.concurrency), "requests that wait for others to leave"),
        (card.flops_16bit is None and half_rate(card) > 0, f"the 16-bit rate of {card.name} follows from FP4's"),
    ]
    found += [(True, f"{name}s of {value:,.0f} tokens") for name, value in unlike.items()]
    return tuple(reason for holds, reason in found if holds) + shape.approximations


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
