"""A comparison for a terminal: tables where there is one, plain lines anywhere else, and progress meanwhile."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from broker.bench.compare.cells import HEAD, about, cells, columns, configurations, failures, promises

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TextIO

    from broker.bench.compare.outcome import Comparison, Row

    Tell = Callable[[int, int, str], None]


def print_comparison(comparison: Comparison, out: TextIO) -> None:
    """Print all of it."""
    for label, value in about(comparison):
        out.write(f"{label:<9} {value}\n")
    for who, text in configurations(comparison):
        out.write(f"\nconfiguration of {who}\n")
        out.writelines(f"  {line}\n" for line in text.splitlines())
    for row in comparison.rows:
        out.write("\n")
        out.flush()
        (print_table if out.isatty() else print_lines)(row, comparison.cores, out)
    print_verdicts(comparison, out)
    out.flush()


def print_lines(row: Row, cores: int, out: TextIO) -> None:
    """Print a row as aligned columns without colours."""
    table = [list(HEAD), *(cells(row, standing, cores) for standing in row.standings)]
    widths = columns(table)
    out.write(f"{row.work}: {row.title}\n")
    for line in table:
        out.write("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n")
    out.writelines(f"  {who}: {promise}\n" for who, promise in promises(row))


def print_table(row: Row, cores: int, out: TextIO) -> None:
    """Print a row as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = Text.assemble((row.work, "bold"), f": {row.title}")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for name in HEAD:
        table.add_column(name, justify="right" if name in ("ours is", "server us", "driver us") else "left")
    for standing in row.standings:
        line = cells(row, standing, cores)
        style = "bold" if standing is row.standings[0] else ""
        table.add_row(*map(Text, line), style=style if standing.right else "red")
    for who, promise in promises(row):
        table.caption = (
            Text("\n").join([Text(str(table.caption)), Text(f"{who}: {promise}")])
            if table.caption
            else (Text(f"{who}: {promise}"))
        )
    table.caption_justify = "left"
    Console(file=out).print(table)


def print_verdicts(comparison: Comparison, out: TextIO) -> None:
    """Print what was demanded, what came of it, and what else is wrong."""
    if comparison.verdicts:
        out.write("\ndemands\n")
    for verdict in comparison.verdicts:
        out.write(f"  {'met   ' if verdict.met else 'MISSED'}  {verdict.demand}: {verdict.words}\n")
    wrong = [*comparison.errors, *(f"{name} is not installed: {how}" for name, how in comparison.missing.items())]
    if wrong:
        out.write("\nwrong\n")
    out.writelines(f"  {each}\n" for each in wrong)
    missed = len(failures(comparison)) - len(comparison.missing)
    out.write(f"\nverdict: {'all as it should be' if not missed else f'{missed} things are not as they should be'}\n")


@contextmanager
def progress(out: TextIO) -> Iterator[Tell]:
    """Yield what tells how far it is: a bar on a terminal, a line for each measurement anywhere else."""
    if not out.isatty():

        def line(total: int, number: int, what: str) -> None:
            out.write(f"[{number}/{total}] {what}\n")
            out.flush()

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    shapes = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*shapes, console=Console(file=out), transient=True) as bar:
        task = bar.add_task("", total=None)

        def move(total: int, number: int, what: str) -> None:
            bar.update(task, total=total, completed=number - 1, description=what)

        yield move
