"""Charts as SVG, drawn here: plain shapes in colours that differ in grey too, with a title and a description.

Nothing in them refers to anything, and every text is escaped. A chart has the width of a page's text, and everything in
it has attributes rather than classes, since WeasyPrint hands no style sheet to what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from markupsafe import Markup

from services.reports.domain.document import Chart, ChartKind, Series, ValueKind
from services.reports.gateways.rendering.texts import one_line
from services.reports.gateways.rendering.values import Formats

WIDTH: Final = 650
PALETTE: Final = ("#1d4e79", "#e0a03b", "#4f9a94", "#a84e4e", "#9bb8d3", "#6b5b95", "#c9c9c9")
"""In grey they are dark and light by turns, so that neighbours differ."""
DASHES: Final = ("", "7 3", "2 3", "9 3 2 3", "4 4", "1 2", "12 3")
MAX_SERIES: Final = len(PALETTE)
MAX_BARS: Final = 20
MAX_CATEGORIES: Final = 400
_INK: Final = "#3d4650"
_GRID: Final = "#d9dee4"
_LEFT: Final = 62
_PLOT: Final = 190
type _Scale = Callable[[float], float]
_FONT: Final = "IBM Plex Sans, Noto Sans, Noto Sans CJK SC, Noto Emoji, sans-serif"


def svg(chart: Chart, formats: Formats, number: int) -> Markup:
    """Returns a chart as an `svg` element.

    Args:
        chart: what to draw; of too many series or bars the smallest are drawn as one.
        formats: how values are written.
        number: of the chart in its document, to tell its parts from those of others.
    """
    series = _few(chart.series)
    if not series or not chart.categories:
        return Markup('<p class="muted">{}: nothing to show.</p>').format(one_line(chart.title))
    if chart.chart is ChartKind.BAR:
        height, body = _bars(chart, formats)
    else:
        height, body = _over_days(chart, series, formats)
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {} {}" width="{}" height="{}"'
        ' font-family="{}" font-size="11" fill="{}" aria-labelledby="chart{}-title chart{}-desc">'
        '<title id="chart{}-title">{}</title><desc id="chart{}-desc">{}</desc>{}</svg>'
    ).format(
        WIDTH,
        height,
        WIDTH,
        height,
        _FONT,
        _INK,
        number,
        number,
        number,
        one_line(chart.title),
        number,
        described(chart, formats),
        body,
    )


def described(chart: Chart, formats: Formats) -> str:
    """Returns a chart in a sentence or two, for those who do not see it."""
    told = []
    for series in chart.series[:MAX_SERIES]:
        values = _sound(series.points)
        if not values:
            continue
        most = max(range(len(values)), key=values.__getitem__)
        told.append(
            f"{one_line(series.name, 60)}: {formats.value(sum(values), chart.unit)} in all, most at "
            f"{one_line(chart.categories[most], 60)} with {formats.value(values[most], chart.unit)}."
        )
    return " ".join(told) or "No values."


def _few(series: Sequence[Series]) -> list[Series]:
    if len(series) <= MAX_SERIES:
        return list(series)
    ordered = sorted(series, key=lambda one: -sum(_sound(one.points)))
    rest = ordered[MAX_SERIES - 1 :]
    others = tuple(map(sum, zip(*(_sound(one.points) for one in rest), strict=True)))
    return [*ordered[: MAX_SERIES - 1], Series(f"{len(rest)} others", others)]


def _sound(values: Sequence[float | None]) -> list[float]:
    return [value if value is not None and math.isfinite(value) and value > 0 else 0.0 for value in values]


def _bars(chart: Chart, formats: Formats) -> tuple[int, Markup]:
    values = _sound(chart.series[0].points)
    pairs = sorted(zip(chart.categories, values, strict=True), key=lambda pair: -pair[1])
    if len(pairs) > MAX_BARS:
        rest = pairs[MAX_BARS - 1 :]
        pairs = [*pairs[: MAX_BARS - 1], (f"{len(rest)} others", sum(value for _, value in rest))]
    labels = 190
    room = WIDTH - labels - 90
    most = max(value for _, value in pairs) or 1
    total = sum(values) or 1
    parts = []
    for index, (category, value) in enumerate(pairs):
        y = 6 + 24 * index
        width = room * value / most
        parts.append(
            Markup(
                '<text x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect x="{}" y="{}" width="{:.1f}" height="15" rx="1.5" fill="{}"/>'
                '<text x="{:.1f}" y="{}">{} <tspan fill="#66707b">{}</tspan></text>'
            ).format(
                labels - 10,
                y + 12,
                one_line(category, 30),
                labels,
                y,
                max(width, 1),
                PALETTE[0],
                labels + width + 7,
                y + 12,
                formats.value(value, chart.unit),
                f"{value / total:.0%}",
            )
        )
    return 24 * len(pairs) + 8, Markup().join(parts)


def _over_days(chart: Chart, series: list[Series], formats: Formats) -> tuple[int, Markup]:
    stacked = chart.chart is ChartKind.STACKED_BAR
    categories, columns = _fold(chart.categories, [_sound(one.points) for one in series])
    count = len(categories)
    most = max((sum(values) if stacked else max(values)) for values in zip(*columns, strict=True))
    ticks = _ticks(most, chart.unit)
    legend, legend_height = _legend([one.name for one in series], lines=not stacked)
    top = legend_height + 8
    bottom = top + _PLOT
    room = WIDTH - _LEFT - 12
    step = room / count

    def at(value: float) -> float:
        return bottom - _PLOT * value / ticks[-1]

    parts = [legend]
    parts.extend(
        Markup(
            '<line x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}"/>'
            '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        ).format(
            _LEFT,
            WIDTH - 12,
            at(tick),
            at(tick),
            _GRID if tick else "#8b95a0",
            0.75 if tick else 1,
            _LEFT - 8,
            at(tick) + 3.8,
            formats.short(tick, chart.unit),
        )
        for tick in ticks
    )
    every = max(1, math.ceil(count / (room // 74)))
    parts.extend(
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            _LEFT + step * (index + 0.5), bottom + 17, one_line(categories[index], 12)
        )
        for index in range(0, count, every)
    )
    parts.append(_stacks(columns, step, at) if stacked else _lines(columns, step, at))
    return bottom + 26, Markup().join(parts)


def _stacks(columns: list[list[float]], step: float, at: _Scale) -> Markup:
    parts = []
    width = max(1.0, min(46.0, step * 0.72))
    for index, values in enumerate(zip(*columns, strict=True)):
        x = _LEFT + step * (index + 0.5) - width / 2
        for place, (value, upper) in enumerate(zip(values, accumulate(values), strict=True)):
            if value > 0:
                height = at(upper - value) - at(upper)
                # A hair of paper between two colours keeps them apart in grey.
                gap = 0.7 if height > 2 and upper > value else 0
                parts.append(
                    Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"/>').format(
                        x, at(upper), width, height - gap, PALETTE[place]
                    )
                )
    return Markup().join(parts)


def _lines(columns: list[list[float]], step: float, at: _Scale) -> Markup:
    parts = []
    for place, values in enumerate(columns):
        points = [(_LEFT + step * (index + 0.5), at(value)) for index, value in enumerate(values)]
        parts.append(
            Markup(
                '<polyline points="{}" fill="none" stroke="{}" stroke-width="1.8" stroke-linejoin="round"'
                ' stroke-dasharray="{}"/>'
            ).format(" ".join(f"{x:.1f},{y:.1f}" for x, y in points), PALETTE[place], DASHES[place] or "none")
        )
        if len(points) <= 40:
            parts += [
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.2" fill="{}"/>').format(x, y, PALETTE[place])
                for x, y in points
            ]
    return Markup().join(parts)


def _legend(names: Sequence[str], lines: bool) -> tuple[Markup, int]:
    parts = []
    x, y = float(_LEFT), 12
    for place, name in enumerate(names):
        label = one_line(name, 34)
        width = 26 + 6.4 * len(label) + 16
        if x + width > WIDTH and x > _LEFT:
            x, y = float(_LEFT), y + 18
        mark = (
            Markup(
                '<line x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>'
            ).format(x, x + 20, y - 4, y - 4, PALETTE[place], DASHES[place] or "none")
            if lines
            else Markup('<rect x="{:.1f}" y="{}" width="11" height="11" fill="{}"/>').format(
                x, y - 9, PALETTE[place]
            )
        )
        parts.append(
            mark + Markup('<text x="{:.1f}" y="{}">{}</text>').format(x + (26 if lines else 17), y, label)
        )
        x += width
    return Markup().join(parts), y + 8


def _fold(categories: Sequence[str], columns: list[list[float]]) -> tuple[list[str], list[list[float]]]:
    """Adds up neighbours where there are more categories than can be told apart."""
    size = math.ceil(len(categories) / MAX_CATEGORIES)
    starts = range(0, len(categories), size)
    return [categories[start] for start in starts], [
        [sum(values[start : start + size]) for start in starts] for values in columns
    ]


def _ticks(most: float, unit: ValueKind) -> list[float]:
    """Round values from nothing to beyond the highest, five or so."""
    if most <= 0:
        most = 1
    if unit is ValueKind.DURATION and most > 60:
        steps: Sequence[float] = (15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
        step = next((one for one in steps if one * 5 >= most), 86400 * math.ceil(most / 432000))
    else:
        power = 10.0 ** math.floor(math.log10(most / 4))
        step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power * 4.5 >= most)
    return [step * index for index in range(math.ceil(most / step - 1e-9) + 1)]
