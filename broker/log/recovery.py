"""What happens at start, before anything is appended: finding the segments and proving the chain. Nothing is replayed.

The journal begins where the archive's checkpoint says. Sealed segments are known by their seals alone; unsealed ones
are walked group by group with every checksum proved, and what they changed in the tables is kept in memory, to be
looked up as in the others. What a seal that was cut short has left is passed over: the sealer removes it, and no group
is appended behind it. Damage is an error, never a place to stop quietly: with full sync, nothing that was acknowledged
can be missing after a loss of power.

A segment may end with a void group: one whose commit failed, after which the chain went on in a later segment from an
earlier predecessor. So the first group of every segment is looked at before the first one is walked.

Segments that the archive has are leftovers of a removal that was cut short: they are removed unseen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import lmdb

from broker.log import durable
from broker.log.environment import OpenFiles, create_file, remove_file
from broker.log.errors import corrupt, damaged, failed
from broker.log.sealer import segment_path
from broker.log.segment import SEALED_ROWS, SUFFIX, Link, Seal, Segment, group_number
from broker.log.tables import MemoryTables
from broker_native.delta import TableDelta
from broker_native.index import GroupDamaged, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from broker.log.archive_rows import Checkpoint
    from broker_native.crc32c import Buffer

RESUMED_BYTES_MAX = 4 << 20
"""An unsealed segment with as much is sealed in the background instead of being gone on with: until it is, what stands
in its groups is known in memory, and of very many channels that is as large as the groups."""
_NAME = re.compile(r"([0-9a-f]{16})" + re.escape(SUFFIX))


class Applier(Protocol):
    """Who takes what is stored; see `Log.load_all`."""

    def apply_entries(self, entries: Buffer) -> object:
        """Apply a run of entries; the buffer is borrowed for the call."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """Where the journal ends.

    Attributes:
        group: the number of the last group, 0 in a new journal.
        chain: its chain checksum, 0 in a new journal.
        time_us: its time, microseconds since 1970.
        term: its term.
        run: its run.
        clean: whether its run ended in good order; a new journal's run 0 did.
        groups: how many groups were proved one by one.
        unclean_run: the newest run that a later one says did not end in good order, 0 for none.
        id_next: the next channel's id.
        channels: how many are stored.
        producers: how many lines are stored.
    """

    group: int
    chain: int
    time_us: int
    term: int
    run: int
    clean: bool
    groups: int
    unclean_run: int = 0
    id_next: int = 1
    channels: int = 0
    producers: int = 0

    @property
    def empty(self) -> bool:
        """Whether no channel and no line was ever stored."""
        return self.id_next == 1 and self.producers == 0


@dataclass(slots=True)
class Found:
    """One segment as start-up finds it.

    Attributes:
        segment: known by its seal if it has one, else without its groups.
        first: the number of the first group in the file, void or not; 0 when there is none.
        predecessor: what that group names.
        limit: greater groups in it are void.
    """

    segment: Segment
    first: int
    predecessor: int
    limit: int = 2**64 - 1


class Survey:
    """The segments of a folder, looked at and no more.

    Args:
        folder: where they are.
        map_bytes: the address space to reserve for each.
        open_files: bounds the sealed ones that are open.
        archived: the ordinal of the last segment that the archive has.

    Attributes:
        ordinals: of the segments that are there and not archived, ascending.
        found: the segments, in the same order.
    """

    def __init__(self, folder: Path, map_bytes: int, open_files: OpenFiles, archived: int) -> None:
        self.ordinals: list[int] = []
        self.found: list[Found] = []
        self._folder = folder
        self._map_bytes = map_bytes
        self._open_files = open_files
        self._archived = archived
        self._segments: list[Segment] = []

    def look(self) -> None:
        """Look at the folder; leftovers of creations that were cut short are removed from it.

        Raises:
            StorageError: a file is cut, damaged or of a newer format, or the system refuses.
        """
        try:
            self.ordinals = self._tidy()
        except OSError as cause:
            raise failed(self._folder, cause) from cause
        self.found = [self._look(ordinal) for ordinal in self.ordinals]
        limit = 2**64 - 1
        for found in reversed(self.found):
            found.limit = limit
            if found.first:
                limit = min(limit, found.predecessor)

    def close(self) -> None:
        """Close every file that was opened; for a start that fails, so that the next one may open them again."""
        for segment in self._segments:
            segment.file.close()

    @property
    def next_ordinal(self) -> int:
        """The ordinal of the next segment to be created."""
        return self.ordinals[-1] + 1 if self.ordinals else self._archived + 1

    def _tidy(self) -> list[int]:
        """Return the ordinals of the segments in order, and remove what a crash left of others."""
        names = {path.name for path in self._folder.iterdir()}
        for name in sorted(names):
            lost = name.endswith("-lock") and name.removesuffix("-lock") not in names
            if lost or SUFFIX + durable.ASIDE_SUFFIX in name:
                durable.remove_file(self._folder / name)
        ordinals = sorted(int(match[1], 16) for name in names if (match := _NAME.fullmatch(name)))
        for ordinal in ordinals:
            if ordinal <= self._archived:
                remove_file(segment_path(self._folder, ordinal))
        return [ordinal for ordinal in ordinals if ordinal > self._archived]

    def _segment(self, ordinal: int, *, sealed: bool) -> Segment:
        path = segment_path(self._folder, ordinal)
        segment = Segment(ordinal, path, self._map_bytes, self._open_files, sealed=sealed)
        self._segments.append(segment)
        return segment

    def _look(self, ordinal: int) -> Found:
        """Look at one segment; a sealed one is not even opened, so a long journal starts as fast as a short one."""
        segment = self._segment(ordinal, sealed=True)
        seal = segment.read_seal()
        if seal is not None:
            segment.adopt_seal(seal)
            return Found(segment, seal.first, seal.predecessor)
        segment = self._segment(ordinal, sealed=False)
        return Found(segment, *_first_group(segment))


def _first_group(segment: Segment) -> tuple[int, int]:
    """Return the number of the first group in a file and the predecessor that it names; zeros when it is empty."""
    with segment.file.reading() as transaction:
        cursor = transaction.cursor()
        number = group_number(cursor.key()) if cursor.first() else None
        if number is None:
            return 0, 0
        try:
            return number, read_header(cursor.value()).predecessor
        except GroupDamaged as damage:
            raise damaged(segment.path, number, damage) from damage


class Walk:
    """Walks the chain from the archive's checkpoint to its end.

    Args:
        checkpoint: where the archive ends.

    Attributes:
        last: the place in the chain that has been reached.
        groups: how many groups were proved one by one.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.last = Link(
            checkpoint.group,
            checkpoint.chain,
            checkpoint.time_us,
            checkpoint.term,
            checkpoint.run,
            checkpoint.closed_run,
        )
        self.groups = 0
        self._unclean_run = checkpoint.unclean_run
        self._id_next = checkpoint.id_next
        self._channels = checkpoint.channels
        self._producers = checkpoint.producers

    def take(self, found: Found) -> None:
        """Walk over one segment.

        Raises:
            StorageError: STORAGE_CORRUPT when the chain is broken or bytes are wrong, STORAGE_FORMAT when a newer
                version wrote them, STORAGE_FAILED when the system refuses.
        """
        if found.segment.seal is not None:
            seal = found.segment.seal
            self._check_link(found.segment, seal.first, seal.predecessor, seal.previous_chain)
            self.last = seal.last
            self._count(seal)
        else:
            self._take_groups(found.segment, found.limit)

    def _count(self, part: Seal | TableDelta) -> None:
        """Take in what a segment says of itself."""
        self._unclean_run = max(self._unclean_run, part.unclean_run)
        self._id_next = max(self._id_next, part.id_next)
        self._channels += part.channels_new
        self._producers += part.producers_new

    def _take_groups(self, segment: Segment, limit: int) -> None:
        # A process that was killed inside a commit may have left a meta page that is seen but not yet on the disk.
        # Whoever is answered from it now must find it after a loss of power, too.
        with segment.file.writing() as environment:
            try:
                environment.sync(True)
            except lmdb.Error as cause:
                raise failed(segment.path, cause) from cause
        delta = TableDelta()
        rows = 0
        with segment.file.reading() as transaction:
            for key, value in transaction.cursor().iternext(keys=True, values=True):
                number = group_number(key)
                rows += 1
                if number is None:
                    if not bytes(key).startswith(SEALED_ROWS):
                        raise corrupt(segment.path, f"holds an unknown row {bytes(key)!r}")
                    segment.seal_begun = True
                elif number <= limit:
                    self._take_group(segment, number, value, delta)
            expected = transaction.stat()["entries"]
        if rows != expected:
            raise corrupt(segment.path, f"holds {rows} rows, LMDB counts {expected}")
        if not segment.empty:
            segment.tables, segment.tables_last = MemoryTables(delta), segment.last.number
        self._count(delta)

    def _take_group(self, segment: Segment, number: int, value: memoryview, delta: TableDelta) -> None:
        try:
            header = delta.add(value)
        except GroupDamaged as damage:
            raise damaged(segment.path, number, damage) from damage
        if header.number != number:
            raise corrupt(segment.path, f"group {number} says that it is group {header.number}")
        self._check_link(segment, number, header.predecessor, header.previous_chain)
        segment.extend(self.last, header, value)
        self.last = segment.last
        self.groups += 1

    def _check_link(self, segment: Segment, number: int, predecessor: int, previous_chain: int) -> None:
        if (predecessor, previous_chain) != (self.last.number, self.last.chain) or number <= predecessor:
            raise corrupt(
                segment.path,
                f"group {number} follows group {predecessor} with chain {previous_chain:08x}, but the one before it is"
                f" group {self.last.number} with chain {self.last.chain:08x}: a segment is missing or damaged",
            )

    def result(self) -> Recovery:
        """Return where the journal ends."""
        last = self.last
        return Recovery(
            group=last.number,
            chain=last.chain,
            time_us=last.time_us,
            term=last.term,
            run=last.run,
            clean=last.closed_run == last.run,
            groups=self.groups,
            unclean_run=self._unclean_run,
            id_next=self._id_next,
            channels=self._channels,
            producers=self._producers,
        )


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the journal goes on with.

    Attributes:
        segments: those with good groups in order, then the active one.
        ready: an empty segment that was made ready before, if any.
        full: what must still be sealed, oldest first.
        last: the place in the chain after the last group.
        next_ordinal: the ordinal of the next segment to create.
        result: what the caller is told.
    """

    segments: list[Segment]
    ready: Segment | None
    full: list[Segment]
    last: Link
    next_ordinal: int
    result: Recovery


def recover(folder: Path, map_bytes: int, open_files: OpenFiles, checkpoint: Checkpoint) -> Recovered:
    """Find where a journal ends, and say what it goes on with.

    Args:
        folder: where the segments are.
        map_bytes: the address space to reserve for each.
        open_files: bounds the sealed ones that are open.
        checkpoint: where the archive ends.

    Raises:
        StorageError: as `Walk.take`. All files are closed then.
    """
    survey = Survey(folder, map_bytes, open_files, checkpoint.ordinal)
    try:
        return _recover(survey, folder, map_bytes, open_files, checkpoint)
    except BaseException:
        survey.close()
        raise


def _recover(survey: Survey, folder: Path, map_bytes: int, open_files: OpenFiles, checkpoint: Checkpoint) -> Recovered:
    survey.look()
    walk = Walk(checkpoint)
    for found in survey.found:
        walk.take(found)
    segments = [found.segment for found in survey.found if not found.segment.empty]
    spare = _spare(survey, segments[-1].ordinal if segments else 0)
    next_ordinal = survey.next_ordinal
    if not segments or segments[-1].complete or (spare and segments[-1].bytes >= RESUMED_BYTES_MAX):
        # Whatever was active before is full enough, or holds no good group, or nothing was ever appended.
        active = spare.pop(0) if spare else _create(folder, next_ordinal, map_bytes, open_files)
        next_ordinal = max(next_ordinal, active.ordinal + 1)
        segments.append(active)
    ready = spare.pop(0) if spare else None
    _discard([found.segment for found in survey.found if found.segment not in (*segments, ready)])
    return Recovered(
        segments=segments,
        ready=ready,
        full=[segment for segment in segments[:-1] if not segment.sealed],
        last=walk.last,
        next_ordinal=next_ordinal,
        result=walk.result(),
    )


def _spare(survey: Survey, last_ordinal: int) -> list[Segment]:
    """Return the segments past the last good one that hold nothing at all, oldest first."""
    return [found.segment for found in survey.found if not found.first and found.segment.ordinal > last_ordinal]


def _discard(segments: list[Segment]) -> None:
    """Remove segments that hold nothing, or void groups only."""
    for segment in segments:
        segment.file.close()
        try:
            remove_file(segment.path)
        except OSError as cause:
            raise failed(segment.path, cause) from cause


def _create(folder: Path, ordinal: int, map_bytes: int, open_files: OpenFiles) -> Segment:
    """Create the first segment of a journal, or the next one when all are sealed."""
    segment = Segment(ordinal, segment_path(folder, ordinal), map_bytes, open_files)
    try:
        create_file(segment.path, map_bytes)
    except (OSError, lmdb.Error) as cause:
        raise failed(segment.path, cause) from cause
    return segment
