"""The report as one page: self-contained, with pictures as inline SVG, for phone and desk, dark and light.

First the verdict with each threshold, then where the time went, then what was asked for. No script, no request to
anybody: it can be mailed and kept. All text that others chose is escaped.
"""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING, Final

from broker.bench.machine import describe_machine, describe_python, revision
from loadtest.chart import Line, draw, linear, logarithmic, percentile_axis, short, thinned, time_axis
from loadtest.histogram import curve, percentiles
from loadtest.plan import options
from loadtest.record import SECRET
from loadtest.server import GAUGES, RATES

if TYPE_CHECKING:
    from loadtest.record import Record

STYLE: Final = """
:root{color-scheme:light dark;--back:#fbfbfa;--card:#fff;--text:#1c1e21;--soft:#62676e;--rule:#dfe1e4;
--c1:#1f6feb;--c2:#c2570c;--c3:#7c3aed;--c4:#0f766e;--c5:#be185d;--c6:#8a6d00;--good:#14743c;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--back:#131518;--card:#1b1e22;--text:#e8eaed;--soft:#9aa1a9;--rule:#32373d;
--c1:#6cb0ff;--c2:#f5a262;--c3:#b79aff;--c4:#4fd1c5;--c5:#ff8ac2;--c6:#e3c34b;--good:#5dd28e;--bad:#ff8a7d}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1rem 4rem;max-width:60rem;background:var(--back);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2.25rem 0 .5rem}
p{margin:.25rem 0 .75rem}.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}
section{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.75rem;margin:.5rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .5rem;text-align:left;border-bottom:1px solid var(--rule);vertical-align:top;
overflow-wrap:anywhere}
tr:last-child>*{border-bottom:0}th,.held{font-weight:600;white-space:nowrap;overflow-wrap:normal}td.n,th.n{text-align:right}
svg{display:block;width:100%;height:auto}.mark{font-size:13px;fill:var(--soft)}
.grid{stroke:var(--rule);fill:none}.limit{stroke:var(--bad);stroke-dasharray:5 4;fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}
.c4{stroke:var(--c4)}.c5{stroke:var(--c5)}.c6{stroke:var(--c6)}
.key{display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:0 0 .5rem;font-size:.9rem}
.key i{display:inline-block;width:1.1em;height:.2em;margin-right:.4em;vertical-align:middle}
.grids{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,17rem),1fr));gap:.5rem}
.grids section{margin:0}h3{font-size:.95rem;margin:0 0 .25rem;font-weight:600}
.grids .mark{font-size:26px}.grids .line{stroke-width:4}
@media(max-width:40rem){.mark{font-size:25px}.line{stroke-width:3.5}th,td{padding:.35rem .3rem;font-size:.9rem}
.wide{display:none}}
"""


def page(record: Record) -> str:
    """Return the page of a test."""
    title = f"Load test {record.verdict.lower()}: {record.users:,} users of {record.plan.scenario}"
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        _head(record),
        _latency(record),
        _over_time(record),
        _server(record),
        _troubles(record),
        _asked(record),
        "</body></html>\n",
    ]
    return "".join(parts)


def _head(record: Record) -> str:
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.begun_s))
    colour = "good" if record.passed else "bad"
    rows = "".join(
        f'<tr><th scope="row">{escape(each.name)}</th><td class="n">{escape(each.got)}</td>'
        f'<td class="soft">{escape(each.asked)}</td>'
        f'<td class="held {"good" if each.holds else "bad"}">{"✓" if each.holds else "✗"}'
        f'<span class="wide"> {"holds" if each.holds else "missed"}</span></td></tr>'
        for each in record.findings
    )
    ended = "".join(f'<p class="bad">Ended early: {escape(each)}</p>' for each in record.failures)
    return (
        f'<h1><span class="{colour}">{record.verdict}</span>: {record.users:,} users of '
        f"{escape(record.plan.scenario)}, {escape(record.plan.shape)}</h1>"
        f'<p class="soft">{escape(record.url)}, {when}</p>{ended}<section><table>{rows}</table></section>'
        f"<p>Processors: {escape(record.whose_processor_was_full())}.</p>"
    )


def _latency(record: Record) -> str:
    whole = record.timeline.latency
    if not whole.count:
        return '<h2>Latency</h2><p class="soft">No message was timed.</p>'
    kinds = sorted(record.timeline.latencies.items())
    named = [("all", whole), *(kinds if len(kinds) > 1 else [])]
    lines = [
        Line(name, [(percent, ms) for percent, ms in curve(latency) if percent < 100], number)
        for number, (name, latency) in enumerate(named, 1)
        if latency.count
    ]
    floor_ms = max(0.001, min(ms for line in lines for _, ms in line.points if ms))
    x = percentile_axis(max(90.0, *(line.points[-1][0] for line in lines)))
    y = logarithmic(floor_ms, max(whole.max / 1e6, record.plan.max_p99_ms, floor_ms * 10))
    picture = draw("Latency in milliseconds by percentile", lines, x, y, height=320, limit=record.plan.max_p99_ms)
    heads = "".join(f'<th class="n">{escape(name.replace("p999", "p99.9"))}</th>' for name in percentiles(whole))
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="n">{value:.2f}</td>' for value in percentiles(latency).values())
        + "</tr>"
        for name, latency in named
        if latency.count
    )
    return (
        '<h2>Latency, ms</h2><p class="soft">By percentile: from when each message was due to be sent until a reader '
        "had it, of every message of the judged part. Each further nine takes as much room.</p>"
        f"<section>{_key(*(line.name for line in lines))}{picture}</section>"
        f"<section><table><tr><td></td>{heads}</tr>{rows}</table></section>"
    )


def _key(*names: str) -> str:
    items = "".join(
        f'<span><i style="background:var(--c{number})"></i>{escape(name)}</span>'
        for number, name in enumerate(names, 1)
    )
    return f'<div class="key">{items}</div>'


def _over_time(record: Record) -> str:
    lines = record.timeline.lines
    if not lines:
        return ""
    begun_s = lines[0].at_s
    x = time_axis(lines[-1].at_s + 1 - begun_s)
    delivered = thinned([(line.at_s - begun_s, float(line.delivered)) for line in lines])
    published = thinned([(line.at_s - begun_s, float(line.published)) for line in lines])
    most = max(max(line.delivered for line in lines), record.plan.min_rate, 1)
    throughput = draw(
        "Messages a second over time",
        [Line("delivered", delivered), Line("published", published, 2)],
        x,
        linear(float(most)),
        limit=record.plan.min_rate or None,
    )
    kinds = (("p50", "p50_ms"), ("p99", "p99_ms"), ("largest", "max_ms"))
    series = [
        Line(name, thinned([(line.at_s - begun_s, getattr(line, field) or None) for line in lines]), number)
        for number, (name, field) in enumerate(kinds, 1)
    ]
    known = [over for each in series for _, over in each.points if over]
    y = logarithmic(max(0.01, min(known, default=0.1)), max([*known, record.plan.max_p99_ms]))
    latencies = draw("Latency in milliseconds over time", series, x, y, limit=record.plan.max_p99_ms)
    return (
        f"<h2>Messages a second</h2><section>{_key('delivered', 'published')}{throughput}</section>"
        f"<h2>Latency over time, ms</h2><section>{_key('p50', 'p99', 'largest')}{latencies}</section>"
    )


def _server(record: Record) -> str:
    server = record.server
    if len(server.times_s) < 2:
        why = server.silent_why or "the test was too short to look twice"
        return f'<h2>The server</h2><p class="soft">It told nothing of itself: {escape(why)}.</p>'
    begun_s = server.times_s[0]
    x = time_axis(server.times_s[-1] - begun_s)
    cards = []
    for name, title in {**RATES, **GAUGES}.items():
        known = [value for value in server.values[name] if value is not None]
        if not known:
            continue
        points = [(at_s - begun_s, value) for at_s, value in zip(server.times_s, server.values[name], strict=True)]
        picture = draw(
            f"{title} over time", [Line(title, thinned(points, 200))], x, linear(max([*known, 1e-9])), height=250
        )
        told = f"mean {short(sum(known) / len(known))}, most {short(max(known))}"
        cards.append(f'<section><h3>{escape(title)}</h3><p class="soft">{escape(told)}</p>{picture}</section>')
    return f'<h2>The server, by its own account</h2><div class="grids">{"".join(cards)}</div>'


def _troubles(record: Record) -> str:
    if not record.errors:
        return ""
    rows = "".join(
        f'<tr><td>{escape(what)}</td><td class="n">{count:,}</td></tr>' for what, count in record.errors.items()
    )
    return f"<h2>Errors</h2><section><table>{rows}</table></section>"


def _shown(flag: str, value: object) -> str:
    return SECRET if flag == "--token" and value else str(value) or "–"


def _asked(record: Record) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in describe_machine().items())
    values = [(each.flag, getattr(record.plan, each.name), each.explained) for each in options()]
    rows = "".join(
        f'<tr><th scope="row">{flag}</th><td>{escape(_shown(flag, value))}</td>'
        f'<td class="soft">{escape(told)}</td></tr>'
        for flag, value, told in values
    )
    return (
        f"<h2>What was asked for</h2><section><table>{rows}</table></section>"
        f'<p class="soft">Revision {escape(revision())}, {escape(describe_python())}; {escape(machine)}.</p>'
    )
