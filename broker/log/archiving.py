"""The owner's side of archiving: which segments go into the archive when, and who does it.

A thread, "broker-log-archiving", takes the sealed segments that wait, oldest first, makes slices of them as wide as the
backlog is when `Begin` lets one begin, and has them written: by a child process in a server, by itself when embedded.
It paces the writer between transactions, starts a killed one again, tries what failed again, and says so in events.

Invariants: a segment is reported archived only after its checkpoint is durable; `queue` and `pace` never wait for the
disk; nothing here writes to the archive while a child process does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

from broker.events import emit
from broker.log.archive_rows import Checkpoint
from broker.log.archive_task import TIME_MAX_US, CompactResult, Stopped, archive_path
from broker.log.begin import BEGIN_SHARE, QUIET_S, WAIT_S, Begin
from broker.log.errors import free_bytes
from broker.log.pace import Pace
from broker.log.retention import NOTHING_HELD, Step, pack_cursors
from broker.model.errors import BY_CODE, BrokerError, StorageCorrupt, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from broker.log.retention import Held, Policies
    from broker.log.segment import Segment

MIB = 1024 * 1024
SEGMENTS_MAX = 64
SLICE_SHARE_MAX = 0.5
"""So much of the bound of the backlog is in one slice at most. What it frees it frees at its end, and what comes
meanwhile has to go into the rest."""
PROGRESS_MIN = 0.02
"""Of a slice must be written before its end is foretold."""
BACKLOG_BYTES_MAX = 4096 * MIB
EMBEDDED_TRANSACTION_BYTES = 2 * MIB
SLICE_ROOM = 2
"""Room that a slice takes, in parts of its segments: their records, and at most as much of pages that they touch."""
RETRY_S = 1.0
RETRY_S_MAX = 60.0
_CHILD_END_S = 10.0


class Writer(Protocol):
    """Who writes: `ArchiveWriter` itself, or a child process that has one."""

    checkpoint: Checkpoint
    written_bytes: int
    progress: float
    cpu_s: float

    @property
    def begun_ordinal(self) -> int:
        """As of `ArchiveWriter`."""
        ...

    def archive(self, segments: list[Path], between: Callable[[], None]) -> Checkpoint:
        """As of `ArchiveWriter`."""
        ...

    def compact(self, between: Callable[[], None], now_us: int) -> CompactResult:
        """As of `ArchiveWriter`."""
        ...

    def retain(self, policies: Policies, cursors: Mapping[bytes, int], now_us: int, held: Held = NOTHING_HELD) -> Step:
        """As of `ArchiveWriter`."""
        ...

    def close(self) -> None:
        """As of `ArchiveWriter`."""
        ...


class ChildDied(Exception):
    """The child process ended on its own."""


class ChildWriter:
    """An `ArchiveWriter` in a process of its own.

    Args:
        data: the data directory.

    Attributes:
        cpu_s: processor time that the child has used, as of its last answer.

    Raises:
        StorageError: what the child's writer raises. ChildDied: it ended. OSError: it cannot be started.
    """

    def __init__(self, data: Path) -> None:
        self.written_bytes = 0
        self.progress = 0.0
        self.cpu_s = 0.0
        command = [sys.executable, "-m", "broker.log.archiver", "--data", str(data)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            ready = self._hear()
        except BaseException:
            self.close()
            raise
        self.checkpoint = Checkpoint(**ready["checkpoint"])
        self.begun_ordinal: int = ready["begun"]

    def archive(self, segments: list[Path], between: Callable[[], None]) -> Checkpoint:
        """Have a slice taken in; as `ArchiveWriter.archive`."""
        done = self._do({"do": "archive", "segments": [str(path) for path in segments]}, between)
        self.checkpoint = Checkpoint(**done["checkpoint"])
        self.begun_ordinal = 0
        self.written_bytes = done["bytes"]
        return self.checkpoint

    def compact(self, between: Callable[[], None], now_us: int) -> CompactResult:
        """Have the file rebuilt; as `ArchiveWriter.compact`."""
        done = self._do({"do": "compact", "now_us": now_us}, between)
        del done["state"]
        return CompactResult(**done)

    def retain(self, policies: Policies, cursors: Mapping[bytes, int], now_us: int, held: Held = NOTHING_HELD) -> Step:
        """Have a step of retention taken; as `ArchiveWriter.retain`."""
        packed = {"policies": policies.pack(), "cursors": pack_cursors(cursors), "held": held.pack()}
        self._say({"do": "retain", **packed, "now_us": now_us})
        return Step.unpack(self._hear())

    def close(self) -> None:
        """End the child, and wait for it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(_CHILD_END_S)
        except subprocess.TimeoutExpired:
            # It is in the midst of a transaction; a kill undoes that one and nothing else.
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def _do(self, command: dict[str, Any], between: Callable[[], None]) -> dict[str, Any]:
        self._say(command)
        while (answer := self._hear())["state"] == "step":
            self.written_bytes = answer["bytes"]
            self.progress = answer["progress"]
            try:
                between()
            except Stopped:
                self._say({"do": "stop"})
            else:
                self._say({"do": "go"})
        if answer["state"] == "stopped":
            raise Stopped
        return answer

    def _say(self, command: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except OSError as cause:
            raise ChildDied(f"its pipe is closed: {cause}") from cause

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ChildDied(f"it ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        self.cpu_s = answer.pop("cpu_s")
        if answer["state"] == "failed":
            raise _failure(answer)
        return answer


def fitting(sizes: list[int], room_bytes: int) -> int:
    """Return how many of these segments, the first ones, a slice may have on a disk with so much room; 1 at least."""
    taken = 0
    for count, size in enumerate(sizes):
        taken += SLICE_ROOM * size
        if taken > room_bytes:
            return max(count, 1)
    return len(sizes)


def _failure(answer: dict[str, Any]) -> BrokerError:
    """Return the error that a child reported."""
    return error(BY_CODE[answer["code"]].name, answer["detail"])


class Archiving:
    """Archives what is queued, in the background.

    Args:
        folder: the data directory.
        in_process: write on the thread itself, in small transactions, instead of in a child process.
        on_archived: called on the thread with each new checkpoint, when it is durable; it may take its time.
        on_compacted: called on the thread when another file has the archive's name; the caller reopens its readers.
        wait_s: a segment waits for no longer than this before a slice begins …
        quiet_s: … nor than until the log has been quiet for this long.
        segments_max: a slice has no more than these.
        backlog_bytes_max: with so much to do the writer does not rest; with a share of it a slice begins.

    Attributes:
        backlog_bytes: the sizes of all sealed segments that are not archived.
        steps: how many transactions have been written, but for the last one of each slice.
        damage: what holds the archive up until somebody mends it; None when nothing does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        in_process: bool,
        on_archived: Callable[[Checkpoint], None],
        on_compacted: Callable[[CompactResult], None] = lambda _: None,
        wait_s: float = WAIT_S,
        quiet_s: float = QUIET_S,
        segments_max: int = SEGMENTS_MAX,
        backlog_bytes_max: int = BACKLOG_BYTES_MAX,
    ) -> None:
        self._folder = folder
        self._in_process = in_process
        self._on_archived = on_archived
        self._on_compacted = on_compacted
        self._begin = Begin(int(BEGIN_SHARE * backlog_bytes_max), quiet_s, wait_s)
        self._segments_max = segments_max
        self._pace = Pace(backlog_bytes_max)
        self._condition = threading.Condition()
        self._waiting: deque[tuple[Segment, int, float]] = deque()
        self._compactions: deque[tuple[Future[CompactResult], int, int]] = deque()
        self._retentions: deque[tuple[Future[Step], Policies, Mapping[bytes, int], int, Held]] = deque()
        self._hurries = 0
        self._closing = False
        self._writer: Writer | None = None
        self._ended_cpu_s = 0.0
        self._failures = 0
        self._slice_bytes_max = int(backlog_bytes_max * SLICE_SHARE_MAX)
        self._step_began_s = 0.0
        self._slice_began_s = 0.0
        self._progress = 0.0
        self._appended_bytes = 0
        self._slices = 0
        self._archive_s = 0.0
        self._pause_s = 0.0
        self.backlog_bytes = 0
        self.steps = 0
        self.damage: StorageCorrupt | None = None
        self._thread = threading.Thread(target=self._run, name="broker-log-archiving", daemon=True)
        self._thread.start()

    # --- Any thread -----------------------------------------------------------------------------------------------

    def queue(self, segment: Segment) -> None:
        """Hand over a sealed segment, oldest first; one that the archive has already is reported at once."""
        size = segment.path.stat().st_size
        with self._condition:
            self._waiting.append((segment, size, time.monotonic()))
            self.backlog_bytes += size
            self._condition.notify_all()

    def pace(self, commit_s: float, size_bytes: int) -> None:
        """Take in how long a commit took, and of how many bytes; the commit thread only."""
        self._appended_bytes += size_bytes
        self._pace.committed(commit_s)

    def relief_s(self) -> float | None:
        """Return in how many seconds the slice that is being written will be in; None when nobody can tell."""
        progress = self._progress
        if progress < PROGRESS_MIN:
            return None
        return (time.monotonic() - self._slice_began_s) * (1.0 - progress) / progress

    @contextmanager
    def hurry(self) -> Iterator[None]:
        """While the block lasts, a slice waits for nothing: somebody waits for what is queued to be archived."""
        with self._condition:
            self._hurries += 1
            self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._hurries -= 1

    def compact(self, now_us: int = TIME_MAX_US) -> Future[CompactResult]:
        """Have the archive rebuilt after what is waiting now is archived; the result comes on the thread.

        Args:
            now_us: as of `ArchiveWriter.compact`.
        """
        future: Future[CompactResult] = Future()
        with self._condition:
            if self._closing:
                raise error("CLOSED", f"{self._folder}: archiving has ended")
            self._compactions.append((future, self._waiting[-1][0].ordinal if self._waiting else 0, now_us))
            self._condition.notify_all()
        return future

    def retain(
        self, policies: Policies, cursors: Mapping[bytes, int], now_us: int, held: Held = NOTHING_HELD
    ) -> Future[Step]:
        """Have a step of retention taken between two slices; arguments and result are those of `ArchiveWriter.retain`.

        The result, or why there is none, comes on the thread.
        """
        future: Future[Step] = Future()
        with self._condition:
            if self._closing:
                raise error("CLOSED", f"{self._folder}: archiving has ended")
            self._retentions.append((future, policies, cursors, now_us, held))
            self._condition.notify_all()
        return future

    def stats(self) -> dict[str, int | float]:
        """Return counts: slices, seconds spent writing and resting, bytes written by this writer, what waits.

        `archive_cpu_s` is the processor time of child processes, which is not in this process's own.
        """
        writer = self._writer
        return {
            "archive_backlog_bytes": self.backlog_bytes,
            "archive_backlog": len(self._waiting),
            "archive_slices": self._slices,
            "archive_s": self._archive_s,
            "archive_pause_s": self._pause_s,
            "archive_written_bytes": writer.written_bytes if writer is not None else 0,
            "archive_cpu_s": self._ended_cpu_s + (writer.cpu_s if writer is not None else 0.0),
            "archive_failures": self._failures,
            "archive_blocked": int(self.damage is not None),
        }

    def close(self) -> None:
        """End after the transaction that is being written; what waits is archived after the next start. Idempotent."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()

    # --- The thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as cause:
            # A mistake in this program: nothing is lost, but an operator must hear of it.
            emit("archiving_stopped", data=self._folder, failure=cause)
        finally:
            self._drop_writer()
            with self._condition:
                self._closing = True
                ended, self._compactions = self._compactions, deque()
                retentions, self._retentions = self._retentions, deque()
            closed = error("CLOSED", f"{self._folder}: archiving has ended")
            for future, _, _ in ended:
                future.set_exception(closed)
            for retention, *_ in retentions:
                retention.set_exception(closed)

    def _serve(self) -> None:
        retry_s = RETRY_S
        while self._await_work():
            try:
                if not self._work():
                    # A slice that was cut short needs segments that are not queued yet.
                    with self._condition:
                        self._condition.wait_for(lambda: self._closing, RETRY_S)
                retry_s = RETRY_S
                self.damage = None
            except Stopped:
                continue
            except StorageCorrupt as damage:
                self.damage = damage
                emit("archiving_blocked", data=self._folder, retry_s=retry_s, error=damage)
                retry_s = self._rest_after_failure(retry_s)
            except (BrokerError, ChildDied, OSError, MemoryError) as cause:
                self.damage = None
                emit("archiving_delayed", data=self._folder, retry_s=retry_s, error=cause)
                retry_s = self._rest_after_failure(retry_s)

    def _rest_after_failure(self, retry_s: float) -> float:
        """Wait before the next attempt, which is another writer's; return how long to wait after that."""
        self._failures += 1
        self._drop_writer()
        with self._condition:
            self._condition.wait_for(lambda: self._closing, retry_s)
        return min(retry_s * 2, RETRY_S_MAX)

    def _await_work(self) -> bool:
        """Wait until there is something to do; tell whether there is, for at the end there is nothing."""
        while True:
            # Asked without the lock: whoever hands a segment over never waits for the disk.
            room_bytes = free_bytes(self._folder)
            with self._condition:
                if self._closing:
                    return False
                due_s = self._due_in(room_bytes)
                if due_s <= 0.0:
                    return True
                self._condition.wait(min(due_s, threading.TIMEOUT_MAX))

    def _due_in(self, room_bytes: int) -> float:
        """Return the seconds until there is something to do, on a disk with so much room."""
        if self._retentions or self._compactions or (self._hurries and self._waiting):
            return 0.0
        if self._waiting:
            if SLICE_ROOM * self.backlog_bytes > room_bytes:
                return 0.0  # a slice that is wider still would find no room
            oldest_s = self._waiting[0][2]
            return self._begin.due_in(time.monotonic(), oldest_s, self.backlog_bytes, self._appended_bytes)
        return float("inf")

    def _work(self) -> bool:
        """Write one slice, or rebuild the file; tell whether there was anything to do."""
        writer = self._writer
        if writer is None:
            writer = self._writer = self._start_writer()
        # What a process before this one archived, and did not live to remove.
        if self._waiting and self._waiting[0][0].ordinal <= writer.checkpoint.ordinal:
            self._archived(writer.checkpoint)
        if self._retentions:
            self._retain(writer)
            return True
        segments = self._next_slice(writer)
        compaction = self._next_compaction(writer)
        if compaction is None and not segments:
            return not self._waiting and not self._compactions
        began_s = self._step_began_s = self._slice_began_s = time.monotonic()
        writer.progress = 0.0
        self._pace.begin()
        try:
            if compaction is not None:
                future, now_us = compaction
                try:
                    result = writer.compact(self._between, now_us)
                except StorageCorrupt as damage:
                    # It would fail each time: whoever waits for it is told.
                    self._compactions.popleft()
                    future.set_exception(error(damage.name, damage.detail))
                    raise
                self._on_compacted(result)
                self._compactions.popleft()
                future.set_result(result)
            else:
                self._archived(writer.archive(segments, self._between))
                self._slices += 1
        finally:
            self._progress = 0.0
            self._pace.end()
            self._archive_s += time.monotonic() - began_s
        return True

    def _retain(self, writer: Writer) -> None:
        """Take a step of retention; whoever asked for it hears of a failure, and asks again."""
        with self._condition:
            future, policies, cursors, now_us, held = self._retentions.popleft()
        try:
            future.set_result(writer.retain(policies, cursors, now_us, held))
        except (BrokerError, ChildDied, OSError, MemoryError) as cause:
            future.set_exception(cause)
            if not (isinstance(cause, BrokerError) and cause.temporary):
                raise

    def _next_compaction(self, writer: Writer) -> tuple[Future[CompactResult], int] | None:
        """Return the rebuild that is due, and the time by which ages are judged.

        What waited when it was asked for is archived, and no slice is half done.
        """
        if self._compactions and not writer.begun_ordinal:
            future, ordinal, now_us = self._compactions[0]
            if writer.checkpoint.ordinal >= ordinal:
                return future, now_us
        return None

    def _start_writer(self) -> Writer:
        if self._in_process:
            # Not before: the child process runs that module as its program.
            from broker.log.archiver import ArchiveWriter

            return ArchiveWriter(archive_path(self._folder), transaction_bytes=EMBEDDED_TRANSACTION_BYTES)
        return ChildWriter(self._folder)

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._ended_cpu_s += writer.cpu_s
            writer.close()

    def _next_slice(self, writer: Writer) -> list[Path]:
        """Return the segments of the next slice: all that wait, up to the bounds; none when nothing waits.

        A slice that was cut short has to be repeated as far as it went. A new one is no wider than the disk has room
        for: only a whole one lets its segments go, and half of one would keep the last room for ever.
        """
        with self._condition:
            waiting = [(segment, size) for segment, size, _ in self._waiting]
        if not waiting or waiting[-1][0].ordinal < writer.begun_ordinal:
            return []
        begun = sum(segment.ordinal <= writer.begun_ordinal for segment, _ in waiting)
        sizes = [size for _, size in waiting[: self._segments_max]]
        wide = sum(total <= self._slice_bytes_max for total in accumulate(sizes))
        count = begun or max(min(wide, fitting(sizes, free_bytes(self._folder))), 1)
        return [segment.path for segment, _ in waiting[:count]]

    def _archived(self, checkpoint: Checkpoint) -> None:
        """Let go of what a checkpoint covers, and say so."""
        with self._condition:
            while self._waiting and self._waiting[0][0].ordinal <= checkpoint.ordinal:
                self.backlog_bytes -= self._waiting.popleft()[1]
        self._on_archived(checkpoint)

    def _between(self) -> None:
        """Rest between two transactions."""
        assert self._writer is not None
        self._progress = self._writer.progress
        self.steps += 1
        worked_s = time.monotonic() - self._step_began_s
        pause_s = self._pace.pause_s(worked_s, self.backlog_bytes)
        if pause_s > 0.0 or self._closing:
            with self._condition:
                if self._condition.wait_for(lambda: self._closing, pause_s):
                    raise Stopped
            self._pause_s += pause_s
        self._step_began_s = time.monotonic()
