"""`broker_native.slices` against its twin.

However groups are cut into segments, slices and transactions, and wherever a slice is cut short and repeated, the
archive ends with the same channels.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.log.environment import open_lmdb
from broker_native.rows import pack_row, row_body
from broker_native.slices import SliceDamaged, SliceMerger, SliceSource, newest_transaction, split_delta
from broker_native.tree import MappedFile, TreeReader
from tests.reference.chunks import Item, items_of
from tests.reference.groups import (
    Chunk,
    Entry,
    Group,
    build_chunk,
    build_entry,
    build_group,
    channel_entry,
    chunk_of,
    epoch_entry,
    head_entry,
    line_entry,
    parse_group,
    run_entry,
)
from tests.reference.slices import (
    Model,
    drop_entry,
    parse_channel_row,
    tables_of,
    trim_entry,
    write_segment,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MAP_BYTES = 1 << 30
WHOLE = 1 << 40
HOUR_US = 3_600_000_000


class Maker:
    """Makes a journal from a seed: publishes, epochs, trims, drops and new channels under names that were freed."""

    def __init__(self, seed: int, names: int, payload_bytes: int) -> None:
        self.pick = random.Random(seed)
        self.payload_bytes = payload_bytes
        self.names = [f"room.{name}" for name in range(names)]
        self.ids: dict[str, int] = {}
        self.next: dict[int, int] = {}
        self.first: dict[int, int] = {}
        self.epoch: dict[int, int] = {}
        self.id_next = 1
        self.time_us = 1_767_225_600_000_000
        self.last = Group(0, 0)

    def group(self) -> Group:
        """Return the next group."""
        entries: list[Entry] = []
        chunks: list[Chunk] = []
        number = self.last.number + self.pick.choice((1, 1, 1, 3))
        self.time_us += self.pick.choice((1_000, 1_000, 50_000_000, 2 * HOUR_US))
        for name in self.pick.sample(self.names, self.pick.randint(1, len(self.names))):
            if name in self.ids and self.pick.random() < 0.1:
                self._remove(name, entries)
            else:
                chunks += self._publish(name, number, entries)
        group = Group(number, self.last.number, self.last.chain, tuple(entries), tuple(chunks), time_us=self.time_us)
        self.last = parse_group(build_group(group))
        return self.last

    def _remove(self, name: str, entries: list[Entry]) -> None:
        number = self.ids[name]
        if self.pick.random() < 0.3:
            entries.append(drop_entry(number))
            del self.ids[name]
        elif self.first[number] < self.next[number]:
            self.first[number] = self.pick.randint(self.first[number] + 1, self.next[number])
            entries.append(trim_entry(number, self.first[number]))

    def _publish(self, name: str, group: int, entries: list[Entry]) -> list[Chunk]:
        if name not in self.ids:
            number = self.ids[name] = self.id_next
            self.id_next += self.pick.choice((1, 1, 5))
            self.next[number] = self.first[number] = 1
            self.epoch[number] = 0
            entries.append(channel_entry(number, name))
        number = self.ids[name]
        if self.epoch[number] == 0 or self.pick.random() < 0.1:
            self.epoch[number] = group
            entries.append(epoch_entry(number, group, self.next[number]))
        size = self.pick.choice((0, 1, self.payload_bytes // 10, self.payload_bytes))
        payloads = [self.pick.randbytes(size)] * self.pick.randint(1, 6)
        chunk = chunk_of(number, self.epoch[number], self.next[number], payloads, self.time_us)
        self.next[number] = chunk.last + 1
        return [chunk]


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder in memory if there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="broker-slices-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


class Archive:
    """An archive that the merger's rows are put into; totals are kept beside it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.path = folder / "archive.mdb"
        self.environment = open_lmdb(self.path, MAP_BYTES, locks=False)
        with self.environment.begin(write=True) as transaction:
            transaction.put(b"\0", pack_row(b"\0", b"something"))
        self.mapped = MappedFile(str(self.path), MAP_BYTES)
        self.channels = self.records = self.bytes = 0
        self.segments = 0

    def close(self) -> None:
        self.mapped.close()
        self.environment.close()
        shutil.rmtree(self.folder)

    def reader(self) -> TreeReader:
        return TreeReader(self.mapped, int(self.environment.info()["last_txnid"]))

    def sources(self, segments: list[list[Group]]) -> list[SliceSource]:
        return [self.source(groups) for groups in segments]

    def source(self, groups: list[Group]) -> SliceSource:
        self.segments += 1
        path = self.folder / f"{self.segments}.seg"
        pages = write_segment(path, groups)
        mapped = MappedFile(str(path), path.stat().st_size)
        path.unlink()
        reader = TreeReader(mapped, newest_transaction(mapped))
        return SliceSource(reader, groups[-1].number, len(groups), pages, tables_of(groups))

    def take(self, segments: list[list[Group]], dirty_max: int, transactions_max: int) -> bool:
        """Archive a slice, or the first transactions of it; tell whether it is done."""
        merger = SliceMerger(self.sources(segments))
        for _ in range(transactions_max):
            rows = merger.merge(self.reader(), dirty_max)
            assert [key for key, _ in rows.channels] == sorted({key for key, _ in rows.channels})
            assert [key for key, _ in rows.chunks] == sorted({key for key, _ in rows.chunks})
            with self.environment.begin(write=True) as transaction:
                for key in rows.deletes:
                    assert transaction.delete(key)
                for key, value in [*rows.names, *rows.channels, *rows.chunks]:
                    transaction.put(key, value)
            self.channels += rows.channels_added
            self.records += rows.records_added
            self.bytes += rows.bytes_added
            if rows.done:
                return True
        return False

    def rows(self) -> dict[bytes, bytes]:
        with self.environment.begin() as transaction:
            rows = {bytes(key): bytes(value) for key, value in transaction.cursor() if len(key) > 1}
        for key, value in rows.items():
            row_body(key, value)
        return rows


def plain(items: list[Item]) -> list[Item]:
    """Items without what depends on the chunk that they stand in."""
    return [replace(item, record=replace(item.record, time_us=0)) for item in items]


def judge(archive: Archive, model: Model) -> None:
    """Compare an archive with what it must be."""
    rows = archive.rows()
    names = {key[1:].decode(): int.from_bytes(value[4:], "little") for key, value in rows.items() if key[0] == 1}
    assert names == {
        channel.created[20:].decode(): number for number, channel in model.channels.items() if channel.created
    }
    stored = {int.from_bytes(key[1:], "big"): parse_channel_row(value) for key, value in rows.items() if key[0] == 2}
    assert stored.keys() == model.channels.keys()
    chunks: dict[int, list[bytes]] = {number: [] for number in stored}
    for key, value in rows.items():
        if key[0] == 0x10:
            chunks[int.from_bytes(key[1:9], "big")].append(value)
    for number, channel in model.channels.items():
        row = stored[number]
        assert row.created == channel.created
        assert row.epochs == channel.epochs
        assert row.head == channel.head()
        assert (row.chunks, row.chunks_bytes) == (len(chunks[number]), sum(map(len, chunks[number])))
        items = [item for chunk in chunks[number] for item in items_of(chunk)]
        cut = [item.within(channel.first - 1, channel.next) for item in items]
        assert plain([item for item in cut if item is not None]) == plain(channel.kept())
        # Nothing but the first row reaches below `first`.
        for chunk in chunks[number]:
            parsed = items_of(chunk)
            assert parsed[-1].next_sequence > channel.first
            assert len(chunk) <= 16_368 or len(parsed) == 1
    assert archive.channels == len(stored)
    assert archive.bytes == sum(row.chunks_bytes for row in stored.values())
    assert archive.records == sum(
        item.record.run for found in chunks.values() for chunk in found for item in items_of(chunk)
    )


def cut(pick: random.Random, whole: list[Group]) -> list[list[Group]]:
    """Cut groups into segments."""
    segments: list[list[Group]] = []
    while whole:
        size = pick.randint(1, len(whole))
        segments.append(whole[:size])
        whole = whole[size:]
    return segments


@settings(deadline=None, max_examples=120)
@given(
    st.integers(0, 1 << 32),
    st.integers(1, 24),
    st.sampled_from([1, 4, 12]),
    st.sampled_from([10, 300, 5_000, 20_000]),
    st.sampled_from([1, 5_000, WHOLE]),
    st.booleans(),
)
@example(1, 24, 4, 300, 1, True)
@example(2, 24, 12, 5_000, 1, True)
def test_any_cut_comes_to_the_same(
    scratch: Path, seed: int, groups: int, names: int, payload_bytes: int, dirty_max: int, interrupted: bool
) -> None:
    maker = Maker(seed, names, payload_bytes)
    made = [maker.group() for _ in range(groups)]
    segments = cut(maker.pick, made)
    model = Model()
    for group in made:
        model.apply(group)
    archive = Archive(scratch / "case")
    try:
        at = 0
        while at < len(segments):
            end = maker.pick.randint(at + 1, len(segments))
            if interrupted and not archive.take(segments[at:end], dirty_max, maker.pick.randint(0, 4)):
                # Repeated as far as it went, or further.
                end = maker.pick.randint(end, len(segments))
            assert archive.take(segments[at:end], dirty_max, 1 << 30)
            at = end
        judge(archive, model)
    finally:
        archive.close()


@dataclass(frozen=True)
class Journal:
    """One channel whose groups publish payloads of given sizes, one segment each."""

    sizes: tuple[tuple[int, ...], ...]

    def segments(self) -> list[list[Group]]:
        made: list[list[Group]] = []
        first = 1
        for at, sizes in enumerate(self.sizes):
            chunk = chunk_of(7, 1, first, [bytes(size - 12) for size in sizes], 1_000 + at)
            first = chunk.last + 1
            entries = (channel_entry(7, "a.b"), epoch_entry(7, 1, 1)) if at == 0 else ()
            made.append([Group(at + 1, at, 0, entries, (chunk,))])
        return made


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        # Within a leaf page rows are extended.
        ([(844,), (1000,)], [1900]),
        ([(844,), (1001,)], [900, 1057]),
        # A record more that has no room begins another row; the last one is left as it was.
        ([(1844,), (100,)], [1900, 156]),
        # Half as much as is there is worth rewriting it, if its pages get full.
        ([(1800,), (900, 400)], [3156]),
        ([(1800,), (400, 100)], [1856, 556]),
        ([(1000, 100), (400, 300, 300)], [1856, 356]),
        # What comes fills whole pages, or leaf pages with what is left.
        ([(100,) * 200], [16_356, 3_756]),
        ([(20_000,)], [20_056]),
        ([(500,), (20_000,)], [556, 20_056]),
    ],
)  # fmt: skip
def test_rows_grow_while_that_is_cheap(scratch: Path, sizes: list[tuple[int, ...]], rows: list[int]) -> None:
    archive = Archive(scratch / "case")
    try:
        for segment in Journal(tuple(sizes)).segments():
            archive.take([segment], WHOLE, 1 << 30)
        found = [len(value) for key, value in archive.rows().items() if key[0] == 0x10]
        assert found == rows
    finally:
        archive.close()


def test_many_rows_are_deleted_in_several_transactions(scratch: Path) -> None:
    """4,096 of a channel at a time; `first` follows them, so a pass that was cut short goes on."""
    payloads = [bytes(8_200)] * 4_200
    groups = [Group(1, 0, 0, (channel_entry(1, "a"), epoch_entry(1, 1, 1)), (chunk_of(1, 1, 1, payloads),))]
    more = [Group(2, 1, 0, (trim_entry(1, 4_150),), (chunk_of(1, 1, 4_201, [b"x"]),))]
    archive = Archive(scratch / "case")
    try:
        archive.take([groups], WHOLE, 1)
        before = len(archive.rows())
        assert not archive.take([more], WHOLE, 1)
        assert len(archive.rows()) == before - 4_096
        assert parse_channel_row(archive.rows()[b"\2" + (1).to_bytes(8, "big")]).head[2] == 4_097
        assert archive.take([more], WHOLE, 1 << 30)
        model = Model()
        for group in [*groups, *more]:
            model.apply(group)
        judge(archive, model)
        assert archive.take([[Group(3, 2, 0, (drop_entry(1),))]], WHOLE, 1 << 30)
        assert archive.rows() == {}
    finally:
        archive.close()


def test_names_what_is_wrong(scratch: Path) -> None:
    archive = Archive(scratch / "case")
    try:
        first, second = Journal(((100,), (100,))).segments()
        archive.take([first], WHOLE, 1 << 30)
        gap = [replace(second[0], chunks=(replace(second[0].chunks[0], first=3),))]
        with pytest.raises(SliceDamaged) as damage:
            archive.take([gap], WHOLE, 1)
        assert (damage.value.reason, damage.value.source, damage.value.group) == ("sequence order", 0, 2)
        # An index page that is missing, though the tree is whole.
        path = archive.folder / "lost.seg"
        pages = write_segment(path, second)
        mapped = MappedFile(str(path), path.stat().st_size)
        source = SliceSource(TreeReader(mapped, newest_transaction(mapped)), 2, 1, pages + 1, tables_of(second))
        with pytest.raises(SliceDamaged, match="count of rows"):
            SliceMerger([source]).merge(archive.reader(), WHOLE)
        # A head that no chunk reaches.
        headless = [replace(second[0], chunks=())]
        pages = write_segment(archive.folder / "headless.seg", headless)
        mapped = MappedFile(str(archive.folder / "headless.seg"), 1 << 20)
        source = SliceSource(TreeReader(mapped, newest_transaction(mapped)), 2, 1, pages, tables_of(second))
        with pytest.raises(SliceDamaged, match="sequence order"):
            SliceMerger([source]).merge(archive.reader(), WHOLE)
    finally:
        archive.close()


@pytest.mark.parametrize("what", ["chunk", "archive"])
def test_a_flipped_bit_is_not_taken_over(scratch: Path, what: str) -> None:
    """Records get a new checksum when they go into another row, so the old one is proved before."""
    archive = Archive(scratch / "case")
    try:
        first, second = Journal(((100, 100), (100,))).segments()
        archive.take([first], WHOLE, 1 << 30)
        key = b"\x10" + (7).to_bytes(8, "big") + (1).to_bytes(8, "big")
        if what == "archive":
            with archive.environment.begin(write=True) as transaction:
                value = bytearray(transaction.get(key) or b"")
                value[-1] ^= 1
                transaction.put(key, bytes(value))
            with pytest.raises(SliceDamaged, match="channel row"):
                archive.take([second], WHOLE, 1)
            return
        path = archive.folder / "flipped.seg"
        pages = write_segment(path, second)
        content = bytearray(path.read_bytes())
        at = content.index(build_chunk(second[0].chunks[0]))
        content[at + 60] ^= 1
        path.write_bytes(content)
        mapped = MappedFile(str(path), len(content))
        source = SliceSource(TreeReader(mapped, newest_transaction(mapped)), 2, 1, pages, tables_of(second))
        with pytest.raises(SliceDamaged, match="chunk checksum"):
            SliceMerger([source]).merge(archive.reader(), WHOLE)
    finally:
        archive.close()


def test_a_delta_is_sorted_by_channel() -> None:
    entries = [
        channel_entry(9, "nine"), channel_entry(2, "two"), epoch_entry(9, 5, 1), head_entry(9, 5, 4, 1),
        head_entry(2, 0, 1, 1),
    ]  # fmt: skip
    line, run = line_entry(bytes(16), 1, 1, [(2, 1, 1)]), run_entry(3, clean=False)
    tables, lines, rest = split_delta(b"".join(map(build_entry, [*entries, line, run])))
    order = [[1, 4], [0, 2, 3]]
    wanted = b""
    for number, places in zip((2, 9), order, strict=True):
        body = b"".join(build_entry(entries[place]) for place in places)
        wanted += number.to_bytes(8, "little") + len(body).to_bytes(4, "little") + body
    assert (tables, lines, rest) == (wanted, [build_entry(line)], [build_entry(run)])


@pytest.mark.parametrize("size", [1, 7, 20, 39])
def test_a_delta_that_is_cut_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="table delta"):
        split_delta(build_entry(head_entry(2, 0, 1, 1))[:size])
