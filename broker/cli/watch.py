"""Progress of long work on stderr: a bar where somebody watches, nothing where a script does."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Tell = Callable[[int, int], None]


@contextmanager
def watched(what: str, *, quiet: bool = False) -> Iterator[Tell]:
    """Yield what is told (bytes done, bytes in all); it may be told as often as one likes.

    Args:
        what: what is being done, one word or two.
        quiet: show nothing, whoever watches.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)
