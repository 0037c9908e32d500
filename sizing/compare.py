"""Cards side by side for one model: what fits, how fast, and what it costs. Arithmetic alone."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal, get_args

from sizing.cards import Price, card
from sizing.cost import ApiPrice, BreakEven, HourlyCost, TokenCost, break_even, owned, rented, token_cost
from sizing.division import indivisible
from sizing.errors import QuestionError, SizingError
from sizing.gpu import GIB, Device, gpu, sizes_of
from sizing.model import ModelShape
from sizing.plan import answer, settle
from sizing.question import Answer, Question
from sizing.speed import Estimate, Pace
from sizing.users import LatencyBound, Users

Verdict = Literal["fits", "close", "no"]
Column = Literal[
    "kv_cache_tokens",
    "requests_fit",
    "ttft_s",
    "tpot_s",
    "output_tokens_s",
    "users",
    "usd_per_hour",
    "usd_per_million",
    "break_even_utilization",
]
LEAST_IS_BEST: frozenset[Column] = frozenset(
    {"ttft_s", "tpot_s", "usd_per_hour", "usd_per_million", "break_even_utilization"}
)
COLUMNS: tuple[Column, ...] = get_args(Column)
_OPTION = re.compile(r"(?:(\d+)\s*[xX*]\s*)?(\S.*)")


@dataclass(frozen=True)
class Option:
    """Cards that one engine would take: all of one kind, tensor parallel over all of them."""

    device: Device
    count: int = 1

    @property
    def label(self) -> str:
        return f"{self.count}x{self.device.name}" if self.count > 1 else self.device.name


@dataclass(frozen=True)
class Workload:
    """What the cards are compared at. Tokens are a request's; `users` are those who have to be served, if known."""

    prompt_tokens: int = 1024
    output_tokens: int = 256
    concurrency: int = 16
    users: int | None = None
    think_time_s: float = 30.0
    bound: LatencyBound | None = None
    percentile: float | None = 0.9
    """The share of requests that have to keep the bound; None: their mean."""


@dataclass(frozen=True)
class CurvePoint:
    """The speed at one number of requests in flight."""

    concurrency: int
    ttft_s: Estimate
    tpot_s: Estimate | None
    output_tokens_s: Estimate


@dataclass(frozen=True)
class Outlook:
    """How fast one option is at the workload; times in seconds, rates per second."""

    ttft_s: Estimate
    tpot_s: Estimate | None
    output_tokens_s: Estimate
    pace: Pace
    users: Users | None = None
    """The most that keep within the workload's bounds."""
    limiter: str | None = None
    """What would have to be more for a higher throughput."""
    note: str | None = None
    """What happens to requests that there is no room for."""
    outside: tuple[str, ...] = ()
    """What of this question the fit has not seen, which makes the bands wider."""
    curve: tuple[CurvePoint, ...] = ()

    @property
    def paid_pace(self) -> Pace | None:
        """What money is worked out at: the most that keep the bounds, or the workload's own pace without bounds."""
        return self.pace if self.users is None else self.users.pace


Forecaster = Callable[[Question, Answer, Workload], Outlook]
Asker = Callable[[Question], Answer]


@dataclass(frozen=True)
class Money:
    """What an option costs. None where there is no price, or no speed to divide it by."""

    price: Price
    cost: HourlyCost
    tokens: TokenCost | None
    break_even: BreakEven | None


@dataclass(frozen=True)
class Row:
    """One option. `refused` is why its question cannot be answered at all."""

    option: Option
    question: Question
    answer: Answer | None
    refused: str | None
    outlook: Outlook | None
    outlook_refused: str | None
    money: Money | None
    users: int | None = None
    """Who have to be served, as the workload says."""

    @property
    def verdict(self) -> Verdict:
        return "no" if self.answer is None else verdict(self.answer)

    @property
    def why_not(self) -> str | None:
        """In a few words; None where it fits for certain."""
        if self.answer is None:
            return first_clause(self.refused)
        return None if self.verdict == "fits" else short_reason(self.answer)

    @property
    def engines_for_users(self) -> int | None:
        """Engines like this one that all users of the workload need; None where that is not asked or not possible."""
        if self.users is None or self.outlook is None or self.outlook.users is None or not self.outlook.users.users:
            return None
        return math.ceil(self.users / self.outlook.users.users)

    def figure(self, column: Column) -> float | None:
        """The number in a column; None where there is none."""
        if self.answer is None or not self.answer.fits:
            return None
        return _FIGURES[column](self.answer, self.outlook, self.money)


@dataclass(frozen=True)
class Comparison:
    """Options side by side for one model."""

    model: ModelShape
    workload: Workload
    api: ApiPrice | None
    rows: tuple[Row, ...]

    def best(self, column: Column) -> frozenset[int]:
        """Which rows are best in a column; none where fewer than two have a number there."""
        found = [(at, row.figure(column)) for at, row in enumerate(self.rows)]
        known = [(at, value) for at, value in found if value is not None]
        if len(known) < 2:
            return frozenset()
        values = [value for _, value in known]
        top = min(values) if column in LEAST_IS_BEST else max(values)
        return frozenset(at for at, value in known if value == top)


def option(text: str) -> Option:
    """A card as people write it, "H100" or "2xH100".

    Raises:
        UnknownGpuError: naming the nearest cards.
        QuestionError: no card, or none of it.
    """
    name, count = _name_and_count(text)
    return Option(gpu(name), count)


def options_named(text: str) -> tuple[Option, ...]:
    """As `option`, which it raises as; a name that cards of several sizes share, such as A100, stands for each."""
    name, count = _name_and_count(text)
    return tuple(Option(card, count) for card in sizes_of(name)) or (option(text),)


def _name_and_count(text: str) -> tuple[str, int]:
    found = _OPTION.fullmatch(text.strip())
    if found is None:
        raise QuestionError(f"{text!r} is not a card; write H100, or 2xH100 for two of them")
    count = int(found[1] or 1)
    if count < 1:
        raise QuestionError(f"{text!r} is no card at all; write 1x or more")
    return found[2], count


@dataclass(frozen=True)
class Owned:
    """Cards that were bought: what one cost with its share of the server, and what its electricity costs."""

    usd_per_card: float
    years: float
    usd_per_kwh: float
    overhead: float = 1.3
    """The building's and the server's power over the card's own."""


Pricing = Callable[[Option], tuple[Price, HourlyCost] | None]
"""What an option costs by the hour; None where that is not known."""


def listed(chosen: Option) -> tuple[Price, HourlyCost] | None:
    """The catalogue's price, of the day it was read."""
    price = card(chosen.device.name).price if chosen.device.kind == "cuda" else None
    return None if price is None else (price, rented(price.usd_per_hour, chosen.count))


def given(usd_per_card_hour: float, as_of: date) -> Pricing:
    """Every card at that price."""

    def priced(chosen: Option) -> tuple[Price, HourlyCost]:
        return Price(usd_per_card_hour, as_of, "as given", "yours"), rented(usd_per_card_hour, chosen.count)

    return priced


def bought(owner: Owned, as_of: date) -> Pricing:
    """Amortisation around the clock, and the electricity of a card's full power while it works."""

    def priced(chosen: Option) -> tuple[Price, HourlyCost] | None:
        power_w = card(chosen.device.name).power_w if chosen.device.kind == "cuda" else None
        if power_w is None:
            return None
        hourly = owned(
            usd_per_card=owner.usd_per_card,
            years=owner.years,
            power_w=power_w,
            usd_per_kwh=owner.usd_per_kwh,
            num_cards=chosen.count,
            overhead=owner.overhead,
        )
        source = f"${owner.usd_per_card:,.0f} over {owner.years:g} years, {power_w:g} W at ${owner.usd_per_kwh:g}/kWh"
        return Price((hourly.fixed_usd + hourly.working_usd) / chosen.count, as_of, "owned", source), hourly

    return priced


def compare(
    base: Question,
    options: Sequence[Option],
    workload: Workload,
    *,
    forecaster: Forecaster | None = None,
    api: ApiPrice | None = None,
    pricing: Pricing = listed,
) -> Comparison:
    """`base` asked of every option: its device, count and tensor parallel size are replaced, its settings kept.

    A card that cannot be answered, or whose speed cannot be told, is a row that says why, not an error.

    Raises:
        QuestionError: no options, or a question that no card could answer.
    """
    rows = tuple(_row(base, chosen, workload, forecaster, api, pricing) for chosen in options)
    refusals = {row.refused for row in rows}
    if len(refusals) == 1 and (why := refusals.pop()) is not None:
        raise QuestionError(why)
    if not rows:
        raise QuestionError("no cards to compare; name them by --gpus, such as L4,H100,2xH100")
    return Comparison(base.model, workload, api, rows)


def first_clause(message: str | None) -> str:
    """Of one of our errors: what is wrong, without the way out."""
    return (message or "").split(";")[0]


def verdict(found: Answer) -> Verdict:
    """A close call is one that the bands of the terms leave open."""
    if not found.certain:
        return "close"
    return "fits" if found.fits else "no"


def short_reason(found: Answer) -> str:
    """Why not, or why it is close, in as few words as a cell of a table has room for."""
    fixed_bytes = sum(term.bytes for term in found.terms)
    if found.fits:
        return "within the error of the estimate"
    if fixed_bytes >= found.limit_bytes:
        return f"takes {fixed_bytes / GIB:.0f} of {found.limit_bytes / GIB:.0f} GiB"
    if found.needed_kv_bytes > found.kv_cache_bytes:
        return f"KV {found.kv_cache_bytes / GIB:.1f} of {found.needed_kv_bytes / GIB:.1f} GiB"
    return "memory is not free"


def asked_of(base: Question, chosen: Option, ask: Asker = settle) -> tuple[Question, Answer | None, str | None]:
    """The question on those cards, tensor parallel over all of them; its answer, or why there is none."""
    model, size = base.model, max(1, chosen.count // base.pipeline_parallel_size)
    question = replace(base, device=chosen.device, count=chosen.count, tensor_parallel_size=size, stage_devices=())
    indivisibility = indivisible(model, size)
    if indivisibility is not None:
        return question, None, f"tensor parallel {size} {indivisibility}; {_that_divides(model, size)}"
    if base.max_model_len is not None and base.max_model_len > model.longest_model_len:
        return question, None, f"{model.name} goes up to {model.longest_model_len:,} tokens; ask for no more at once"
    return question, *settled(question, ask)


def _that_divides(model: ModelShape, size: int) -> str:
    """The nearest numbers of cards over which the model can be divided."""
    below = next(ranks for ranks in range(size - 1, 0, -1) if indivisible(model, ranks) is None)
    above = next((ranks for ranks in range(size + 1, 4 * size + 1) if indivisible(model, ranks) is None), None)
    return f"take {below} of them" + (f", or {above}" if above else "")


def settled(question: Question, ask: Asker = settle) -> tuple[Answer | None, str | None]:
    """The answer, or why the question cannot be answered."""
    try:
        return ask(question), None
    except SizingError as error:
        return None, str(error)


def _row(
    base: Question,
    chosen: Option,
    workload: Workload,
    forecaster: Forecaster | None,
    api: ApiPrice | None,
    pricing: Pricing,
) -> Row:
    question, found, refused = asked_of(base, chosen, answer)
    if found is None or not found.fits:
        return Row(chosen, question, found, refused, None, None, _money(pricing(chosen), None, workload, None))
    outlook, why = None, None
    if forecaster is not None:
        try:
            outlook = forecaster(question, found, workload)
        except SizingError as error:
            why = str(error)
    money = _money(pricing(chosen), outlook, workload, api)
    return Row(chosen, question, found, None, outlook, why, money, users=workload.users)


def _money(
    priced: tuple[Price, HourlyCost] | None, outlook: Outlook | None, workload: Workload, api: ApiPrice | None
) -> Money | None:
    if priced is None:
        return None
    price, cost = priced
    pace = None if outlook is None else outlook.paid_pace
    if pace is None:
        return Money(price, cost, None, None)
    prompt, output = workload.prompt_tokens, workload.output_tokens
    tokens = token_cost(pace, cost, prompt_tokens=prompt, output_tokens=output)
    even = break_even(pace, cost, api, prompt_tokens=prompt, output_tokens=output) if api else None
    return Money(price, cost, tokens, even)


_Figure = Callable[[Answer, Outlook | None, Money | None], float | None]
_FIGURES: dict[Column, _Figure] = {
    "kv_cache_tokens": lambda found, _, __: found.kv_cache_tokens,
    "requests_fit": lambda found, _, __: found.requests_fit,
    "ttft_s": lambda _, outlook, __: outlook.ttft_s.value if outlook else None,
    "tpot_s": lambda _, outlook, __: outlook.tpot_s.value if outlook and outlook.tpot_s else None,
    "output_tokens_s": lambda _, outlook, __: outlook.output_tokens_s.value if outlook else None,
    "users": lambda _, outlook, __: outlook.users.users if outlook and outlook.users else None,
    "usd_per_hour": lambda _, __, money: money.cost.fixed_usd + money.cost.working_usd if money else None,
    "usd_per_million": lambda _, __, money: money.tokens.blended_usd if money and money.tokens else None,
    "break_even_utilization": lambda _, __, money: money.break_even.utilization if money and money.break_even else None,
}
