"""Verification of an archive: what a writer leaves is good, every planted fault is named, and a backup holds it."""

from __future__ import annotations

import random
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from broker.log import backup
from broker.log.archive_rows import Checkpoint
from broker.log.archiver import ArchiveWriter, Stopped, archive_path
from broker.log.backup import ArchiveCopy, Copier
from broker.log.care import judge
from broker.log.durable import make_folder
from broker.log.environment import close_shared, create_file, open_lmdb, open_shared
from broker.log.segment import group_key
from broker.log.slice import SLICE_KEY
from broker.log.verify import Verifier
from broker.model.errors import BrokerError
from broker_native.rows import pack_row
from tests.reference.archive import MAP_BYTES, ArchiveModel
from tests.reference.chains import EPOCH, Chain
from tests.reference.groups import Group, channel_entry, chunk_of, drop_entry, epoch_entry
from tests.unit.log.support import opened, segment_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.log.verify import Report
    from tests.reference.groups import Entry

CHANNELS = range(1, 30)
GROUPS = 200


def model() -> ArchiveModel:
    """Return an archive of some channels, one of them trimmed, one without a record."""
    chance, made = random.Random(3), ArchiveModel()
    for channel in CHANNELS:
        made.create(channel, f"c.{channel}")
    made.create(99, "empty")
    for number in range(1, GROUPS + 1):
        picked = sorted(chance.sample(CHANNELS, 3))
        chunks = [
            chunk_of(channel, 1 << 40 | 1, made.channels[channel].next, [b"x" * 100] * 3, number) for channel in picked
        ]
        made.commit(Group(number, number - 1, chunks=tuple(chunks), time_us=number))
    made.line(b"p" * 16, 5, [(1, 1, 5)])
    made.trim(3, 4)
    kept = [state.rows(1000) for state in made.channels.values()]
    records = sum(sum(int.from_bytes(row[32:36], "little") for row in rows) for rows in kept)
    size = sum(len(row) for rows in kept for row in rows)
    made.checkpoint = Checkpoint(records=records, bytes=size, group=GROUPS)
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_folder(tmp_path / "archive")
    make_folder(tmp_path / "journal")
    create_file(tmp_path / "archive" / "archive.mdb", MAP_BYTES)
    model().write(tmp_path / "archive" / "archive.mdb", row_bytes=1000, index_bytes=500)
    return tmp_path


def look(path: Path) -> Report:
    verifier = Verifier(path, backup=True)
    report = verifier.run()
    verifier.close()
    return report


def change(data: Path, pick: Callable[[bytes], bool], do: Callable[[bytes], bytes | None]) -> bytes:
    """Change the first row that is picked; return its key."""
    environment = open_lmdb(data / "archive" / "archive.mdb", MAP_BYTES, locks=False)
    with environment.begin(write=True) as transaction:
        key = next(key for key in transaction.cursor().iternext(values=False) if pick(key))
        value = transaction.get(key)
        assert value is not None
        changed = do(value)
        if changed is None:
            transaction.delete(key)
        else:
            transaction.put(key, changed)
    environment.close()
    return key


def flipped(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


def test_what_a_writer_leaves_is_good(data: Path) -> None:
    report = look(data)
    assert report.faults == []
    assert report.groups == report.last_group == GROUPS


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (0x00, "checkpoint is missing or its checksum"),
        (0x01, "the row of the name c.1: its checksum is wrong"),
        (0x02, "the row of channel 1: its checksum is wrong"),
        (0x03, "its checksum is wrong"),
        (0x10, "a chunk is not what was written"),
        (0xF0, "its checksum is wrong"),
    ],
)
def test_a_damaged_row_is_named(kind: int, what: str, data: Path) -> None:
    change(data, lambda key: key[0] == kind, flipped)
    assert any(what in fault.what for fault in look(data).faults)


def test_a_missing_chunk_is_named_with_its_positions(data: Path) -> None:
    key = change(data, lambda key: key[0] == 0x10 and key[9:17] != (1).to_bytes(8, "big"), lambda value: None)
    first = int.from_bytes(key[9:17], "big")
    fault = next(fault for fault in look(data).faults if fault.first == first)
    assert fault.channel == f"c.{int.from_bytes(key[1:9], 'big')}"
    assert "missing" in fault.what


@pytest.mark.parametrize(("kind", "what"), [(0x01, "its name does not lead to it"), (0x02, "has no row")])
def test_a_missing_row_of_a_channel_is_named(kind: int, what: str, data: Path) -> None:
    change(data, lambda key: key[0] == kind, lambda value: None)
    assert any(what in fault.what for fault in look(data).faults)


def test_a_wrong_count_is_named(data: Path) -> None:
    change(data, lambda key: key[0] == 0x03, lambda value: None)
    (fault,) = look(data).faults
    assert "the checkpoint counts" in fault.what


def test_a_copy_is_the_snapshot_whatever_is_written_meanwhile(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits between two pieces of the copy: it is what there was at the beginning."""
    monkeypatch.setattr(backup, "PIECE_BYTES", 16 * 1024)
    path, target = data / "archive" / "archive.mdb", tmp_path / "copy"
    writer: Any = None
    written = 0

    def between(done: int, total: int) -> None:
        nonlocal written
        with writer.begin(write=True) as transaction:
            for number in range(20):
                transaction.put(b"\xf8%d %d" % (written, number), b"w" * 1500)
        written += 1

    with ArchiveCopy.begin(path) as copy:
        writer = open_shared(path, MAP_BYTES)
        with Copier(target, copy.size, between) as copier:
            copier.folder("archive")
            copier.folder("journal")
            between(0, 0)
            copier.copy(copy, "archive/archive.mdb")
        close_shared(path)
    assert written >= 4
    assert look(target).faults == []
    assert any("unknown row" in fault.what for fault in look(data).faults)


def test_a_copy_is_begun_anew_when_two_commits_overtake_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot's meta page is another one's after two commits; the next snapshot may be luckier."""
    path = data / "archive" / "archive.mdb"
    find_meta, looks = ArchiveCopy._find_meta, 0

    def overtaken(copy: ArchiveCopy, path: Path, transaction: int) -> bool:
        nonlocal looks
        looks += 1
        if looks <= overtakes:
            for number in range(2):
                with writer.begin(write=True) as writing:
                    writing.put(b"\xf8%d %d" % (looks, number), b"w")
        return find_meta(copy, path, transaction)

    monkeypatch.setattr(ArchiveCopy, "_find_meta", overtaken)
    writer = open_shared(path, MAP_BYTES)
    overtakes = 2
    with ArchiveCopy.begin(path) as copy:
        assert (looks, copy.ordinal) == (3, 0)
        assert copy.size
    overtakes = 1 << 30
    with pytest.raises(BrokerError, match="BUSY"), ArchiveCopy.begin(path):
        pass
    close_shared(path)


def slices_with_a_removal(path: Path) -> None:
    """Make an archive of one segment, behind it a slice that was cut short when it had removed a channel."""
    with opened(path) as one:
        chain = Chain()
        born = [entry for channel in (1, 2) for entry in (channel_entry(channel, f"c.{channel}"), epoch(channel))]
        for entries in (born, []):
            one.append(chain, [(1, [b"1" * 500]), (2, [b"2" * 500])], entries)
            one.log.rotate()
        one.append(chain, [], [drop_entry(1)])
        one.log.rotate()
        assert one.log.wait_sealed(10)
    files = segment_files(path)
    with closing(ArchiveWriter(archive_path(path), transaction_bytes=1)) as writer:
        writer.archive(files[:1], lambda: None)
        with pytest.raises(Stopped):
            writer.archive(files[1:3], stop)
        assert writer.begun_ordinal == 3


def epoch(channel: int) -> Entry:
    return epoch_entry(channel, EPOCH, 1)


def stop() -> None:
    raise Stopped


def test_a_channel_that_a_slice_which_was_cut_short_has_removed_is_no_fault(tmp_path: Path) -> None:
    slices_with_a_removal(tmp_path)
    archive = archive_path(tmp_path)
    environment = open_lmdb(archive, MAP_BYTES, locks=False)
    with environment.begin() as transaction:
        assert transaction.get(b"\x01c.1") is None
        assert transaction.get(b"\x01c.2") is not None
    environment.close()
    assert judge(tmp_path, lambda done, total: None).faults == []


def test_a_channel_that_is_not_removed_further_on_is_one(tmp_path: Path) -> None:
    """The same, but for the removal: the group that holds it is not there."""
    slices_with_a_removal(tmp_path)
    path = segment_files(tmp_path)[2]
    environment = open_lmdb(path, MAP_BYTES, locks=False)
    with environment.begin(write=True) as transaction:
        assert transaction.delete(group_key(3))
    environment.close()
    faults = judge(tmp_path, lambda done, total: None).faults
    assert [fault.group for fault in faults if fault.what == "a chunk's channel was never created"] == [2]


def test_a_note_of_a_slice_that_says_nothing_is_named(data: Path) -> None:
    environment = open_lmdb(data / "archive" / "archive.mdb", MAP_BYTES, locks=False)
    with environment.begin(write=True) as transaction:
        transaction.put(SLICE_KEY, pack_row(SLICE_KEY, b"short"))
    environment.close()
    assert any("the row slice" in fault.what for fault in look(data).faults)
