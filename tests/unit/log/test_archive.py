"""`broker.log.archive`: the file, its formats, snapshots beside a writer, and what becomes of damage.

What a snapshot answers is judged in tests/native/test_archive_answers.py.
"""

from __future__ import annotations

import shutil
import threading
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import pytest

from broker.log.archive import Archive, Checkpoint, Snapshot, create_archive
from broker.log.archive_rows import CHECKPOINT_KEY, describe_key
from broker.log.environment import close_shared, open_lmdb, open_shared
from broker.model.errors import BrokerError, StorageCorrupt, StorageError
from broker_native.rows import pack_row
from tests.reference.archive import MAP_BYTES, ArchiveModel, replace_rows_in
from tests.reference.chunks import items_of
from tests.reference.groups import Group, chunk_of
from tests.unit.log.archive_flips import Reading, build_model, flips, raw_questions

if TYPE_CHECKING:
    from collections.abc import Callable

TIME_US = 1_767_225_600_000_000
ALL = 1 << 40
GOLDEN = Path(__file__).parent / "data" / "archive-1.mdb"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "archive").mkdir()
    return tmp_path / "archive"


def written(folder: Path, model: ArchiveModel, row_bytes: int = 16368, index_bytes: int = 16368) -> Archive:
    """Return an archive that holds what a model holds."""
    path = folder / "archive.mdb"
    for file in folder.iterdir():
        file.unlink()
    model.write(path, row_bytes, index_bytes)
    return Archive(path)


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
                    items_of(chunks[-1])[-1].sequence if chunks else 0
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
