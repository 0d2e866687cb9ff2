"""The live view of `broker top`: a picture of one look, as large as the terminal, drawn anew for each.

`picture` is pure. What does not fit is left out from the right and from below, the least telling first, and never
broken: on a narrow terminal the table has fewer columns; on a low one a subject has one line, then there are fewer
readers, and the rest is counted.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker.cli.main import printable
from broker.cli.top.text import (
    UNKNOWN,
    behind,
    clock,
    count,
    fill_lines,
    lagging,
    seconds,
    sections,
    since,
    size,
    what,
    who,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from rich.console import RenderableType

    from broker.cli.top.rates import Change, Reader
    from broker.cli.top.text import Fact

LABEL_WIDTH: Final = 10
HEAD_LINES: Final = 3
TABLE_FRAME_LINES: Final = 2
"""The table's headings, and the line that counts the rest."""


class Column(NamedTuple):
    """A column of the table of readers: from which width of the terminal on it is there."""

    heading: str
    width_min: int
    justify_right: bool
    value: Callable[[Change, Reader], str]


_COLUMNS: Final = (
    Column("behind", 0, True, lambda _, reader: behind(reader)),
    Column("late", 0, True, lambda _, reader: seconds(reader.behind_s)),
    Column("since", 50, True, since),
    Column("reads", 0, False, lambda _, reader: what(reader)),
    Column("who", 64, False, lambda _, reader: who(reader)),
    Column("conn", 84, True, lambda _, reader: str(reader.connection)),
    Column("sub", 84, True, lambda _, reader: str(reader.subscription)),
    Column("queued", 104, True, lambda _, reader: size(reader.queued_bytes)),
    Column("credit", 104, True, lambda _, reader: size(reader.credit)),
    Column("policy", 116, False, lambda _, reader: reader.policy),
)


def picture(change: Change, url: str, status: Text, width: int, height: int | None) -> RenderableType:
    """Return what one look has found.

    Args:
        change: What was found.
        url: The server, as it was asked for.
        status: How the looking goes.
        width: Characters of a line.
        height: Lines; None for as many as it takes.
    """
    now = change.now
    run, process = count(now.figure("run")), now.stats.get("pid", UNKNOWN)
    title = Text.assemble(("broker top", "bold"), printable(f"  {url}  run {run}, process {process}"))
    told = [_lines(label, facts, width) for label, facts in [*sections(change), ("behind", lagging(change))]]
    if height is not None and sum(map(len, told)) + HEAD_LINES + TABLE_FRAME_LINES + len(change.readers) > height:
        told = [each[:1] for each in told]
    lines = [title, status, Text(), *(line for each in told for line in each)]
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    room = None if height is None else max(height - len(lines) - TABLE_FRAME_LINES, 0)
    return Group(*lines, *_readers(change, width, room))


def status_text(change: Change, interval_s: float) -> Text:
    """Say when the look was, and what there is to know of how it came about."""
    text = Text(f"{clock(change.now.time_s)}, every {interval_s:g} s, Ctrl-C ends")
    if change.restarted:
        text.append("  the server has restarted", "bold yellow")
    return text


def away_text(change: Change, silent_s: float, why: str) -> Text:
    """Say that what is shown is old, and why."""
    return Text.assemble(
        (f"no answer for {seconds(silent_s)}", "bold red"),
        f"  below is how it was at {clock(change.now.time_s)}; {printable(why)}",
    )


def _lines(label: str, facts: list[Fact], width: int) -> list[Text]:
    lines: list[Text] = []
    for each in fill_lines(facts, max(width - LABEL_WIDTH, 1)):
        line = Text()
        line.append(f"{'' if lines else label:<{LABEL_WIDTH}}", "cyan")
        for index, fact in enumerate(each):
            line.append("  " if index else "")
            line.append(fact.text, fact.style)
        lines.append(line)
    return lines


def _readers(change: Change, width: int, room: int | None) -> list[RenderableType]:
    """Return the table of those who lag, and how many it leaves out."""
    shown = change.readers[:room]
    total = int(change.now.figure("subscriptions_lagging") or 0)
    found: list[RenderableType] = []
    if shown:
        table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        columns = [column for column in _COLUMNS if width >= column.width_min]
        for column in columns:
            table.add_column(
                column.heading, justify="right" if column.justify_right else "left", no_wrap=True, overflow="ellipsis"
            )
        for reader in shown:
            table.add_row(*(Text(column.value(change, reader)) for column in columns))
        found.append(table)
    rest = max(total, len(change.readers)) - len(shown)
    if rest > 0:
        found.append(Text(f"and {count(rest)} more", "dim"))
    return found


class Screen:
    """The terminal, taken for a while and given back as it was.

    Args:
        url: The server.
        interval_s: How often it is looked at.
        console: Where to draw; stdout unless a test says otherwise.
    """

    def __init__(self, url: str, interval_s: float, console: Console | None = None) -> None:
        self._url = url
        self._interval_s = interval_s
        self._console = console or Console(file=sys.stdout)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        self._change: Change | None = None
        self._status = Text()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._live.stop()

    def first(self, change: Change) -> None:
        """Draw the first look, which knows no rates yet."""
        self.show(change)

    def show(self, change: Change) -> None:
        """Draw a look."""
        self._change, self._status = change, status_text(change, self._interval_s)
        self.redraw()

    def away(self, silent_s: float, why: str) -> None:
        """Draw the last look once more, and that it is old."""
        if self._change is not None:
            self._status = away_text(self._change, silent_s, why)
        self.redraw()

    def redraw(self) -> None:
        """Draw the same in the size that the terminal has by now."""
        if self._change is not None:
            width, height = self._console.size
            self._live.update(picture(self._change, self._url, self._status, width, height), refresh=True)


class Still:
    """One look, printed and left there.

    Args:
        url: The server.
        console: Where to print; stdout unless a test says otherwise.
    """

    def __init__(self, url: str, console: Console | None = None) -> None:
        self._url = url
        self._console = console or Console(file=sys.stdout)

    def first(self, change: Change) -> None:
        """Wait for the second look: without it there are no rates."""

    def show(self, change: Change) -> None:
        """Print a look."""
        status = Text(clock(change.now.time_s))
        self._console.print(picture(change, self._url, status, self._console.size.width, None))

    def away(self, silent_s: float, why: str) -> None:
        """Wait: whoever asked for one look gets it when the server is there."""

    def redraw(self) -> None:
        """Leave what is printed as it is."""
