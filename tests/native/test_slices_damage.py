"""`broker_native.slices` over segments and archives that are not what was written.

Whatever is changed, a merger makes the rows that it would have made, or says what is wrong. What a flipped bit changes
is found by a checksum or by the walk of the tree; what is consistent in itself and cannot be is found by what it says.
"""

from __future__ import annotations

import random
import shutil
import struct
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from broker.log.environment import open_lmdb, reading_tree
from broker.model.errors import StorageError
from broker_native.btree import TreeDamaged
from broker_native.crc32c import crc32c_of
from broker_native.rows import pack_row
from broker_native.slices import SliceDamaged, SliceMerger, SliceSource, channel_first, channel_totals
from tests.native.starve import refusals
from tests.reference.groups import (
    Group,
    build_entry,
    build_group,
    channel_entry,
    chunk_of,
    drop_entry,
    epoch_entry,
    head_entry,
    parse_group,
    trim_entry,
)
from tests.sizes import size
from tests.unit.log.archives import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Rows = dict[bytes, bytes]

FLIPS = size("BROKER_SLICE_FLIPS", 800, 100_000)
"""Bits that are flipped, in a segment and in an archive."""
CHANGES = size("BROKER_SLICE_CHANGES", 1_500, 100_000)
"""Changes under a right checksum, of each kind of row."""
WHOLE = 1 << 40
MAP_BYTES = 1 << 30
WRONG = (SliceDamaged, StorageError, TreeDamaged, LookupError)
CHANNELS = range(1, 40)


def groups_of(number: int, first: int, entries: tuple[int, ...] = ()) -> Group:
    """Return a group with a chunk for each channel, the first of them large."""
    chunks = tuple(
        chunk_of(channel, 1, first, [bytes([channel]) * (3_000 if channel == 1 else 40)] * 2, 1_000 * number)
        for channel in CHANNELS
    )
    born = [build for each in entries for build in (channel_entry(each, f"room.{each}"), epoch_entry(each, 1, 1))]
    return Group(number, number - 1, 0, tuple(born), chunks)


def chained(groups: list[Group]) -> list[Group]:
    """Return groups that follow each other, as the sealer takes them."""
    made: list[Group] = []
    for group in groups:
        previous = made[-1] if made else Group(0, 0)
        made.append(
            parse_group(build_group(Group(group.number, previous.number, previous.chain, group.entries, group.chunks)))
        )
    return made


@dataclass(frozen=True)
class Segment:
    """A sealed segment.

    Attributes:
        rows: by key.
        last, groups, pages: what its seal says.
    """

    rows: Rows
    last: int
    groups: int
    pages: int


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder in memory if there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="broker-slices-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def segments(scratch: Path) -> list[Segment]:
    """Two segments of the same channels, sealed as the product seals them."""
    first = [groups_of(1, 1, tuple(CHANNELS)), groups_of(2, 3)]
    trimmed = groups_of(3, 5)
    entries = (trim_entry(2, 4), drop_entry(3), channel_entry(50, "room.50"), epoch_entry(50, 1, 1))
    kept = tuple(chunk for chunk in trimmed.chunks if chunk.channel != 3)
    second = [Group(3, 2, 0, entries, kept), groups_of(4, 7)]
    second[1] = Group(4, 3, 0, (), tuple(chunk for chunk in second[1].chunks if chunk.channel != 3))
    return sealed(scratch / "journal", [first, second])


def sealed(folder: Path, parts: list[list[Group]]) -> list[Segment]:
    """Seal segments, and read all their rows."""
    journal = Journal(folder)
    (folder / "journal").mkdir(parents=True)
    whole = chained([group for part in parts for group in part])
    made = []
    for part in parts:
        journal.add(whole[: len(part)])
        whole = whole[len(part) :]
        segment = journal.segments[-1]
        assert segment.seal is not None
        with reading_tree(segment.path) as tree:
            rows = dict(tree.range(b"", b"", WHOLE, WHOLE))
        made.append(Segment(rows, segment.seal.last.number, segment.seal.groups, segment.seal.pages))
    return made


def write(path: Path, rows: Rows) -> Path:
    """Write a file with these rows."""
    path.unlink(missing_ok=True)
    environment = open_lmdb(path, MAP_BYTES, locks=False)
    with environment.begin(write=True) as transaction:
        for key, value in sorted(rows.items()):
            transaction.put(key, value)
    environment.close()
    return path


def merge(segment: Path, seal: Segment, archive: Path, dirty_max: int = WHOLE) -> list[tuple[object, ...]]:
    """Merge a segment into an archive that stays as it is; returns the rows of each transaction."""
    made: list[tuple[object, ...]] = []
    with ExitStack() as files:
        tree = files.enter_context(reading_tree(segment))
        stored = files.enter_context(reading_tree(archive))
        merger = SliceMerger([SliceSource(tree, seal.last, seal.groups, seal.pages, None)])
        for _ in range(100):
            rows = merger.merge(stored, dirty_max)
            made.append((rows.deletes, rows.names, rows.channels, rows.chunks, rows.records_added, rows.bytes_added))
            if rows.done:
                break
    return made


def archive_rows(made: list[tuple[object, ...]]) -> Rows:
    """Return what an archive has after a first slice."""
    (rows,) = made
    return dict([*rows[1], *rows[2], *rows[3]]) | {b"\0": pack_row(b"\0", b"something")}  # type: ignore[misc]


@pytest.fixture(scope="module")
def stored(scratch: Path, segments: list[Segment]) -> Rows:
    """An archive with the first segment."""
    empty = write(scratch / "empty.mdb", {b"\0": pack_row(b"\0", b"something")})
    return archive_rows(merge(write(scratch / "first.seg", segments[0].rows), segments[0], empty))


@pytest.mark.parametrize("where", ["segment", "archive"])
def test_no_flipped_bit_is_taken_over(scratch: Path, segments: list[Segment], stored: Rows, where: str) -> None:
    files = {
        "segment": write(scratch / "second.seg", segments[1].rows),
        "archive": write(scratch / "archive.mdb", stored),
    }
    expected = merge(files["segment"], segments[1], files["archive"])
    content = files[where].read_bytes()
    pick, found = random.Random(f"flips {where}"), 0
    for _ in range(FLIPS):
        at = pick.randrange(len(content))
        files[where].write_bytes(content[:at] + bytes([content[at] ^ 1 << pick.randrange(8)]) + content[at + 1 :])
        try:
            made = merge(files["segment"], segments[1], files["archive"])
        except WRONG:
            found += 1
        else:
            # It was where nobody had to look, or in what only statistics come from.
            assert [each[:4] for each in made] == [each[:4] for each in expected], at
    assert found > FLIPS // 20


def change_page(pick: random.Random, value: bytes) -> bytes:
    """Change a page somewhere, mostly at its ends, and make its checksum right."""
    changed = bytearray(value)
    for _ in range(pick.randint(1, 2)):
        at = pick.choice((pick.randrange(8, min(len(changed), 80)), pick.randrange(8, len(changed)), len(changed) - 1))
        changed[at] = pick.choice((0, 1, 2, changed[at] ^ 1, 255, pick.randrange(256)))
    if pick.random() < 0.1:
        del changed[pick.randrange(8, len(changed)) :]
    struct.pack_into("<I", changed, 0, len(changed) - (pick.random() < 0.02))
    struct.pack_into("<I", changed, 4, crc32c_of(bytes(changed[8:])))
    return bytes(changed)


@pytest.mark.parametrize("kind", [b"index", b"table", b"\0"])
def test_what_is_consistent_and_cannot_be_is_refused(
    scratch: Path, segments: list[Segment], stored: Rows, kind: bytes
) -> None:
    """Pages and groups under right checksums: refused, or merged without a crash."""
    archive = write(scratch / "archive.mdb", stored)
    rows = segments[1].rows
    keys = [key for key in rows if key.startswith(kind)]
    pick, reasons = random.Random(f"changes {kind!r}"), set()
    for number in range(CHANGES):
        key = pick.choice(keys)
        changed = dict(rows)
        if number % 20 == 0:
            del changed[key]
        elif kind == b"\0":
            group = bytearray(rows[key])
            at = pick.choice((pick.randrange(96), pick.randrange(len(group))))
            group[at] = pick.choice((0, 255, group[at] ^ 1))
            changed[key] = bytes(group[: pick.choice((len(group), pick.randrange(120)))])
        else:
            changed[key] = change_page(pick, rows[key])
        try:
            merge(write(scratch / "changed.seg", changed), segments[1], archive)
        except SliceDamaged as damage:
            reasons.add(damage.reason)
    assert len(reasons) >= {b"index": 3, b"table": 3, b"\0": 3}[kind], reasons


def test_rows_of_an_archive_that_contradict_each_other_are_refused(
    scratch: Path, segments: list[Segment], stored: Rows
) -> None:
    """Rows under right checksums, rows that are missing, and rows under other keys: refused, or merged."""
    segment = write(scratch / "second.seg", segments[1].rows)
    keys = [key for key in stored if len(key) > 1]
    pick, reasons = random.Random("archive"), set()
    for number in range(CHANGES):
        key = pick.choice(keys)
        changed = dict(stored)
        value = changed.pop(key)
        if number % 10 == 1:
            changed[key[:-1] + bytes([pick.randrange(256)])] = value
        elif number % 10:
            changed[key] = change_row(pick, key, value)
        try:
            merge(segment, segments[1], write(scratch / "archive.mdb", changed))
        except SliceDamaged as damage:
            reasons.add((damage.source, damage.reason))
    assert {(None, "channel row"), (0, "sequence order"), (None, "table entry")} <= reasons


def change_row(pick: random.Random, key: bytes, value: bytes) -> bytes:
    """Change a row of an archive, and make its checksum right."""
    if key[0] == 0x10:
        return change_page(pick, value)
    body = bytearray(value[4:])
    at = pick.choice((pick.randrange(min(len(body), 8)), pick.randrange(len(body)), len(body) - 8))
    body[at] = pick.choice((0, 1, 2, 255, body[at] ^ 1))
    return pack_row(key, bytes(body[: pick.choice((len(body), len(body), pick.randrange(len(body) + 1)))]))


# --- What each of them is ---------------------------------------------------------------------------------------------


def page(items: bytes, low: bytes = b"", bound: bytes = b"", end: int | None = None) -> bytes:
    """Return a table page with a right checksum."""
    end = 32 + len(items) if end is None else end
    body = struct.pack("<IIIIII", 0x42415442, 1, 2, end, len(low), len(bound)) + items + low + bound
    return struct.pack("<II", 8 + len(body), crc32c_of(body)) + body


def index_page(*entries: bytes) -> bytes:
    """Return an index page with a right checksum."""
    body = struct.pack("<II", 0x58444942, len(entries)) + b"".join(entries)
    return struct.pack("<II", 8 + len(body), crc32c_of(body)) + body


Change = tuple[str, "Callable[[Rows], Rows]"]


def one(key: bytes, value: Callable[[bytes], bytes]) -> Callable[[Rows], Rows]:
    """Change a single row; the first whose key begins so."""

    def change(rows: Rows) -> Rows:
        at = next(each for each in sorted(rows) if each.startswith(key))
        return {**rows, at: value(rows[at])}

    return change


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("page checksum", one(b"index", lambda value: index_page())),
        # A chunk of a group that was before the first of the segment.
        ("chunk place", one(b"index", lambda value: index_page(value[16:32] + struct.pack("<Q", 1) + value[40:56]))),
        ("table entry", one(b"table", lambda value: page(b"12345678901"))),
        ("page checksum", one(b"table", lambda value: index_page())),
        ("page checksum", one(b"table", lambda value: page(b"", end=31))),
        ("page checksum", one(b"table", lambda value: page(b"", end=34))),
        ("count of rows", one(b"table", lambda value: page(value[32:], bound=b"more"))),
        ("count of rows", one(b"table", lambda value: page(value[32:], low=b"less"))),
        ("count of rows", lambda rows: {**rows, b"table1": page(b"", low=b"1")}),
        ("count of rows", lambda rows: {**rows, b"table": page(rows[b"table"][32:], bound=b"1"),
                                        b"table2": page(b"", low=b"2")}),
        ("count of rows", lambda rows: {**rows, b"\0" * 7 + b"\3" b"more": b""}),
        ("chunk place", lambda rows: {**rows, b"\0" * 7 + b"\1": rows[b"\0" * 7 + b"\3"]}),
        ("count of rows", lambda rows: {**rows, b"\0" * 7 + b"\1": b"BGRP" + bytes(4) + b"\1" + bytes(99)}),
        ("sequence order", one(b"index", lambda value: index_page(*[value[at : at + 40] for at in
                                                                     range(56, len(value), 40)]))),
    ],
)  # fmt: skip
def test_each_damage_has_its_name(
    scratch: Path, segments: list[Segment], stored: Rows, reason: str, change: Callable[[Rows], Rows]
) -> None:
    archive = write(scratch / "archive.mdb", stored)
    changed = write(scratch / "changed.seg", change(segments[1].rows))
    with pytest.raises(SliceDamaged, match=reason) as damage:
        merge(changed, segments[1], archive)
    assert damage.value.source == 0


@pytest.mark.parametrize(
    "change",
    [
        # A void group behind the last good one, as a segment that was given up may hold.
        lambda rows: {**rows, b"\0" * 7 + b"\5": b"void"},
        # Rows of other kinds, whatever their keys are.
        lambda rows: {**rows, b"Another.": b"eight bytes", b"june": b"", b"other": b"", b"zzzzzzzz": b""},
        # More pages than are needed, one of them empty.
        lambda rows: {
            **rows,
            b"table": page(b"", bound=b"1"),
            b"table1": page(rows[b"table"][32:], low=b"1"),
        },
    ],
)
def test_what_changes_nothing_is_passed_over(
    scratch: Path, segments: list[Segment], stored: Rows, change: Callable[[Rows], Rows]
) -> None:
    archive = write(scratch / "archive.mdb", stored)
    expected = merge(write(scratch / "second.seg", segments[1].rows), segments[1], archive)
    assert merge(write(scratch / "changed.seg", change(segments[1].rows)), segments[1], archive) == expected


def test_a_group_is_found_by_its_place(scratch: Path, segments: list[Segment]) -> None:
    with reading_tree(write(scratch / "second.seg", segments[1].rows)) as tree:
        seal = segments[1]
        source = SliceSource(tree, seal.last, seal.groups, seal.pages, None)
        assert [source.group(index)[0] for index in range(len(source))] == [3, 4]
        assert bytes(source.group(1)[1]) == seal.rows[b"\0" * 7 + b"\4"]


def channel_key(channel: int) -> bytes:
    return b"\2" + channel.to_bytes(8, "big")


def chunk_key(channel: int, first: int) -> bytes:
    return b"\x10" + channel.to_bytes(8, "big") + first.to_bytes(8, "big")


def without_chunks(rows: Rows, channel: int) -> Rows:
    return {key: value for key, value in rows.items() if not key.startswith(chunk_key(channel, 0)[:9])}


def channel_row(channel: int, *entries: bytes, chunks: int = 1) -> bytes:
    """Return a row of a channel."""
    body = struct.pack("<HHQQ", 1, 0, 100, chunks) + b"".join(entries)
    return pack_row(channel_key(channel), body)


@pytest.mark.parametrize("channel", [1, 2, 39])
def test_a_channel_without_the_chunks_that_it_counts_is_damaged(
    scratch: Path, segments: list[Segment], stored: Rows, channel: int
) -> None:
    """Whatever stands where they should: another channel's, another kind of row, or the end."""
    segment = write(scratch / "second.seg", segments[1].rows)
    for more in ({}, {b"\x10short": b"", b"\x20" + bytes(16): b"another kind"}):
        rows = without_chunks(stored, channel) | more
        if channel == 39 and not more:
            rows = {key: value for key, value in rows.items() if key[0] != 0x10}
            rows |= {channel_key(each): channel_row(each, chunks=0) for each in CHANNELS if each != channel}
        with pytest.raises(SliceDamaged) as damage:
            merge(segment, segments[1], write(scratch / "archive.mdb", rows))
        assert damage.value.source is None or damage.value.reason == "sequence order"


def drop_of(channel: int, scratch: Path) -> tuple[Path, Segment]:
    """Return a sealed segment that drops a channel."""
    (made,) = sealed(scratch / f"drop {channel}", [[Group(1, 0, 0, (drop_entry(channel),))]])
    return write(scratch / f"drop {channel}.seg", made.rows), made


def test_rows_of_a_dropped_channel_that_are_not_all_there(scratch: Path, stored: Rows) -> None:
    """A name that leads elsewhere by now stays; no name, no chunks and no totals hold nothing up."""
    segment, seal = drop_of(5, scratch)
    key, name = channel_key(5), b"\1room.5"
    head = build_entry(head_entry(5, 1, 5, 1))
    elsewhere = pack_row(name, (6).to_bytes(8, "little"))
    others = {each: value for each, value in stored.items() if each != name}
    for rows, deleted in (
        (stored, [chunk_key(5, 1), key, name]),
        ({**stored, name: elsewhere}, [chunk_key(5, 1), key]),
        ({**stored, name: pack_row(name, b"short")}, [chunk_key(5, 1), key]),
        (others, [chunk_key(5, 1), key]),
        ({**stored, key: channel_row(5, head, chunks=0)}, [chunk_key(5, 1), key]),
        ({each: value for each, value in others.items() if each[0] != 1}, [chunk_key(5, 1), key]),
        ({key: channel_row(5, head)}, [key]),
        ({b"\0": stored[b"\0"]}, []),
    ):
        ((found, *_),) = merge(segment, seal, write(scratch / "archive.mdb", rows))
        assert found == deleted


def test_rows_of_another_kind_end_a_channel(scratch: Path, stored: Rows) -> None:
    segment, seal = drop_of(39, scratch)
    rows = {**stored, b"\x20" + bytes(16): b"as long a key as a chunk's"}
    ((found, *_),) = merge(segment, seal, write(scratch / "archive.mdb", rows))
    assert found == [chunk_key(39, 1), channel_key(39), b"\1room.39"]


def test_records_that_do_not_cover_their_chunk_are_damage(scratch: Path, stored: Rows) -> None:
    """Under a right checksum: whoever wrote it was wrong."""
    chunk = chunk_of(9, 1, 1, [b"x"])
    born = (channel_entry(9, "nine"), epoch_entry(9, 1, 1))
    (seal,) = sealed(scratch / "uncovered", [[Group(1, 0, 0, born, (replace(chunk, count=2),))]])
    empty = write(scratch / "empty.mdb", {b"\0": stored[b"\0"]})
    with pytest.raises(SliceDamaged, match="chunk checksum"):
        merge(write(scratch / "uncovered.seg", seal.rows), seal, empty)


def test_a_trim_into_what_comes_leaves_what_is_behind_it(scratch: Path) -> None:
    """Of a channel of which the archive has nothing left."""
    key, head = channel_key(2), build_entry(head_entry(2, 1, 5, 5))
    chunk = chunk_of(2, 1, 5, [b"x"] * 4)
    (seal,) = sealed(scratch / "trimmed", [[Group(1, 0, 0, (trim_entry(2, 7),), (chunk,))]])
    rows = {b"\0": pack_row(b"\0", b"something"), key: channel_row(2, head, chunks=0)}
    (made,) = merge(write(scratch / "trimmed.seg", seal.rows), seal, write(scratch / "archive.mdb", rows))
    found = archive_rows([made])
    assert (made[0], channel_first(found[key]), made[4]) == ([], 7, 2)
    assert chunk_key(2, 7) in found


def test_chunks_of_an_archive_past_the_channels_end_are_damage(scratch: Path, stored: Rows) -> None:
    """The last row ends where the channel does: one that begins behind that cannot be."""
    segment, seal = drop_of(6, scratch)
    far = stored[chunk_key(6, 1)]
    moved = {**stored, channel_key(6): channel_row(6, build_entry(head_entry(6, 1, 5, 1)))}
    with pytest.raises(SliceDamaged, match="channel row"):
        merge(segment, seal, write(scratch / "archive.mdb", {**moved, chunk_key(6, 9): far}))


def test_an_older_trim_and_a_second_announcement_are_taken_as_they_come(scratch: Path) -> None:
    """A segment's entries in their order: the greatest trim counts, and the newest announcement."""
    entries = (channel_entry(1, "a"), channel_entry(1, "a"), epoch_entry(1, 1, 1), trim_entry(1, 3), trim_entry(1, 2))
    chunk = chunk_of(1, 1, 1, [b"x"] * 5)
    (seal,) = sealed(scratch / "twice", [[Group(1, 0, 0, entries, (chunk,))]])
    with ExitStack() as files:
        tree = files.enter_context(reading_tree(write(scratch / "twice.seg", seal.rows)))
        empty = files.enter_context(reading_tree(write(scratch / "empty.mdb", {b"\0": pack_row(b"\0", b"something")})))
        packed = b"".join(map(build_entry, (*entries, head_entry(1, 1, 6, 1), *entries[:1])))
        tables = struct.pack("<QI", 1, len(packed)) + packed
        rows = SliceMerger([SliceSource(tree, 1, 1, seal.pages, tables)]).merge(empty, WHOLE)
        ((_, row),) = rows.channels
        assert (channel_first(row), rows.records_added) == (3, 3)


def test_chunks_alone_begin_where_they_begin(scratch: Path, segments: list[Segment]) -> None:
    """Of a journal whose beginning is not known, without a single entry."""
    seal = segments[1]
    with ExitStack() as files:
        tree = files.enter_context(reading_tree(write(scratch / "second.seg", seal.rows)))
        empty = files.enter_context(reading_tree(write(scratch / "empty.mdb", {b"\0": pack_row(b"\0", b"something")})))
        rows = SliceMerger([SliceSource(tree, seal.last, seal.groups, seal.pages, b"")]).merge(empty, WHOLE)
    assert rows.names == []
    assert {channel_first(row) for _, row in rows.channels} == {5}


def test_want_of_memory_for_the_places_of_groups_is_said(scratch: Path, segments: list[Segment]) -> None:
    seal = segments[1]
    with reading_tree(write(scratch / "second.seg", seal.rows)) as tree:
        assert refusals(lambda: lambda: SliceSource(tree, seal.last, seal.groups, seal.pages, None)) > 1


def test_a_deletion_that_does_not_fit_goes_on_in_the_next_transaction(scratch: Path) -> None:
    """A dropped channel of very many rows keeps its row until the last of them is gone."""
    head = build_entry(head_entry(7, 1, 5_001, 1))
    rows = {channel_key(7): channel_row(7, head, chunks=5_000)}
    rows |= {chunk_key(7, first): b"" for first in range(1, 5_001)}
    segment, seal = drop_of(7, scratch)
    archive = write(scratch / "archive.mdb", rows)
    ((deletes, _, channels, *_),) = merge(segment, seal, archive)[:1]
    assert deletes == [chunk_key(7, first) for first in range(1, 4_097)]
    assert channels == []


# --- Rows, for a rebuild ----------------------------------------------------------------------------------------------


def test_the_first_sequence_and_the_totals_of_a_row() -> None:
    head, epoch = build_entry(head_entry(9, 1, 8, 3)), build_entry(epoch_entry(9, 1, 1))
    key, row = channel_key(9), channel_row(9, build_entry(channel_entry(9, "a")), epoch, head)
    assert channel_first(row) == 3
    changed = channel_totals(key, row, 1_234, 5)
    assert changed == pack_row(key, struct.pack("<HHQQ", 1, 0, 1_234, 5) + row[24:])
    for wrong in (channel_row(9), channel_row(9, epoch, epoch), channel_row(9, bytes(40)),
                  channel_row(9, struct.pack("<IHH", 99, 2, 0) + bytes(40))):  # fmt: skip
        with pytest.raises(ValueError, match="nothing of its first sequence"):
            channel_first(wrong)
    with pytest.raises(ValueError, match="too short"):
        channel_totals(key, row[:23], 1, 1)
