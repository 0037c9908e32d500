"""A comparison and a matrix in the terminal: a table where it is wide enough, else a block for every card."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from sizing.budget_bar import budget_bar
from sizing.compare import Comparison, Row, Verdict, Workload
from sizing.figures import HEADINGS, VERDICT_MARKS, VERDICT_WORDS, figure, seconds, shown_columns
from sizing.matrix import Cell, Matrix
from sizing.remedy import side_by_side
from sizing.report import BarView

_STYLES: dict[Verdict, str] = {"fits": "green", "close": "yellow", "no": "red"}
_WIDTH_OF_A_COLUMN = 17


def render_comparison(comparison: Comparison) -> RenderableType:
    """The table, what its marks mean, and where its bands are wider than the fit's own."""
    parts: list[RenderableType] = [_ComparisonView(comparison), Text(best_legend(comparison), style="dim")]
    parts += [Text(line) for line in remarks(comparison)]
    return Group(*parts)


def best_legend(comparison: Comparison) -> str:
    """What the figures were worked out at."""
    load = comparison.workload
    return (
        f"* best in its column. Speed at {load.concurrency:,} requests in flight of {load.prompt_tokens:,} prompt and "
        f"{load.output_tokens:,} output tokens; ranges hold 9 times out of 10.{_slo(load)} "
        f"{cost_basis(load)}"
    )


def _slo(load: Workload) -> str:
    bound = load.bound
    if bound is None:
        return ""
    bounds = [
        f"{name} of at most {seconds(value)}"
        for name, value in (("TTFT", bound.ttft_s), ("TPOT", bound.tpot_s))
        if value is not None
    ]
    kept = "The mean request" if load.percentile is None else f"{load.percentile:.0%} of requests"
    return f" Users: {kept} within a {' and a '.join(bounds)}, {load.think_time_s:g} s between answer and question."


def cost_basis(load: Workload) -> str:
    """At which load a million tokens are paid for."""
    if load.bound is None:
        return f"Cost of tokens with {load.concurrency:,} requests in flight all day."
    return "Cost of tokens at the most requests in flight that keep the SLO, all day."


def remarks(comparison: Comparison) -> tuple[str, ...]:
    """Ways out of what does not fit, speeds that cannot be told, and what the speed's fit has not seen."""
    found: dict[str, list[str]] = {}
    for row in comparison.rows:
        for remark in _remarks(row):
            found.setdefault(remark, []).append(row.option.label)
    everywhere = len(comparison.rows)
    return tuple(
        f"{remark} ({'all cards' if len(labels) == everywhere > 1 else ', '.join(labels)})"
        for remark, labels in found.items()
    )


def _remarks(row: Row) -> Iterator[str]:
    if row.answer is not None and row.answer.way_out:
        yield f"Does not fit; {side_by_side(row.answer.way_out, row.option.device.name)}"
    if row.answer is not None and row.answer.note:
        yield f"Note: {row.answer.note}"
    if row.outlook_refused:
        yield f"No speed: {row.outlook_refused}"
    if row.outlook is not None:
        if row.outlook.note:
            yield f"Note: {row.outlook.note}"
        yield from (f"Wider bands of speed: {reason}" for reason in row.outlook.outside)


@dataclass(frozen=True)
class _ComparisonView:
    comparison: Comparison

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = shown_columns(self.comparison)
        if options.max_width >= _WIDTH_OF_A_COLUMN * (len(columns) + 2):
            yield self._table()
        else:
            yield from self._blocks()

    def _table(self) -> Table:
        table = Table(title=f"{self.comparison.model.name}, one engine per row", title_justify="left", show_lines=True)
        table.add_column("cards", no_wrap=True)
        table.add_column("fits", overflow="fold")
        columns = shown_columns(self.comparison)
        for column in columns:
            one_figure = column == "kv_cache_tokens"  # its range has no place to break at
            table.add_column(HEADINGS[column], justify="right", overflow="fold", no_wrap=one_figure)
        for at, row in enumerate(self.comparison.rows):
            cells = [self._figure(at, index) for index in range(len(columns))]
            table.add_row(row.option.label, self._fits(at), *cells)
        return table

    def _blocks(self) -> RenderResult:
        columns = shown_columns(self.comparison)
        yield Text(f"{self.comparison.model.name}, one engine per block", style="italic")
        for at, row in enumerate(self.comparison.rows):
            yield Text.assemble("\n", (row.option.label, "bold"), "  ", self._fits(at, joined=" "))
            if row.answer is not None:
                yield BarView(budget_bar(row.question, row.answer))
            for index, column in enumerate(columns):
                cell = self._figure(at, index, joined="  ")
                if cell.plain != "-":
                    yield Text.assemble(f"  {HEADINGS[column]:<26}", cell)

    def _fits(self, at: int, joined: str = "\n") -> Text:
        row = self.comparison.rows[at]
        mark = f"{VERDICT_MARKS[row.verdict]} {VERDICT_WORDS[row.verdict]}"
        if row.verdict == "close" and row.answer is not None:
            mark += ", rather yes" if row.answer.fits else ", rather no"
        return Text.assemble((mark, _STYLES[row.verdict]), (joined + row.why_not if row.why_not else "", "dim"))

    def _figure(self, at: int, index: int, joined: str = "\n") -> Text:
        found = figure(self.comparison, at, shown_columns(self.comparison)[index])
        mark = ("* ", "bold green") if found.best else ""
        text = (found.text, "bold green" if found.best else "")
        return Text.assemble(mark, text, (joined + found.under if found.under else "", "dim"))


def render_matrix(matrix: Matrix) -> RenderableType:
    """Marks that need no colour: a tick, an about-equal sign for a close call, a cross with the reason."""
    table = Table(title=matrix.title, title_justify="left")
    table.add_column(f"{matrix.row_heading} \\ {matrix.column_heading}", justify="right", overflow="fold")
    for heading in matrix.columns:
        table.add_column(heading, justify="center", overflow="fold")
    for heading, row in zip(matrix.rows, matrix.cells, strict=True):
        table.add_row(heading, *(_cell(cell) for cell in row))
    legend = "✔ fits   ≈ close call: the error of the estimate decides   ✘ does not fit"
    return Group(table, Text(legend, style="dim"))


def _cell(cell: Cell) -> Text:
    mark = VERDICT_MARKS[cell.verdict]
    return Text.assemble((mark, f"bold {_STYLES[cell.verdict]}"), (f" {cell.said}", "dim"))
