"""The demo's input: lines of real text, each with the channel that it goes to.

Without a file it is the source of Python's standard library, line by line, one channel for each top-level package or
module: `demo.lib.asyncio`. A file's lines go to a handful of channels in turn, `demo.file.part0` and so on, so that
there is something to keep in order.

Reading is lazy, and the order is the same every time on the same machine.
"""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from broker.model.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LIBRARY_ROOM = "demo.lib"
FILE_ROOM = "demo.file"
FILE_PARTS = 8

LINE_BYTES_MAX = 64 * 1024
"""A longer line is published in pieces: a file without line ends is still a corpus."""

_NOT_SOURCE = frozenset({"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"})
"""Folders whose text is no library's, or is broken on purpose."""


@dataclass(frozen=True, slots=True)
class Source:
    """What goes to one channel, in this order.

    Attributes:
        channel: its name.
        files: the files whose lines it gets.
        every: it gets one line in so many,
        part: and of those the one at this place.
    """

    channel: str
    files: tuple[Path, ...]
    every: int = 1
    part: int = 0

    def lines(self) -> Iterator[bytes]:
        """Yield the lines without their ends, as they are on the disk."""
        return islice(self._all_lines(), self.part, None, self.every)

    def _all_lines(self) -> Iterator[bytes]:
        for path in self.files:
            with path.open("rb") as file:
                while line := file.readline(LINE_BYTES_MAX):
                    yield line.rstrip(b"\r\n")


def library_sources() -> list[Source]:
    """Return the standard library, one source for each of its top-level packages and modules.

    Raises:
        ConfigError: this Python came without its sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files: dict[str, list[Path]] = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _NOT_SOURCE and "." not in name)
        for name in sorted(names):
            if name.endswith(".py"):
                path = Path(folder, name)
                files.setdefault(path.relative_to(root).parts[0].removesuffix(".py"), []).append(path)
    if not files:
        raise error("INVALID_CONFIG", f"corpus: got no .py file in {root}", "name a text with --file")
    return [Source(f"{LIBRARY_ROOM}.{name}", tuple(paths)) for name, paths in sorted(files.items())]


def file_sources(path: Path) -> list[Source]:
    """Return one file, its lines dealt out to FILE_PARTS channels."""
    return [Source(f"{FILE_ROOM}.part{part}", (path,), FILE_PARTS, part) for part in range(FILE_PARTS)]


def count_lines(sources: Sequence[Source], lines_max: int) -> dict[str, int]:
    """Count the lines of each channel that has any, or what `lines_max` lines of its files give it.

    Raises:
        ConfigError: a file cannot be read, or there is not a line in any.
    """
    try:
        # A share, rounded up, of what is published at most.
        counts = {each.channel: sum(1 for _ in islice(each.lines(), -(-lines_max // each.every))) for each in sources}
    except OSError as failure:
        raise error("INVALID_CONFIG", f"corpus: {failure}") from failure
    if not any(counts.values()):
        raise error("INVALID_CONFIG", "corpus: got 0 lines, expected at least 1")
    return {channel: count for channel, count in counts.items() if count}
