"""`broker_native.archive`: the commit index against its twin, and reads that find no memory or no such thing.

What a whole archive answers is judged in tests/unit/log/test_archive.py, against a model.
"""

from __future__ import annotations

import random
import struct
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.log.environment import open_lmdb
from broker_native.archive import (
    ChunkMissing,
    GroupsPacker,
    find_bodies,
    find_channels,
    find_names,
    group_at,
    list_rows,
    read_chunks,
    read_chunks_back,
    read_groups,
    sequence_at,
    unpack_groups,
)
from broker_native.btree import TreeDamaged
from broker_native.rows import RowDamaged, pack_row
from broker_native.tree import MappedFile, TreeReader
from tests.native.starve import refusals
from tests.reference.archive import MAP_BYTES, ArchiveModel, big, pack_groups, replace_rows_in, sealed
from tests.reference.chunks import items_of
from tests.reference.frames import Record, build_record
from tests.reference.groups import Group, build_chunk, build_entry, build_group, chunk_of, head_entry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    Store: TypeAlias = Callable[[dict[bytes, bytes]], TreeReader]

TIME_US = 1_767_225_600_000_000
ALL = 1 << 40


# -- the commit index --------------------------------------------------------------------------------------------------

numbers = st.sampled_from([1, 2, 127, 128, 16383, 16384, 1 << 40])
chunks = st.builds(
    lambda channel, first, payloads: chunk_of(channel, 1, first, payloads),
    numbers,
    numbers,
    st.lists(st.just(b"x"), min_size=1, max_size=3),
)


@st.composite
def group_lists(draw: st.DrawFn) -> list[Group]:
    """Groups in the order of their numbers and times."""
    groups: list[Group] = []
    number, time_us = 0, draw(st.sampled_from([0, TIME_US]))
    for content in draw(st.lists(st.lists(chunks, max_size=3), max_size=8)):
        number += draw(numbers)
        time_us += draw(st.sampled_from([0, 1, 1 << 33]))
        groups.append(Group(number, number - 1, chunks=tuple(content), time_us=time_us))
    return groups


@given(group_lists(), st.sampled_from([0, 30, 60, 16368]))
def test_groups_are_packed_as_the_twin_packs_them(groups: list[Group], bytes_max: int) -> None:
    packer = GroupsPacker(bytes_max)
    rows = [packer.add(build_group(group)) for group in groups]
    rows.append(packer.finish())
    assert packer.finish() is None
    packed = dict(row for row in rows if row is not None)
    assert packed == pack_groups(groups, bytes_max)
    unpacked = [group for key, value in sorted(packed.items()) for group in unpack_groups(key, value)]
    assert unpacked == [
        (group.number, group.time_us, [(chunk.channel, chunk.first, chunk.count) for chunk in group.chunks])
        for group in groups
    ]


def test_a_packer_takes_groups_in_order_only() -> None:
    packer = GroupsPacker()
    packer.add(build_group(Group(5, 4)))
    for wrong in (b"", bytes(200), build_group(Group(5, 4)), build_group(Group(4, 3))):
        with pytest.raises(ValueError, match="group"):
            packer.add(wrong)
    row = packer.finish()
    assert row is not None
    assert unpack_groups(*row) == [(5, 0, [])]
    with pytest.raises(ValueError, match="group"):
        packer.add(build_group(Group(5, 4)))


def test_a_group_whose_chunks_leave_it_changes_nothing() -> None:
    packer = GroupsPacker()
    packer.add(build_group(Group(1, 0)))
    sound = build_group(Group(2, 1, chunks=(chunk_of(1, 1, 1, [b"x"]), chunk_of(2, 1, 1, [b"x"]))))
    overrun = bytearray(sound)
    overrun[96:100] = (1 << 20).to_bytes(4, "little")
    cut = bytearray(sound)
    cut[96:100] = (len(sound) - 96 - 20).to_bytes(4, "little")
    many = bytearray(sound)
    many[64:68] = (1 << 30).to_bytes(4, "little")
    for wrong in (overrun, cut, many):
        with pytest.raises(ValueError, match="chunks"):
            packer.add(wrong)
    row = packer.finish()
    assert row is not None
    assert unpack_groups(*row) == [(1, 0, [])]


def row_of(last: int, count: int, body: bytes) -> tuple[bytes, bytes]:
    key = b"\xf0" + big(last)
    return key, pack_row(key, struct.pack("<I", count) + body)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"", b""),
        (b"\x01a", pack_row(b"\x01a", bytes(8))),
        (b"\xf0short", pack_row(b"\xf0short", bytes(8))),
        (b"\xf0" + big(1), pack_row(b"\xf0" + big(1), b"\x01")),
        row_of(1, 0, b""),
        row_of(1, 1, b""),
        row_of(1, 1, b"\x01"),
        row_of(1, 1, b"\x01\x00"),
        row_of(1, 1, b"\x01\x00\x01"),
        row_of(1, 1, b"\x01\x00\x01\x07"),
        row_of(1, 1, b"\x01\x00\x01\x07\x01"),
        row_of(1, 1, b"\x01\x00\x01\x07\x00\x01"),
        row_of(1, 1, b"\x01\x00\x01\x07\x01\x00"),
        row_of(1, 1, b"\x01\x00\x01\x07" + b"\xff" * 9 + b"\x01" + b"\x01"),
        row_of(1, 1, b"\x00\x00\x00"),
        row_of(2, 1, b"\x01\x00\x00"),
        row_of(1, 1, b"\x01\x00\x00\x00"),
        row_of(1, 2, b"\x01\x00\x00\x00\x00\x00"),
        row_of(1, 1, b"\xff" * 10 + b"\x01\x00\x00"),
    ],
)
def test_rows_of_the_index_that_cannot_be(key: bytes, value: bytes) -> None:
    """Right checksums do not make them right."""
    with pytest.raises(RowDamaged):
        unpack_groups(key, value)


# -- reading -----------------------------------------------------------------------------------------------------------


def reader_of(path: Path) -> TreeReader:
    """Return the newest snapshot of a file that nobody writes to."""
    content = path.read_bytes()
    newest = max(int.from_bytes(content[at + 144 :][:8], "little") for at in (0, 4096))
    return TreeReader(MappedFile(str(path), MAP_BYTES), newest)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a function that writes rows, and no others, and reads them."""
    path = tmp_path / "archive.mdb"

    def write(rows: dict[bytes, bytes]) -> TreeReader:
        environment = open_lmdb(path, MAP_BYTES)
        replace_rows_in(environment, rows)
        environment.close()
        return reader_of(path)

    return write


def small_model() -> ArchiveModel:
    """Two channels, the first of them trimmed, in rows of several groups' chunks."""
    model = ArchiveModel()
    model.create(1, "one")
    model.create(2, "two")
    for number in range(1, 9):
        both = tuple(
            chunk_of(channel, 1, model.channels[channel].next, [b"a" * 30, b"b"], TIME_US + number)
            for channel in (1, 2)
        )
        model.commit(Group(number, number - 1, chunks=both, time_us=TIME_US + number))
    model.trim(1, 4)
    return model


def test_an_empty_file_answers(store: Store) -> None:
    reader = store({})
    assert find_bodies(reader, [b"a"]) == [None]
    assert find_names(reader, [b"a"]) == [0]
    assert find_channels(reader, [1]) == [b""]
    assert list_rows(reader, b"\x01", b"", 5) == []
    assert read_chunks(reader, 1, 0, ALL, 0) == read_chunks_back(reader, 1, 0, 5, ALL) == []
    assert read_groups(reader, 0, 0, ALL, None) == ([], (0, 0))
    assert group_at(reader, 0) is None
    assert sequence_at(reader, 1, 0) == 1


def test_keys_have_bounds(store: Store) -> None:
    reader = store({})
    for key in (b"", bytes(512)):
        with pytest.raises(ValueError, match="key: got"):
            find_bodies(reader, [key])
        with pytest.raises(ValueError, match="key: got"):
            list_rows(reader, key, b"", 5)
    with pytest.raises(ValueError, match="key: got"):
        list_rows(reader, b"\x01", b"\x02" * 512, 5)
    assert find_bodies(reader, [bytes(511)]) == [None]


def entries_row(channel: int, entries: bytes, form: int = 1) -> dict[bytes, bytes]:
    """Return a channel's row with some entries."""
    return sealed(b"\x02" + big(channel), form.to_bytes(2, "little") + bytes(18) + entries)


@pytest.mark.parametrize(
    "row",
    [
        sealed(b"\x02" + big(1), b"\x01"),
        entries_row(1, b"", form=2),
        entries_row(1, b""),
        entries_row(1, bytes(8)),
        entries_row(1, struct.pack("<IHH", 8, 4, 0)),
        entries_row(1, struct.pack("<IHH", 100, 4, 0)),
        entries_row(1, build_entry(head_entry(1, 1, 5, 0))),
        entries_row(1, build_entry(head_entry(1, 1, 5, 6))),
    ],
)
def test_channel_rows_that_cannot_be(store: Store, row: dict[bytes, bytes]) -> None:
    reader = store(row)
    for ask in (
        lambda: read_chunks(reader, 1, 0, ALL, 0),
        lambda: read_chunks_back(reader, 1, 0, 1, ALL),
        lambda: sequence_at(reader, 1, 0),
    ):
        with pytest.raises(RowDamaged):
            ask()


def test_a_name_is_of_one_size(store: Store) -> None:
    with pytest.raises(RowDamaged):
        find_names(store(sealed(b"\x01a", b"1234567")), [b"a"])


def test_a_flipped_key_is_not_an_absent_one(store: Store) -> None:
    """A row under a changed key stands beside the place where it is looked for, on either side."""
    names = [b"%04d" % number for number in range(0, 2000, 4)]
    rows: dict[bytes, bytes] = {}
    for name in names:
        rows |= sealed(b"\x01" + name, bytes(8))
    for changed, name in ((b"0998", b"1000"), (b"1002", b"1000"), (b"0000!", b"0000"), (b"1997", b"1996")):
        moved = dict(rows)
        moved[b"\x01" + changed] = moved.pop(b"\x01" + name)
        reader = store(moved)
        with pytest.raises(RowDamaged) as caught:
            find_names(reader, [name])
        assert caught.value.key == b"\x01" + changed
        with pytest.raises(RowDamaged):
            list_rows(reader, b"\x01", b"\x01" + name, 3)


def test_records_that_do_not_cover_their_sequences(store: Store) -> None:
    """A checksum does not prove that its writer could count."""
    model = small_model()
    rows = model.rows()
    for channel in (1, 2):
        key = b"\x10" + big(channel) + big(1)
        chunk = chunk_of(channel, 1, 1, [b"x"] * 15, TIME_US)
        rows[key] = build_chunk(type(chunk)(channel, 1, 1, 16, chunk.records, TIME_US))
    reader = store(rows)
    for ask in (
        lambda: read_chunks(reader, 1, 0, ALL, 0),
        lambda: read_groups(reader, 7, 1, ALL, {2}),
        lambda: sequence_at(reader, 2, TIME_US + 50),
    ):
        with pytest.raises(RowDamaged):
            ask()
    run = build_record(Record(gone=(1, 50)))
    reader = store(rows | {b"\x10" + big(2) + big(1): build_chunk(type(chunk)(2, 1, 1, 16, run, TIME_US))})
    with pytest.raises(RowDamaged):
        sequence_at(reader, 2, TIME_US + 50)


def test_damaged_rows_of_every_kind_are_refused(store: Store) -> None:
    rows = {b"\x02" + big(1): bytes(60), b"\x03" + bytes(16): bytes(60)}
    reader = store(rows)
    with pytest.raises(RowDamaged):
        find_bodies(reader, [b"\x03" + bytes(16)])
    with pytest.raises(RowDamaged):
        find_channels(reader, [1])


def test_more_rows_than_one_batch_holds(store: Store) -> None:
    rows: dict[bytes, bytes] = {}
    names = [b"%04d" % number for number in range(600)]
    for number, name in enumerate(names):
        rows |= sealed(b"\x01" + name, number.to_bytes(8, "little")) | entries_row(number, name)
    reader = store(rows)
    assert find_names(reader, names) == list(range(600))
    assert find_channels(reader, list(range(600))) == names
    assert find_bodies(reader, [b"\x01" + name for name in names]) == [
        number.to_bytes(8, "little") for number in range(600)
    ]
    assert [key[1:] for key, _ in list_rows(reader, b"\x01", b"", 599)] == names[:599]
    assert [key[1:] for key, _ in list_rows(reader, b"\x01", b"\x01" + names[9], 10**6)] == names[10:]


def test_a_channel_row_of_another_format_is_refused(store: Store) -> None:
    with pytest.raises(RowDamaged) as caught:
        find_channels(store(entries_row(7, b"", form=2)), [7])
    assert caught.value.key == b"\x02" + big(7)


def test_chunks_are_rows_too(store: Store) -> None:
    chunk = build_chunk(chunk_of(1, 1, 1, [b"x"], TIME_US))
    key = b"\x10" + big(1) + big(1)
    reader = store({key: chunk} | sealed(b"\x11", b"end"))
    assert find_bodies(reader, [key]) == [chunk]
    assert list_rows(reader, b"\x10", b"", 5) == [(key, chunk)]
    assert list_rows(reader, b"\x10" + big(2), b"", 5) == []


def head_row(first: int, following: int) -> dict[bytes, bytes]:
    return entries_row(1, build_entry(head_entry(1, 1, following, first)))


@pytest.mark.parametrize("after", [{}, sealed(b"\xf0" + big(1), b"\x01\x00\x00\x00\x01\x00\x00")])
def test_the_last_chunk_of_all_is_missing(store: Store, after: dict[bytes, bytes]) -> None:
    """Nothing, or a row of another kind, stands where it should."""
    chunk = build_chunk(chunk_of(1, 1, 1, [b"x"] * 3, TIME_US))
    reader = store(head_row(1, 5) | {b"\x10" + big(1) + big(1): chunk} | after)
    for after_sequence in (0, 3):
        with pytest.raises(ChunkMissing) as caught:
            read_chunks(reader, 1, after_sequence, ALL, 0)
        assert (caught.value.channel, caught.value.sequence) == (1, 4)
    assert read_chunks(reader, 1, 0, 1, 0) == [chunk]
    with pytest.raises(ChunkMissing):
        read_chunks(store(head_row(1, 5) | after), 1, 0, ALL, 0)


def test_sequences_that_wrap_around(store: Store) -> None:
    first = 2**64 - 2
    chunk = build_chunk(chunk_of(1, 1, first, [b"x"] * 5, TIME_US))
    reader = store(head_row(first, 2**64 - 1) | {b"\x10" + big(1) + big(first): chunk})
    with pytest.raises(RowDamaged):
        read_chunks(reader, 1, 0, ALL, 0)


GOOD = b"\x05\x05\x01\x01\x01\x01"


@pytest.mark.parametrize(
    "rows",
    [
        [row_of(1, 0, b"")],
        [row_of(5, 1, GOOD), row_of(9, 0, b"")],
        [row_of(5, 1, GOOD + b"\x00")],
        [row_of(6, 1, GOOD), row_of(9, 1, b"\x09\x09\x00")],
        [row_of(5, 1, b"\x05\x05\x02\x01\x01\x01\x01"), row_of(9, 1, b"\x09\x09\x00")],
        [row_of(5, 1, b"\x05\x05"), row_of(9, 1, b"\x09\x09\x00")],
        [(b"\xf0" + big(5), bytes(20))],
        [row_of(5, 1, GOOD), (b"\xf0" + big(6), bytes(20)), row_of(9, 1, b"\x09\x09\x00")],
    ],
)
def test_an_index_that_cannot_be_is_not_walked(store: Store, rows: list[tuple[bytes, bytes]]) -> None:
    reader = store(dict(rows))
    for ask in (lambda: read_groups(reader, 0, 0, ALL, None), lambda: group_at(reader, 8)):
        with pytest.raises(RowDamaged):
            ask()


def test_the_greatest_group_of_all(store: Store) -> None:
    greatest = 2**64 - 1
    packer = GroupsPacker()
    packer.add(build_group(Group(greatest, 1, time_us=7)))
    row = packer.finish()
    assert row is not None
    reader = store(dict([row]))
    assert [group_at(reader, moment) for moment in (0, 7, 8)] == [greatest, greatest, None]
    assert read_groups(reader, 0, 0, ALL, None) == ([], (greatest, 0))


def test_the_index_names_a_chunk_that_is_not_there(store: Store) -> None:
    rows = small_model().rows()
    reader = store({key: value for key, value in rows.items() if not key.startswith(b"\x10" + big(2))})
    with pytest.raises(ChunkMissing) as caught:
        read_groups(reader, 0, 0, ALL, {2})
    assert (caught.value.channel, caught.value.sequence) == (2, 1)


def test_one_group_is_one_chunk_however_rows_are_cut(store: Store) -> None:
    model = small_model()
    for row_bytes in (0, 150, 16368):
        reader = store(model.rows(row_bytes))
        found, place = read_groups(reader, 0, 0, ALL, None)
        assert place == (8, 1)
        assert [(group, index) for group, index, _ in found] == [
            (group, index) for group in range(1, 9) for index in (0, 1) if index or group > 1
        ]
        # Channel 1 begins with sequence 4, the second of its second chunk.
        assert [len(items_of(chunk)) for _, _, chunk in found] == [2, 1] + [2] * 13


def test_want_of_memory_leaves_nothing_behind(store: Store) -> None:
    model = small_model()
    model.line(bytes(16), 3, [(1, 1, 1)])
    reader = store(model.rows(150))
    group = build_group(model.groups[0])
    asks: list[Callable[[], object]] = [
        lambda: find_bodies(reader, [b"\x03" + bytes(16)]),
        lambda: find_names(reader, [b"one"]),
        lambda: find_channels(reader, [1]),
        lambda: list_rows(reader, b"\x01", b"", 5),
        lambda: read_chunks(reader, 1, 0, ALL, 0),
        lambda: read_chunks_back(reader, 1, 0, 50, ALL),
        lambda: read_groups(reader, 0, 0, ALL, None),
        lambda: GroupsPacker().add(group),
    ]
    for ask in asks:
        assert refusals(partial(identity, ask)) > 0


def identity(ask: Callable[[], object]) -> Callable[[], object]:
    return ask


def test_random_bytes_in_place_of_pages(tmp_path: Path) -> None:
    """Whatever a file holds, a read ends with an answer or an error, within the file."""
    pick = random.Random(3)
    model = small_model()
    path = tmp_path / "archive.mdb"
    model.write(path, 150, 40)
    content = path.read_bytes()
    reader = reader_of(path)
    for _ in range(200):
        page = pick.randrange(2, len(content) // 4096) * 4096
        begin, end = sorted(pick.randrange(4097) for _ in range(2))
        with path.open("r+b") as file:
            file.seek(page + begin)
            file.write(pick.randbytes(end - begin))
        for ask in (
            lambda: read_chunks(reader, 1, 0, ALL, 0),
            lambda: read_chunks_back(reader, 2, 0, 50, ALL),
            lambda: read_groups(reader, 0, 0, ALL, None),
            lambda: group_at(reader, TIME_US + 4),
            lambda: list_rows(reader, b"\x01", b"", 5),
        ):
            try:
                ask()
            except (RowDamaged, TreeDamaged, ChunkMissing):
                continue
        with path.open("r+b") as file:
            file.write(content)
