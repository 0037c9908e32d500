"""One self-contained HTML page of a sheet: no script, nothing fetched, light or dark as the reader prefers."""

from html import escape

from sizing.budget_bar import BudgetBar, budget_bar
from sizing.chart import METRICS, Line, chart, line_style
from sizing.compare import Column, Comparison, Verdict, verdict
from sizing.compare_report import best_legend, cost_basis
from sizing.figures import HEADINGS, MONEY_COLUMNS, VERDICT_MARKS, VERDICT_WORDS, figure, shown_columns
from sizing.gpu import GIB
from sizing.log_lines import LogLine, log_lines
from sizing.matrix import Matrix
from sizing.page_style import page_style
from sizing.picture import in_words, parts_shown
from sizing.sheet import Sheet, Shown, Tile
from sizing.style import part_class


def html_page(sheet: Sheet) -> str:
    """The whole document: tiles, bars with a table of the same numbers, comparison, matrices, curves, log lines."""
    sections = [
        _bars(sheet),
        _compared(sheet.comparison) if sheet.comparison else "",
        "".join(_matrix(matrix) for matrix in sheet.matrices),
        _curves(sheet),
        _terms(sheet),
        _logged(sheet),
        _assumptions(sheet),
    ]
    title = escape(sheet.title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{page_style()}</style></head><body><main>"
        f'<header><h1>{title}</h1><p class="lead">{escape(sheet.lead)}</p><p class="soft">{escape(sheet.facts)}</p>'
        f"{_tiles(sheet.tiles)}</header>{''.join(sections)}"
        '<footer class="soft">Made by <code>berth size</code>: predictions by arithmetic, before a byte of weights '
        "moved.</footer></main></body></html>\n"
    )


def _section(heading: str, body: str, lead: str = "") -> str:
    said = f'<p class="soft">{escape(lead)}</p>' if lead else ""
    return f"<section><h2>{escape(heading)}</h2>{said}{body}</section>"


def _tiles(tiles: tuple[Tile, ...]) -> str:
    boxes = "".join(
        f"<div><dt>{escape(tile.heading)}</dt><dd>{escape(tile.text)}</dd><dd>{escape(tile.under)}</dd></div>"
        for tile in tiles
    )
    return f'<dl class="tiles">{boxes}</dl>'


def _badge(judged: Verdict, words: str | None = None) -> str:
    return f'<span class="badge v-{judged}">{VERDICT_MARKS[judged]} {escape(words or VERDICT_WORDS[judged])}</span>'


def _bars(sheet: Sheet) -> str:
    legend = "".join(f'<li><i class="{part_class(part)}"></i>{part}</li>' for part in parts_shown(sheet))
    most = max((budget_bar(shown.question, shown.answer).total_bytes for shown in sheet.shown), default=1)
    bars = "".join(_bar(shown, most) for shown in sheet.shown)
    lead = "GiB of one card of each option, all on one scale." if len(sheet.shown) > 1 else "GiB of one card."
    lead += " The line across a bar is the limit that the engine keeps to."
    if any(_edge(budget_bar(shown.question, shown.answer)) for shown in sheet.shown):
        lead += " What is beyond a dashed line does not exist on the card."
    return _section("Where the memory goes", f'<ul class="legend">{legend}</ul>{bars}', lead)


def _bar(shown: Shown, most_bytes: int) -> str:
    bar = budget_bar(shown.question, shown.answer)
    cards = shown.answer.settings.num_cards
    each = f", each of {cards}" if cards > 1 else ""
    parts = ""
    for segment in bar.segments:
        share = segment.bytes / bar.total_bytes
        gib = f"{segment.bytes / GIB:.1f}"
        label = gib if share * bar.total_bytes / most_bytes > 0.09 else ""
        name = f"{segment.part}: {segment.bytes / GIB:.2f} GiB"
        parts += f'<span class="{part_class(segment.part)}" style="width:{share:.4%}" title="{name}">{label}</span>'
    limit = bar.limit_bytes / bar.total_bytes
    kv = shown.answer.kv_cache_bytes_range
    return (
        f"<figure><figcaption><b>{escape(shown.label)}</b> {_badge(verdict(shown.answer))}"
        f'<span class="soft">{bar.memory_bytes / GIB:.2f} GiB{each}; KV cache {shown.answer.kv_cache_bytes / GIB:.2f} '
        f"({kv.low / GIB:.2f} to {kv.high / GIB:.2f})</span></figcaption>"
        f'<div class="bar" role="img" aria-label="{escape(in_words(shown))}" '
        f'style="width:{bar.total_bytes / most_bytes:.4%}">{parts}<b style="left:{min(limit, 1):.4%}"></b>'
        f"{_edge(bar)}</div></figure>"
    )


def _edge(bar: BudgetBar) -> str:
    """Where the card ends, if the bar does not end there."""
    share = bar.memory_bytes / bar.total_bytes
    return f'<b class="edge" style="left:{share:.4%}"></b>' if share < 1 else ""


def _scrolling(name: str, table: str) -> str:
    """A table that scrolls by itself on a narrow screen, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">{table}</div>'


def _compared(comparison: Comparison) -> str:
    """Capacity and speed, then money: two tables, because one would not fit a screen."""
    columns = shown_columns(comparison)
    paid = [column for column in columns if column in MONEY_COLUMNS]
    capacity = [column for column in columns if column not in MONEY_COLUMNS]
    lead = best_legend(comparison).replace("* best", "★ best")
    shown = _section("Side by side", _table(comparison, capacity, "Cards side by side", verdicts=True), lead)
    if not paid:
        return shown
    money = _table(comparison, paid, "What it costs", verdicts=False) + _api(comparison)
    lead = f"US dollars of a whole engine, with the day its price was listed. {cost_basis(comparison.workload)}"
    return shown + _section("What it costs", money, lead)


def _table(comparison: Comparison, columns: list[Column], name: str, *, verdicts: bool) -> str:
    headings = '<th scope="col">cards</th>' + ('<th scope="col" class="left">fits</th>' if verdicts else "")
    headings += "".join(f'<th scope="col">{escape(HEADINGS[column])}</th>' for column in columns)
    rows = ""
    for at, row in enumerate(comparison.rows):
        cells = _verdict_cell(comparison, at) if verdicts else ""
        cells += "".join(_figure_cell(comparison, at, column) for column in columns)
        empty = ' class="none"' if cells.count('class="none"') == len(columns) and not verdicts else ""
        rows += f'<tr{empty}><th scope="row">{escape(row.option.label)}</th>{cells}</tr>'
    return _scrolling(name, f'<table class="cards"><thead><tr>{headings}</tr></thead><tbody>{rows}</tbody></table>')


def _verdict_cell(comparison: Comparison, at: int) -> str:
    row = comparison.rows[at]
    why = f"<small>{escape(row.why_not)}</small>" if row.why_not else ""
    badge = _badge(row.verdict, _rather(comparison, at))
    return f'<td class="left" data-h="fits"><span class="v">{badge}{why}</span></td>'


def _figure_cell(comparison: Comparison, at: int, column: Column) -> str:
    found = figure(comparison, at, column)
    star = '<span class="star" aria-label="best">★</span> ' if found.best else ""
    under = f"<small>{escape(found.under)}</small>" if found.under else ""
    best = ' class="best"' if found.best else ""
    best = ' class="none"' if found.text == "-" else best
    return (
        f'<td{best} data-h="{escape(HEADINGS[column])}"><span class="v">{star}{escape(found.text)}{under}</span></td>'
    )


def _rather(comparison: Comparison, at: int) -> str | None:
    row = comparison.rows[at]
    if row.verdict != "close" or row.answer is None:
        return None
    return f"close, rather {'yes' if row.answer.fits else 'no'}"


def _api(comparison: Comparison) -> str:
    api = comparison.api
    if api is None:
        return ""
    return (
        f'<p class="soft">The API asks ${api.input_usd:g} per million prompt tokens and ${api.output_usd:g} per '
        "million output tokens. Below the share of the day given, it is cheaper than cards paid around the clock; "
        "above, the cards are.</p>"
    )


def _matrix(matrix: Matrix) -> str:
    headings = "".join(f'<th scope="col">{escape(column)}</th>' for column in matrix.columns)
    rows = ""
    for heading, row in zip(matrix.rows, matrix.cells, strict=True):
        cells = "".join(
            f'<td class="cell v-{cell.verdict}"><b>{VERDICT_MARKS[cell.verdict]} '
            f'<span class="w">{VERDICT_WORDS[cell.verdict]}</span></b><small>{escape(cell.said)}</small></td>'
            for cell in row
        )
        rows += f'<tr><th scope="row">{escape(heading)}</th>{cells}</tr>'
    corner = f"{escape(matrix.row_heading)} ╲ {escape(matrix.column_heading)}"
    table = (
        f'<table class="matrix"><thead><tr><th scope="col">{corner}</th>{headings}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return _section(matrix.title, _scrolling(matrix.title, table))


def _curves(sheet: Sheet) -> str:
    lines = [
        Line(shown.label, line_style(at), shown.outlook.curve)
        for at, shown in enumerate(sheet.shown)
        if shown.outlook is not None and shown.outlook.curve
    ]
    if not lines:
        return ""
    legend = "".join(
        f'<li><svg width="30" height="10" aria-hidden="true"><line class="line l{line.style}" x1="0" x2="30" y1="5" '
        f'y2="5"/></svg>{escape(line.label)}</li>'
        for line in lines
    )
    charts = "".join(
        f"<figure><figcaption>{title}</figcaption>{chart(lines, metric, name=metric)}</figure>"
        for metric, title in METRICS.items()
    )
    lead = (
        "One engine of each option; the shaded area is the range." if len(lines) <= 2 else "One engine of each option."
    )
    return _section("Speed", f'<ul class="legend">{legend}</ul><div class="charts">{charts}</div>', lead)


def _terms(sheet: Sheet) -> str:
    tables = [_term_table(shown) for shown in sheet.shown]
    if len(tables) == 1:
        return _section("Every term", tables[0], "GiB on one card; the range holds nine times out of ten.")
    folded = "".join(
        f"<details><summary>{escape(shown.label)}</summary>{table}</details>"
        for shown, table in zip(sheet.shown, tables, strict=True)
    )
    return _section("Every term", folded, "GiB on one card; the range holds nine times out of ten.")


def _term_table(shown: Shown) -> str:
    found = shown.answer
    rows = [(term.name, term.bytes, term.low_bytes, term.high_bytes, term.why) for term in found.terms]
    band = found.kv_cache_bytes_range
    blocks = f"{found.num_blocks:,} blocks of {found.block_size} tokens, {found.kv_bytes_per_token:,} bytes per token"
    rows.append(("KV cache", found.kv_cache_bytes, band.low, band.high, blocks))
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{value / GIB:.2f}</td>'
        f"<td>{'exact' if low == high else f'{low / GIB:.2f} to {high / GIB:.2f}'}</td><td>{escape(why)}</td></tr>"
        for name, value, low, high, why in rows
    )
    foot = f'<tr><th scope="row">limit</th><td>{found.limit_bytes / GIB:.2f}</td><td></td><td>{_limit(shown)}</td></tr>'
    head = "".join(f'<th scope="col">{name}</th>' for name in ("what", "GiB", "range", "why"))
    return _scrolling(
        f"Terms on {shown.label}",
        f'<table class="terms"><thead><tr>{head}</tr></thead><tbody>{body}</tbody><tfoot>{foot}</tfoot></table>',
    )


def _limit(shown: Shown) -> str:
    utilization = shown.answer.settings.gpu_memory_utilization
    memory = f"{budget_bar(shown.question, shown.answer).memory_bytes / GIB:.2f} GiB"
    return f"gpu_memory_utilization {utilization:g} of {memory}" if utilization is not None else f"free of {memory}"


def _logged(sheet: Sheet) -> str:
    shown = [(one, log_lines(one.question, one.answer)) for one in sheet.shown]
    shown = [(one, lines) for one, lines in shown if lines]
    if not shown:
        return ""
    blocks = "".join(
        f"<h3>{escape(one.label)}</h3><ul class='log'>{''.join(_line(line) for line in lines)}</ul>"
        for one, lines in shown[:1]
    )
    blocks += "".join(
        f"<details><summary>{escape(one.label)}</summary>"
        f"<ul class='log'>{''.join(_line(line) for line in lines)}</ul></details>"
        for one, lines in shown[1:]
    )
    release = shown[0][0].question.release
    return _section(
        f"What vLLM {release} will log", blocks, "To hold against the engine's own log; ... is not predicted."
    )


def _line(line: LogLine) -> str:
    said = "{:,.0f}" if line.unit == "tokens" else "{:.2f}"
    ends = "exact" if line.low == line.high else f"{said.format(line.low)} to {said.format(line.high)} {line.unit}"
    return f"<li><code>{escape(line.text)}</code><small>{ends}</small></li>"


def _assumptions(sheet: Sheet) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in sheet.assumptions)
    return _section("What this rests on", f"<ul>{items}</ul>")
