"""One self-contained SVG: a stacked bar for every option on one scale, and the matrices. Nothing is fetched."""

from collections.abc import Sequence
from html import escape
from textwrap import wrap

from sizing.budget_bar import PARTS, BudgetBar, Part, Segment, budget_bar
from sizing.compare import verdict
from sizing.figures import VERDICT_MARKS, VERDICT_WORDS
from sizing.gpu import GIB
from sizing.matrix import Cell, Matrix
from sizing.sheet import Sheet, Shown
from sizing.style import part_class, shapes, variables, verdict_class

_WIDTH, _MARGIN = 960, 32
_BAR_HEIGHT, _ROW_HEIGHT = 30, 78
_CELL_HEIGHT = 40
_MOST_LEAD_LINES = 3
_ADVANCE = 0.56  # of the type's size, the width of a letter in the fonts asked for, rounded up
_ADVANCE_BOLD = 0.68


def svg_picture(sheet: Sheet) -> str:
    """The sheet's bars and matrices, light or dark as the viewer prefers, with a title and a description in words."""
    body, y = _header(sheet)
    legend, y = _legend(sheet, y)
    body += legend
    most = max((budget_bar(shown.question, shown.answer).total_bytes for shown in sheet.shown), default=1)
    for shown in sheet.shown:
        body += _bar_row(shown, most, y)
        y += _ROW_HEIGHT
    for matrix in sheet.matrices:
        drawn, y = _matrix(matrix, y + 20)
        body += drawn
    height = y + 16
    description = " ".join(in_words(shown) for shown in sheet.shown)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-labelledby="t d"><title id="t">{escape(sheet.title)}</title>'
        f'<desc id="d">{escape(sheet.lead)} {escape(description)}</desc>'
        f"<style>{variables(':root')}{shapes()}.page{{fill:var(--page)}}</style>"
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>{body}</svg>\n'
    )


def in_words(shown: Shown) -> str:
    """One option's bar as a sentence, for who does not see it."""
    bar = budget_bar(shown.question, shown.answer)
    held = ", ".join(f"{segment.part} {segment.bytes / GIB:.2f}" for segment in bar.segments)
    judged = VERDICT_WORDS[verdict(shown.answer)]
    return f"{shown.label}: {judged}; of {bar.memory_bytes / GIB:.2f} GiB: {held} GiB."


def parts_shown(sheet: Sheet) -> tuple[Part, ...]:
    """The parts that any bar of the sheet has, in the order they are drawn."""
    held = {segment.part for shown in sheet.shown for segment in budget_bar(shown.question, shown.answer).segments}
    return tuple(part for part in PARTS if part in held)


def _text(x: float, y: float, content: str, *, size: int = 13, classes: str = "", anchor: str = "start") -> str:
    style = f' class="{classes}"' if classes else ""
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{style}{place}>{escape(content)}</text>'


def _fitting(content: str, width: float, size: int, advance: float = _ADVANCE) -> str:
    """The content as far as it has room, with dots where it was cut."""
    room = int(width / (size * advance))
    return content if len(content) <= room else content[: max(0, room - 1)].rstrip() + "…"


def _header(sheet: Sheet) -> tuple[str, int]:
    width = _WIDTH - 2 * _MARGIN
    title = f'<g font-weight="700">{_text(_MARGIN, 46, _fitting(sheet.title, width, 26, _ADVANCE_BOLD), size=26)}</g>'
    lines = wrap(sheet.lead, int(width / (15 * _ADVANCE)), max_lines=_MOST_LEAD_LINES, placeholder=" …")
    lead = "".join(_text(_MARGIN, 72 + 20 * at, line, size=15) for at, line in enumerate(lines))
    y = 74 + 20 * len(lines)
    return title + lead + _text(_MARGIN, y, _fitting(sheet.facts, width, 12), size=12, classes="soft"), y + 22


def _legend(sheet: Sheet, y: int) -> tuple[str, int]:
    x, drawn = float(_MARGIN), ""
    for part in parts_shown(sheet):
        drawn += f'<rect class="{part_class(part)}" x="{x:.1f}" y="{y}" width="14" height="14" rx="3"/>'
        drawn += _text(x + 20, y + 12, part)
        x += 20 + len(part) * 13 * _ADVANCE + 22
    return drawn, y + 52


def _bar_row(shown: Shown, most_bytes: int, y: int) -> str:
    bar = budget_bar(shown.question, shown.answer)
    judged = verdict(shown.answer)
    scale = (_WIDTH - 2 * _MARGIN) / most_bytes
    each = f", each of {shown.answer.settings.num_cards}" if shown.answer.settings.num_cards > 1 else ""
    heading = f"{VERDICT_MARKS[judged]} {VERDICT_WORDS[judged]}"
    label = f'<g font-weight="600">{_text(_MARGIN, y, shown.label, size=15)}</g>'
    label += _text(_MARGIN + len(shown.label) * 15 * _ADVANCE_BOLD + 12, y, heading, size=14, classes=f"t-{judged}")
    memory = f"{bar.memory_bytes / GIB:.2f} GiB{each}"
    label += _text(_WIDTH - _MARGIN, y, f"{_right_hand(shown)} · {memory}", classes="soft", anchor="end")
    return label + _segments(bar.segments, scale, y + 10) + _marks(bar, scale, y + 10)


def _right_hand(shown: Shown) -> str:
    tokens = shown.answer.kv_cache_tokens_range
    return f"{shown.answer.kv_cache_tokens:,} KV tokens ({tokens.low:,} to {tokens.high:,})"


def _segments(segments: Sequence[Segment], scale: float, y: int) -> str:
    x, drawn = float(_MARGIN), ""
    for segment in segments:
        width = segment.bytes * scale
        drawn += (
            f'<rect class="{part_class(segment.part)}" x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_BAR_HEIGHT}">'
        )
        drawn += f"<title>{segment.part}: {segment.bytes / GIB:.2f} GiB</title></rect>"
        label = f"{segment.bytes / GIB:.1f}"
        if width > len(label) * 13 * _ADVANCE + 10:
            classes = "soft" if segment.part == "not used" else "on"
            drawn += _text(x + width / 2, y + _BAR_HEIGHT / 2 + 5, label, classes=classes, anchor="middle")
        x += width
    return drawn


def _marks(bar: BudgetBar, scale: float, y: int) -> str:
    """The card's edge and the limit that the engine keeps to."""
    edge = bar.memory_bytes * scale
    limit = _MARGIN + bar.limit_bytes * scale
    foot = y + _BAR_HEIGHT
    drawn = f'<rect class="edge" x="{_MARGIN}" y="{y}" width="{edge:.2f}" height="{_BAR_HEIGHT}"/>'
    drawn += f'<line class="limit" x1="{limit:.2f}" x2="{limit:.2f}" y1="{y - 4}" y2="{foot + 4}"/>'
    if bar.total_bytes > bar.memory_bytes:
        drawn += (
            f'<line class="over" x1="{_MARGIN + edge:.2f}" x2="{_MARGIN + edge:.2f}" y1="{y - 4}" y2="{foot + 4}"/>'
        )
    words = f"limit {bar.limit_bytes / GIB:.2f} GiB"
    anchor = "end" if limit > _MARGIN + 110 else "start"
    return drawn + _text(limit, foot + 17, words, size=11, classes="soft", anchor=anchor)


def _matrix(matrix: Matrix, y: int) -> tuple[str, int]:
    inner = _WIDTH - 2 * _MARGIN
    first = min(240, max(90, *(int(len(row) * 12 * _ADVANCE) + 16 for row in matrix.rows)))
    width = (inner - first) / len(matrix.columns)
    drawn = f'<g font-weight="600">{_text(_MARGIN, y + 10, matrix.title, size=16)}</g>'
    drawn += _text(_MARGIN, y + 34, f"{matrix.row_heading} \\ {matrix.column_heading}", size=11, classes="soft")
    y += 44
    for at, column in enumerate(matrix.columns):
        middle = _MARGIN + first + width * (at + 0.5)
        drawn += _text(middle, y - 10, _fitting(column, width, 12), size=12, anchor="middle")
    for heading, row in zip(matrix.rows, matrix.cells, strict=True):
        drawn += _text(_MARGIN, y + 25, _fitting(heading, first - 8, 12), size=12)
        for at, cell in enumerate(row):
            drawn += _cell(cell, _MARGIN + first + width * at, y, width - 4)
        y += _CELL_HEIGHT
    return drawn, y


def _cell(cell: Cell, x: float, y: int, width: float) -> str:
    mark = f"{VERDICT_MARKS[cell.verdict]} {VERDICT_WORDS[cell.verdict]}"
    drawn = f'<rect class="{verdict_class(cell.verdict)}" x="{x:.1f}" y="{y}" width="{width:.1f}" height="36" rx="4"/>'
    drawn += _text(x + width / 2, y + 15, mark, size=12, classes=f"t-{cell.verdict}", anchor="middle")
    return drawn + _text(
        x + width / 2, y + 29, _fitting(cell.said, width - 8, 10), size=10, classes="soft", anchor="middle"
    )
