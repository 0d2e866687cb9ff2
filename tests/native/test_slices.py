"""`broker_native.slices` against its twin.

However groups are cut into segments, slices and transactions, and wherever a slice is cut short and repeated, the
archive ends with the same channels.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.log.environment import open_lmdb, reading_tree
from broker_native.rows import pack_row
from broker_native.slices import SliceDamaged, SliceMerger, SliceRows, SliceSource
from broker_native.tree import MappedFile, TreeReader
from tests.native.starve import refusals
from tests.reference.groups import (
    Group,
    build_chunk,
    build_entry,
    channel_entry,
    chunk_of,
    drop_entry,
    epoch_entry,
    head_entry,
    trim_entry,
)
from tests.reference.slices import (
    Maker,
    Model,
    judge,
    parse_channel_row,
    tables_of,
    write_segment,
)
from tests.sizes import size

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    import lmdb

MAP_BYTES = 1 << 30
EXAMPLES = size("BROKER_SLICE_EXAMPLES", 50, 20_000)
"""Cuts of journals that are tried."""
WHOLE = 1 << 40
TURNS = 3
"""Rows are made so many times in one transaction, when there are as many."""


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
        self.files = ExitStack()

    def close(self) -> None:
        self.files.close()
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
        return self.open(path, write_segment(path, groups), groups)

    def open(self, path: Path, pages: int, groups: list[Group]) -> SliceSource:
        reader = self.files.enter_context(reading_tree(path))
        return SliceSource(reader, groups[-1].number, len(groups), pages, tables_of(groups))

    def take(self, segments: list[list[Group]], dirty_max: int, transactions_max: int) -> bool:
        """Archive a slice, or the first transactions of it; tell whether it is done."""
        merger = SliceMerger(self.sources(segments))
        progress = 0.0
        for _ in range(transactions_max):
            reader = self.reader()
            with self.environment.begin(write=True) as transaction:
                for _ in range(TURNS):
                    rows = merger.merge(reader, dirty_max)
                    self.put(transaction, rows)
                    assert progress <= (progress := merger.progress()) <= 1.0
                    if rows.full or rows.done:
                        break
            if rows.done:
                assert progress == 1.0
                return True
        return False

    def put(self, transaction: lmdb.Transaction, rows: SliceRows) -> None:
        """Write rows, and count what they change."""
        assert [key for key, _ in rows.channels] == sorted({key for key, _ in rows.channels})
        assert [key for key, _ in rows.chunks] == sorted({key for key, _ in rows.chunks})
        for key in rows.deletes:
            assert transaction.delete(key)
        for key, value in [*rows.names, *rows.channels, *rows.chunks]:
            transaction.put(key, value)
        self.channels += rows.channels_added
        self.records += rows.records_added
        self.bytes += rows.bytes_added

    def judge(self, model: Model) -> None:
        """Compare the archive and its totals with what they must be."""
        assert judge(self.rows(), model) == (self.channels, self.records, self.bytes)

    def rows(self) -> dict[bytes, bytes]:
        with self.environment.begin() as transaction:
            rows = {bytes(key): bytes(value) for key, value in transaction.cursor() if len(key) > 1}
        return rows


def cut(pick: random.Random, whole: list[Group]) -> list[list[Group]]:
    """Cut groups into segments."""
    segments: list[list[Group]] = []
    while whole:
        size = pick.randint(1, len(whole))
        segments.append(whole[:size])
        whole = whole[size:]
    return segments


@settings(deadline=None, max_examples=EXAMPLES)
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
        archive.judge(model)
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
        archive.judge(model)
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
        source = archive.open(path, pages + 1, second)
        with pytest.raises(SliceDamaged, match="count of rows"):
            SliceMerger([source]).merge(archive.reader(), WHOLE)
        # A head that no chunk reaches.
        headless = [replace(second[0], chunks=())]
        pages = write_segment(archive.folder / "headless.seg", headless)
        source = archive.open(archive.folder / "headless.seg", pages, second)
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
        source = archive.open(path, pages, second)
        with pytest.raises(SliceDamaged, match="chunk checksum"):
            SliceMerger([source]).merge(archive.reader(), WHOLE)
    finally:
        archive.close()


def test_the_judge_sees_what_is_wrong(scratch: Path) -> None:
    """Each of these is what a merger with one mistake would leave."""
    maker = Maker(5, 4, 300)
    groups = [maker.group() for _ in range(12)]
    model = Model()
    for group in groups:
        model.apply(group)
    archive = Archive(scratch / "case")
    try:
        archive.take([groups], WHOLE, 1 << 30)
        rows = archive.rows()
    finally:
        archive.close()
    judge(rows, model)
    chunk, channel, name = (next(key for key in rows if key[0] == kind) for kind in (0x10, 0x02, 0x01))
    other = next(key for key in rows if key[0] == 0x02 and key != channel)
    body = rows[name][4:]
    planted: list[dict[bytes, bytes]] = [
        {key: value for key, value in rows.items() if key != chunk},
        {key: value for key, value in rows.items() if key != channel},
        {key: value for key, value in rows.items() if key != name},
        {**rows, name: pack_row(name, bytes([body[0] ^ 1]) + body[1:])},
        {**rows, channel: pack_row(channel, rows[other][4:])},
        {**rows, chunk: rows[chunk][:-1] + bytes([rows[chunk][-1] ^ 1])},
        {**rows, b"\2" + (999).to_bytes(8, "big"): pack_row(b"\2" + (999).to_bytes(8, "big"), rows[other][4:])},
    ]
    for wrong in planted:
        with pytest.raises((AssertionError, KeyError, ValueError)):
            judge(wrong, model)


def test_want_of_memory_is_said(scratch: Path) -> None:
    maker = Maker(9, 6, 5_000)
    made = [[maker.group() for _ in range(6)] for _ in range(2)]
    model = Model()
    for group in [*made[0], *made[1]]:
        model.apply(group)
    archive = Archive(scratch / "case")
    try:
        archive.take(made[:1], WHOLE, 1 << 30)
        path = archive.folder / "starved.seg"
        pages = write_segment(path, made[1])

        def merging() -> Callable[[], object]:
            merger, reader = SliceMerger([archive.open(path, pages, made[1])]), archive.reader()
            return lambda: merger.merge(reader, WHOLE)

        assert refusals(merging) > 6
        source = archive.open(path, pages, made[1])
        assert refusals(lambda: lambda: SliceMerger([source])) > 2
        # Nothing of it was half done.
        archive.take(made[1:], WHOLE, 1 << 30)
        archive.judge(model)
    finally:
        archive.close()


def test_what_is_used_twice_or_not_at_all_is_refused(scratch: Path) -> None:
    archive = Archive(scratch / "case")
    try:
        (segment,) = Journal(((100,),)).segments()
        source = archive.source(segment)
        with pytest.raises(IndexError):
            source.group(1)
        with pytest.raises(ValueError, match="a slice needs a segment"):
            SliceMerger([])
        merger = SliceMerger([source])
        with pytest.raises(ValueError, match="already"):
            merger.__init__([source])  # type: ignore[misc]
        with pytest.raises(ValueError, match="already"):
            source.__init__(source.reader, 1, 1, 1, b"")  # type: ignore[misc, attr-defined]
    finally:
        archive.close()


@pytest.mark.parametrize(
    "entries",
    [
        b"\0" * 7,  # cut
        head_entry(7, 1, 2, 1).body,  # no size that can be
        build_entry(head_entry(8, 1, 2, 1)),  # another channel's
        build_entry(head_entry(7, 1, 2, 1))[:20],
    ],
)
def test_entries_that_cannot_be_are_refused(scratch: Path, entries: bytes) -> None:
    archive = Archive(scratch / "case")
    try:
        (segment,) = Journal(((100,),)).segments()
        path = archive.folder / "entries.seg"
        pages = write_segment(path, segment)
        reader = archive.files.enter_context(reading_tree(path))
        tables = (7).to_bytes(8, "little") + len(entries).to_bytes(4, "little") + entries
        merger = SliceMerger([SliceSource(reader, 1, 1, pages, tables)])
        with pytest.raises(SliceDamaged, match="table entry"):
            merger.merge(archive.reader(), WHOLE)
        with pytest.raises(SliceDamaged, match="table entry"):
            SliceSource(reader, 1, 1, pages, tables[:-1])
    finally:
        archive.close()
