"""The background thread: keeps the next segment ready, and seals the full ones.

Both happen beside the commits: a fresh segment is created and synced before it is wanted, and a full one gets its
index, tables and seal in synced transactions of its own environment, which no commit shares. Making ready
comes first, also between two steps of a seal, since an append may be waiting for it.

A seal that fails is tried again; until then, and after a crash, the segment is as good as any unsealed one. A segment
whose bytes turn out to be damaged is left as it is, and said so.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import lmdb

from broker.events import emit
from broker.log.environment import OpenFiles, create_file
from broker.log.errors import append_error, corrupt, damaged
from broker.log.segment import SUFFIX, Link, Seal, Segment, seal_rows
from broker.model.errors import StorageCorrupt, StorageError, error
from broker_native.delta import TableDelta
from broker_native.index import GroupDamaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

RETRY_S = 1.0
_GROUPS_PER_TURN = 64
_ROWS_PER_TURN = 64
# Two meta pages, the lock file and the folder's own growth.
_CREATE_BYTES = 128 * 1024


def segment_path(folder: Path, ordinal: int) -> Path:
    """Return the name of a segment's file."""
    return folder / f"{ordinal:016x}{SUFFIX}"


def seal_segment(segment: Segment, turn: Callable[[], None]) -> int:
    """Seal a segment that gets no more groups, checking all of them once more on the way.

    Args:
        segment: not sealed, with at least one group.
        turn: called every few groups and rows; what else the thread has to do.

    Returns:
        The syncs that it took.

    Raises:
        StorageError: the segment is damaged, or cannot be read or written; it stays unsealed.
        lmdb.Error: the seal was not stored; the segment stays unsealed.
    """
    index = segment.index
    if index is None:
        raise AssertionError(f"{segment.path} is sealed")
    delta = TableDelta()
    last = _collect(segment, delta, turn)
    if (last.number, last.chain) != (segment.last.number, segment.last.chain):
        raise corrupt(segment.path, f"ends with group {last.number}, expected {segment.last.number}")
    seal, syncs = segment.write_seal(
        _with_turns(seal_rows(index, delta), turn),
        lambda pages: Seal(
            first=segment.first,
            predecessor=segment.predecessor.number,
            previous_chain=segment.predecessor.chain,
            first_time_us=segment.first_time_us,
            last=last,
            groups=segment.groups,
            id_next=delta.id_next,
            channels_new=delta.channels_new,
            producers_new=delta.producers_new,
            unclean_run=delta.unclean_run,
            pages=pages,
        ),
    )
    segment.adopt_seal(seal)
    segment.file.close(readonly=True)
    return syncs


def _collect(segment: Segment, delta: TableDelta, turn: Callable[[], None]) -> Link:
    """Take every good group into the delta; return the place after the last one."""
    last = segment.predecessor
    count = 0
    with segment.file.reading() as transaction:
        for number, group in segment.groups_from(transaction, segment.first):
            try:
                header = delta.add(group)
            except GroupDamaged as damage:
                raise damaged(segment.path, number, damage) from damage
            last = Link.after(header)
            count += 1
            if count % _GROUPS_PER_TURN == 0:
                turn()
    return last


def _with_turns(rows: Iterable[tuple[bytes, bytes]], turn: Callable[[], None]) -> Iterator[tuple[bytes, bytes]]:
    for at, row in enumerate(rows):
        if at % _ROWS_PER_TURN == 0:
            turn()
        yield row


class Sealer:
    """Owns the background thread. `take_next` belongs to the commit thread; the rest is safe from any.

    Args:
        folder: where the segments are.
        map_bytes: the address space to reserve for each.
        open_files: bounds the sealed segments that are open.
        on_sealed: called on the thread after each seal.
    """

    def __init__(
        self, folder: Path, map_bytes: int, open_files: OpenFiles, on_sealed: Callable[[], None] = lambda: None
    ) -> None:
        self._folder = folder
        self._map_bytes = map_bytes
        self._open_files = open_files
        self._on_sealed = on_sealed
        self._condition = threading.Condition()
        self._full: deque[Segment] = deque()
        self._ready: Segment | None = None
        self._failure: Exception | None = None
        self._next_ordinal = 1
        self._closing = False
        self._broken: Exception | None = None
        self._prepare_at_s = 0.0
        self._seal_at_s = 0.0
        self._seals = 0
        self._syncs = 0
        self._seal_s = 0.0
        self._thread = threading.Thread(target=self._run, name="broker-log-sealer", daemon=True)

    def start(self, ready: Segment | None, next_ordinal: int, full: list[Segment]) -> None:
        """Begin to work.

        Args:
            ready: an empty segment that is there already.
            next_ordinal: the ordinal of the next segment to create.
            full: what start-up found full and unsealed, oldest first.
        """
        self._ready = ready
        self._next_ordinal = next_ordinal
        self._full.extend(full)
        self._thread.start()

    def queue(self, segment: Segment) -> None:
        """Hand over a segment that gets no more groups."""
        with self._condition:
            self._full.append(segment)
            self._condition.notify_all()

    def take_next(self) -> Segment:
        """Return the next segment, empty and synced, waiting for it if it is not ready.

        Raises:
            AppendError: it could not be created, for want of room (`AppendFull`) or otherwise; nothing was handed over.
            StorageError: CLOSED.
        """
        with self._condition:
            if self._ready is None:
                self._failure = None
                self._prepare_at_s = 0.0
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._ready or self._failure or self._broken or self._closing)
            if self._ready is not None:
                taken, self._ready = self._ready, None
                self._condition.notify_all()
                return taken
            failure = self._failure or self._broken
        if failure is None:
            raise error("CLOSED", f"{self._folder}: the journal is closed")
        raise append_error(failure, self._folder / "next", _CREATE_BYTES, handed_over=False) from failure

    def stats(self) -> dict[str, int | float]:
        """Return the counts: seals and their seconds, syncs of seals and creations, and how many segments wait."""
        with self._condition:
            return {
                "seals": self._seals,
                "syncs": self._syncs,
                "seal_s": self._seal_s,
                "seal_backlog": len(self._full),
            }

    def wait_sealed(self, timeout_s: float) -> bool:
        """Wait until nothing waits to be sealed; tell whether that came to pass in time."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._full, timeout_s)

    def close(self) -> Segment | None:
        """End the thread after the step that it is in; return the segment that was ready, if any."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        return self._ready

    # --- The thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except Exception as cause:
            # A mistake in this program: whoever waits for a segment must hear of it instead of waiting for ever.
            emit("sealer_stopped", failure=cause)
            with self._condition:
                self._broken = cause
                self._condition.notify_all()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(self._due, self._idle_s())
                if self._closing:
                    return
                segment = self._full[0] if self._full and time.monotonic() >= self._seal_at_s else None
            self._prepare()
            if segment is not None:
                self._seal(segment)

    def _due(self) -> bool:
        now_s = time.monotonic()
        wanted = self._ready is None and now_s >= self._prepare_at_s
        return self._closing or wanted or (bool(self._full) and now_s >= self._seal_at_s)

    def _idle_s(self) -> float | None:
        """Return how long nothing is due unless somebody notifies; None for ever."""
        dues = []
        if self._ready is None:
            dues.append(self._prepare_at_s)
        if self._full:
            dues.append(self._seal_at_s)
        return max(min(dues) - time.monotonic(), 0.0) if dues else None

    def _prepare(self) -> None:
        """Create the next segment if there is none; called between the steps of a seal, too."""
        with self._condition:
            if self._ready is not None or self._closing or time.monotonic() < self._prepare_at_s:
                return
            ordinal = self._next_ordinal
        failure: Exception | None = None
        syncs = 0
        try:
            segment = Segment(ordinal, segment_path(self._folder, ordinal), self._map_bytes, self._open_files)
            syncs = create_file(segment.path, self._map_bytes)
            segment.file.open()
        except (OSError, lmdb.Error, StorageError, MemoryError) as cause:
            failure = cause
        with self._condition:
            self._failure = failure
            self._syncs += syncs
            if failure is None:
                self._ready = segment
                self._next_ordinal += 1
            else:
                self._prepare_at_s = time.monotonic() + RETRY_S
            self._condition.notify_all()

    def _seal(self, segment: Segment) -> None:
        began_s = time.monotonic()
        syncs = 0
        done = True
        try:
            syncs = seal_segment(segment, self._prepare)
        except StorageCorrupt as damage:
            emit("segment_damaged", segment=segment.path, detail=damage.detail)
        except (StorageError, lmdb.Error, OSError, MemoryError) as cause:
            done = False
            # LMDB answers PANIC for ever once a meta page could not be written; opened again the file reads well.
            segment.file.close()
            emit("segment_seal_delayed", segment=segment.path, retry_s=RETRY_S, error=cause)
        with self._condition:
            if done:
                self._full.popleft()
            else:
                self._seal_at_s = time.monotonic() + RETRY_S
            if syncs:
                self._seals += 1
                self._syncs += syncs
                self._seal_s += time.monotonic() - began_s
            self._condition.notify_all()
        if syncs:
            self._on_sealed()
