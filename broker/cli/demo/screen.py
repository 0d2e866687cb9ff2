"""What the demo shows: steps in plain words, a progress line on a terminal, and the verdict.

On a terminal the progress is one line that rich keeps up to date; into a pipe or a file it is a plain line now and
then. Everything goes to stdout, and nothing here decides anything.
"""

from __future__ import annotations

import sys
import textwrap
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.progress import Progress, TaskID

PLAIN_INTERVAL_S = 1.0
WIDTH_MAX = 100
INDENT = "   "


class Screen:
    """One run of the demo as a person sees it."""

    def __init__(self) -> None:
        self._step = 0
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._next_line_s = 0.0

    def step(self, title: str, text: str) -> None:
        """Begin the next step: its title, and what it does and why."""
        self._step += 1
        lines = textwrap.wrap(text, WIDTH_MAX - len(INDENT), break_on_hyphens=False)
        self._print(click.style(f"{self._step}. {title}", bold=True))
        for line in lines:
            self.say(line)

    def say(self, text: str) -> None:
        """Add a line to the step."""
        self._print(INDENT + text)

    @contextmanager
    def progress(self, total: int) -> Iterator[None]:
        """Show progress towards `total` messages for the time of the block."""
        self._total = total
        self._next_line_s = time.monotonic() + PLAIN_INTERVAL_S
        if not sys.stdout.isatty():
            yield
            return
        # Imported here: rich takes longer to load than all the rest, and a pipe does without it.
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("  "), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, transient=True) as self._progress:
            self._task = self._progress.add_task("", total=total)
            try:
                yield
            finally:
                self._progress, self._task = None, None

    def advance(self, acknowledged: int, delivered: int) -> None:
        """Say how far it is: messages acknowledged, and deliveries summed over the subscribers."""
        text = f"{acknowledged:,} of {self._total:,} acknowledged, {delivered:,} delivered"
        if self._progress is not None:
            assert self._task is not None
            self._progress.update(self._task, completed=acknowledged, description=text)
        elif time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + PLAIN_INTERVAL_S
            self.say(f"… {text}")

    def verdict(self, rows: Iterable[tuple[str, str]], passed: bool) -> None:
        """Print the account and its last word."""
        self._print("")
        for name, value in rows:
            self.say(f"{name:<24} {value}")
        word = click.style("PASS", fg="green", bold=True) if passed else click.style("FAIL", fg="red", bold=True)
        self._print(f"\n{word}")

    def _print(self, text: str) -> None:
        if self._progress is not None:
            # Through rich's own console, or the line and the bar overwrite each other.
            from rich.text import Text

            self._progress.console.print(Text.from_ansi(text), soft_wrap=True)
        else:
            click.echo(text)
            sys.stdout.flush()
