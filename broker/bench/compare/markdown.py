"""A comparison as Markdown, for people who read it in a repository or a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.bench.compare.cells import HEAD, about, cells, configurations, promises

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.bench.compare.outcome import Comparison, Row


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def section(row: Row, cores: int) -> list[str]:
    """Return the lines of one work."""
    said = "; ".join(f"{who}: {promise}" for who, promise in promises(row))
    lines = [cells(row, standing, cores) for standing in row.standings]
    return [f"### {row.work}: {row.title}", "", *table(HEAD, lines), "", f"Promised: {said}.", ""]


def markdown(comparison: Comparison, title: str = "Comparison of brokers") -> str:
    """Return all of it, under a title."""
    lines = [f"# {title}", "", *(f"- {label}: {value}" for label, value in about(comparison)), ""]
    lines += [
        "A rate counts deliveries; `ours is` says how many times as good ours is, of every figure, so that more than 1",
        "is better. Processor time is that of one delivery, in microseconds; `memory` is the server's own without",
        "mapped files, `resident` with them, each at its peak. `bottleneck` names whose core was full.",
        "",
    ]
    for row in comparison.rows:
        lines += section(row, comparison.cores)
    if comparison.case:
        rows = [[each.title, each.said, each.measured, "met" if each.met else "missed"] for each in comparison.case]
        lines += ["## Chat case study", "", *table(["case", "paid for", "measured here", ""], rows), ""]
    if comparison.verdicts:
        lines += ["## Demands", ""]
        rows = [["met" if each.met else "**missed**", f"`{each.demand}`", each.words] for each in comparison.verdicts]
        lines += [*table(["", "demand", "got"], rows), ""]
    wrong = [*comparison.errors, *(f"{name} is not installed: `{how}`" for name, how in comparison.missing.items())]
    if wrong:
        lines += ["## Wrong", "", *(f"- {each}" for each in wrong), ""]
    lines += ["## Configurations", ""]
    for who, text in configurations(comparison):
        lines += [f"{who}:", "", "```", *text.splitlines(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"
