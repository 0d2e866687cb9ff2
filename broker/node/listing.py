"""Names of stored channels, page by page.

A page is the smallest names past a place. What is in memory is found by walking the table of names, which has no order,
in steps that each keep the loop for about a millisecond; a page of a thousand names makes few objects more than it
lists, however many channels there are. What is not in memory is asked of the log, after that: a channel leaves memory
only when the log can tell of it, so none is missed on its way from the one to the other. A name that memory knows to be
removed may be in the log's tables still, and is left out.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from broker.events import emit
from broker.model.errors import BrokerError, error
from broker.model.history import ChannelRow, NamesPart
from broker.model.names import is_reserved
from broker.node.stretch import Known

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from broker.core.ports import StoredReader
    from broker.core.sequencer import Sequencer
    from broker.node.history import Asker

    Submit = Callable[..., asyncio.Future[list[bytes]]]

__all__ = ["Listing", "NamesScan"]

STEP_SEGMENTS = 16
"""Segments of the table of names that one step looks at: about 10,000 names, a cache miss each."""
STEP_SEGMENTS_SHOWN = 2
"""The same when each name is asked about."""
WASTE_MAX = 4_096
"""Names past the page's size that a scan gathers before it drops the largest."""


class NamesScan:
    """The smallest names of the table past a place.

    Args:
        prefix: What they begin with.
        after: They are greater than this.
        count: How many are wanted.
        shows: Says which names are listed at all; None for every one.

    Attributes:
        names: Up to one more than is wanted, which says that there are more; ascending once it `is_done`.
    """

    def __init__(self, prefix: bytes, after: bytes, count: int, shows: Callable[[bytes], bool] | None = None) -> None:
        self.prefix = prefix
        self.after = after
        self.count = count
        self.shows = shows
        self.is_done = False
        self.names: list[bytes] = []
        self._key = 0
        self._before: bytes | None = None

    def listed(self, names: list[bytes]) -> list[bytes]:
        """Leave out the broker's own channels, unless they are asked for, and what is not to be seen."""
        if self.shows is not None:
            return list(filter(self.shows, names))
        return names if is_reserved(self.prefix) else [name for name in names if not is_reserved(name)]

    def step(self, core: Sequencer, segments_max: int) -> None:
        """Look at more of the table."""
        names, self._key = core.tails.names_between(self._key, segments_max, self.prefix, self.after, self._before)
        self.names += self.listed(names)
        self.is_done = not self._key
        if self.is_done or len(self.names) > self.count + WASTE_MAX:
            self.names = sorted(set(self.names))
            del self.names[self.count + 1 :]
            if len(self.names) > self.count:
                self._before = self.names[-1] + b"\0"


class Page:
    """One listing that a connection waits for.

    Attributes:
        scan: What memory has.
        stored: What the log has and memory does not know to be removed, ascending.
        cursor: The last name that the log was asked for.
        details: Whether what each channel holds is wanted.
    """

    def __init__(self, asker: Asker, number: int, scan: NamesScan, *, details: bool) -> None:
        self.asker = asker
        self.number = number
        self.scan = scan
        self.details = details
        self.stored: list[bytes] = []
        self.cursor = scan.after

    def names(self) -> tuple[list[bytes], bool]:
        """Return the page, ascending, and whether there is more."""
        names = sorted({*self.scan.names, *self.stored})
        return names[: self.scan.count], len(names) > self.scan.count


class Listing:
    """The listings that connections ask for, one after the other.

    Args:
        core: Knows the channels in memory.
        log: Knows the others.
        loop: The loop that it belongs to.
        submit: Has the reader thread call something.
        kick: Called when something is queued to be sent.
    """

    def __init__(
        self,
        core: Sequencer,
        log: StoredReader,
        loop: asyncio.AbstractEventLoop,
        submit: Submit,
        kick: Callable[[], None],
    ) -> None:
        self._core = core
        self._log = log
        self._loop = loop
        self._submit = submit
        self._kick = kick
        self._waiting: deque[Page] = deque()

    def ask(self, asker: Asker, number: int, scan: NamesScan, *, details: bool) -> None:
        """Have a page listed, with what each channel holds if `details` are wanted."""
        self._waiting.append(Page(asker, number, scan, details=details))
        if len(self._waiting) == 1:
            self._loop.call_soon(self._step)

    def _step(self) -> None:
        page = self._waiting[0]
        if page.asker.closed:
            self._finish()
            return
        page.scan.step(self._core, STEP_SEGMENTS if page.scan.shows is None else STEP_SEGMENTS_SHOWN)
        if not page.scan.is_done:
            self._loop.call_soon(self._step)
        elif self._core.complete:
            self._describe(page)
        else:
            self._ask_log(page)

    def _ask_log(self, page: Page) -> None:
        """Have the log tell its smallest names past the cursor."""
        count = page.scan.count + 1
        job = self._submit(self._log.names, page.scan.prefix, page.cursor, count)
        job.add_done_callback(lambda done: self._have(page, done, lambda names: self._merge(page, names, count)))

    def _merge(self, page: Page, names: list[bytes], count: int) -> None:
        """Take what the log told; ask on if too much of it was removed."""
        absent = set(self._core.missing(names))
        there = [name for name in names if name in absent or self._core.tails.info(name) is not None]
        page.stored += page.scan.listed(there)
        if len(names) == count and len(page.stored) < count:
            page.cursor = names[-1]
            self._ask_log(page)
        else:
            self._describe(page)

    def _describe(self, page: Page) -> None:
        """The page's names are known: say of each what it holds, if that is wanted."""
        names, more = page.names()
        if not page.details:
            self._answer(page, [ChannelRow(name.decode()) for name in names], more=more)
            return
        absent = self._core.missing(names)
        if not absent:
            self._answer(page, [self._row(name, {}) for name in names], more=more)
            return

        def rows(entries: list[bytes]) -> None:
            known = {name: Known.from_entries(each) for name, each in zip(absent, entries, strict=True)}
            self._answer(page, [self._row(name, known) for name in names], more=more)

        job = self._submit(self._log.resolve, absent)
        job.add_done_callback(lambda done: self._have(page, done, rows))

    def _row(self, name: bytes, known: dict[bytes, Known]) -> ChannelRow:
        info = self._core.tails.info(name)
        if info is not None:
            return ChannelRow(name.decode(), info[2], info[3], info[6] - 1, info[1])
        found = known.get(name)
        if found is None or not found.id:  # it was removed since
            return ChannelRow(name.decode(), 0, 1, 0, self._core.profiles.resolve(name).durability)
        return ChannelRow(name.decode(), found.epoch, found.first, found.next - 1, found.level)

    def _have(self, page: Page, done: asyncio.Future[list[bytes]], take: Callable[[list[bytes]], None]) -> None:
        """The log has told something, or failed."""
        if done.cancelled():
            return
        failure = done.exception()
        try:
            if failure is None:
                take(done.result())
                return
        except BrokerError as refusal:
            failure = refusal
        if not isinstance(failure, BrokerError):
            emit("history_failed", failure=failure)
            failure = error("STORAGE_FAILED", "channels: they cannot be listed")
        if not page.asker.closed:
            page.asker.outbox.frame(page.asker.encode_refusal(page.number, failure))
        self._finish()

    def _answer(self, page: Page, rows: list[ChannelRow], *, more: bool) -> None:
        if not page.asker.closed:
            page.asker.outbox.frame(page.asker.encode_part(page.number, NamesPart(tuple(rows), more)))
        self._finish()

    def _finish(self) -> None:
        """This one is done: go on with the next."""
        self._waiting.popleft()
        self._kick()
        if self._waiting:
            self._loop.call_soon(self._step)
