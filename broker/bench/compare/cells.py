"""The figures of a comparison in words, the same for a terminal, for Markdown and for HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from broker.bench.compare.outcome import OURS, Comparison, Row, Standing, spread
from broker.bench.report import plural
from broker.model.settings import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD: Final = (
    "contender", "by", "median", "range", "ours is", "server us", "driver us", "memory MiB", "resident MiB",
    "bottleneck",
)  # fmt: skip
"""Columns: `median` and `range` are of the row's figures, and the processor time is that of one delivery."""

DASH: Final = "-"


def quantity(value: float) -> str:
    """Return a figure in three digits or so, with thousands and millions spelled out."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 100 * size else f"{value / size:,.0f}{unit}"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def microseconds(value: float) -> str:
    """Return a latency with its unit."""
    for size, unit in ((1e6, "s"), (1e3, "ms")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} us"


def shown(figure: str, value: float) -> str:
    """Return a figure as it is told."""
    if figure in ("memory", "resident"):
        return f"{value / MIB:,.3g} MiB"
    return f"{quantity(value)}/s" if figure == "rate" else microseconds(value)


def median_of(row: Row, standing: Standing) -> str:
    """Return the medians of a row's figures."""
    found = [(figure, standing.median(figure)) for figure in row.figures]
    words = [(figure, shown(figure, value)) for figure, value in found if value is not None]
    if not standing.right or not words:
        return "failed"
    return ", ".join(value if figure == "rate" else f"{figure} {value}" for figure, value in words)


def range_of(row: Row, standing: Standing) -> str:
    """Return from where to where the rounds went."""
    if not standing.right:
        return DASH
    spreads = [(figure, spread(standing.values(figure))) for figure in row.figures]
    return ", ".join(f"{shown(figure, low)} – {shown(figure, high)}" for figure, (low, high) in spreads)


def ratio_of(row: Row, standing: Standing) -> str:
    """Return how many times as good ours is."""
    if standing.contender == OURS:
        return DASH
    found = [row.ratio(standing.contender, figure) for figure in row.figures] if standing.right else []
    return ", ".join(f"{value:.2f}×" for value in found if value is not None) or DASH


def optional(value: float | None, size: float = 1.0) -> str:
    """Return a figure in a unit of that size, or a dash."""
    return DASH if value is None else f"{value / size:,.2f}" if value / size < 10 else f"{value / size:,.0f}"


def cells(row: Row, standing: Standing, cores: int) -> list[str]:
    """Return a contender's cells, in the order of HEAD."""
    return [
        standing.contender,
        standing.how,
        median_of(row, standing),
        range_of(row, standing),
        ratio_of(row, standing),
        optional(standing.median("server-cpu")),
        optional(standing.median("driver-cpu")),
        optional(standing.median("memory"), MIB),
        optional(standing.median("resident"), MIB),
        standing.bottleneck(cores),
    ]


def about(comparison: Comparison) -> list[tuple[str, str]]:
    """Return what the figures belong to."""
    machine, settings = comparison.machine, comparison.settings
    load = machine.get("load_1min", 0.0)
    versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    return [
        ("date", comparison.date),
        ("revision", comparison.revision),
        ("machine", f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('kernel')}, load {load} before"),
        ("disk", f"one LMDB commit {comparison.commit_us_p50:,.0f} us (p50)"),
        ("python", comparison.python),
        ("versions", versions),
        (
            "measured",
            f"{plural(int(settings.get('rounds', 1)), 'round')} in turn, {settings.get('seconds', 0.0):g} s each, "
            f"{settings.get('payload')}-byte payloads, one a frame",
        ),
    ]


def promises(row: Row) -> list[tuple[str, str]]:
    """Return what each contender promises in a row."""
    return [(standing.contender, standing.promise) for standing in row.standings]


def failures(comparison: Comparison) -> list[str]:
    """Return what is not as it should be: errors, peers that are not here, and demands that are not met."""
    absent = [f"{name} is not installed: {install}" for name, install in comparison.missing.items()]
    unmet = [f"{verdict.demand}: {verdict.words}" for verdict in comparison.verdicts if not verdict.met]
    return [*comparison.errors, *absent, *unmet]


def configurations(comparison: Comparison) -> list[tuple[str, str]]:
    """Return every configuration that a server was started with, each once, without the port and folder of a run."""
    found: dict[str, list[str]] = {}
    for row in comparison.rows:
        for standing in row.standings:
            if standing.configuration:
                found.setdefault(plain(standing.configuration), []).append(f"{standing.contender} ({row.work})")
    return [(", ".join(who), text) for text, who in found.items()]


def plain(configuration: str) -> str:
    """Return a configuration with words in the place of what each start chooses anew."""
    import re

    text = re.sub(r"(127\.0\.0\.1:|\bport |\blistener )\d+", r"\1PORT", configuration)
    return re.sub(r'"[^"\n]*broker-bench-[^"/\n]*', '"FOLDER', text).strip()


def columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return how wide each column is."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]
