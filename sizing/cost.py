"""What tokens cost on one's own or rented cards, and when an API is cheaper. All money is in US dollars."""

from dataclasses import dataclass

from sizing.errors import QuestionError
from sizing.speed import Pace

HOURS_PER_YEAR = 8766.0
_MILLION = 1e6
_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class HourlyCost:
    """Dollars per hour of a whole engine: what is paid whether it works or not, and what work adds."""

    fixed_usd: float
    working_usd: float = 0.0

    def __post_init__(self) -> None:
        if self.fixed_usd < 0 or self.working_usd < 0:
            raise QuestionError("a cost per hour cannot be below 0")

    def per_working_hour(self, utilization: float) -> float:
        """Dollars that an hour of work costs, the idle hours around it paid by it.

        Raises:
            QuestionError: a utilization that is not above 0 and at most 1.
        """
        if not 0 < utilization <= 1:
            raise QuestionError(f"utilization is {utilization}; it has to be above 0 and at most 1")
        return self.fixed_usd / utilization + self.working_usd


def rented(usd_per_card_hour: float, num_cards: int) -> HourlyCost:
    """Cards by the hour: the price is paid for idle hours too."""
    return HourlyCost(usd_per_card_hour * num_cards)


def owned(
    *, usd_per_card: float, years: float, power_w: float, usd_per_kwh: float, num_cards: int, overhead: float = 1.0
) -> HourlyCost:
    """Cards bought: price over the years they serve, and electricity while they work.

    `usd_per_card` includes the card's share of its server; `overhead` is the building's power over the card's (PUE,
    and the server's own share). Electricity of idle cards, rent and people are left out.

    Raises:
        QuestionError: a life of no years, or a negative figure.
    """
    if years <= 0 or min(usd_per_card, power_w, usd_per_kwh, overhead) < 0:
        raise QuestionError("years have to be above 0, and price, power, electricity price and overhead not below 0")
    fixed = usd_per_card / (years * HOURS_PER_YEAR)
    working = power_w / 1000 * overhead * usd_per_kwh
    return HourlyCost(fixed * num_cards, working * num_cards)


@dataclass(frozen=True)
class TokenCost:
    """Dollars per million tokens."""

    input_usd: float
    output_usd: float
    blended_usd: float
    """Over all tokens, prompts and answers as they come."""


def token_cost(
    pace: Pace, cost: HourlyCost, *, prompt_tokens: float, output_tokens: float, utilization: float = 1.0
) -> TokenCost:
    """What a million tokens cost at that pace, kept up for `utilization` of all hours.

    Prompts bear the share of the engine's time that goes into them, answers the rest.
    """
    usd_per_request = cost.per_working_hour(utilization) / _SECONDS_PER_HOUR / pace.requests_s
    share = pace.prefill_share
    return TokenCost(
        input_usd=usd_per_request * share / prompt_tokens * _MILLION,
        output_usd=usd_per_request * (1 - share) / output_tokens * _MILLION,
        blended_usd=usd_per_request / (prompt_tokens + output_tokens) * _MILLION,
    )


@dataclass(frozen=True)
class ApiPrice:
    """What a provider asks for a million tokens, in dollars."""

    input_usd: float
    output_usd: float

    def per_request(self, prompt_tokens: float, output_tokens: float) -> float:
        return (prompt_tokens * self.input_usd + output_tokens * self.output_usd) / _MILLION


@dataclass(frozen=True)
class BreakEven:
    """Where own cards and an API cost the same."""

    utilization: float | None
    """Of the pace, around the clock; None where the API is cheaper even at full load."""
    requests_per_day: float | None
    tokens_per_day: float | None
    api_usd_per_million: float
    """What the API asks for the same mix of tokens."""


def break_even(pace: Pace, cost: HourlyCost, api: ApiPrice, *, prompt_tokens: float, output_tokens: float) -> BreakEven:
    """How much has to be asked before own cards are cheaper: fixed + working x load = API price x load."""
    per_request = api.per_request(prompt_tokens, output_tokens)
    blended = per_request / (prompt_tokens + output_tokens) * _MILLION
    saved_per_hour = per_request * pace.requests_s * _SECONDS_PER_HOUR - cost.working_usd
    if saved_per_hour <= 0 or cost.fixed_usd > saved_per_hour:
        return BreakEven(None, None, None, blended)
    utilization = cost.fixed_usd / saved_per_hour
    requests = utilization * pace.requests_s * _SECONDS_PER_HOUR * 24
    return BreakEven(utilization, requests, requests * (prompt_tokens + output_tokens), blended)
