"""Pictures of a comparison as SVG that stands in a page: bars, stacked bars, and curves over percentiles.

Colours are variables of the page (`--c0` and on), so that a dark page has its own. Nothing is told by colour alone:
each bar and each curve has its name beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH: Final = 860
LABEL: Final = 130
"""Pixels on the left for names."""
VALUE: Final = 190
"""Pixels on the right for figures."""
BAR: Final = 18
GAP: Final = 7
CURVE_HEIGHT: Final = 340
CURVE_LEFT: Final = 76
CURVE_RIGHT: Final = 120
CURVE_TOP: Final = 14
CURVE_BOTTOM: Final = 46
NAME_HEIGHT: Final = 15


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        name: beside it.
        colour: number of its colour.
        parts: lengths that follow one another, the first in full colour.
        low, high: a range to draw over it; equal for none.
        words: behind it.
    """

    name: str
    colour: int
    parts: tuple[float, ...]
    low: float
    high: float
    words: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve of latency.

    Attributes:
        name: at its end.
        colour: number of its colour.
        points: percentiles and microseconds.
    """

    name: str
    colour: int
    points: tuple[tuple[float, float], ...]


def svg(height: float, content: Sequence[str], title: str) -> str:
    """Return a picture of the page's width."""
    inside = "\n".join(content)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">\n'
        f"<title>{escape(title)}</title>\n{inside}\n</svg>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """Return words at a place."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def bars(title: str, given: Sequence[Bar]) -> str:
    """Return horizontal bars on one scale that begins at 0."""
    longest = max((max(sum(bar.parts), bar.high) for bar in given), default=0.0) or 1.0
    scale = (WIDTH - LABEL - VALUE) / longest
    content = []
    for number, bar in enumerate(given):
        top = GAP + number * (BAR + GAP)
        middle = top + BAR / 2
        content.append(text(LABEL - 10, middle + 4, bar.name, "end", "name"))
        at = float(LABEL)
        for index, part in enumerate(bar.parts):
            content.append(
                f'<rect x="{at:.1f}" y="{top}" width="{max(part * scale, 1):.1f}" height="{BAR}" rx="2" '
                f'fill="var(--c{bar.colour})" fill-opacity="{1 if index == 0 else 0.4}"/>'
            )
            at += part * scale
        if bar.high > bar.low:
            low, high = LABEL + bar.low * scale, LABEL + bar.high * scale
            content.append(
                f'<path class="range" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} '
                f'{middle - 4}v8"/>'
            )
            at = max(at, high)
        content.append(text(at + 8, middle + 4, bar.words))
    return svg(GAP + len(given) * (BAR + GAP), content, title)


def place(percent: float) -> float:
    """Return where a percentile stands on a logarithmic axis: 0 at 0, 1 at 90, 2 at 99, 3 at 99.9 and so on."""
    return -math.log10(1 - percent / 100)


def curves(title: str, given: Sequence[Curve]) -> str:
    """Return latency, logarithmic, over percentiles, of which each nine is as far from the last."""
    points = [point for curve in given for point in curve.points if point[1] > 0]
    if not points:
        return ""
    right = max(place(percent) for percent, _ in points)
    low = math.floor(math.log10(min(value for _, value in points)))
    high = max(low + 1, math.ceil(math.log10(max(value for _, value in points))))
    width = WIDTH - CURVE_LEFT - CURVE_RIGHT
    height = CURVE_HEIGHT - CURVE_TOP - CURVE_BOTTOM

    def x_of(percent: float) -> float:
        return CURVE_LEFT + place(percent) / right * width

    def y_of(value: float) -> float:
        return CURVE_TOP + (high - math.log10(max(value, 10.0**low))) / (high - low) * height

    content = []
    for decade in range(low, high + 1):
        y = y_of(10.0**decade)
        content.append(f'<path class="grid" d="M{CURVE_LEFT} {y:.1f}h{width}"/>')
        content.append(text(CURVE_LEFT - 8, y + 4, duration(10.0**decade), "end"))
    for percent, name in ((0, "0"), (50, "50"), (90, "90"), (99, "99"), (99.9, "99.9"), (99.99, "99.99"), (99.999, "")):
        if place(percent) <= right + 1e-9:
            x = x_of(percent)
            content.append(f'<path class="grid" d="M{x:.1f} {CURVE_TOP}v{height}"/>')
            content.append(text(x, CURVE_HEIGHT - CURVE_BOTTOM + 18, name or "99.999", "middle"))
    content.append(text(CURVE_LEFT + width / 2, CURVE_HEIGHT - 8, "percentile of latency", "middle"))
    ends = []
    for curve in given:
        steps = [(x_of(percent), y_of(value)) for percent, value in curve.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in steps)
        content.append(f'<path class="curve" stroke="var(--c{curve.colour})" d="M{path}"/>')
        ends.append((steps[-1][1], curve))
    for y, curve in apart(ends):
        content.append(f'<circle cx="{CURVE_LEFT + width + 12}" cy="{y - 4:.1f}" r="4" fill="var(--c{curve.colour})"/>')
        content.append(text(CURVE_LEFT + width + 22, y, curve.name, "start", "name"))
    return svg(CURVE_HEIGHT, content, title)


def apart(ends: Sequence[tuple[float, Curve]]) -> list[tuple[float, Curve]]:
    """Return names at heights at which none stands on another."""
    placed: list[tuple[float, Curve]] = []
    for y, curve in sorted(ends, key=lambda end: end[0]):
        placed.append((max(y + 4, placed[-1][0] + NAME_HEIGHT) if placed else y + 4, curve))
    over = placed[-1][0] - (CURVE_HEIGHT - CURVE_BOTTOM) if placed else 0.0
    return [(y - max(0.0, over), curve) for y, curve in placed]


def duration(microseconds: float) -> str:
    """Return a power of ten of microseconds as people say it."""
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if microseconds >= size:
            return f"{microseconds / size:g} {unit}"
    return f"{microseconds:g} us"
