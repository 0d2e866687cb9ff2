"""Names of stored channels, page by page.

A page is the smallest names past a place. What is in memory is found by walking the name table, in steps that each keep
the loop for about a millisecond, since a table has no order; a page of a thousand names makes few objects more than it
lists, however many channels there are. Memory holds every channel that has changed since the log's tables were written,
so the two together have all of them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from broker.model.history import ChannelRow, NamesPart

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.sequencer import Sequencer
    from broker.node.history import Asker

__all__ = ["Listing", "NamesScan"]

STEP_SEGMENTS = 16
"""Segments of the table of names that one step looks at: about 10,000 names, a cache miss each."""
WASTE_MAX = 4_096
"""Names past the page's size that a scan gathers before it drops the largest."""


class NamesScan:
    """The smallest names of a table past a place.

    Args:
        prefix: What they begin with.
        after: They are greater than this.
        count: How many are wanted.
    """

    def __init__(self, prefix: bytes, after: bytes, count: int) -> None:
        self.prefix = prefix
        self.after = after
        self.count = count
        self.is_done = False
        self._key = 0
        self._names: list[bytes] = []
        self._before: bytes | None = None

    def step(self, core: Sequencer, segments_max: int) -> None:
        """Look at more of the table."""
        names, self._key = core.tails.names_between(self._key, segments_max, self.prefix, self.after, self._before)
        self._names += names
        self.is_done = not self._key
        # One more than is wanted says whether there are more.
        if self.is_done or len(self._names) > self.count + WASTE_MAX:
            self._names = sorted(set(self._names))
            del self._names[self.count + 1 :]
            if len(self._names) > self.count:
                self._before = self._names[-1] + b"\0"

    def take(self) -> tuple[list[bytes], bool]:
        """Return the page, ascending, and whether there is more."""
        return self._names[: self.count], len(self._names) > self.count


class Listing:
    """The listings that connections ask for, one after the other.

    Args:
        core: Knows the channels in memory.
        loop: The loop that it belongs to.
        kick: Called when something is queued to be sent.
    """

    def __init__(self, core: Sequencer, loop: asyncio.AbstractEventLoop, kick: Callable[[], None]) -> None:
        self._core = core
        self._loop = loop
        self._kick = kick
        self._waiting: deque[tuple[Asker, int, NamesScan, bool]] = deque()

    def ask(self, asker: Asker, number: int, scan: NamesScan, *, details: bool) -> None:
        """Have a page listed, with what each channel holds if `details` are wanted."""
        self._waiting.append((asker, number, scan, details))
        if len(self._waiting) == 1:
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        asker, number, scan, details = self._waiting[0]
        if not asker.closed:
            scan.step(self._core, STEP_SEGMENTS)
        if scan.is_done or asker.closed:
            self._waiting.popleft()
        if scan.is_done and not asker.closed:
            names, more = scan.take()
            rows = tuple(self._row(name) if details else ChannelRow(name.decode()) for name in names)
            asker.outbox.frame(asker.encode_part(number, NamesPart(rows, more)))
            self._kick()
        if self._waiting:
            self._loop.call_soon(self._step)

    def _row(self, name: bytes) -> ChannelRow:
        info = self._core.tails.info(name)
        if info is None:
            return ChannelRow(name.decode())
        return ChannelRow(name.decode(), info[2], info[3], info[6] - 1, info[1])
