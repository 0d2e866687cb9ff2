"""A disk that outlives its processes, and the threads that work on it: both without a thread or a file.

The disk keeps the journal's rules without its files: a list of segments, each a list of groups. A group whose commit
failed after it was handed over may be in its segment or not; the next group goes to a fresh segment and names the last
good one, which makes what stands behind that one in earlier segments void. A crash keeps what was synced, and of what
was on its way what the seed says.

`SimulatedLog` is the disk as one process sees it, in place of `Log`; `SimulatedCommits` and `SimulatedPool` stand for
the commit thread and the reader thread. They do their work at instants of their own, between any two iterations of the
loop, and the loop hears of it later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from concurrent.futures import Future
from contextlib import nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from broker.log.errors import AppendError, append_full
from broker.log.reader import sequence_at
from broker.log.recovery import Recovery
from broker.log.resolve import Layers, name_in
from broker.log.tables import MemoryTables
from broker.model.errors import BY_NAME
from broker.node.commit import RECOVERY_INTERVAL_S, CommitThread, Work
from broker_native.delta import TableDelta
from broker_native.groups import chunk_head, chunks_in, chunks_of, chunks_start
from broker_native.index import check_group

if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from contextlib import AbstractContextManager

    from broker.core.group import Group
    from broker.core.ports import Applier
    from broker.log.tables import SegmentTables
    from broker.model.errors import BrokerError
    from broker_native.answers import StretchReader
    from broker_native.index import GroupHeader
    from tests.simulation.kernel import Kernel
    from tests.simulation.loop import SimulatedLoop

PlacedChunk = tuple[int, int, bytes]


class Fate(Enum):
    """What becomes of an append: is it on the disk, and was the caller told so?"""

    STORED = "stored"
    FULL = "no room"
    REFUSED = "nothing was handed over"
    SURVIVES = "handed over, failed, and on the disk all the same"
    LOST = "handed over, failed, and not on the disk"


FAILURES = (Fate.REFUSED, Fate.SURVIVES, Fate.LOST)


class Habits(Protocol):
    """How a disk behaves; see `Policy`."""

    sync_us: int
    tell_us: int
    read_us: int
    fail_share: float


class Stored(NamedTuple):
    """A good group."""

    header: GroupHeader
    value: bytes


class Everything:
    """Contains every channel."""

    def __contains__(self, channel: object) -> bool:
        return True


class Disk:
    """What outlives the server.

    Args:
        kernel: Its time and chance.
        habits: How it behaves.
        journal_id: 16 bytes.

    Attributes:
        good: The groups that count, in order.
        on_good: Told of each that joins them.
        on_written: Told of each that gets into the file, whether it counts or not.
        full_until_us: There is no room before this.
        slow_until_us: Nothing is synced before this.
        failing_until_us: Nothing succeeds before this.
        healthy: Nothing fails any more.
    """

    def __init__(self, kernel: Kernel, habits: Habits, journal_id: bytes) -> None:
        self.kernel = kernel
        self.habits = habits
        self.journal_id = journal_id
        self.good: list[Stored] = []
        self.on_good: Callable[[bytes], None] = lambda value: None
        self.on_written: Callable[[bytes], None] = lambda value: None
        self.full_until_us = 0
        self.slow_until_us = 0
        self.failing_until_us = 0
        self.healthy = False
        self._segments: list[list[bytes]] = [[]]
        self._has_failed = False
        self._attempted = 0

    # -- how it behaves --

    def sync_us(self) -> int:
        """Draw how long a commit takes."""
        habits, random = self.habits, self.kernel.random
        slow_us = max(0, self.slow_until_us - self.kernel.now_us)
        return 1 + slow_us + int(habits.sync_us * random.random())

    def fate(self) -> Fate:
        """Draw what becomes of an append."""
        if self.healthy:
            return Fate.STORED
        if self.kernel.now_us < self.full_until_us:
            return Fate.FULL
        if self.kernel.now_us < self.failing_until_us or self.kernel.random.random() < self.habits.fail_share:
            return self.kernel.random.choice(FAILURES)
        return Fate.STORED

    # -- what is done with it --

    def append(self, number: int, value: bytes, fate: Fate) -> None:
        """Store a group, or have it fail.

        Raises:
            AppendError: As its fate says.
        """
        header = self._check(number, value)
        self.kernel.note("append", number, len(value), fate.name)
        if fate is Fate.FULL:
            raise append_full(f"group {number}: {fate.value}")
        self._attempted = number
        if fate in (Fate.STORED, Fate.SURVIVES):
            self._write(value)
        if fate is Fate.STORED:
            self.good.append(Stored(header, value))
            self.on_good(value)
            return
        failure = AppendError(BY_NAME["STORAGE_FAILED"].code, f"group {number}: {fate.value}")
        failure.handed_over = self._has_failed = fate is not Fate.REFUSED
        raise failure

    def _check(self, number: int, value: bytes) -> GroupHeader:
        """The rules of an append; a mistake of the caller's is no failure of the disk."""
        header = check_group(value)
        last = self.good[-1].header if self.good else None
        expected = (number, last.number, last.chain) if last is not None else (number, 0, 0)
        if self._has_failed:
            self.kernel.fail(f"group {number}: the failed segment is not abandoned")
        if (header.number, header.predecessor, header.previous_chain) != expected or number < self._attempted:
            self.kernel.fail(f"group {header.number} after {header.predecessor}: expected {expected}")
        return header

    def abandon(self) -> None:
        """Go on in a fresh segment."""
        if self._has_failed:
            self._segments.append([])
            self._has_failed = False

    def cut_short(self, work: Work) -> None:
        """The process dies while this is being appended: it is on the disk, or not."""
        survives = self.kernel.random.random() < 0.5
        self.kernel.note("torn", work.group.number, survives)
        if work.abandon:
            self.abandon()
        if survives:
            self._write(work.group.value)

    def _write(self, value: bytes) -> None:
        self._segments[-1].append(value)
        self.on_written(value)

    def replay(self) -> None:
        """Find the good groups as a start does."""
        limit = 2**64
        known = self.good[-1].header.number if self.good else 0
        kept: list[list[Stored]] = []
        for segment in reversed(self._segments):
            groups = [Stored(check_group(value), value) for value in segment]
            kept.insert(0, [group for group in groups if group.header.number <= limit])
            if groups:
                limit = min(limit, groups[0].header.predecessor)
        before = len(self.good)
        self.good = [group for groups in kept for group in groups]
        if len(self.good) < before:
            self.kernel.fail(f"{before} groups were good, a start finds {len(self.good)}")
        for group in self.good:
            if group.header.number > known:
                self.on_good(group.value)
        self._has_failed = False
        self._attempted = self.good[-1].header.number if self.good else 0
        # Void groups at the end of a segment stay in the file; their numbers are never used again.
        while len(self._segments) > 1 and not kept[-1]:
            self._segments.pop()
            kept.pop()


class NothingArchived:
    """The snapshot of an archive that nothing has come to."""

    def ids(self, names: list[bytes]) -> list[int]:
        """None of them is there."""
        return [0] * len(names)

    def channels(self, ids: list[int]) -> list[bytes]:
        """None of them is there."""
        return [b""] * len(ids)

    def lines(self, producers: list[bytes]) -> list[bytes]:
        """None of them is there."""
        return [b""] * len(producers)

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[tuple[bytes, int]]:
        """There are none."""
        return []

    def producers(self, after: bytes, count_max: int) -> list[tuple[bytes, bytes]]:
        """There are none."""
        return []


class SimulatedLog:
    """The disk, as one process sees it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._has_begun = False
        self._layers: list[SegmentTables] = []
        self._segment_groups = 1
        self._settled = 0
        self.journal_id = disk.journal_id
        self.restored_run = 0

    def recover(self) -> Recovery:
        """Find the good groups; they lie in segments of some length, each with what it changed in the tables."""
        disk = self._disk
        disk.replay()
        good = disk.good
        self._segment_groups = disk.kernel.random.choice((1, 7, 40, 10**9))
        disk.kernel.note("recover", len(good), self._segment_groups)
        recovery = Recovery(0, 0, 0, 0, 0, True, 0)
        unclean_run, id_next, channels, producers = 0, 1, 0, 0
        for begin in range(0, len(good), self._segment_groups):
            delta = self._seal(good[begin : begin + self._segment_groups])
            unclean_run, id_next = max(unclean_run, delta.unclean_run), max(id_next, delta.id_next)
            channels, producers = channels + delta.channels_new, producers + delta.producers_new
        if good:
            last = good[-1].header
            clean = last.closed_run == last.run
            recovery = Recovery(
                last.number, last.chain, last.time_us, last.term, last.run, clean, len(good),
                unclean_run, id_next, channels, producers,
            )  # fmt: skip
        return recovery

    def _seal(self, groups: list[Stored]) -> TableDelta:
        """Have what some groups changed looked up from now on."""
        delta = TableDelta()
        for group in groups:
            delta.add(group.value)
        self._layers.insert(0, MemoryTables(delta))
        self._settled = groups[-1].header.number
        return delta

    @property
    def settled_group(self) -> int:
        """What groups up to this one changed can be looked up."""
        return self._settled

    def load_all(self, applier: Applier) -> None:
        """Apply all that is stored."""
        layers = self._all
        for channel in layers.all_ids():
            applier.apply_entries(layers.channels([channel])[0])
        for producer in layers.all_producers():
            applier.apply_entries(layers.lines([producer])[0])

    def resolve(self, names: list[bytes]) -> list[bytes]:
        """Return the entries of channels by their names."""
        ids = [self._all.ids([name])[0] for name in names]
        return [self._all.channels([channel])[0] if channel else b"" for channel in ids]

    def resolve_lines(self, producers: list[bytes]) -> list[bytes]:
        """Return the entries of producers' lines."""
        return [self._all.lines([producer])[0] for producer in producers]

    def names_of(self, ids: list[int]) -> list[bytes | None]:
        """Return the names of channels."""
        return [name_in(self._all.channels([channel])[0]) for channel in ids]

    def names(self, prefix: bytes, after: bytes, count_max: int) -> list[bytes]:
        """Return stored channels' names."""
        found, bound = self._all.names(prefix, after, count_max)
        while bound is not None and len(found) < count_max:
            more, bound = self._all.names(prefix, bound, count_max)
            found += more
        return found[:count_max]

    @property
    def _all(self) -> Layers:
        return Layers(NothingArchived(), self._layers)

    def append(self, number: int, value: bytes) -> None:
        """Store a group as fate will have it; the fence of a start is always stored."""
        fate = self._disk.fate() if self._has_begun else Fate.STORED
        self._has_begun = True
        self._disk.append(number, value, fate)
        since = bisect_right(self._disk.good, self._settled, key=lambda group: group.header.number)
        if len(self._disk.good) - since >= self._segment_groups:
            self._seal(self._disk.good[since:])

    def abandon(self) -> None:
        """Go on in a fresh segment, if there is room for one."""
        if self._disk.fate() in (Fate.FULL, Fate.REFUSED):
            raise append_full("no room for a fresh segment")
        self._disk.abandon()

    def close(self) -> None:
        """Nothing is held."""

    def stats(self) -> dict[str, int | float]:
        """There are no figures."""
        return {}

    # -- reading --

    def reading(self) -> AbstractContextManager[SimulatedLog]:
        """Return itself: one job of the reader is one step of the simulation, so nothing changes in between."""
        return nullcontext(self)

    @property
    def overtaken(self) -> bool:
        """Nothing is ever moved."""
        return False

    def answer(self, stretches: StretchReader, begin: int, bytes_max: int, now_s: int) -> int:
        """There is no archive, so none is answered in one pass."""
        return 0

    def read_channel(
        self, channel_id: int, after_sequence: int, bytes_max: int, before_sequence: int = 0
    ) -> list[PlacedChunk]:
        """Return chunks of a channel past a sequence, at least one if there is one."""
        found: list[PlacedChunk] = []
        for header, value in self._disk.good:
            for index, chunk in chunks_of(value, chunks_start(value), channel_id, after_sequence):
                if (found and bytes_max < len(chunk)) or (before_sequence and chunk_head(chunk)[2] >= before_sequence):
                    return found
                found.append((header.number, index, chunk))
                bytes_max -= len(chunk)
        return found

    def read_channel_back(self, channel_id: int, before_sequence: int, count: int, bytes_max: int) -> list[PlacedChunk]:
        """Return the newest chunks before a sequence, back to `count` sequences before it, at least one."""
        found = self.read_channel(channel_id, max(before_sequence - 1 - count, 0), 1 << 62, before_sequence)
        while len(found) > 1 and sum(len(chunk) for _, _, chunk in found) > bytes_max:
            del found[0]
        return found

    def sequence_at(self, channel_id: int, first: int, next_sequence: int, time_us: int) -> int:
        """Return the first sequence whose record is of a time or later."""
        return sequence_at(
            lambda after: self.read_channel(channel_id, after, 0, next_sequence), first, next_sequence, time_us
        )

    def read_groups(
        self, after_group: int, after_index: int, bytes_max: int, wanted: Container[int] | None
    ) -> tuple[list[PlacedChunk], tuple[int, int]]:
        """Return the wanted chunks after a place, and the place up to which everything was looked at."""
        found: list[PlacedChunk] = []
        place = (after_group, after_index)
        good = self._disk.good
        first = max(0, bisect_right(good, after_group, key=lambda group: group.header.number) - 1)
        for header, value in good[first:]:
            for index, chunk in chunks_in(value, chunks_start(value), Everything() if wanted is None else wanted):
                if (header.number, index) <= (after_group, after_index):
                    continue
                if found and bytes_max < len(chunk):
                    return found, place
                found.append((header.number, index, chunk))
                bytes_max -= len(chunk)
                place = (header.number, index)
            if header.number >= place[0]:
                place = max(place, (header.number, max(0, header.chunks - 1)))
        return found, place

    def time_to_group(self, time_us: int) -> int:
        """Return the first group of that time or later, or the number after the last one."""
        good = self._disk.good
        found = next((group.header.number for group in good if group.header.time_us >= time_us), 0)
        return found or (good[-1].header.number + 1 if good else 1)


class SimulatedCommits(CommitThread):
    """The commit thread: its work is the product's, its waiting is the kernel's."""

    def __init__(
        self,
        disk: Disk,
        journal: SimulatedLog,
        loop: SimulatedLoop,
        done: Callable[[Group, BrokerError | None], None],
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._done = done
        self.outcomes = deque()
        self._queue = self  # type: ignore[assignment]
        self._disk = disk
        self._kernel = loop.kernel
        self._waiting: deque[Work] = deque()
        self._work: Work | None = None
        self._is_writing = False
        self._is_over = False

    def put(self, work: Work) -> None:
        """Take work, as the queue of the thread does."""
        if self._work is not None:
            self._waiting.append(work)
            return
        self._work = work
        self._begin(work)

    def _begin(self, work: Work) -> None:
        self._is_writing = True
        self._kernel.after(self._disk.sync_us(), self._write, work)

    def _write(self, work: Work) -> None:
        if self._is_over or work is not self._work:
            return
        self._is_writing = False
        if self._attempt(work):
            self._kernel.after(1 + int(self._disk.habits.tell_us * self._kernel.random.random()), self._finish, work)
        else:
            self._kernel.after(int(RECOVERY_INTERVAL_S * 1e6), self._try_again, work)

    def _try_again(self, work: Work) -> None:
        if not self._is_over:
            self._begin(work)

    def _finish(self, work: Work) -> None:
        if self._is_over:
            return
        self._tell(work.group, work.failure)
        self._work = self._waiting.popleft() if self._waiting else None
        if self._work is not None:
            self._begin(self._work)

    def stop(self) -> None:
        """What is queued is done now; what waits to be tried again is not."""
        while self._work is not None:
            if self._is_writing:
                self._attempt(self._work)
            self._tell(self._work.group, self._work.failure)
            self._work = self._waiting.popleft() if self._waiting else None
            self._is_writing = self._work is not None
        self._is_over = True

    def crash(self) -> None:
        """The process dies."""
        self._is_over = True
        if self._is_writing and self._work is not None:
            self._disk.cut_short(self._work)


class SimulatedPool:
    """The reader thread's executor."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._kernel = disk.kernel
        self._waiting: deque[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = deque()
        self._is_busy = False
        self._is_over = False

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        """Do the work, one piece after the other."""
        future: Future[Any] = Future()
        self._waiting.append((future, work, args))
        if not self._is_busy:
            self._begin()
        return future

    def _begin(self) -> None:
        self._is_busy = bool(self._waiting)
        if self._is_busy:
            self._kernel.after(self._read_us(), self._work)

    def _read_us(self) -> int:
        return 1 + int(self._disk.habits.read_us * self._kernel.random.random())

    def _work(self) -> None:
        """Read at one instant; the loop hears of it at another one."""
        if self._is_over or not self._waiting:
            return
        future, work, args = self._waiting.popleft()
        result = work(*args)
        self._kernel.note("slice", getattr(work, "__name__", "work"))
        self._kernel.after(self._read_us(), self._tell, future, result)

    def _tell(self, future: Future[Any], result: object) -> None:
        if not self._is_over:
            future.set_result(result)
            self._begin()

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """End; what was not read is not read."""
        self._is_over = True
        for future, _, _ in self._waiting:
            future.cancel()
        self._waiting.clear()

    def crash(self) -> None:
        """The process dies."""
        self._is_over = True
        self._waiting.clear()


def chunks_in_group(value: bytes) -> list[tuple[int, int, int, int]]:
    """Return (channel id, epoch, first, count) of each chunk of a group."""
    return [chunk_head(chunk) for _, chunk in chunks_in(value, chunks_start(value), Everything())]
