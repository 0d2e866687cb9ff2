"""One segment of the journal: its rows, what is known of it in memory, and how chunks are found in it.

Rows of a segment, all in LMDB's main database, in the order of their keys:

    u64 big-endian group number                      the group
    "filter"                                         which keys it has nothing of     ┐
    "index" ‖ u64 channel ‖ u64 first, big-endian    an index page                    │
    "line" ‖ producer                                a page of producers' lines       │ written when the segment is
    "name" ‖ name                                    a page of names                  │ sealed, the seal last
    "rest" ‖ u32 number, big-endian                  a page of RUN, CLOSE and others  │
    "seal"                                           the seal, below                  │
    "table" ‖ u64 channel, big-endian                a page of channels' entries      ┘

The pages of lines, names, channels and the rest are table pages (`pages.pxd`): the first of each kind has the kind's
name alone for its key. A group's key begins with a zero byte for the next 2^56 groups, so the names sort behind all
groups. Without the seal the rest of those rows are nothing: what a sealing that was cut short has left, the next one
removes. The seal:

     0     4        8       16      24            32             36            40
     | crc | format | first | last  | predecessor | chain before | chain after | time of first | …
       u32   u32      u64     u64     u64           u32            u32           u64
    48             56     64    72           80       88        96             104             112
    … time of last | term | run | closed run | groups | id next | channels new | producers new | unclean run | …
      u64            u64    u64   u64          u64      u64       i64            u64             u64
    120     124
    … pages | 0
      u32     u32

`crc` is the CRC-32C of everything after it. `first` and `last` bound the groups that are good: a segment that was
given up after a failed commit may hold one more, which is void. `closed run` is the run that the last group ended,
`unclean run` the newest of which a RUN entry says that it did not end in good order. `id next` is past the greatest id
of a CHANNEL entry, 0 when there is none; `channels new` are those that were created less those that were dropped.

In a segment of seal format 1 one row "delta" stands for the pages of tables: a run of entries, whose size, checksum and
count are in the seal in place of `id next` and what follows. Its tables are made of that when they are asked for.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import lmdb

from broker.log.environment import SYNCS_PER_COMMIT, EnvironmentFile, OpenFiles, read_row, reading_tree
from broker.log.errors import append_error, corrupt, damaged
from broker.log.tables import FILTER_KEY, PAGE_KEYS, MemoryTables, SealedTables
from broker.model.errors import error
from broker_native.crc32c import crc32c_of
from broker_native.delta import TableDelta
from broker_native.index import GroupDamaged, SegmentIndex, cut_chunk, find_in_page, page_key
from broker_native.pages import CHANNELS, LINES, REST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from broker.log.tables import SegmentTables
    from broker_native.crc32c import Buffer
    from broker_native.index import GroupHeader, Place
    from broker_native.tree import TreeReader

OLD_DELTA_KEY = b"delta"
INDEX_KEY = b"index"
INDEX_END = b"indey"
"""Past all keys of index pages."""
SEAL_KEY = b"seal"
SEAL_FORMAT = 2
SEAL_BYTES_AT_ONCE = 2 * 1024 * 1024
"""How much of a seal one transaction writes: groups of the next segment wait for it at the disk."""
SEALED_ROWS = (FILTER_KEY, INDEX_KEY, OLD_DELTA_KEY, SEAL_KEY, *PAGE_KEYS.values())
"""What the keys of all rows but groups begin with."""
GROUP_KEY_BYTES = 8
SEQUENCE_MAX = 2**64 - 1
SUFFIX = ".seg"

_SEAL_BEGIN = struct.Struct("<IIQQQIIQQQQQQ")
_SEAL = struct.Struct(_SEAL_BEGIN.format + "QqQQII")
_OLD_SEAL = struct.Struct(_SEAL_BEGIN.format + "QIIII")


def group_key(number: int) -> bytes:
    """Return the key of a group."""
    return number.to_bytes(GROUP_KEY_BYTES, "big")


def group_number(key: Buffer) -> int | None:
    """Return the number of the group that a key names, None for the other rows."""
    if len(key) != GROUP_KEY_BYTES or key[0] != 0:
        return None
    return int.from_bytes(key, "big")


@dataclass(frozen=True, slots=True)
class Link:
    """A place in the chain of groups: what the next group must name as its predecessor, and what replay returns."""

    number: int = 0
    chain: int = 0
    time_us: int = 0
    term: int = 0
    run: int = 0
    closed_run: int = 0

    @classmethod
    def after(cls, header: GroupHeader) -> Link:
        """Return the place after a group."""
        return cls(header.number, header.chain, header.time_us, header.term, header.run, header.closed_run)


@dataclass(frozen=True, slots=True)
class OldDelta:
    """What a seal of format 1 says of the table delta that its segment keeps."""

    bytes: int
    crc: int
    entries: int


@dataclass(frozen=True, slots=True)
class Seal:
    """What a sealed segment says of itself. `first` and `last` are group numbers, `last` the last good one.

    `old` is set for a seal of format 1 alone, which knows nothing of what stands before it from `id_next` on.
    """

    first: int
    predecessor: int
    previous_chain: int
    first_time_us: int
    last: Link
    groups: int
    id_next: int
    channels_new: int
    producers_new: int
    unclean_run: int
    pages: int
    old: OldDelta | None = None

    def pack(self) -> bytes:
        """Return the value of the seal's row."""
        packed = _SEAL.pack(
            0, SEAL_FORMAT, self.first, self.last.number, self.predecessor, self.previous_chain, self.last.chain,
            self.first_time_us, self.last.time_us, self.last.term, self.last.run, self.last.closed_run, self.groups,
            self.id_next, self.channels_new, self.producers_new, self.unclean_run, self.pages, 0,
        )  # fmt: skip
        return struct.pack("<I", crc32c_of(packed[4:])) + packed[4:]

    @classmethod
    def unpack(cls, value: Buffer, path: Path) -> Seal:
        """Parse the value of the seal's row.

        Raises:
            StorageError: STORAGE_CORRUPT when it is damaged, STORAGE_FORMAT when a newer version wrote it.
        """
        if len(value) < _SEAL_BEGIN.size or int.from_bytes(value[:4], "little") != crc32c_of(value[4:]):
            raise corrupt(path, "its seal's checksum or size is wrong")
        form = int.from_bytes(value[4:8], "little")
        if form not in (1, SEAL_FORMAT):
            raise error("STORAGE_FORMAT", f"{path}: got seal format {form}, this version knows {SEAL_FORMAT}")
        if len(value) != (_SEAL if form == SEAL_FORMAT else _OLD_SEAL).size:
            raise corrupt(path, "its seal's checksum or size is wrong")
        (
            _, _, first, last, predecessor, previous_chain, chain,
            first_time_us, last_time_us, term, run, closed_run, groups,
        ) = _SEAL_BEGIN.unpack_from(value)  # fmt: skip
        link = Link(last, chain, last_time_us, term, run, closed_run)
        if form == SEAL_FORMAT:
            id_next, channels_new, producers_new, unclean_run, pages, _ = _SEAL.unpack(value)[13:]
            old = None
        else:
            *delta, pages, _ = _OLD_SEAL.unpack(value)[13:]
            id_next = channels_new = producers_new = unclean_run = 0
            old = OldDelta(*delta)
        return cls(
            first, predecessor, previous_chain, first_time_us, link, groups,
            id_next, channels_new, producers_new, unclean_run, pages, old,
        )  # fmt: skip


class Segment:
    """One file of the journal and what is known of it.

    Attributes:
        ordinal: its place in the chain of segments, from 1; later segments have greater ones.
        path: its file.
        file: its environment.
        first: the number of its first good group, 0 while it has none.
        last: the place in the chain after its last good group; greater groups in the file are void.
        index: where its chunks stand; None once it is sealed, and its index is in its pages.
        bytes: the sum of its groups' sizes; 0 when it was sealed before this process began.
        seal: what it says of itself; None until it is sealed.
        tables: what it changed in the tables; None while that is in the memory of who appends to it alone.
        tables_last: the last group that `tables` knows of, 0 while there are none.
        seal_begun: whether its file may hold rows of a seal that was cut short; no group may be appended behind them.
        gone: whether it is in the archive and its file is being removed: whoever fails to read it looks there.

    Groups are appended by the commit thread alone, which then moves `last`: readers never look past it. All else is
    set before the segment is shared, or by the sealer when it is sealed.
    """

    def __init__(
        self, ordinal: int, path: Path, map_bytes: int, open_files: OpenFiles, *, sealed: bool = False
    ) -> None:
        self.ordinal = ordinal
        self.path = path
        self.file = EnvironmentFile(path, map_bytes, readonly=sealed, open_files=open_files)
        self.first = 0
        self.first_time_us = 0
        self.predecessor = Link()
        self.last = Link()
        self.groups = 0
        self.bytes = 0
        self.index: SegmentIndex | None = None if sealed else SegmentIndex()
        self.seal: Seal | None = None
        self.tables: SegmentTables | None = None
        self.tables_last = 0
        self.seal_begun = False
        self.gone = False

    @property
    def complete(self) -> bool:
        """Whether it gets no more groups: it is sealed, or was about to be."""
        return self.sealed or self.seal_begun

    @property
    def sealed(self) -> bool:
        """Whether its index and table delta are in its file and nothing is written to it any more."""
        return self.index is None

    @property
    def empty(self) -> bool:
        """Whether it has no good group."""
        return self.first == 0

    # --- Writing --------------------------------------------------------------------------------------------------

    def append(self, number: int, value: Buffer) -> None:
        """Store a group, synced; the commit thread only.

        One put in one transaction: LMDB gives the interpreter lock away at every step, so their number is what a
        commit costs beside a busy loop.

        Raises:
            AppendError: nothing is stored (`handed_over` False), or it may be (True).
            StorageError: the file cannot be opened.
        """
        handed_over = False
        try:
            with self.file.writing() as environment:
                transaction = environment.begin(None, None, True, False)
                try:
                    if not transaction.put(group_key(number), value, append=True, overwrite=False):
                        raise AssertionError(f"group {number} is not past the last one of {self.path}")
                    handed_over = True
                    transaction.commit()
                finally:
                    # After a commit, good or bad, there is nothing left to abort, and this does nothing.
                    transaction.abort()
        except lmdb.Error as cause:
            raise append_error(cause, self.path, 2 * len(value), handed_over=handed_over) from cause

    def extend(self, predecessor: Link, header: GroupHeader, value: Buffer) -> None:
        """Take a stored group into what is known of the segment; readers see it from here on.

        Raises:
            StorageError: its chunks contradict those before it. MemoryError. Nothing has changed then.
        """
        if self.index is None:
            raise AssertionError(f"group {header.number} for the sealed {self.path}")
        # Made before: once the index names the group's chunks, nothing may keep the group from being the last one.
        last = Link.after(header)
        try:
            self.index.add(value)
        except GroupDamaged as damage:
            raise damaged(self.path, header.number, damage) from damage
        if self.empty:
            self.first_time_us = last.time_us
            self.predecessor = predecessor
            self.first = last.number
        self.groups += 1
        self.bytes += len(value)
        self.last = last

    def write_seal(self, rows: Iterable[tuple[bytes, bytes]], seal_of: Callable[[int], Seal]) -> tuple[Seal, int]:
        """Store the rows of a seal, and then the seal, synced: without it the rows are nothing.

        Args:
            rows: ascending, each made when it is its turn.
            seal_of: makes the seal, from the number of index pages that there were.

        Returns:
            The seal, and the syncs that it took.

        What the file holds is synced first. After a failed commit the disk may have either of two meta pages, and the
        next transaction would write over pages that the failed one leads to: a loss of power in the midst of it would
        leave a file that cannot be read.

        Raises:
            StorageError: the file cannot be opened.
            lmdb.Error: it was not stored, and what was of its rows is removed by the next attempt.
            MemoryError: as that.
        """
        with self.file.writing() as environment:
            environment.sync(True)
            syncs = 1 + SYNCS_PER_COMMIT * self._remove_rows(environment)
            pages = 0
            left = iter(rows)
            more = True
            while more:
                with environment.begin(write=True) as transaction:
                    more, count = _put_rows(transaction, left)
                    pages += count
                    if not more:
                        seal = seal_of(pages)
                        transaction.put(SEAL_KEY, seal.pack())
                syncs += SYNCS_PER_COMMIT
        return seal, syncs

    def _remove_rows(self, environment: lmdb.Environment) -> bool:
        """Remove what a seal that was cut short has left; tell whether there was anything."""
        with environment.begin() as transaction, transaction.cursor() as cursor:
            if not cursor.set_range(FILTER_KEY):
                return False
        with environment.begin(write=True) as transaction, transaction.cursor() as cursor:
            left = cursor.set_range(FILTER_KEY)
            while left:
                left = cursor.delete()
        return True

    def adopt_seal(self, seal: Seal) -> None:
        """Know the segment by its seal, as start-up does.

        Raises:
            StorageError: STORAGE_CORRUPT when the table delta of a seal of format 1 is not what was written.
        """
        if seal.old is not None:
            delta = self._old_delta(seal.old)
            self.tables = MemoryTables(delta)
            seal = replace(
                seal,
                id_next=delta.id_next,
                channels_new=delta.channels_new,
                producers_new=delta.producers_new,
                unclean_run=delta.unclean_run,
            )
        else:
            self.tables = SealedTables(self.path)
        self.seal = seal
        self.tables_last = seal.last.number
        self.first = seal.first
        self.first_time_us = seal.first_time_us
        self.predecessor = Link(seal.predecessor, seal.previous_chain)
        self.last = seal.last
        self.groups = seal.groups
        self.index = None

    # --- Reading --------------------------------------------------------------------------------------------------

    def read_seal(self) -> Seal | None:
        """Return the seal, None when the segment is not sealed; for a file that nobody writes to."""
        value = read_row(self.path, SEAL_KEY)
        return None if value is None else Seal.unpack(value, self.path)

    def _old_delta(self, said: OldDelta) -> TableDelta:
        """Return the table delta that a segment of seal format 1 keeps in one row."""
        entries = read_row(self.path, OLD_DELTA_KEY)
        if entries is None or len(entries) != said.bytes or crc32c_of(entries) != said.crc:
            raise corrupt(self.path, "its table delta's checksum or size is wrong")
        delta = TableDelta()
        try:
            delta.add_entries(entries)
        except GroupDamaged as damage:
            raise corrupt(self.path, f"its table delta: {damage.reason}: offset {damage.offset}") from damage
        return delta

    def table_entries(self) -> Iterator[tuple[int, bytes]]:
        """Yield (channel, its entries) in the order of ids, for every channel that the segment changed.

        Entries are whole: CHANNEL if it was announced here, EPOCH for each that began here, then HEAD, or TRIM when
        there is nothing else; or DROP alone.

        Raises:
            StorageError: STORAGE_CORRUPT when a page is not what was written.
        """
        for key, entries in self._known_tables().items(CHANNELS):
            yield int.from_bytes(key, "big"), entries

    def line_entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield (producer, its LINE entry) in the order of producers; as `table_entries`."""
        yield from self._known_tables().items(LINES)

    def rest_entries(self) -> Iterator[bytes]:
        """Yield RUN, CLOSE and the entries of kinds that are not known, in the order of their groups."""
        for _, entry in self._known_tables().items(REST):
            yield entry

    def _known_tables(self) -> SegmentTables:
        if self.tables is None:
            raise AssertionError(f"{self.path} is not sealed")
        return self.tables

    def find(
        self, channel: int, after_sequence: int, bytes_max: int, before_sequence: int = SEQUENCE_MAX
    ) -> list[Place]:
        """Return where the chunks of a channel stand whose last sequence is past `after_sequence`.

        Args:
            channel: its id.
            after_sequence: 0 for all of them.
            bytes_max: as of `SegmentIndex.find`: at least one is returned if there is any.
            before_sequence: only chunks that begin before it.
        """
        # Sealing sets `index` to None at any time; what was taken before stays right.
        index = self.index
        if index is not None:
            return index.find(channel, after_sequence, bytes_max, before_sequence)
        # Most segments have nothing of most channels: that much is known without looking into the file.
        if isinstance(self.tables, SealedTables) and not self.tables.filter.has_channel(channel):
            return []
        places: list[Place] = []
        with self._rows() as tree:
            for page in self._pages_from(tree, channel, after_sequence):
                try:
                    found, more = find_in_page(page, channel, after_sequence, max(bytes_max, 0), before_sequence)
                except GroupDamaged as damage:
                    raise corrupt(self.path, f"an index page of channel {channel}: its checksum is wrong") from damage
                for place in found:
                    if places and bytes_max < place[3]:
                        return places
                    bytes_max -= place[3]
                    places.append(place)
                if not more or (places and bytes_max <= 0):
                    break
        return places

    def _rows(self) -> AbstractContextManager[TreeReader]:
        """Hold the rows of the sealed segment; its file is open for writing a little longer, and nobody writes."""
        return self.file.rows() if self.file.readonly else reading_tree(self.path, scattered=True)

    def _pages_from(self, tree: TreeReader, channel: int, after_sequence: int) -> Iterator[bytes]:
        """Yield the index pages from the one on that may hold the channel's chunk after a sequence."""
        wanted = INDEX_KEY + page_key(channel, min(after_sequence + 1, SEQUENCE_MAX))
        # The page that begins last at or before what is wanted, or else the first page there is.
        rows = tree.range_back(wanted + b"\0", INDEX_KEY, 1, 0) or tree.range(wanted, INDEX_END, 1, 0)
        while rows:
            key, page = rows[0]
            # A page under another key than its own would be found by the wrong channels only.
            first = page_key(int.from_bytes(page[16:24], "little"), int.from_bytes(page[24:32], "little"))
            if key[len(INDEX_KEY) :] != first:
                raise corrupt(self.path, f"the index page of channel {channel} has another key than its first entry")
            yield page
            rows = tree.range(key + b"\0", INDEX_END, 1, 0)

    def cut(self, channel: int, places: list[Place]) -> list[tuple[int, int, bytes]]:
        """Copy chunks out by their places.

        Returns:
            (group number, index in it, chunk) for each place.

        Raises:
            StorageError: STORAGE_CORRUPT when one is not what was written.
        """
        # Of a file that nobody writes to a few pages are read, and proved, where LMDB may see none before all are.
        if self.file.readonly:
            with self.file.rows() as tree:
                return [self._cut(tree.find, channel, place) for place in places]
        with self.file.reading() as transaction:
            return [self._cut(transaction.get, channel, place) for place in places]

    def _cut(self, find: Callable[[bytes], Buffer | None], channel: int, place: Place) -> tuple[int, int, bytes]:
        """Copy a chunk out of its group, which is found by its key."""
        number, index = place[0], place[1]
        group = find(group_key(number))
        if group is None:
            raise corrupt(self.path, f"group {number} is missing")
        try:
            return number, index, cut_chunk(group, channel, place)
        except GroupDamaged as damage:
            raise damaged(self.path, number, damage) from damage

    def groups_from(self, transaction: lmdb.Transaction[memoryview], number: int) -> Iterator[tuple[int, memoryview]]:
        """Yield (number, group) for the good groups from a number on; views end with the transaction."""
        cursor = transaction.cursor()
        if not cursor.set_range(group_key(number)):
            return
        for key, value in cursor.iternext(keys=True, values=True):
            found = group_number(key)
            if found is None or found > self.last.number:
                return
            yield found, value


def _put_rows(transaction: lmdb.Transaction[Any], rows: Iterator[tuple[bytes, bytes]]) -> tuple[bool, int]:
    """Put what one transaction of a seal writes; tell whether there may be more, and how many were index pages."""
    pages = size = 0
    for key, row in rows:
        transaction.put(key, row, append=True)
        pages += key.startswith(INDEX_KEY)
        size += len(row)
        if size >= SEAL_BYTES_AT_ONCE:
            return True, pages
    return False, pages


def seal_rows(index: SegmentIndex, delta: TableDelta) -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows that a seal stands for, ascending; neither may change meanwhile.

    A segment with a chunk in each of very many channels has as much of them as a third of its groups, so they are made
    one after the other.
    """
    yield FILTER_KEY, delta.filter()
    index_pages = index.pages()
    index_pages.reverse()
    while index_pages:
        key, page = index_pages.pop()
        yield INDEX_KEY + key, page
    for kind in sorted(PAGE_KEYS, key=PAGE_KEYS.__getitem__):
        for low, page in delta.pages(kind):
            yield PAGE_KEYS[kind] + low, page


def open_segment(path: Path, map_bytes: int = 1 << 30) -> Segment:
    """Open a sealed segment to read it, in whichever process.

    Args:
        path: its file.
        map_bytes: the address space to reserve for it, at least its size.

    Raises:
        StorageError: STORAGE_CORRUPT when it is not sealed or damaged, STORAGE_FORMAT when a newer version wrote it.
    """
    match = re.fullmatch(r"([0-9a-f]{16})" + re.escape(SUFFIX), path.name)
    if match is None:
        raise corrupt(path, "its name is no segment's")
    segment = Segment(int(match[1], 16), path, map_bytes, OpenFiles(1), sealed=True)
    seal = segment.read_seal()
    if seal is None:
        raise corrupt(path, "it has no seal")
    segment.adopt_seal(seal)
    return segment
