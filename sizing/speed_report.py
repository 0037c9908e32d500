"""How fast an answer's engine will be, for a terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sizing.cards import card
from sizing.compare import CurvePoint, Outlook
from sizing.question import Answer, Question
from sizing.speed import Estimate


def render_speed(
    question: Question, answer: Answer, outlook: Outlook, prompt_tokens: int, output_tokens: int
) -> RenderableType:
    """TTFT, TPOT and tokens/s over requests in flight, each with its band, and what a million tokens cost."""
    price = card(question.device.name).price
    hourly_usd = None if price is None else price.usd_per_hour * answer.settings.num_cards
    table = Table(title=f"Speed at {prompt_tokens:,} tokens in and {output_tokens:,} out", title_justify="left")
    for name in ("in flight", "TTFT s", "TPOT ms", "output tok/s", "$/M tokens"):
        table.add_column(name, justify="right")  # in a narrow terminal the range goes below its figure
    for point in outlook.curve[::2]:
        table.add_row(*_cells(point), _per_million(point, hourly_usd, (prompt_tokens + output_tokens) / output_tokens))
    parts: list[RenderableType] = [table]
    if price is not None:
        parts.append(Text(f"At ${hourly_usd:.2f} an hour: {price.kind}, {price.source}, {price.as_of}"))
    if question.speculative is not None:
        parts.append(Text("Without what drafting gains, which depends on how many drafts are accepted"))
    if question.adapters is not None:
        parts.append(Text("Of the model alone: what adapters cost in speed is not forecast"))
    if outlook.outside:
        parts.append(Text("Wider bands, since no measured run was like it: " + "; ".join(outlook.outside)))
    return Group(*parts)


def _per_million(point: CurvePoint, hourly_usd: float | None, tokens_per_output_token: float) -> str:
    """Prompts and answers together, the engine kept at that load."""
    if hourly_usd is None:
        return "-"
    return f"{hourly_usd / 3600 / (point.output_tokens_s.value * tokens_per_output_token) * 1e6:,.2f}"


def _cells(point: CurvePoint) -> tuple[str, ...]:
    tpot = "-" if point.tpot_s is None else _banded(point.tpot_s, 1e3)
    return (f"{point.concurrency:,}", _banded(point.ttft_s, 1), tpot, _banded(point.output_tokens_s, 1))


def _banded(estimate: Estimate, scale: float) -> str:
    """The value and its range, with as many digits as it is worth."""
    size = scale * estimate.value
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    value, low, high = (f"{scale * part:,.{digits}f}" for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low}-{high})"
