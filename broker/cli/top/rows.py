"""`broker top` for scripts and logs: a row a look on stdout, and what becomes of the server on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from broker.cli.main import printable
from broker.cli.top.text import json_row, plain_heading, plain_row, seconds

if TYPE_CHECKING:
    from broker.cli.top.rates import Change

ROWS_A_HEADING: Final = 20
"""On a terminal the heading comes again, before it has scrolled away."""


class Rows:
    """Prints rows.

    Args:
        as_json: Objects instead of columns.
        watched: Somebody looks at them as they come.
    """

    def __init__(self, *, as_json: bool, watched: bool) -> None:
        self._as_json = as_json
        self._watched = watched
        self._rows = 0
        self._is_away = False

    def first(self, change: Change) -> None:
        """Print nothing: a row tells of the time between two looks."""

    def show(self, change: Change) -> None:
        """Print a row."""
        if self._is_away:
            self._is_away = False
            click.echo("the server answers again", err=True)
        if change.restarted:
            stats = change.now.stats
            click.echo(f"the server has restarted: run {stats.get('run')}, process {stats.get('pid')}", err=True)
        if self._as_json:
            click.echo(json_row(change))
            return
        if self._rows == 0 or (self._watched and self._rows % ROWS_A_HEADING == 0):
            click.echo(plain_heading())
        self._rows += 1
        click.echo(plain_row(change))

    def away(self, silent_s: float, why: str) -> None:
        """Say once that there is no answer."""
        if not self._is_away:
            self._is_away = True
            click.echo(f"no answer for {seconds(silent_s)}: {printable(why)}; waiting for the server", err=True)

    def redraw(self) -> None:
        """Leave what is printed as it is."""
