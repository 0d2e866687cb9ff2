"""Judges a data directory: every page, every checksum, the chain, the density of channels, indexes against groups.

Nothing is written and nothing is trusted: files are walked by `pages`, never opened by LMDB, and a fault ends nothing.
What can be told from the rest of the data is told: which channel, which positions, and what the fault costs. The
directory's lock must be held by the caller, since a file that grows meanwhile would look damaged.

What is proved, file by file:

    meta pages, tree, bounds, order of keys          `pages`, and `check_tree` for the list of free pages
    each group: header, entries, chunks, chain       `check_group`; where it fails, chunk by chunk
    group after group                                each names its predecessor and carries its chain checksum
    channel after channel                            each chunk begins where the one before ended, in a known epoch
    rows of a seal                                   made once more from the groups, and compared
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from broker.log.archive_task import archive_path
from broker.log.directory import read_identity, read_restored
from broker.log.environment import check_pages
from broker.log.pages import Row, open_pages
from broker.log.parts import (
    ENTRY_CHANNEL,
    ENTRY_DROP,
    ENTRY_EPOCH,
    ENTRY_HEAD,
    ENTRY_TRIM,
    Entry,
    channel_entry,
    chunks_of,
    entries_in,
    entries_of,
    numbers,
)
from broker.log.segment import (
    INDEX_KEY,
    OLD_DELTA_KEY,
    SEAL_KEY,
    SUFFIX,
    Link,
    Seal,
    group_number,
    seal_rows,
)
from broker.log.tables import FILTER_KEY, PAGE_KEYS
from broker.log.verify_archive import ArchiveCheck, ArchiveTables
from broker.model.errors import StorageError
from broker_native.crc32c import crc32c_of
from broker_native.delta import TableDelta
from broker_native.index import GroupDamaged, SegmentIndex, check_group, read_header
from broker_native.pages import CHANNELS, table_items

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from broker.log.parts import ChunkPart
    from broker_native.index import GroupHeader

GROUP_LIMIT = 2**64 - 1
_ROWS = (FILTER_KEY, INDEX_KEY, OLD_DELTA_KEY, SEAL_KEY, *PAGE_KEYS.values())
NOTHING = "nothing is lost"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        file: the file, from the data directory on.
        what: what is wrong.
        cost: what that costs whoever reads the data.
        offset: where in the file, bytes; None when no one place is wrong.
        group: the group concerned, 0 for none.
        channel: the channel concerned, empty for none.
        epoch, first, last: the positions concerned; `first` 0 for none.
        mendable: whether everything can be made good from what the file itself still has.
    """

    file: str
    what: str
    cost: str
    offset: int | None = None
    group: int = 0
    channel: str = ""
    epoch: int = 0
    first: int = 0
    last: int = 0
    mendable: bool = False


@dataclass(slots=True)
class Report:
    """What a verification has found and counted."""

    faults: list[Fault] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    groups: int = 0
    chunks: int = 0
    records: int = 0
    last_group: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults


@dataclass(slots=True)
class ChannelState:
    """What the walk knows of a channel: the first sequence that it still has, the next one, and its epoch.

    `archived` is the sequence before which the archive has everything already.
    """

    name: bytes
    next: int = 1
    epoch: int = 0
    first: int = 1
    archived: int = 1
    dropped: bool = False


class Channels:
    """The tables as far as density needs them, moved on by entries and chunks in their order.

    What the archive knows is asked for when a channel is met, so that only the journal's are in memory.

    Attributes:
        orphans: faults of chunks that have no channel because, as may be, a slice that was cut short has removed it
            already: they are none if it is removed further on.
    """

    def __init__(self) -> None:
        self.archive: ArchiveTables | None = None
        self.orphans: dict[int, list[Fault]] = {}
        self._by_id: dict[int, ChannelState | None] = {}

    def get(self, channel: int) -> ChannelState | None:
        """Return a channel's state, None when nothing ever created it, or it was removed."""
        if channel not in self._by_id:
            row = self.archive.find([channel])[0] if self.archive is not None else None
            state = None
            if row is not None:
                epoch = row.epochs[-1][0] if row.epochs else 0
                state = ChannelState(row.name, row.next, epoch, row.first, archived=row.next)
            self._by_id[channel] = state
        state = self._by_id[channel]
        return None if state is not None and state.dropped else state

    def put(self, channel: int) -> ChannelState:
        """Return a channel's state, a new one when there is none."""
        state = self.get(channel)
        if state is None:
            state = self._by_id[channel] = ChannelState(b"")
        return state

    def name(self, channel: int) -> str:
        """Return how a message names a channel: by its name, or else by its id."""
        state = self.get(channel)
        return state.name.decode("ascii", "backslashreplace") if state and state.name else f"(id {channel})"

    def take_entry(self, entry: Entry) -> None:
        """Take a state change in; one that concerns no channel changes nothing."""
        if entry.kind == ENTRY_CHANNEL:
            created = channel_entry(entry.body)
            if created is not None:
                self.put(created[0]).name = created[1]
        elif entry.kind == ENTRY_DROP and (dropped := numbers(entry.body, 1)):
            self.put(dropped[0]).dropped = True
            self.orphans.pop(dropped[0], None)
        elif entry.kind == ENTRY_TRIM and (trimmed := numbers(entry.body, 2)):
            state = self.put(trimmed[0])
            state.first = max(state.first, trimmed[1])
        elif entry.kind == ENTRY_EPOCH and (begun := numbers(entry.body, 3)):
            state = self.put(begun[0])
            # What a slice that was cut short has brought may be newer.
            state.epoch = max(state.epoch, begun[1]) if begun[2] < state.archived else begun[1]

    def sealed_heads(self, entries: bytes) -> Iterator[tuple[int, int, int]]:
        """Yield (channel, epoch, next) of what a table delta states beyond the chunks that were met."""
        for entry in entries_in(entries):
            if entry.kind == ENTRY_CHANNEL:
                self.take_entry(entry)
            elif entry.kind == ENTRY_HEAD and (head := numbers(entry.body, 3)):
                state = self.get(head[0])
                if state is None or state.next < head[2]:
                    yield head[0], head[1], head[2]


class SegmentCheck:
    """Judges one segment; made anew for each.

    Attributes:
        groups: (number, value) of the groups that are good, in order; only kept for who asked for them.
        damaged: whether a group of it is lost or not what was written.
    """

    def __init__(self, verifier: Verifier, path: Path) -> None:
        self.damaged = False
        self._verifier = verifier
        self._path = path
        self._index = SegmentIndex()
        self._delta = TableDelta()
        self._rows: dict[bytes, Row] = {}
        self._first: GroupHeader | None = None
        self._before = verifier.last
        self._groups = 0

    def run(self, limit: int) -> None:
        """Walk the file; greater groups than `limit` are void."""
        try:
            with open_pages(self._path, self._tell_page) as pages:
                for row in pages.rows():
                    self._take(row, limit)
        except StorageError as failure:
            self.tell(failure.detail.removeprefix(f"{self._path}: "), "no group of this file can be read")
            self.damaged = True
            return
        self._check_structure()
        self._check_seal()

    def tell(self, what: str, cost: str, **more: object) -> None:
        """Report a fault of this file."""
        self._verifier.tell(self._path, what, cost, **more)

    def _tell_page(self, offset: int, what: str) -> None:
        self._verifier.tell(self._path, what, "what stood there is named below, if anything did", offset=offset)

    def _check_structure(self) -> None:
        """Have the native walk look as well: it also proves the list of free pages."""
        if any(fault.file == self._verifier.relative(self._path) for fault in self._verifier.report.faults):
            return
        try:
            check_pages(self._path, writable=True)
        except StorageError as failure:
            self.tell(failure.detail.removeprefix(f"{self._path}: "), NOTHING, mendable=True)

    # --- Groups ---------------------------------------------------------------------------------------------------

    def _take(self, row: Row, limit: int) -> None:
        number = group_number(row.key)
        self._verifier.advance(len(row.value))
        if number is None:
            if not row.key.startswith(_ROWS):
                self.tell(f"holds an unknown row {row.key!r}", NOTHING, offset=row.offset, mendable=True)
            self._rows[row.key] = row
        elif number <= limit:
            self._take_group(row, number)

    def _take_group(self, row: Row, number: int) -> None:
        try:
            header = check_group(row.value)
        except GroupDamaged as damage:
            self._take_damaged(row, number, damage)
            return
        if header.number != number:
            self.tell(
                f"the row of group {number} holds group {header.number}",
                "the group is not found by its number",
                offset=row.offset,
                group=header.number,
                mendable=True,
            )
        self._check_link(row, header)
        for entry in entries_in(entries_of(row.value)):
            self._verifier.channels.take_entry(entry)
        for chunk in chunks_of(row.value):
            self._take_chunk(row, header.number, chunk)
        self._collect(row, header)

    def _check_link(self, row: Row, header: GroupHeader) -> None:
        last = self._verifier.last
        if (header.predecessor, header.previous_chain) != (last.number, last.chain) or header.number <= last.number:
            # A damaged group before it has been named already, and its chain is not known.
            if not self.damaged:
                self.tell(
                    f"group {header.number} follows group {header.predecessor} with chain {header.previous_chain:08x}, "
                    f"but the one before it is group {last.number} with chain {last.chain:08x}",
                    "groups between them are lost; the channels whose messages they held are named below",
                    offset=row.offset,
                    group=header.number,
                )
            self.damaged = True
        self._verifier.last = Link.after(header)

    def _collect(self, row: Row, header: GroupHeader) -> None:
        """Sum a good group up for the comparison with the seal's rows."""
        self._first = self._first or header
        self._groups += 1
        self._verifier.report.groups += 1
        self._verifier.report.last_group = header.number
        self._verifier.on_group(header, row.value)
        try:
            self._delta.add(row.value)
            self._index.add(row.value)
        except GroupDamaged as damage:
            named = self._verifier.channels.name(damage.channel)
            self.tell(f"{damage.reason} is wrong", "readers of the channel are refused", group=header.number,
                      offset=row.offset + damage.offset, channel=named)  # fmt: skip
            self.damaged = True

    def _take_damaged(self, row: Row, number: int, damage: GroupDamaged) -> None:
        """Report a damaged group, and what of its channels can be told."""
        self.damaged = True
        channels = self._verifier.channels
        lost = [chunk for chunk in chunks_of(row.value) if not chunk.sound and channels.get(chunk.channel)]
        named = channels.name(damage.channel) if channels.get(damage.channel) else ""
        chunk = lost[0] if len(lost) == 1 and damage.channel == lost[0].channel else None
        self.tell(
            f"{damage.reason} is wrong",
            "the group cannot be proved: its messages and state changes are lost",
            offset=row.offset + damage.offset,
            group=number,
            channel=named,
            epoch=chunk.epoch if chunk else 0,
            first=chunk.first if chunk else 0,
            last=chunk.first + chunk.sequences - 1 if chunk else 0,
        )
        try:
            header = read_header(row.value)
        except GroupDamaged:
            return
        if header.number == number:
            # Its chain may be wrong itself; what follows is told by its own checksums.
            self._verifier.last = Link.after(header)

    def _take_chunk(self, row: Row, group: int, chunk: ChunkPart) -> None:
        channels, report = self._verifier.channels, self._verifier.report
        report.chunks += 1
        report.records += chunk.sequences
        state = channels.put(chunk.channel)
        if chunk.first + chunk.sequences <= state.archived:
            return
        if not state.name:
            fault = Fault(
                self._verifier.relative(self._path),
                "a chunk's channel was never created",
                "its messages cannot be asked for by a name",
                offset=row.offset + chunk.offset,
                group=group,
                channel=channels.name(chunk.channel),
                epoch=chunk.epoch,
                first=chunk.first,
                last=chunk.first + chunk.sequences - 1,
            )
            if int(self._path.stem, 16) <= self._verifier.begun_ordinal:
                channels.orphans.setdefault(chunk.channel, []).append(fault)
                return
            report.faults.append(fault)
        if state.epoch != chunk.epoch:
            self.tell(f"a chunk's epoch is {chunk.epoch}, its channel's is {state.epoch}",
                      "positions of the epoch are refused as diverged", offset=row.offset + chunk.offset, group=group,
                      channel=channels.name(chunk.channel), epoch=chunk.epoch, first=chunk.first,
                      last=chunk.first + chunk.sequences - 1)  # fmt: skip
            state.epoch = chunk.epoch
        if chunk.first != state.next:
            self._tell_gap(row, group, chunk, state)
        state.next = chunk.first + chunk.sequences

    def _tell_gap(self, row: Row, group: int, chunk: ChunkPart, state: ChannelState) -> None:
        twice = chunk.first < state.next
        self.tell(
            "sequences are there twice" if twice else "sequences are missing before this chunk",
            "a position names two messages" if twice else "these messages are lost",
            offset=row.offset + chunk.offset,
            group=group,
            channel=self._verifier.channels.name(chunk.channel),
            epoch=chunk.epoch,
            first=min(chunk.first, state.next),
            last=max(chunk.first, state.next) - 1,
        )

    # --- The seal -------------------------------------------------------------------------------------------------

    def _check_seal(self) -> None:
        """Compare the rows of a sealed segment with what its groups come to."""
        if not self._rows:
            return
        row = self._rows.get(SEAL_KEY)
        try:
            seal = Seal.unpack(row.value, self._path) if row is not None else None
        except StorageError as failure:
            self._tell_row("seal", failure.detail.removeprefix(f"{self._path}: "), row)
            return
        if seal is None or self._first is None:
            self._tell_row("seal", "the seal is missing, or the groups that it sums up are", row)
            return
        if self.damaged or self._groups != seal.groups:
            self._check_sums(seal)
            return
        expected = self._sealed_rows(self._first, seal)
        for key in sorted(expected.keys() | self._rows.keys()):
            found = self._rows.get(key)
            if found is None or found.value != expected.get(key):
                self._tell_row(_kind_of(key), "is not what the groups come to", found)

    def _sealed_rows(self, first: GroupHeader, seal: Seal) -> dict[bytes, bytes]:
        """Make the rows of the seal once more, as sealing does."""
        rows, pages = seal_rows(self._index, self._delta)
        made = Seal(
            first=first.number,
            predecessor=self._before.number,
            previous_chain=self._before.chain,
            first_time_us=first.time_us,
            last=self._verifier.last,
            groups=self._groups,
            id_next=self._delta.id_next,
            channels_new=self._delta.channels_new,
            producers_new=self._delta.producers_new,
            unclean_run=self._delta.unclean_run,
            pages=pages,
        )
        if seal.old is None:
            return {**dict(rows), SEAL_KEY: made.pack()}
        # Sealed by an older version: the same index, and a run of entries for which the seal has a checksum.
        expected = {key: page for key, page in rows if key.startswith(INDEX_KEY)}
        delta = self._rows[OLD_DELTA_KEY].value if OLD_DELTA_KEY in self._rows else b""
        if (len(delta), crc32c_of(delta)) == (seal.old.bytes, seal.old.crc):
            expected[OLD_DELTA_KEY] = delta
        unknown = {"id_next": 0, "channels_new": 0, "producers_new": 0, "unclean_run": 0, "old": seal.old}
        if replace(made, **unknown) == seal:  # type: ignore[arg-type]
            expected[SEAL_KEY] = self._rows[SEAL_KEY].value
        return expected

    def _check_sums(self, seal: Seal) -> None:
        """With groups missing, the seal's table delta still tells which sequences they held."""
        self.damaged = True
        if self._groups < seal.groups:
            self.tell(f"{self._groups} groups are good, its seal counts {seal.groups}",
                      "what the others held is lost; it is named as far as it is known")  # fmt: skip
        channels = self._verifier.channels
        for channel, epoch, after in channels.sealed_heads(self._sealed_entries()):
            state = channels.put(channel)
            self.tell("sequences are missing at the end of this segment", "these messages are lost",
                      channel=channels.name(channel), epoch=epoch, first=state.next, last=after - 1)  # fmt: skip
            state.next, state.epoch = after, epoch

    def _sealed_entries(self) -> bytes:
        """Return the entries of the seal's table delta, as far as they are sound."""
        if OLD_DELTA_KEY in self._rows:
            return self._rows[OLD_DELTA_KEY].value
        entries, prefix = [], PAGE_KEYS[CHANNELS]
        for key, row in sorted(self._rows.items()):
            if key.startswith(prefix):
                with suppress(GroupDamaged):
                    items, _ = table_items(CHANNELS, key[len(prefix) :], row.value)
                    entries += [value for _, value in items]
        return b"".join(entries)

    def _tell_row(self, what: str, wrong: str, row: Row | None) -> None:
        cost = "the groups are whole: it can be made once more from them"
        self.tell(f"{what}: {wrong}", cost, offset=row.offset if row else None, mendable=True)


def _kind_of(key: bytes) -> str:
    """Return what a row of a seal is called."""
    return next((name.decode() for name in _ROWS if key.startswith(name)), "row")


class Verifier:
    """Walks one data directory, or a folder of segments laid out like one.

    Args:
        path: the directory; its lock is held, or nobody else can know of it.
        progress: called with (bytes looked at, bytes in all) now and then.
        on_group: called with the header and the bytes of each good group, in order.
        on_chunk: called with the channel's id and the bytes of each good chunk of the archive, channel after channel,
            before the first group.
        backup: it is a backup, which has no format file.

    Attributes:
        report: what was found.
        channels: what is known of the channels at the place that the walk has reached.
        last: the last good group.
        reached: the last group that is in the archive.
        begun_ordinal: the last segment of a slice whose archiving was cut short, 0 for none.
        ordinal: of the segment that the walk has reached, 0 before the first.
    """

    def __init__(
        self,
        path: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
        on_group: Callable[[GroupHeader, bytes], None] = lambda header, value: None,
        *,
        on_chunk: Callable[[int, bytes], object] = lambda channel, chunk: None,
        backup: bool = False,
    ) -> None:
        self.report = Report()
        self.channels = Channels()
        self.last = self.reached = Link()
        self.begun_ordinal = self.ordinal = 0
        self.on_group = on_group
        self.on_chunk = on_chunk
        self._path = path
        self._progress = progress
        self._backup = backup
        self._done = 0

    def run(self) -> Report:
        """Look at everything.

        Raises:
            StorageError: STORAGE_FAILED; the system does not let the directory be read.
        """
        if not self._backup:
            self._check_format()
        archive = archive_path(self._path)
        paths = segments_in(self._path / "journal")
        files = [*paths, *([archive] if archive.exists() else [])]
        self.report.files += len(files)
        self.report.bytes = sum(path.stat().st_size for path in files)
        if archive.exists():
            archived = self._check_archive(archive)
            paths = [path for path in paths if int(path.stem, 16) > archived]
        for path, limit in zip(paths, self._limits(paths), strict=True):
            self.ordinal = int(path.stem, 16)
            SegmentCheck(self, path).run(limit)
        for faults in self.channels.orphans.values():
            self.report.faults += faults
        self._progress(self.report.bytes, self.report.bytes)
        return self.report

    def _check_archive(self, path: Path) -> int:
        """Judge the archive; return the ordinal of the last segment that is wholly in it."""
        try:
            self.channels.archive = ArchiveTables(path)
            check = ArchiveCheck(self, path, self.channels.archive)
            check.run()
            if not self.report.faults:
                check_pages(path, writable=True)
        except StorageError as failure:
            self.tell(path, failure.detail.removeprefix(f"{path}: "), "what is in the archive cannot be read")
            return 0
        self.begun_ordinal = check.begun_ordinal
        if check.checkpoint is None:
            return 0
        reached = check.checkpoint
        self.last = self.reached = Link(
            reached.group, reached.chain, reached.time_us, reached.term, reached.run, reached.closed_run
        )
        self.report.last_group = reached.group
        return reached.ordinal

    def close(self) -> None:
        """Let the archive go; `channels` answers only for what was met from then on."""
        if self.channels.archive is not None:
            self.channels.archive.close()

    def relative(self, path: Path) -> str:
        """Return how a fault names a file."""
        return str(path.relative_to(self._path))

    def tell(self, path: Path, what: str, cost: str, **more: object) -> None:
        """Report a fault."""
        self.report.faults.append(Fault(self.relative(path), what, cost, **more))  # type: ignore[arg-type]

    def advance(self, size: int) -> None:
        """Count bytes that were looked at."""
        self._done += size
        self._progress(min(self._done, self.report.bytes), self.report.bytes)

    def _check_format(self) -> None:
        path = self._path / "format"
        self.report.files += 1
        try:
            read_identity(path)
            read_restored(self._path)
        except StorageError as failure:
            self.tell(path, failure.detail.removeprefix(f"{path}: "),
                      "the directory cannot be opened; the journal's segments are judged all the same")  # fmt: skip
        except FileNotFoundError:
            self.tell(path, "is missing", "the directory cannot be opened; the segments are judged all the same")

    def _limits(self, paths: list[Path]) -> list[int]:
        """Return for each segment the greatest group that counts: what a later one does not follow is void."""
        limits, limit = [], GROUP_LIMIT
        for path in reversed(paths):
            limits.append(limit)
            first = _first_predecessor(path)
            if first is not None:
                limit = min(limit, first)
        return limits[::-1]


def segments_in(folder: Path) -> list[Path]:
    """Return the files of the segments, in order."""
    return sorted(folder.glob(f"{'[0-9a-f]' * 16}{SUFFIX}"))


def _first_predecessor(path: Path) -> int | None:
    """Return what the first group of a segment names as its predecessor; None when it has none, or none is readable."""
    try:
        with open_pages(path, lambda offset, what: None) as pages:
            for row in pages.rows():
                number = group_number(row.key)
                header = check_group(row.value) if number is not None else None
                return header.predecessor if header is not None and header.number == number else None
    except (StorageError, GroupDamaged):
        return None
    return None
