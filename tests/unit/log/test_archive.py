"""`broker.log.archive`: every answer of a snapshot against a model in dicts, and what becomes of damage."""

from __future__ import annotations

import random
import shutil
import threading
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.log.archive import Archive, Checkpoint, Snapshot, create_archive
from broker.log.archive_rows import CHECKPOINT_KEY, describe_key
from broker.log.environment import close_shared, open_lmdb, open_shared
from broker.model.errors import BrokerError, StorageCorrupt, StorageError
from broker_native.rows import pack_row
from tests.reference.archive import MAP_BYTES, ArchiveModel, replace_rows_in, sealed
from tests.reference.chunks import Item, items_of
from tests.reference.frames import Record, build_record
from tests.reference.groups import Chunk, Group, build_chunk, chunk_of
from tests.unit.log.archive_flips import Reading, build_model, flips, raw_questions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIME_US = 1_767_225_600_000_000
ALL = 1 << 40
GOLDEN = Path(__file__).parent / "data" / "archive-1.mdb"


BOTH_WAYS: list[Callable[[Snapshot], object]] = [
    lambda snapshot: snapshot.chunks(1, 0, ALL),
    lambda snapshot: snapshot.chunks_back(1, 0, 10**6, ALL),
]


def make_record(pick: random.Random) -> Record:
    """Return a record, or a run of what is gone."""
    if pick.random() < 0.1:
        return Record(time_us=pick.randrange(4), gone=(pick.choice((1, 2)), pick.randrange(1, 6)))
    return Record(
        payload=pick.randbytes(pick.choice((0, 5, 60))),
        time_us=pick.randrange(4),
        publisher=pick.choice((None, b"me")),
        expiry_s=pick.choice((None, 3)),
        key=pick.choice((None, b"key")),
    )


def make_archive(pick: random.Random) -> ArchiveModel:
    """Return an archive of some channels after some groups, trims and removals."""
    model = ArchiveModel()
    for channel in range(1, pick.randrange(1, 7) + 1):
        model.create(channel * 3, pick.choice(("a", "a.b", "chat", "z.z")) + f".{channel}")
    number, time_us, epoch = 0, TIME_US, 5
    for _ in range(pick.choice((0, 1, 3, 25))):
        number += pick.choice((1, 1, 3))
        time_us += pick.choice((0, 0, 1, 1000, 3_600_000_000))
        epoch += pick.choice((0, 0, 0, 1))
        chunks = []
        for channel in pick.sample(sorted(model.channels), pick.randrange(len(model.channels) + 1)):
            content = [make_record(pick) for _ in range(pick.randrange(1, 6))]
            content.sort(key=lambda record: record.time_us)
            count = sum(record.run for record in content)
            packed = b"".join(map(build_record, content))
            chunks.append(Chunk(channel, epoch, model.channels[channel].next, count, packed, time_us))
        # Times of a channel never go back, and a chunk's records are up to 3 µs later than it.
        time_us += 3
        model.commit(Group(number, number - 1, chunks=tuple(chunks), time_us=time_us))
    for channel in sorted(model.channels):
        end = pick.choice(("none", "none", "trim", "drop"))
        if end == "trim":
            model.trim(channel, pick.randrange(1, model.channels[channel].next + 1))
        elif end == "drop" and len(model.channels) > 1:
            model.drop(channel)
    for _ in range(pick.randrange(3)):
        model.line(pick.randbytes(16), pick.randrange(1, 9), [(3, 1, 2)] * pick.choice((1, 150)))
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    return tmp_path / "archive"


@pytest.fixture(scope="module")
def one_folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def written(folder: Path, model: ArchiveModel, row_bytes: int = 16368, index_bytes: int = 16368) -> Archive:
    """Return an archive that holds what a model holds."""
    path = folder / "archive.mdb"
    for file in folder.iterdir():
        file.unlink()
    model.write(path, row_bytes, index_bytes)
    return Archive(path)


def plain(items: list[Item]) -> list[Item]:
    """Return records by what they say: a record's own time counts from its chunk's, which merging changes."""
    return [replace(item, record=replace(item.record, time_us=0)) for item in items]


def all_items(chunks: list[bytes]) -> list[Item]:
    return plain([item for chunk in chunks for item in items_of(chunk)])


def first_of(chunk: bytes) -> int:
    return items_of(chunk)[0].sequence


def next_of(chunk: bytes) -> int:
    return items_of(chunk)[-1].next_sequence


@given(st.integers(0, 2**32), st.sampled_from([0, 150, 1900, 16368]), st.sampled_from([0, 60, 16368]))
@settings(max_examples=25, deadline=None)
def test_every_answer_is_the_models(one_folder: Path, seed: int, row_bytes: int, index_bytes: int) -> None:
    pick = random.Random(seed)
    model = make_archive(pick)
    archive = written(one_folder, model, row_bytes, index_bytes)
    try:
        with archive.snapshot() as snapshot:
            check_tables(snapshot, model)
            check_names(snapshot, model, pick)
            for channel in (*model.channels, 1000):
                check_channel(snapshot, model, channel, pick)
            for wanted in (None, set(), set(list(model.channels)[:2]), set(model.channels) | {77}):
                check_bus(snapshot, model, wanted, pick)
            check_times(snapshot, model)
    finally:
        archive.close()


def check_tables(snapshot: Snapshot, model: ArchiveModel) -> None:
    counted = replace(model.checkpoint, channels=len(model.channels), producers=len(model.lines))
    assert snapshot.checkpoint == counted
    ids = sorted([*model.channels, 1, 1000])
    assert snapshot.channels(ids) == [
        model.channels[channel].entries(channel) if channel in model.channels else b"" for channel in ids
    ]
    producers = sorted([*model.lines, bytes(16), b"\xff" * 16])
    assert snapshot.lines(producers) == [model.lines.get(producer, b"") for producer in producers]
    assert snapshot.producers(b"", 100) == sorted(model.lines.items())
    assert snapshot.producers(b"", 1) == sorted(model.lines.items())[:1]


def check_names(snapshot: Snapshot, model: ArchiveModel, pick: random.Random) -> None:
    by_name = {state.name.encode(): channel for channel, state in model.channels.items()}
    asked = sorted([*by_name, b"", b"a", b"zz", b"a.b.9" * 50, b"x" * 600])
    assert snapshot.ids(asked) == [by_name.get(name, 0) for name in asked]
    prefix = pick.choice([b"", b"a", b"a.", b"a.b.", b"chat", b"zzz"])
    after = pick.choice([b"", b"a.1", b"a.b", b"b", b"z", *by_name])
    count_max = pick.choice([0, 1, 2, 100])
    assert snapshot.names(prefix, after, count_max) == model.names(prefix, after)[:count_max]
    listed: list[tuple[bytes, int]] = []
    while page := snapshot.names(prefix, listed[-1][0] if listed else b"", 2):
        listed += page
    assert listed == model.names(prefix, b"")


def check_channel(snapshot: Snapshot, model: ArchiveModel, channel: int, pick: random.Random) -> None:
    state = model.channels.get(channel)
    items = plain(state.items()) if state is not None else []
    whole = snapshot.chunks(channel, 0, ALL)
    assert all_items(whole) == items
    head = state.next if state is not None else 5
    after, before = pick.randrange(head + 2), pick.randrange(head + 2)
    wanted = [chunk for chunk in whole if next_of(chunk) > after + 1 and (before == 0 or first_of(chunk) < before)]
    if before != 0 and after + 1 >= before:
        wanted = []
    assert snapshot.chunks(channel, after, ALL, before) == wanted
    bytes_max = pick.randrange(2000)
    # Sizes are those of the rows: one that is cut counts whole.
    uncut = state is None or state.first == 1
    if uncut:
        assert snapshot.chunks(channel, after, bytes_max, before) == within(wanted, bytes_max)
    listed: list[bytes] = []
    while page := snapshot.chunks(channel, next_of(listed[-1]) - 1 if listed else 0, bytes_max):
        listed += page
    assert listed == whole
    count = pick.randrange(20)
    end = min(before, head) if before else head
    low = max(end - count, state.first if state is not None else 1)
    back = [chunk for chunk in whole if first_of(chunk) < end and next_of(chunk) > low] if low < end else []
    assert snapshot.chunks_back(channel, before, count, ALL) == back
    if uncut:
        assert snapshot.chunks_back(channel, before, count, bytes_max) == within(back[::-1], bytes_max)[::-1]


def within(chunks: list[bytes], bytes_max: int) -> list[bytes]:
    """Return the chunks that a bound leaves: at least one if there is any."""
    taken: list[bytes] = []
    for chunk in chunks:
        if taken and sum(map(len, taken)) + len(chunk) > bytes_max:
            break
        taken.append(chunk)
    return taken


def check_bus(snapshot: Snapshot, model: ArchiveModel, wanted: set[int] | None, pick: random.Random) -> None:
    expected = [(group, index, channel, plain(items)) for group, index, channel, items in model.bus(wanted)]
    last = model.groups[-1] if model.groups else None
    end = (last.number, max(len(last.chunks) - 1, 0)) if last is not None else (0, 0)
    found, place = snapshot.groups(0, 0, ALL, wanted)
    assert said(found) == expected
    assert place == end
    assert snapshot.groups(*place, ALL, wanted) == ([], place)
    number = pick.randrange(end[0] + 2)
    index = pick.randrange(-1, 4)
    found, place = snapshot.groups(number, index, ALL, wanted)
    assert said(found) == [chunk for chunk in expected if chunk[:2] > (number, index)]
    bytes_max = pick.randrange(500)
    place, listed = (0, 0), []
    while True:
        found, after = snapshot.groups(*place, bytes_max, wanted)
        assert len(found) <= 1 or sum(len(chunk) for _, _, chunk in found) <= bytes_max
        listed += said(found)
        if after == place:
            break
        assert after > place
        place = after
    assert listed == expected
    assert place == end


def said(found: list[tuple[int, int, bytes]]) -> list[tuple[int, int, int, list[Item]]]:
    return [(group, index, int.from_bytes(chunk[8:16], "little"), all_items([chunk])) for group, index, chunk in found]


def check_times(snapshot: Snapshot, model: ArchiveModel) -> None:
    moments = {0, TIME_US, 2**63}
    for group in model.groups:
        moments |= {group.time_us - 1, group.time_us, group.time_us + 1}
    for moment in moments:
        assert snapshot.group_at(moment) == model.group_at(moment)
        for channel in (*model.channels, 1000):
            assert snapshot.sequence_at(channel, moment) == model.sequence_at(channel, moment)


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_one_call_looks_at_so_many_chunks_only(folder: Path) -> None:
    """And says how far it came, so that a reader of rare channels is not held up."""
    model = ArchiveModel()
    for channel in (1, 2):
        model.create(channel, f"c.{channel}")
    rows = sealed(
        b"\xf0" + (100).to_bytes(8, "big"),
        (100).to_bytes(4, "little") + b"".join(b"\x01\x01" + b"\xe8\x07" + b"\x02\x01\x01" * 1000 for _ in range(100)),
    )
    archive = written(folder, model)
    archive.close()
    environment = open_lmdb(archive.path, MAP_BYTES)
    replace_rows_in(environment, model.rows() | rows)
    environment.close()
    archive = Archive(archive.path)
    with archive.snapshot() as snapshot:
        found, place = snapshot.groups(0, 0, ALL, {1})
        assert found == []
        assert place == (66, 535)
        assert snapshot.groups(*place, ALL, {1}) == ([], (100, 999))
    archive.close()


def test_a_channel_of_many_chunks(folder: Path) -> None:
    """More than one batch without the lock holds, both ways."""
    model = ArchiveModel()
    model.create(1, "long")
    for number in range(1, 701):
        model.commit(Group(number, number - 1, chunks=(chunk_of(1, 1, number, [bytes(8000)], TIME_US + number),)))
    archive = written(folder, model, 0)
    with archive.snapshot() as snapshot:
        whole = snapshot.chunks(1, 0, ALL)
        assert [first_of(chunk) for chunk in whole] == list(range(1, 701))
        assert snapshot.chunks_back(1, 0, 10**9, ALL) == whole
        assert [chunk for _, _, chunk in snapshot.groups(0, 0, ALL, None)[0]] == whole
    archive.close()


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_new_archive_is_empty(tmp_path: Path) -> None:
    create_archive(tmp_path / "archive.mdb")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.mdb"]
    assert (tmp_path / "archive.mdb").stat().st_mode & 0o777 == 0o600
    archive = Archive(tmp_path / "archive.mdb")
    with archive.snapshot() as snapshot:
        assert snapshot.checkpoint == Checkpoint.empty()
        assert snapshot.names(b"", b"", 10) == []
    archive.close()


def test_what_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        create_archive(tmp_path / "missing" / "archive.mdb")


def test_a_snapshot_stays_as_it_is_while_others_write(folder: Path) -> None:
    model = build_model(2)
    archive = written(folder, model)
    environment = open_shared(archive.path, 1 << 42)
    with archive.snapshot() as snapshot:
        asked = deepcopy(model)
        assert Reading.of(snapshot, asked) == Reading.expected(asked)
        before = [ask(snapshot) for ask in raw_questions(asked)]
        for step in range(8):
            number = model.groups[-1].number + 1
            now_us = model.groups[-1].time_us + 1
            chunk = chunk_of(1, 9, model.channels[1].next, [b"new" * step], now_us)
            model.commit(Group(number, number - 1, chunks=(chunk,), time_us=now_us))
            model.trim(2, min(step, model.channels[2].next))
            replace_rows_in(environment, model.rows(150 + step, 200))
            assert [ask(snapshot) for ask in raw_questions(asked)] == before
    with archive.snapshot() as snapshot:
        assert Reading.of(snapshot, model) == Reading.expected(model)
        assert snapshot.checkpoint.group == number
    close_shared(archive.path)
    archive.close()


def test_many_threads_read_while_one_writes(folder: Path) -> None:
    """Each sees one state, whole: every group's record is in both channels or in none."""
    model = ArchiveModel()
    model.create(1, "one")
    model.create(2, "two")
    archive = written(folder, model)
    environment = open_shared(archive.path, 1 << 42)
    stop, wrong, read = threading.Event(), [], [0]

    def reader() -> None:
        while not stop.is_set():
            with archive.snapshot() as snapshot:
                group = snapshot.checkpoint.group
                heads = [
                    next_of(chunks[-1]) - 1 if chunks else 0
                    for chunks in (snapshot.chunks_back(channel, 0, 1, ALL) for channel in (1, 2))
                ]
                read[0] += 1
                if heads != [group, group]:
                    wrong.append((group, heads))

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, 25):
        chunks = tuple(chunk_of(channel, 1, number, [b"%d" % number], TIME_US + number) for channel in (1, 2))
        model.commit(Group(number, number - 1, chunks=chunks, time_us=TIME_US + number))
        replace_rows_in(environment, model.rows(150))
    stop.set()
    for thread in threads:
        thread.join()
    close_shared(archive.path)
    archive.close()
    assert wrong == []
    assert read[0] > 0


def test_a_new_file_of_the_name_is_read_after_reopen(folder: Path, tmp_path: Path) -> None:
    archive = written(folder, build_model(2))
    model = build_model(3)
    model.write(tmp_path / "new.mdb")
    (tmp_path / "new.mdb").rename(archive.path)
    with pytest.raises(ValueError, match="another file"):
        open_shared(archive.path, 1 << 42)
    archive.reopen()
    with archive.snapshot() as snapshot:
        assert snapshot.names(b"", b"", 10**6) == model.names(b"", b"")
    archive.close()


def test_reopen_waits_for_snapshots_and_holds_new_ones_up(folder: Path) -> None:
    archive = written(folder, build_model(2))
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with archive.snapshot():
            entered.set()
            leave.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(30)
    opener = threading.Thread(target=archive.reopen)
    opener.start()
    opener.join(0.05)
    assert opener.is_alive()
    late = threading.Thread(target=lambda: archive.snapshot().__enter__())
    late.start()
    leave.set()
    for thread in (holder, opener, late):
        thread.join(30)
        assert not thread.is_alive()


def test_a_closed_archive_says_so(folder: Path) -> None:
    archive = written(folder, build_model(2))
    archive.close()
    archive.close()
    with pytest.raises(BrokerError, match="closed"), archive.snapshot():
        pass


def test_an_archive_that_cannot_be_reopened_is_closed(folder: Path) -> None:
    archive = written(folder, build_model(2))
    archive.path.unlink()
    with pytest.raises(StorageError):
        archive.reopen()
    with pytest.raises(BrokerError, match="closed"), archive.snapshot():
        pass


def test_no_archive_and_no_room_for_readers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="absent"):
        Archive(folder / "absent.mdb")
    archive = written(folder, build_model(2))
    raise_in(archive, monkeypatch)
    with pytest.raises(StorageError), archive.snapshot():
        pass
    monkeypatch.undo()
    archive.close()


def raise_in(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LMDB refuse further transactions."""

    class Refusing:
        def begin(self, *_: object) -> None:
            raise lmdb.ReadersFullError("MDB_READERS_FULL")

    assert archive._opened is not None
    monkeypatch.setattr(archive._opened, "environment", Refusing())


# -- formats -----------------------------------------------------------------------------------------------------------


def test_the_golden_archive_is_read(tmp_path: Path) -> None:
    """Written by the first version of this format; every later one reads it."""
    shutil.copy(GOLDEN, tmp_path / "archive.mdb")
    model = golden_model()
    archive = Archive(tmp_path / "archive.mdb")
    with archive.snapshot() as snapshot:
        assert Reading.of(snapshot, model) == Reading.expected(model)
        assert snapshot.checkpoint == replace(
            model.checkpoint, channels=3, producers=1, ordinal=4, chain=77, term=2, run=3, closed_run=2, unclean_run=1,
            id_next=9, records=10, bytes=11,
        )  # fmt: skip
    archive.close()


def golden_model() -> ArchiveModel:
    model = build_model(1, channels=3, groups=12)
    model.checkpoint = replace(
        model.checkpoint, ordinal=4, chain=77, term=2, run=3, closed_run=2, unclean_run=1, id_next=9, records=10,
        bytes=11,
    )  # fmt: skip
    return model


@pytest.mark.parametrize("form", [0, 2, 2**32 - 1])
def test_an_unknown_format_is_refused(tmp_path: Path, form: int) -> None:
    """Whatever else the row has: a newer version may have made it longer."""
    path = tmp_path / "archive.mdb"
    create_archive(path)
    environment = open_lmdb(path, MAP_BYTES)
    for more in (b"", bytes(100), bytes(200)):
        row = pack_row(CHECKPOINT_KEY, form.to_bytes(4, "little") + more)
        replace_rows_in(environment, {CHECKPOINT_KEY: row})
    environment.close()
    with pytest.raises(StorageError, match=f"archive format {form}") as caught:
        Archive(path)
    assert caught.value.name == "STORAGE_FORMAT"


@pytest.mark.parametrize("value", [None, b"", b"abc", Checkpoint.empty().pack()[:-1], pack_row(CHECKPOINT_KEY, b"")])
def test_a_checkpoint_that_is_not_one(value: bytes | None) -> None:
    with pytest.raises(StorageError):
        Checkpoint.unpack(value, Path("archive.mdb"))


def test_a_checkpoint_of_another_length_is_damage() -> None:
    with pytest.raises(StorageCorrupt, match="105 bytes"):
        Checkpoint.unpack(pack_row(CHECKPOINT_KEY, b"\x01\x00\x00\x00" + bytes(101)), Path("archive.mdb"))


def test_a_checkpoint_survives_its_row() -> None:
    checkpoint = Checkpoint(*range(1, 14))
    assert Checkpoint.unpack(checkpoint.pack(), Path("a")) == checkpoint


# -- damage ------------------------------------------------------------------------------------------------------------


def test_flipped_bits_never_change_an_answer(folder: Path) -> None:
    found = flips(folder, seed=4770, count=250)
    assert found.wrong == []
    assert found.refused > 60
    assert found.unchanged > 20


def test_the_judge_of_flips_can_fail(folder: Path) -> None:
    """A reader that proves nothing is found out."""
    assert flips(folder, seed=4770, count=1000, trusting=True).wrong != []


def damage_of(folder: Path, model: ArchiveModel, rows: dict[bytes, bytes]) -> Archive:
    archive = written(folder, model)
    archive.close()
    environment = open_lmdb(archive.path, MAP_BYTES)
    replace_rows_in(environment, rows)
    environment.close()
    return Archive(archive.path)


def test_damage_is_named(folder: Path) -> None:
    """By file, and by name, channel and sequence, producer or group."""
    model = build_model(2)
    rows = model.rows(400, 200)
    name = next(iter(model.channels.values())).name
    producer = next(iter(model.lines))
    asked: list[tuple[bytes, str, Callable[[Snapshot], object]]] = [
        (b"\x01" + name.encode(), f"the row of the name {name}", lambda s: s.ids([name.encode()])),
        (b"\x02" + bytes(7) + b"\x01", "the row of channel 1", lambda s: s.channels([1])),
        (b"\x03" + producer, f"the row of producer {producer.hex()}", lambda s: s.lines([producer])),
        (b"\x10" + bytes(7) + b"\x01" + bytes(7) + b"\x01", "channel 1 at sequence 1", lambda s: s.chunks(1, 0, 1)),
        (
            min(key for key in rows if key[0] == 0xF0),
            "the index of the groups up to",
            lambda s: s.groups(0, 0, 1, None),
        ),
    ]
    for key, words, ask in asked:
        value = rows[key]
        archive = damage_of(folder, model, rows | {key: value[:-1] + bytes([value[-1] ^ 1])})
        with archive.snapshot() as snapshot, pytest.raises(StorageCorrupt, match=words) as caught:
            ask(snapshot)
        assert str(archive.path) in str(caught.value)
        archive.close()


def in_bus_order(snapshot: Snapshot) -> object:
    return snapshot.groups(0, 0, ALL, {1})


def test_a_missing_chunk_is_named(folder: Path) -> None:
    model = build_model(2)
    rows = model.rows(400, 200)
    of_one = sorted(key for key in rows if key.startswith(b"\x10" + bytes(7) + b"\x01"))
    for gone in (of_one[0], of_one[3], of_one[-1]):
        sequence = int.from_bytes(gone[9:], "big")
        archive = damage_of(folder, model, {key: value for key, value in rows.items() if key != gone})
        with archive.snapshot() as snapshot:
            for ask in [*BOTH_WAYS, in_bus_order]:
                with pytest.raises(StorageCorrupt, match=r"channel 1: sequence \d+ is missing") as caught:
                    ask(snapshot)
                assert model.channels[1].next > int(str(caught.value).split()[-3]) >= sequence
        archive.close()


def test_chunks_that_overlap_are_damage(folder: Path) -> None:
    model = build_model(2)
    rows = model.rows(400, 200)
    first, second = sorted(key for key in rows if key.startswith(b"\x10" + bytes(7) + b"\x01"))[:2]
    begin = int.from_bytes(second[9:], "big")
    items = items_of(rows[first])
    again = chunk_of(1, items[0].epoch, begin - 1, [b"again"] * 3, TIME_US)
    overlapping = {second[:9] + (begin - 1).to_bytes(8, "big"): build_chunk(again)}
    archive = damage_of(folder, model, rows | overlapping)
    with archive.snapshot() as snapshot:
        for ask in BOTH_WAYS:
            with pytest.raises(StorageCorrupt):
                ask(snapshot)
    archive.close()


def test_a_cut_file_is_refused(folder: Path) -> None:
    model = build_model(2)
    archive = written(folder, model)
    archive.close()
    content = archive.path.read_bytes()
    for size in (0, 100, 4096, 8192, len(content) // 2, len(content) - 4096):
        archive.path.write_bytes(content[:size])
        with pytest.raises(StorageCorrupt):
            Archive(archive.path)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (b"\x00cursor", "the row cursor"),
        (b"\x20" + bytes(7) + b"\x05" + b"k", "the row of channel 5 and key 6b"),
        (b"\x77a", "the row 7761"),
        (b"", "the row "),
    ],
)
def test_rows_have_words(key: bytes, words: str) -> None:
    assert describe_key(key) == words
