"""Speed against concurrency as one small SVG: a line for each option, its band where there are few enough."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from sizing.compare import CurvePoint
from sizing.figures import rate, seconds
from sizing.speed import Estimate
from sizing.style import NUM_LINES

Metric = Literal["output_tokens_s", "tpot_s", "ttft_s"]
METRICS: dict[Metric, str] = {
    "output_tokens_s": "Output tokens per second",
    "tpot_s": "Time per output token (TPOT)",
    "ttft_s": "Time to first token (TTFT)",
}
WIDTH, HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 14, 40
_MOST_BANDS = 2
_WIDEST_LINEAR = 100


@dataclass(frozen=True)
class Line:
    """One option's curve. `style` numbers its colour and dash, the same in every chart of a page."""

    label: str
    style: int
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class _Scale:
    """Concurrency by its logarithm from left to right; the figure from 0 upwards, or by its logarithm from `bottom`."""

    least: float
    most: float
    bottom: float
    """0 where the figure's scale is linear."""
    top: float

    def x(self, concurrency: float) -> float:
        span = math.log2(self.most / self.least) or 1.0
        return _LEFT + math.log2(concurrency / self.least) / span * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = min(value, self.top) / self.top
        if self.bottom:
            share = math.log(max(value, self.bottom) / self.bottom) / math.log(self.top / self.bottom)
        return HEIGHT - _BOTTOM - min(1.0, share) * (HEIGHT - _TOP - _BOTTOM)

    @property
    def ticks(self) -> tuple[float, ...]:
        """Quarters, or powers of ten."""
        if not self.bottom:
            return tuple(self.top * quarter / 4 for quarter in range(5))
        return tuple(self.bottom * 10**power for power in range(round(math.log10(self.top / self.bottom)) + 1))


def chart(lines: Sequence[Line], metric: Metric, *, name: str) -> str:
    """An `<svg>` with a title and a description that says its ends in words; `name` makes its ids unique."""
    drawn = [(line, _series(line, metric)) for line in lines]
    drawn = [(line, series) for line, series in drawn if series]
    if not drawn:
        return ""
    said = rate if metric == "output_tokens_s" else seconds
    banded = len(drawn) <= _MOST_BANDS
    concurrencies = [at for _, series in drawn for at, _ in series]
    highest = max(value.high if banded else value.value for _, series in drawn for _, value in series)
    lowest = min(value.low if banded else value.value for _, series in drawn for _, value in series)
    bottom, top = _ends_of_scale(lowest, highest)
    scale = _Scale(min(concurrencies), max(concurrencies), bottom, top)
    parts = [_grid(scale, said)]
    if banded:
        parts += [_band(series, scale, line.style) for line, series in drawn]
    parts += [_path(series, scale, line.style) for line, series in drawn]
    title, ends = METRICS[metric], "; ".join(_ends(line.label, series, said) for line, series in drawn)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)} by requests in flight</title>'
        f'<desc id="{name}-d">{escape(ends)}</desc>{"".join(parts)}</svg>'
    )


def line_style(at: int) -> int:
    """Which colour and dash the option at that place has."""
    return at % NUM_LINES


_Series = list[tuple[int, Estimate]]


def _series(line: Line, metric: Metric) -> _Series:
    found = [(point.concurrency, _value(point, metric)) for point in line.points]
    return [(at, value) for at, value in found if value is not None]


def _value(point: CurvePoint, metric: Metric) -> Estimate | None:
    if metric == "output_tokens_s":
        return point.output_tokens_s
    return point.tpot_s if metric == "tpot_s" else point.ttft_s


def _ends(label: str, series: _Series, said: Callable[[float], str]) -> str:
    (first, low), (last, high) = series[0], series[-1]
    return f"{label}: {said(low.value)} at {first}, {said(high.value)} at {last} requests in flight"


def _grid(scale: _Scale, said: Callable[[float], str]) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in scale.ticks:
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = said(value) if value else "0"
        parts.append(
            f'<text class="soft" x="{_LEFT - 6}" y="{y + 4:.1f}" font-size="11" text-anchor="end">{text}</text>'
        )
    steps = round(math.log2(scale.most / scale.least))
    every = max(1, math.ceil(steps / 5))
    for power in range(0, steps + 1, every):
        at = scale.least * 2**power
        x = scale.x(at)
        parts.append(
            f'<text class="soft" x="{x:.1f}" y="{bottom + 16}" font-size="11" text-anchor="middle">{at:g}</text>'
        )
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text class="soft" x="{middle:.0f}" y="{HEIGHT - 6}" font-size="11" text-anchor="middle">'
        "requests in flight</text>"
    )
    return "".join(parts)


def _path(series: _Series, scale: _Scale, style: int) -> str:
    points = " ".join(f"{scale.x(at):.1f},{scale.y(value.value):.1f}" for at, value in series)
    dots = "".join(
        f'<circle class="b{style}" cx="{scale.x(at):.1f}" cy="{scale.y(value.value):.1f}" r="2.5"/>'
        for at, value in series
    )
    return f'<polyline class="line l{style}" points="{points}"/>{dots}'


def _band(series: _Series, scale: _Scale, style: int) -> str:
    upper = [f"{scale.x(at):.1f},{scale.y(value.high):.1f}" for at, value in series]
    lower = [f"{scale.x(at):.1f},{scale.y(value.low):.1f}" for at, value in reversed(series)]
    return f'<polygon class="band b{style}" points="{" ".join(upper + lower)}"/>'


def _ends_of_scale(lowest: float, highest: float) -> tuple[float, float]:
    """Logarithmic, in whole powers of ten, where the figures differ too much to be seen beside each other."""
    if lowest > 0 and highest / lowest > _WIDEST_LINEAR:
        return 10.0 ** math.floor(math.log10(lowest)), 10.0 ** math.ceil(math.log10(highest))
    return 0.0, _round_up(highest)


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8, 10 times a power of ten: quarters of it are short to write."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value * (1 - 1e-9))
