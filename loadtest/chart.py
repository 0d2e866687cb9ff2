"""Line charts as SVG text: axes with round numbers, lines with a name, colours that the page around chooses.

Pure. A chart scales with the page, so that a phone shows all of it; its text is sized for that. What is drawn is also
told: the chart's title and the ends of its lines are text for who does not see it.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WIDTH: Final = 640
LEFT, RIGHT, TOP, BOTTOM = 84, 14, 22, 42
TICKS_WANTED: Final = 4


class Line(NamedTuple):
    """A line: its name, its points (y None is a gap), and which of the page's colours it has, from 1."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 1


class Axis(NamedTuple):
    """A scale from values to 0…1, and where it has its marks."""

    low: float
    high: float
    marks: Sequence[tuple[float, str]]
    scale: Callable[[float], float] = float

    def place(self, value: float) -> float:
        """Return where a value is, 0 to 1."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(value) - low) / (high - low) if high > low else 0.5


def short(value: float) -> str:
    """Return a number in few characters: `0.4`, `12`, `3.5 k`, `131 k`, `2.1 M`."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"


def linear(high: float, low: float = 0.0) -> Axis:
    """Return an axis from `low` to at least `high` with a few marks at round numbers."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / TICKS_WANTED))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= TICKS_WANTED)
    top = low + math.ceil(span / step - 1e-9) * step
    count = round((top - low) / step)
    return Axis(low, top, [(low + number * step, short(low + number * step)) for number in range(count + 1)])


def logarithmic(low: float, high: float) -> Axis:
    """Return an axis over whole powers of ten around `low` and `high`, both above 0."""
    begin, end = math.floor(math.log10(low)), math.ceil(math.log10(high) + 1e-9)
    end = max(end, begin + 1)
    return Axis(
        10.0**begin, 10.0**end, [(10.0**power, short(10.0**power)) for power in range(begin, end + 1)], math.log10
    )


def percentile_axis(percent_max: float) -> Axis:
    """Return an axis on which every further nine takes as much room: 0, 90, 99, 99.9, …

    Args:
        percent_max: the last there is, below 100.
    """
    nines = max(1, math.ceil(-math.log10(1 - percent_max / 100) - 1e-9))
    names = ["0", "90", "99", *(f"99.{'9' * more}" for more in range(1, nines))]
    marks = [(100 - 100 * 10.0**-number, names[number]) for number in range(nines + 1)]
    return Axis(0.0, marks[-1][0], marks, lambda percent: -math.log10(1 - percent / 100))


def time_axis(seconds: float) -> Axis:
    """Return an axis of the time since the beginning, which ends with it."""
    units = ((180.0, 1, "s"), (10_800.0, 60, "min"), (math.inf, 3600, "h"))
    divisor, unit = next((divisor, unit) for below, divisor, unit in units if seconds <= below)
    marks = [(at * divisor, f"{name} {unit}") for at, name in linear(seconds / divisor).marks]
    return Axis(0.0, max(seconds, 1e-9), [mark for mark in marks if mark[0] <= seconds])


def draw(title: str, lines: Sequence[Line], x: Axis, y: Axis, *, height: int = 260, limit: float | None = None) -> str:
    """Draw a chart.

    Args:
        title: what it shows, for who does not see it.
        lines: what it shows.
        x, y: its axes.
        height: in the units of WIDTH.
        limit: a value of y that is marked as a threshold.
    """
    right, bottom = WIDTH - RIGHT, height - BOTTOM

    def at(value: float, over: float) -> tuple[float, float]:
        return LEFT + x.place(value) * (right - LEFT), bottom - y.place(over) * (bottom - TOP)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for value, name in y.marks:
        _, high = at(x.low, value)
        parts.append(f'<path class="grid" d="M{LEFT} {high:.1f}H{right}"/>')
        parts.append(f'<text class="mark" x="{LEFT - 6}" y="{high + 6:.1f}" text-anchor="end">{escape(name)}</text>')
    for value, name in x.marks:
        along, _ = at(value, y.low)
        anchor = "end" if along > right - 20 else "middle"
        parts.append(
            f'<text class="mark" x="{along:.1f}" y="{height - 9}" text-anchor="{anchor}">{escape(name)}</text>'
        )
    if limit is not None and y.low <= limit <= y.high:
        _, high = at(x.low, limit)
        parts.append(f'<path class="limit" d="M{LEFT} {high:.1f}H{right}"/>')
        parts.append(f'<text class="mark" x="{right}" y="{high - 5:.1f}" text-anchor="end">limit {short(limit)}</text>')
    drawn = (
        f'<path class="line c{line.colour}" d="{_path(line, at, y)}"><title>{escape(line.name)}</title></path>'
        for line in lines
    )
    return "".join([*parts, *drawn, "</svg>"])


def _path(line: Line, at: Callable[[float, float], tuple[float, float]], y: Axis) -> str:
    words, down = [], False
    for value, over in line.points:
        if over is None:
            down = False
            continue
        along, high = at(value, min(max(over, y.low), y.high))
        words.append(f"{'L' if down else 'M'}{along:.1f} {high:.1f}")
        down = True
    return "".join(words)


def thinned(points: Sequence[tuple[float, float | None]], most: int = 600) -> list[tuple[float, float | None]]:
    """Return at most so many points: of each stretch the highest, so that no peak is hidden."""
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) // most)
    groups = [points[begin : begin + stretch] for begin in range(0, len(points), stretch)]
    return [max(group, key=lambda point: -math.inf if point[1] is None else point[1]) for group in groups]
