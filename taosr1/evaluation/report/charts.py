"""Charts as plain SVG: lines over an axis, and dots with intervals. Nothing is told by colour alone.

Every series has its own colour, dash and mark, by its place in the chart; the style sheet holds the colours, for light
and dark. A chart is 360 units wide, so that on a phone its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from taosr1.evaluation.report.html import Html, html_of, tag

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 38
STYLES = 6
FEW, SOME = 40, 10  # lines of at most so many points have a mark at each; longer ones about so many marks
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line. band: (x, low, high) around it. says, sizes: the text and the radius of the mark at each point, if given.

    style: its colour, dash and mark, from 0; None for a thin grey line to compare with.
    """

    name: str
    points: Sequence[Point]
    style: int | None
    band: Sequence[tuple[float, float, float]] = ()
    says: Sequence[str] = ()
    sizes: Sequence[float] = ()


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `most` of them; from 0 where both are equal."""
    if not high > low:
        low, high = min(0.0, 2 * low), max(0.0, 2 * high) or float(low == 0)
    size = 10 ** math.floor(math.log10((high - low) / most))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (size * factor) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def number(value: float) -> str:
    """For an axis: 0.25, 1200, 1e-06."""
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


def line_chart(
    title: str, series: Sequence[Series], x_label: str, *, x_range: Point | None = None, y_range: Point | None = None,
    marked: Sequence[tuple[float, float, str]] = (), whole: bool = False,
) -> Html:  # fmt: skip
    """Lines over two linear axes. marked: (from, to, what) ranges of x, such as the beta that is served.

    whole: x counts something, so its ticks are whole numbers.
    """
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + [y for one in series for _, *ends in one.band for y in ends]
    x_ticks, y_ticks = ticks(*(x_range or (min(xs), max(xs)))), ticks(*(y_range or (min(ys), max(ys))))
    if whole and x_ticks[1] - x_ticks[0] < 1:
        x_ticks = list(range(math.floor(x_ticks[0]), math.ceil(x_ticks[-1]) + 1))

    def x_of(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    def y_of(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    inside: list[Html] = _grid(x_ticks, y_ticks, x_of, y_of, x_label)
    for start, end, what in marked:
        left, right = x_of(start), x_of(end)
        box = {"x": f"{left:.1f}", "width": f"{max(right - left, 1.5):.1f}", "y": TOP, "height": HEIGHT - TOP - BOTTOM}
        inside.append(tag("rect", tag("title", what), class_="marked", **box))
    for one in series:
        inside.append(_line(one, x_of, y_of))
    return _svg(title, HEIGHT, inside)


def dot_chart(
    title: str, names: Sequence[str], series: Sequence[Sequence[dict]], x_label: str, x_range: Point
) -> Html:  # fmt: skip
    """A row a name, and in it a mark with its interval for every series: dicts with value, low, high, or None."""
    left, row = 118, 12 * len(series) + 12
    height = TOP + row * len(names) + BOTTOM
    values = [value for one in series for found in one for value in found.values() if value is not None]
    x_ticks = ticks(min([x_range[0], *values]), max([x_range[1], *values]))

    def x_of(x: float) -> float:
        return left + (WIDTH - left - RIGHT) * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])

    inside = _below(x_ticks, x_of, height, x_label, left)
    for place, name in enumerate(names):
        top = TOP + place * row
        label = name if len(name) <= 17 else name[:16] + "…"
        inside.append(_text(left - 8, top + row / 2 + 4, label, "end"))
        for style, one in enumerate(series):
            found, y = one[place], top + 12 * style + 12
            if found["value"] is None:
                continue
            says = f"{name}: {100 * found['value']:.2f}"
            bar = Html("")
            if found["low"] is not None:
                says += f" [{100 * found['low']:.2f}, {100 * found['high']:.2f}]"
                bar = tag("path", d=f"M{x_of(found['low']):.1f} {y}H{x_of(found['high']):.1f}", class_="line")
            mark = _mark(style, x_of(found["value"]), y, says, 4)
            inside.append(tag("g", bar, mark, class_=f"style-{style % STYLES}"))
    return _svg(title, height, inside)


def legend(names: Sequence[tuple[str, int | None]]) -> Html:
    """The series' names with their line and mark."""
    items = []
    for name, style in names:
        line = tag("path", d="M1 7H31", class_="line")
        mark = _mark(style, 16, 7, "", 4) if style is not None else Html("")
        look = "compare" if style is None else f"style-{style % STYLES}"
        swatch = tag("svg", tag("g", line, mark, class_=look), viewBox="0 0 32 14", class_="swatch", aria_hidden="true")
        items.append(tag("li", swatch, tag("bdi", name)))
    return tag("ul", *items, class_="legend")


def _svg(title: str, height: float, inside: Sequence[Html]) -> Html:
    return tag("svg", *inside, viewBox=f"0 0 {WIDTH} {height}", class_="chart", role="img", aria_label=title)


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _below(x_ticks, x_of, height: float, x_label: str, left: float = LEFT) -> list[Html]:
    """The axis of x, its grid lines and its name."""
    lines = "".join(f"M{x_of(x):.1f} {TOP}V{height - BOTTOM}" for x in x_ticks)
    texts = [_text(x_of(x), height - BOTTOM + 15, number(x), "middle") for x in x_ticks]
    name = _text((left + WIDTH - RIGHT) / 2, height - 6, x_label, "middle")
    return [tag("path", d=lines, class_="grid"), *texts, name]


def _grid(x_ticks, y_ticks, x_of, y_of, x_label: str) -> list[Html]:
    lines = "".join(f"M{LEFT} {y_of(y):.1f}H{WIDTH - RIGHT}" for y in y_ticks)
    texts = [_text(LEFT - 6, y_of(y) + 4, number(y), "end") for y in y_ticks]
    return [*_below(x_ticks, x_of, HEIGHT, x_label), tag("path", d=lines, class_="grid"), *texts]


def _line(one: Series, x_of, y_of) -> Html:
    inside = []
    if one.band:
        there = [f"{x_of(x):.1f} {y_of(high):.1f}" for x, _, high in one.band]
        back = [f"{x_of(x):.1f} {y_of(low):.1f}" for x, low, _ in reversed(one.band)]
        inside.append(tag("path", d=f"M{'L'.join(there + back)}Z", class_="band"))
    path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in one.points)
    inside.append(tag("path", d=f"M{path}", class_="line"))
    if one.style is not None:
        says = one.says or [f"{one.name}: {number(y)} at {number(x)}" for x, y in one.points]
        apart = math.ceil(len(one.points) / SOME) if len(one.points) > FEW else 1
        first = one.style % STYLES * apart // STYLES  # so that lines which lie on each other both show their marks
        points = list(zip(one.points, says, one.sizes or [2.6] * len(one.points)))[first::apart]
        inside += [_mark(one.style, x_of(x), y_of(y), what, size) for (x, y), what, size in points]
    look = "compare" if one.style is None else f"style-{one.style % STYLES}"
    return tag("g", *inside, class_=look, data_series=one.name)


def _mark(style: int, x: float, y: float, says: str, r: float) -> Html:
    """A circle, square, triangle, diamond, cross or inverted triangle around a point."""
    d, w = 2 * r, 1.3 * r  # a square's side; half a triangle's
    shapes = (
        f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {d:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-d:.1f} 0Z",
        f"M{x - r:.1f} {y - r:.1f}h{d:.1f}v{d:.1f}h{-d:.1f}Z",
        f"M{x:.1f} {y - w:.1f}l{w:.1f} {1.8 * w:.1f}h{-2 * w:.1f}Z",
        f"M{x:.1f} {y - w:.1f}l{w:.1f} {w:.1f}l{-w:.1f} {w:.1f}l{-w:.1f} {-w:.1f}Z",
        f"M{x - r:.1f} {y - r:.1f}l{d:.1f} {d:.1f}M{x - r:.1f} {y + r:.1f}l{d:.1f} {-d:.1f}",
        f"M{x:.1f} {y + w:.1f}l{w:.1f} {-1.8 * w:.1f}h{-2 * w:.1f}Z",
    )
    return tag("path", html_of(tag("title", says)) if says else "", d=shapes[style % STYLES], class_="mark")
