"""A comparison as one page of HTML that needs nothing but itself: no scripts, no fonts, no addresses.

Everything that came from elsewhere, names and versions and errors, is escaped on its way in.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from broker.bench.compare.cells import HEAD, about, cells, configurations, promises, quantity, shown
from broker.bench.compare.outcome import CURVE_PERCENTS, OURS
from broker.bench.compare.pictures import Bar, Curve, bars, curves

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.bench.compare.outcome import Comparison, Row, Standing

COLOURS: Final = ("broker", "redis", "nats", "mosquitto", "rabbitmq", "persist-queue", "litequeue", "diskcache", "huey")
"""Whose colour each number is."""

STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --dim: #5c6570; --line: #dfe3e8; --good: #176639;
  --bad: #b3261e; --c0: #2563c9; --c1: #cf4a2c; --c2: #12846b; --c3: #8a4fbf; --c4: #b7791f; --c5: #64748b;
  --c6: #0e7c9b; --c7: #a3486f; --c8: #6b7d1c; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --dim: #9aa4af; --line: #2e343b;
  --good: #6fcf97; --bad: #ff8a80; --c0: #6ea8ff; --c1: #ff8a66; --c2: #4fd1ad; --c3: #c39bf0; --c4: #e9b64d;
  --c5: #a3b1c2; --c6: #5cc4e0; --c7: #ef8fb5; --c8: #b9cc5a; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 1060px; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 44px 0 6px; }
h3 { font-size: 15px; margin: 26px 0 4px; } p, dl { margin: 6px 0; max-width: 76ch; } .dim, dt { color: var(--dim); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; } dd { margin: 0; }
.verdict { font-weight: 600; } .met { color: var(--good); } .missed { color: var(--bad); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; margin: 8px 0; min-width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 4px 10px 4px 0; text-align: left; vertical-align: top; }
th { color: var(--dim); font-weight: 500; white-space: nowrap; } td { font-variant-numeric: tabular-nums; }
tr.ours td { font-weight: 600; } pre { border-left: 3px solid var(--line); font-size: 13px; margin: 6px 0 18px;
  overflow-x: auto; padding: 2px 0 2px 14px; }
svg { display: block; height: auto; max-width: 860px; width: 100%; } svg text { fill: var(--dim); font-size: 12.5px; }
svg text.name { fill: var(--ink); } .grid { stroke: var(--line); fill: none; } .range { stroke: var(--ink); fill: none;
  opacity: .65; } .curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
"""


LEGEND: Final = (
    "A rate counts deliveries. <em>Ours is</em> says how many times as good ours is, of every figure: more than 1 is "
    "better. Processor time is that of one delivery, in microseconds. <em>Memory</em> is the server's own without "
    "mapped files, <em>resident</em> with them, each at its peak. <em>Bottleneck</em> names whose core was full."
)


def colour_of(contender: str) -> int:
    """Return the number of a contender's colour."""
    return COLOURS.index(contender) if contender in COLOURS else len(COLOURS) - 1


def page(comparison: Comparison, title: str = "Comparison of brokers") -> str:
    """Return the whole page."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        verdict(comparison),
        facts(about(comparison)),
        throughput(comparison),
        latency(comparison),
        processor(comparison),
        "<h2>Figures</h2>",
        f'<p class="dim">{LEGEND}</p>',
        *(section(row, comparison.cores) for row in comparison.rows),
        case(comparison),
        demands(comparison),
        "<h2>Configurations</h2>",
        *(f"<p>{escape(who)}</p><pre>{escape(words)}</pre>" for who, words in configurations(comparison)),
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def verdict(comparison: Comparison) -> str:
    """Return the line that a reader in a hurry reads."""
    missed = [each for each in comparison.verdicts if not each.met]
    if comparison.errors or missed:
        count = len(comparison.errors) + len(missed)
        return f'<p class="verdict missed">{count} not as it should be: see the demands below.</p>'
    met = f"all {len(comparison.verdicts)} demands are met, and " if comparison.verdicts else ""
    return f'<p class="verdict met">{met}every message came, once, in order and whole.</p>'


def facts(given: Sequence[tuple[str, str]]) -> str:
    """Return labels and values."""
    return "<dl>" + "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in given) + "</dl>"


def right_ones(row: Row) -> list[Standing]:
    """Return who has figures."""
    return [standing for standing in row.standings if standing.right]


def throughput(comparison: Comparison) -> str:
    """Return bars of the rates, a scale for each work."""
    parts = []
    for row in comparison.rows:
        if row.figures[0] != "rate" or not right_ones(row):
            continue
        given = []
        for standing in right_ones(row):
            values, middle = standing.values("rate"), standing.median("rate") or 0.0
            ratio = row.ratio(standing.contender, "rate")
            words = shown("rate", middle)
            if standing.contender != OURS and ratio is not None:
                words += f" (ours {ratio:.1f}×)"
            given.append(
                Bar(standing.contender, colour_of(standing.contender), (middle,), min(values), max(values), words)
            )
        parts.append(f"<h3>{escape(row.title)}</h3>" + bars(f"deliveries a second: {row.title}", given))
    note = '<p class="dim">Deliveries a second, the median of the rounds; the line over a bar is their range.</p>'
    return f"<h2>Throughput</h2>{note}" + "".join(parts) if parts else ""


def latency(comparison: Comparison) -> str:
    """Return curves of the works that offer a rate: where a queue is kept full, latency says how long it is."""
    parts = []
    for row in comparison.rows:
        given = [
            Curve(each.contender, colour_of(each.contender), tuple(zip(CURVE_PERCENTS, points, strict=True)))
            for each in right_ones(row)
            if each.offered and (points := each.median_curve())
        ]
        if given:
            parts.append(f"<h3>{escape(row.title)}</h3>" + curves(f"percentiles of {row.title}", given))
    note = '<p class="dim">From the instant at which a message was due. Each nine is as far from the last.</p>'
    return f"<h2>Latency</h2>{note}" + "".join(parts) if parts else ""


def processor(comparison: Comparison) -> str:
    """Return stacked bars of processor seconds for a million deliveries."""
    parts = []
    for row in comparison.rows:
        given = []
        for standing in right_ones(row):
            server, driver = (standing.median(name) or 0.0 for name in ("server-cpu", "driver-cpu"))
            words = f"{quantity(server)} + {quantity(driver)} s" if server else f"{quantity(driver)} s"
            spent = (server, driver) if server else (driver,)
            given.append(Bar(standing.contender, colour_of(standing.contender), spent, 0.0, 0.0, words))
        if given:
            parts.append(f"<h3>{escape(row.title)}</h3>" + bars(f"processor seconds: {row.title}", given))
    note = (
        '<p class="dim">Seconds of processor for a million deliveries: the server, and paler the driver or client.</p>'
    )
    return f"<h2>Processor</h2>{note}" + "".join(parts) if parts else ""


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, ours: bool = False) -> str:
    """Return a table; the first row may be ours."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        ('<tr class="ours">' if ours and not number else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in line)
        + "</tr>"
        for number, line in enumerate(rows)
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def section(row: Row, cores: int) -> str:
    """Return the figures of one work."""
    lines = [cells(row, standing, cores) for standing in row.standings]
    said = "; ".join(f"{who}: {promise}" for who, promise in promises(row))
    return (
        f"<h3>{escape(row.work)}: {escape(row.title)}</h3>{html_table(HEAD, lines, ours=True)}"
        f'<p class="dim">{escape(said)}.</p>'
    )


def case(comparison: Comparison) -> str:
    """Return the rows of the case study, if they were taken."""
    if not comparison.case:
        return ""
    rows = [[each.title, each.said, each.measured, "met" if each.met else "missed"] for each in comparison.case]
    return f"<h2>Chat case study</h2>{html_table(('case', 'paid for', 'measured here', ''), rows)}"


def demands(comparison: Comparison) -> str:
    """Return what was demanded, what came of it, and what went wrong."""
    parts = []
    if comparison.verdicts:
        lines = "".join(
            f'<tr><td class="{"met" if each.met else "missed"}">{"met" if each.met else "missed"}</td>'
            f"<td>{escape(each.demand)}</td><td>{escape(each.words)}</td></tr>"
            for each in comparison.verdicts
        )
        parts.append(f'<h2>Demands</h2><div class="wide"><table>{lines}</table></div>')
    wrong = [*comparison.errors, *(f"{name} is not installed: {how}" for name, how in comparison.missing.items())]
    if wrong:
        parts.append("<h2>Wrong</h2>" + "".join(f'<p class="missed">{escape(each)}</p>' for each in wrong))
    return "".join(parts)
