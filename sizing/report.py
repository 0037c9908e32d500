"""An answer as people read it in a terminal: a bar of the card, a table of every term, vLLM's lines, yes or no."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from sizing.budget_bar import BudgetBar, Part, budget_bar, cells
from sizing.document import SCHEMA_VERSION, as_json
from sizing.gpu import GIB
from sizing.log_lines import LogLine, log_line, log_lines
from sizing.memory import Term
from sizing.question import Answer, Question

__all__ = ["SCHEMA_VERSION", "BarView", "as_json", "log_line", "render"]

_MOST_BAR_CELLS = 100
# Told apart without colour too.
_GLYPHS: dict[Part, tuple[str, str]] = {
    "weights": ("█", "blue"),
    "activations": ("▓", "magenta"),
    "non-torch": ("▒", "yellow"),
    "CUDA graphs": ("░", "cyan"),
    "KV cache": ("▞", "green"),
    "missing": ("!", "bold red"),
    "held by others": ("#", "bright_black"),
    "not used": ("·", "bright_black"),
}


def render(question: Question, answer: Answer) -> RenderableType:
    """The answer for people: the bar, the sum, the lines vLLM will log, and yes or no with the reason or the requests.

    Print it with `soft_wrap=True`, which keeps vLLM's lines whole for eyes and for grep.
    """
    bar = BarView(budget_bar(question, answer))
    parts: list[RenderableType] = [_title(question, answer), bar, _sum(question, answer)]
    parts += _logged(question, answer)
    parts.append(_verdict(question, answer))
    if answer.note:
        parts.append(Text(f"Note: {answer.note}"))
    if answer.way_out:
        parts.append(Text(f"Way out: {answer.way_out}"))
    return Group(*parts)


@dataclass(frozen=True)
class BarView:
    """A bar of one card as wide as the terminal, with its limit marked and a legend that names each glyph."""

    bar: BudgetBar

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(20, min(options.max_width, _MOST_BAR_CELLS))
        drawn = Text(no_wrap=True)
        for part, share in cells(self.bar, width):
            glyph, style = _GLYPHS[part]
            drawn.append(glyph * share, style)
        yield drawn
        yield self._marker(width)
        yield from self._legend(options.max_width)

    def _marker(self, width: int) -> Text:
        """Where the limit is; the words stand on the side that has room for them."""
        at = min(width - 1, round(self.bar.limit_bytes / self.bar.total_bytes * width))
        words = f"limit {_gib(self.bar.limit_bytes)} of {_gib(self.bar.memory_bytes)} GiB"
        before = f"{words} ^".rjust(at + 1)
        return Text(before if len(before) == at + 1 else f"{'^':>{at + 1}} {words}", no_wrap=True)

    def _legend(self, width: int) -> Iterator[Text]:
        line = Text(no_wrap=True)
        for segment in self.bar.segments:
            glyph, style = _GLYPHS[segment.part]
            entry = Text.assemble((glyph, style), f" {segment.part} {_gib(segment.bytes)}")
            if line.cell_len and line.cell_len + 3 + entry.cell_len > width:
                yield line
                line = Text(no_wrap=True)
            line = Text.assemble(line, "   " if line.cell_len else "", entry, no_wrap=True)
        yield Text.assemble(line, " GiB", no_wrap=True)


def _title(question: Question, answer: Answer) -> Text:
    settings = answer.settings
    name = (question.stage_devices[answer.stage] if question.stage_devices else question.device).name
    each = f", on each of {settings.num_cards}" if settings.num_cards > 1 else ""
    text = Text(f"{question.model.name} on {name}{each}", style="italic")
    if settings.data_parallel_size > 1:
        text.append(f"\n{settings.data_parallel_size} data-parallel engines; tokens and requests are those of one")
    if settings.pipeline_parallel_size > 1:
        text.append(
            f"\npipeline stage {answer.stage} of {settings.pipeline_parallel_size} (counted from 0) has least room; "
            "the bytes are that stage's"
        )
    return text


def _sum(question: Question, answer: Answer) -> Table:
    table = Table(show_footer=True)
    table.add_column("GiB", justify="right", footer=_gib(answer.limit_bytes))
    table.add_column("9 of 10 times", justify="right", no_wrap=True)
    table.add_column("what", footer="limit")
    table.add_column("why", footer=_limit_reason(question, answer), overflow="fold")
    for term in answer.terms:
        table.add_row(_gib(term.bytes), _term_band(term), term.name, term.why)
    dtype = answer.settings.kv_cache_dtype
    kv_type = dtype if dtype != "auto" else "the served type"
    band = answer.kv_cache_bytes_range
    table.add_row(
        _gib(answer.kv_cache_bytes),
        _band(band.low, band.high),
        "KV cache",
        f"{answer.num_blocks:,} blocks of {answer.block_size} tokens, {answer.kv_bytes_per_token:,} bytes per token"
        f" in {kv_type}",
    )
    return table


def _limit_reason(question: Question, answer: Answer) -> str:
    device, utilization = question.device, answer.settings.gpu_memory_utilization
    if utilization is not None:
        return f"gpu_memory_utilization {utilization:g} of {_gib(device.memory_bytes)} GiB"
    return f"free of {_gib(device.memory_bytes)} GiB"


def _logged(question: Question, answer: Answer) -> list[RenderableType]:
    lines = log_lines(question, answer)
    if not lines:
        return []
    release = question.release
    assumed = "" if release.known else " (assumed)"
    heading = Text(f"vLLM {release}{assumed} will log, with the range of each figure:", style="dim")
    return [heading, *(Text.assemble(line.text, (_line_band(line), "dim")) for line in lines)]


def _line_band(line: LogLine) -> str:
    if line.low == line.high:
        return ""
    if line.unit == "tokens":
        return f"  [{line.low:,.0f}..{line.high:,.0f} tokens]"
    return f"  [{line.low:.2f}..{line.high:.2f} {'GiB' if line.unit == 'GiB' else 'requests'}]"


def _verdict(question: Question, answer: Answer) -> Text:
    close = "" if answer.certain else " A close call: the range of the sum holds both yes and no."
    if not answer.fits:
        return Text(f"No: {answer.reason}.{close}" if close else f"No: {answer.reason}", style="bold red")
    per_card = " per card" if answer.settings.num_cards > 1 else ""
    doubt = close or question.model.assumed
    yes = "Yes, if its layers are what they are taken for" if question.model.assumed else "Yes"
    said = f"{yes}: {answer.holds}, taking {_gib(answer.claimed_bytes)} GiB{per_card}"
    return Text(f"{said}.{close}" if close else said, style="bold yellow" if doubt else "bold green")


def _term_band(term: Term) -> str:
    return _band(term.low_bytes, term.high_bytes)


def _band(low_bytes: int, high_bytes: int) -> str:
    low, high = _gib(low_bytes), _gib(high_bytes)
    return "exact" if low == high else f"{low}..{high}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
