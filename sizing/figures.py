"""Figures of a comparison as people read them: the same words in the terminal, the picture and the page."""

from collections.abc import Callable
from dataclasses import dataclass

from sizing.compare import Column, Comparison, Row
from sizing.cost import BreakEven
from sizing.speed import Estimate

VERDICT_WORDS = {"fits": "fits", "close": "close call", "no": "no"}
VERDICT_MARKS = {"fits": "✔", "close": "≈", "no": "✘"}

HEADINGS: dict[Column, str] = {
    "kv_cache_tokens": "KV tokens",
    "requests_fit": "requests at once",
    "ttft_s": "TTFT",
    "tpot_s": "TPOT",
    "output_tokens_s": "output tokens/s",
    "users": "users within SLO",
    "usd_per_hour": "$/h",
    "usd_per_million": "$/M tokens",
    "break_even_utilization": "cheaper than the API from",
}


MONEY_COLUMNS: frozenset[Column] = frozenset({"usd_per_hour", "usd_per_million", "break_even_utilization"})


@dataclass(frozen=True)
class Figure:
    """One cell: the figure, and what stands under it in small type (its range, its date)."""

    text: str
    under: str = ""
    best: bool = False


def figure(comparison: Comparison, at: int, column: Column) -> Figure:
    """The cell of row `at` in that column; "-" where there is nothing to say."""
    row = comparison.rows[at]
    if row.figure(column) is None and not _says_never(row, column):
        return Figure("-")
    text, under = _text(row, column)
    return Figure(text, under, at in comparison.best(column))


def shown_columns(comparison: Comparison) -> tuple[Column, ...]:
    """The columns in which at least one row says something."""
    return tuple(
        column
        for column in HEADINGS
        if any(figure(comparison, at, column).text != "-" for at in range(len(comparison.rows)))
    )


def _says_never(row: Row, column: Column) -> bool:
    even = row.money.break_even if row.money else None
    return column == "break_even_utilization" and even is not None


def _text(row: Row, column: Column) -> tuple[str, str]:
    if column in ("kv_cache_tokens", "requests_fit"):
        return _capacity(row, column)
    if column in ("usd_per_hour", "usd_per_million", "break_even_utilization"):
        return _money(row, column)
    return _speed(row, column)


def _capacity(row: Row, column: Column) -> tuple[str, str]:
    found = row.answer
    if found is None:
        return "-", ""
    if column == "requests_fit":
        return f"{found.requests_fit:,}", f"of {found.settings.max_model_len:,} tokens"
    band = found.kv_cache_tokens_range
    return f"{found.kv_cache_tokens:,}", f"{band.low:,}..{band.high:,}"


def _speed(row: Row, column: Column) -> tuple[str, str]:
    outlook = row.outlook
    if outlook is None:
        return "-", ""
    if column == "ttft_s":
        return _estimated(outlook.ttft_s, seconds)
    if column == "tpot_s":
        return _estimated(outlook.tpot_s, seconds)
    if column == "output_tokens_s":
        text, under = _estimated(outlook.output_tokens_s, rate)
        return text, f"{under}; {outlook.limiter}" if outlook.limiter else under
    if outlook.users is None:
        return "-", ""
    limiter = {"ttft": "TTFT", "tpot": "TPOT", "most_concurrency": "4,096 requests"}[outlook.users.limiter]
    if not outlook.users.users:
        return "0", f"{limiter} is missed by one alone"
    engines = row.engines_for_users
    plural = "" if engines == 1 else "s"
    needed = f"; {engines:,} engine{plural} for {row.users:,}" if engines is not None else ""
    return f"{outlook.users.users:,}", f"{limiter} is the limit{needed}"


def _estimated(estimate: Estimate | None, said: Callable[[float], str]) -> tuple[str, str]:
    if estimate is None:
        return "-", ""
    return said(estimate.value), span(said(estimate.low), said(estimate.high))


def _money(row: Row, column: Column) -> tuple[str, str]:
    money = row.money
    if money is None:
        return "-", ""
    if column == "usd_per_hour":
        return dollars(
            money.cost.fixed_usd + money.cost.working_usd
        ), f"{money.price.kind}, {money.price.as_of.isoformat()}"
    if column == "break_even_utilization":
        return _even(money.break_even)
    if money.tokens is None:
        return "-", ""
    return (
        dollars(money.tokens.blended_usd),
        f"in {dollars(money.tokens.input_usd)}, out {dollars(money.tokens.output_usd)}",
    )


def _even(even: BreakEven | None) -> tuple[str, str]:
    if even is None:
        return "-", ""
    if even.utilization is None or even.requests_per_day is None:
        return "never", f"the API asks {dollars(even.api_usd_per_million)}/M"
    return f"{even.utilization:.0%} busy", f"{even.requests_per_day:,.0f} requests/day"


def span(low: str, high: str) -> str:
    """Both ends, with their unit once where it is the same: "9.1..30.8 ms"."""
    number, _, unit = low.partition(" ")
    return f"{number}..{high}" if unit and high.endswith(f" {unit}") else f"{low}..{high}"


def seconds(value: float) -> str:
    """Milliseconds below a second, in three digits at most."""
    if value < 0.1:
        return f"{value * 1000:.1f} ms"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:,.0f} s"


def rate(value: float) -> str:
    """Tokens per second."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def dollars(value: float) -> str:
    """Two digits after the point, or as many as a small price needs."""
    return f"${value:,.2f}" if value >= 0.1 or value == 0 else f"${value:.2g}"
