"""Charts as SVG for a page: lines over an axis, and a field of coloured cells. No library and no network.

Readable by everyone: colours that the colour-blind tell apart (Okabe and Ito 2008, made lighter on a dark ground), a
dash pattern and a name at each line's end beside the colour. What lies under the pointer is told by `<title>`s, so it
works without a script; charts.js shows the same text below the chart where there is no pointer.

The words around a drawing are charts.html's. The drawing is markup: every text in it is escaped here.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from statistics import fmean
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 380, 232  # units of the drawing: about pixels on a phone and in a column of a desktop
LEFT, TOP, BOTTOM = 46, 12, 34  # margins
LETTER = 6.4  # units of a Latin letter's width; a Chinese one has twice as much
MOST_HITS = 120  # places of the x axis that tell their values
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "1 4")
CELL_HEIGHT = 15


class Line(NamedTuple):
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]  # x, y; x never falls
    colour: int = 0  # 0 to 5
    is_cloud: bool = False  # dots behind the others, without a name or values; the farthest twentieth may be off it


class Mark(NamedTuple):
    """A place on the x axis with words, and the stretch around it that it is about."""

    x: float
    text: str
    start: float
    end: float


class LegendEntry(NamedTuple):
    """What a line is, and its last value."""

    name: str  # "" where there is but one
    value: str
    swatch: Markup  # a piece of the line


class Chart(NamedTuple):
    """A drawing with its words."""

    title: str
    unit: str
    legend: list[LegendEntry]
    drawing: Markup  # <svg>
    below: str  # a sentence on how to read it
    is_tall: bool = False  # as high as two others


class Scale(NamedTuple):
    """Where numbers lie on an axis."""

    low: float
    high: float
    ticks: list[float]

    def share(self, value: float) -> float:
        """How far along the axis, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def nice_scale(low: float, high: float, most: int = 5, *, whole: bool = False) -> Scale:
    """An axis that holds both, with at most so many ticks at 1, 2 or 5 times a power of ten.

    Args:
        whole: ticks at whole numbers only.
    """
    if high <= low:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    size = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(size * factor for factor in (1, 2, 5, 10, 20) if (high - low) / (size * factor) <= most)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, [number * step for number in range(first, last + 1)])


def number(value: float, step: float = 0.0) -> str:
    """A number as short as its axis allows: 0.15, 12, 1e-4."""
    if value == 0 or (step and abs(value) < step * 1e-6):
        return "0"
    if (step or abs(value)) < 1e-3 or abs(value) >= 1e6:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return f"{float(mantissa):g}e{int(power)}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def percent(value: float, step: float = 0.0) -> str:
    """A share as a change: 0.05 -> +5 %."""
    decimals = 0 if step >= 0.01 or (not step and abs(value) >= 0.1) else 1
    text = f"{100 * value:+.{decimals}f} %".replace("-", "\N{MINUS SIGN}")
    return "0 %" if not any(digit in text for digit in "123456789") else text


def lines_chart(
    title: str,
    lines: Iterable[Line],
    *,
    x_name: str,
    y_name: str = "",
    format_value: Callable[[float, float], str] = number,
    mark: Mark | None = None,
    worse_from: float | None = None,
    with_zero: bool = False,
    x_range: tuple[float, float] | None = None,
    below: str = "",
) -> Chart | None:
    """Lines over an axis; None where there is nothing to draw.

    Args:
        title: what it shows, in a few words.
        x_name, y_name: of the axes, with units.
        format_value: a value (and the distance of ticks, 0: alone) in words.
        mark: what the chart points at.
        worse_from: x from which on the ground is shaded.
        with_zero: 0 is on the y axis and drawn.
        x_range: what the x axis shows at least.
        below: a sentence on how to read it.
    """
    lines = [
        line._replace(points=[point for point in line.points if math.isfinite(point[0] + point[1])]) for line in lines
    ]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    xs = [*(x_range or ()), *(x for line in lines for x, _ in line.points)]
    firm = [line for line in lines if not line.is_cloud]
    ys = [y for line in firm for _, y in line.points] + [0.0] * with_zero
    for line in lines:
        if line.is_cloud:
            inner = sorted(y for _, y in line.points)
            ys += inner[len(inner) // 40 : len(inner) - len(inner) // 40]
    room = (max(ys) - min(ys)) * 0.06
    across = nice_scale(min(xs), max(xs), 6, whole=max(xs) - min(xs) >= 3)
    up = nice_scale(min(ys) - room, max(ys) + room)
    named = firm if len(firm) > 1 else []
    right = max((10.0, *(text_width(line.name) * 1.06 + 12 for line in named)))
    right = min(right, 110.0)

    def x_at(x: float) -> float:
        return LEFT + across.share(x) * (WIDTH - LEFT - right)

    def y_at(y: float) -> float:
        return TOP + (1 - min(1.0, max(0.0, up.share(y)))) * (HEIGHT - TOP - BOTTOM)

    floor, end = HEIGHT - BOTTOM, WIDTH - right
    parts = []
    if worse_from is not None and worse_from < across.high:
        at = max(LEFT, x_at(worse_from))
        parts.append(f'<rect class="from" x="{at:.1f}" y="{TOP}" width="{end - at:.1f}" height="{floor - TOP}"/>')
    step = up.ticks[1] - up.ticks[0] if len(up.ticks) > 1 else 0.0
    for tick in up.ticks:
        kind = "zero" if with_zero and abs(tick) < 1e-12 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{end:.1f}" y1="{y_at(tick):.1f}" y2="{y_at(tick):.1f}"/>')
        parts.append(_text(LEFT - 6, y_at(tick) + 4, format_value(tick, step), anchor="end"))
    wide = across.ticks[1] - across.ticks[0] if len(across.ticks) > 1 else 0.0
    for tick in across.ticks:
        parts.append(_text(x_at(tick), floor + 15, number(tick, wide), anchor="middle"))
    parts.append(_text((LEFT + end) / 2, HEIGHT - 4, x_name, anchor="middle"))
    if mark:
        first, last = (min(end, max(LEFT, x_at(x))) for x in (mark.start, mark.end))
        parts.append(
            f'<rect class="span" x="{first:.1f}" y="{TOP}" width="{last - first:.1f}" height="{floor - TOP}"/>'
        )
        at = x_at(mark.x)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{floor}"/>')
        anchor = "end" if at > (LEFT + end) / 2 else "start"
        parts.append(_text(at + (-5 if anchor == "end" else 5), TOP + 9, mark.text, anchor=anchor, kind="mark"))
    for line in lines:
        parts.append(_path(line, [(x_at(x), y_at(y)) for x, y in line.points]))
    ends = spread([y_at(line.points[-1][1]) + 4 for line in named], 13.0, TOP + 8, floor + 2)
    for line, at in zip(named, ends, strict=True):
        parts.append(_text(x_at(line.points[-1][0]) + 8, at, line.name, kind="name", colour=line.colour, most=right))
    parts += _hits(firm or lines, x_at, y_at, x_name, format_value, floor)
    label = f"{title}. " + "; ".join(f"{line.name}: {format_value(line.points[-1][1], 0.0)}" for line in firm)
    return Chart(title, y_name, _legend(firm, format_value), _svg(label, HEIGHT, parts), below)


def cells_chart(
    title: str, rows: Sequence[tuple[str, Sequence[float]]], columns: Sequence[str], *, x_name: str, below: str = ""
) -> Chart | None:
    """Numbers >= 0 as cells that are the darker the larger they are; None where there are none.

    Args:
        rows: a name, and a number for each column.
        columns: their names.
        x_name: what the columns are.
    """
    most = max((value for _, values in rows for value in values), default=0.0)
    if most <= 0 or not math.isfinite(most):
        return None
    left = min(150.0, max(text_width(name) for name, _ in rows) + 10)
    cell = max(CELL_HEIGHT, min(26, 2 * HEIGHT // len(rows)))
    height = TOP + cell * len(rows) + BOTTOM
    width = (WIDTH - left - 34) / len(columns)
    parts = []
    for row, (name, values) in enumerate(rows):
        y = TOP + cell * row
        parts.append(_text(left - 6, y + cell / 2 + 4, name, anchor="end"))
        for column, value in enumerate(values):
            x = left + column * width
            text = escape(f"{name}, {x_name} {columns[column]}: {value:.3g}")
            box = f'x="{x:.2f}" y="{y}" width="{width - min(1, width / 8):.2f}" height="{cell - 1}"'
            parts.append(
                f'<g class="hit"><rect class="ground" {box}/>'
                f'<rect class="cell" {box} style="fill:var(--c0);opacity:{math.sqrt(value / most):.2f}"/>'
                f"<title>{text}</title></g>"
            )
        if values:
            parts.append(_text(WIDTH - 30, y + cell / 2 + 4, f"{values[-1]:.2g}"))
    every = max(1, math.ceil(len(columns) * 26 / (WIDTH - left - 34)))
    for column in range(0, len(columns), every):
        x = left + (column + 0.5) * width
        parts.append(_text(x, height - BOTTOM + 14, columns[column], anchor="middle"))
    parts.append(_text((left + WIDTH - 34) / 2, height - 4, x_name, anchor="middle"))
    return Chart(title, "", [], _svg(title, height, parts), below, is_tall=len(rows) > 14)


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Each value averaged with those before it, the weight of a value falling to 1/e within the window; no bias."""
    found, total, weight, keep = [], 0.0, 0.0, math.exp(-1 / max(1, window))
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        found.append((x, total / weight))
    return found


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its neighbours; the last value is kept as it is."""
    if len(points) <= most:
        return list(points)
    size = len(points) / most
    groups = [points[int(at * size) : int((at + 1) * size)] for at in range(most)]
    means = [(fmean(x for x, _ in group), fmean(y for _, y in group)) for group in groups]
    return [*means[:-1], points[-1]]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near those that are wanted, none nearer to another than the gap, within bounds if there is room."""
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    found = list(wanted)
    for before, at in zip([None, *order], order, strict=False):
        found[at] = max(wanted[at], low if before is None else found[before] + gap)
    beyond = high
    for at in reversed(order):
        found[at] = min(found[at], beyond)
        beyond = found[at] - gap
    return found


def text_width(text: str) -> float:
    """About how wide a text is drawn, in units."""
    return sum(2 * LETTER if ord(letter) > 0x2E7F else LETTER for letter in text)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", kind: str = "", colour: int | None = None, most: float = 0
) -> str:
    while most and len(text) > 3 and text_width(text) > most:
        text = text[:-2] + "…"
    style = "" if colour is None else f' style="fill:var(--c{colour % len(DASHES)})"'
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}{style}>{escape(text)}</text>'


def _stroke(line: Line) -> str:
    dash = "" if line.is_cloud else DASHES[line.colour % len(DASHES)]
    return f'style="stroke:var(--c{line.colour % len(DASHES)})"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _path(line: Line, places: Sequence[tuple[float, float]]) -> str:
    if line.is_cloud:  # dots of no length with round ends
        dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        return f'<path class="line ghost" d="{dots}" {_stroke(line)}/>'
    if len(places) == 1:
        x, y = places[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" style="fill:var(--c{line.colour % len(DASHES)})"/>'
    d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path class="line" d="{d}" {_stroke(line)}/>'


def _hits(
    lines: Sequence[Line],
    x_at: Callable[[float], float],
    y_at: Callable[[float], float],
    x_name: str,
    format_value: Callable[[float, float], str],
    floor: float,
) -> list[str]:
    """Invisible strips, one for each x, that tell its values."""
    values: dict[float, list[tuple[Line, float]]] = {}
    for line in lines:
        for x, y in line.points:
            values.setdefault(x, []).append((line, y))
    xs = sorted(values)
    xs = xs[:: math.ceil(len(xs) / MOST_HITS)]
    places = [x_at(x) for x in xs]
    found = []
    for at, (x, place) in enumerate(zip(xs, places, strict=True)):
        start = (places[at - 1] + place) / 2 if at else place - 6
        end = (places[at + 1] + place) / 2 if at + 1 < len(xs) else place + 6
        values_text = "; ".join(f"{line.name} {format_value(y, 0.0)}" for line, y in values[x])
        found.append(
            f'<g class="hit"><rect x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" height="{floor - TOP}"/>'
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{floor}"/>'
            f"<title>{escape(f'{x_name} {x:.4g}: {values_text}')}</title></g>"
        )
    return found


def _legend(lines: Sequence[Line], format_value: Callable[[float, float], str]) -> list[LegendEntry]:
    swatches = [
        Markup(f'<svg viewBox="0 0 22 8" aria-hidden="true"><path class="line" d="M1 4L21 4" {_stroke(line)}/></svg>')
        for line in lines
    ]
    values = [format_value(line.points[-1][1], 0.0) for line in lines]
    names = [line.name if len(lines) > 1 else "" for line in lines]
    return [LegendEntry(*entry) for entry in zip(names, values, swatches, strict=True)]


def _svg(label: str, height: float, parts: Iterable[str]) -> Markup:
    """Args: label: what it shows, for those who do not see it; parts: markup."""
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>')
