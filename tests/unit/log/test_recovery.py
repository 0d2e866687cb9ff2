"""Starting: replay, seals that were cut short, leftovers, and every kind of damage."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import lmdb
import pytest

from broker.log import Log, recovery, sealer, segment
from broker.log.care import judge
from broker.log.environment import create_file, open_lmdb
from broker.log.segment import INDEX_KEY, SEAL_KEY, group_key
from broker.model.errors import StorageError
from tests.reference.chains import Chain
from tests.reference.groups import Entry, close_entry, run_entry
from tests.unit.log.support import KIB, Opened, opened, segment_files

if TYPE_CHECKING:
    from pathlib import Path


MAP_BYTES = 64 * 1024 * KIB


def filled(path: Path, groups: int = 120) -> Chain:
    """Fill a log until it has several sealed segments, and close it."""
    chain = Chain()
    with opened(path) as one:
        one.fill(chain, groups)
        assert one.log.wait_sealed(10)
        assert one.log.stats()["sealed"] >= 2
    return chain


def edit(file: Path, key: bytes, value: bytes | None) -> None:
    """Replace or delete one row of a segment behind the log's back."""
    environment = open_lmdb(file, MAP_BYTES)
    with environment.begin(write=True) as transaction:
        if value is None:
            assert transaction.delete(key)
        else:
            transaction.put(key, value)
    environment.close()


def row(file: Path, key: bytes) -> bytes:
    environment = open_lmdb(file, MAP_BYTES, locks=False, readonly=True)
    with environment.begin() as transaction:
        value = transaction.get(key)
    environment.close()
    assert value is not None
    return value


def refusal(path: Path) -> StorageError:
    """Return the error of recovering a log, which must not hold the directory afterwards."""
    log = Log.open(path, reserve_bytes=0)
    try:
        with pytest.raises(StorageError) as caught:
            log.recover()
    finally:
        log.close()
    Log.open(path, reserve_bytes=0).close()
    return caught.value


def test_a_new_journal_is_empty(tmp_path: Path) -> None:
    with opened(tmp_path) as one:
        recovery = one.recovery
        assert (recovery.group, recovery.chain, recovery.run, recovery.clean) == (0, 0, 0, True)
        assert one.all_groups() == []
        assert one.log.read_channel(1, 0, KIB) == []
        assert one.log.time_to_group(0) == 1
        assert one.log.last_group == 0


def test_what_sealed_and_unsealed_segments_hold_is_found(tmp_path: Path) -> None:
    chain = filled(tmp_path)
    with opened(tmp_path) as one:
        assert one.tables == chain.tables()
        assert one.recovery.group == chain.last
        assert one.recovery.chain == chain.last_chain
        assert one.recovery.time_us == chain.time_us
        assert 0 < one.recovery.groups < 60
        assert one.all_groups() == chain.bus()
        one.fill(chain, 50)
        assert one.all_groups() == chain.bus()


def test_the_end_of_a_run_is_known(tmp_path: Path) -> None:
    chain = Chain(run=3)
    with opened(tmp_path) as one:
        one.append(chain, entries=[run_entry(3, True)])
        one.append(chain, [(1, [b"x"])])
    with opened(tmp_path) as one:
        assert (one.recovery.run, one.recovery.clean) == (3, False)
        one.append(chain, entries=[close_entry(3)])
    with opened(tmp_path) as one:
        assert (one.recovery.run, one.recovery.clean) == (3, True)
        one.append(chain, [(1, [b"x"])])
    with opened(tmp_path) as one:
        assert not one.recovery.clean


def test_the_end_of_a_run_is_known_from_a_seal(tmp_path: Path) -> None:
    chain = Chain(run=3)
    with opened(tmp_path) as one:
        one.append(chain, [(1, [bytes(60 * KIB)])])
        one.append(chain, [(1, [bytes(10 * KIB)])], [close_entry(3)])
        fence = chain.fence()
        assert one.log._journal is not None
        one.log._journal._active()  # leaves the full one without an append, as a crash would
        assert one.log.wait_sealed(10)
        del fence
    with opened(tmp_path) as one:
        assert (one.recovery.run, one.recovery.clean, one.recovery.groups) == (3, True, 0)


def test_a_seal_that_was_cut_short_is_replayed_and_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain()
    with monkeypatch.context() as patch:
        patch.setattr(sealer, "seal_segment", lambda *_: (_ for _ in ()).throw(lmdb.DiskError("mdb_txn_commit")))
        with opened(tmp_path) as one:
            one.fill(chain, 120)
            assert one.log.stats()["seal_backlog"] >= 2
    with opened(tmp_path) as one:
        assert one.recovery.groups == 120
        assert one.tables == chain.tables()
        assert one.log.wait_sealed(10)
        assert one.log.stats()["sealed"] >= 2
        assert one.all_groups() == chain.bus()
    with opened(tmp_path) as one:
        assert one.recovery.groups < 60
        assert one.tables == chain.tables()


@pytest.mark.parametrize("transactions", [1, 2, 4])
@pytest.mark.parametrize("rotated", [False, True])
def test_a_seal_that_was_cut_between_two_transactions_is_replayed_and_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transactions: int, rotated: bool
) -> None:
    """What it left stands behind the groups: nothing may be appended there, however small the segment is."""
    chain = Chain()
    left = [transactions]
    put_rows = segment._put_rows

    def cut_short(*arguments: Any) -> tuple[bool, int]:
        left[0] -= 1
        if left[0] < 0:
            raise lmdb.DiskError("mdb_txn_commit")
        return put_rows(*arguments)

    monkeypatch.setattr(segment, "SEAL_BYTES_AT_ONCE", 1)
    with monkeypatch.context() as patch:
        patch.setattr(segment, "_put_rows", cut_short)
        with opened(tmp_path) as one:
            one.fill(chain, 3 if rotated else 50)
            if rotated:
                one.log._journal.rotate()  # type: ignore[union-attr]
            assert not one.log.wait_sealed(0.3)
            assert one.log.stats()["seal_backlog"] == 1
    assert not [fault for fault in judge(tmp_path, lambda *_: None).faults if fault.mendable]
    for _ in range(2):
        with opened(tmp_path) as one:
            assert one.tables == chain.tables()
            assert one.all_groups() == chain.bus()
            one.fill(chain, 2)
            assert one.log.wait_sealed(10)
            assert one.log.stats()["sealed"] == 1
            assert one.log.stats()["seal_backlog"] == 0
        assert not [fault for fault in judge(tmp_path, lambda *_: None).faults if fault.mendable]


def test_leftovers_are_removed_and_a_ready_segment_is_used(tmp_path: Path) -> None:
    chain = filled(tmp_path)
    files = segment_files(tmp_path)
    folder = tmp_path / "journal"
    for name in ("00000000000000aa.seg.new", "00000000000000aa.seg.new-lock", "00000000000000ab.seg-lock"):
        (folder / name).write_bytes(b"half")
    with opened(tmp_path) as one:
        assert segment_files(tmp_path) == files
        assert not [name for name in folder.iterdir() if "aa" in name.name or "ab" in name.name]
        one.fill(chain, 40)
        assert one.log._journal is not None
        assert one.log._journal.segments[-1].path in (files[-1], folder / f"{len(files) + 1:016x}.seg")
        assert one.all_groups() == chain.bus()


def test_empty_segments_do_not_pile_up(tmp_path: Path) -> None:
    chain = filled(tmp_path)
    for ordinal in range(50, 54):
        create_file(tmp_path / "journal" / f"{ordinal:016x}.seg", MAP_BYTES)
    with opened(tmp_path) as one:
        # Those with groups, and the one that is ready.
        assert len(segment_files(tmp_path)) == one.log.stats()["segments"] + 1
        one.fill(chain, 120)
        assert one.all_groups() == chain.bus()
    with opened(tmp_path) as one:
        assert one.all_groups() == chain.bus()


def test_an_active_segment_that_never_got_a_group(tmp_path: Path) -> None:
    """Killed after going to a fresh segment, when the full one was sealed already."""
    chain = filled(tmp_path)
    with opened(tmp_path) as one:
        while one.log.stats()["segments"] < 5:
            one.fill(chain, 1)
        assert one.log._journal is not None
        one.log._journal._segment_bytes = 1
        one.log._journal._active()
        assert one.log.wait_sealed(10)
        assert one.log.stats()["sealed"] == 5
    with opened(tmp_path) as one:
        assert one.recovery.groups == 0
        assert one.recovery.group == chain.last
        one.fill(chain, 3)
        assert one.all_groups() == chain.bus()


def test_recovery_happens_once(tmp_path: Path) -> None:
    with opened(tmp_path) as one, pytest.raises(ValueError, match="recovered"):
        one.log.recover()


# --- Damage -------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_a_chunk_names_its_place(tmp_path: Path) -> None:
    chain = filled(tmp_path)
    number = chain.last
    file = next(file for file in reversed(segment_files(tmp_path)) if file.stat().st_size > 20 * KIB)
    value = bytearray(chain.values[number])
    value[-20] ^= 4
    edit(file, group_key(number), bytes(value))
    error = refusal(tmp_path)
    assert error.name == "STORAGE_CORRUPT"
    channel = chain.chunks[-1][2].channel
    for part in (str(file), "chunk checksum", f"group {number}", "offset", f"channel {channel}"):
        assert part in error.detail


def test_a_flipped_bit_in_a_sealed_chunk_is_found_by_its_reader(tmp_path: Path) -> None:
    chain = filled(tmp_path)
    file = segment_files(tmp_path)[0]
    value = bytearray(chain.values[5])
    value[-20] ^= 4
    edit(file, group_key(5), bytes(value))
    channel = chain.channel(next(chunk.channel for number, index, chunk in chain.chunks if (number, index) == (5, 2)))
    with opened(tmp_path) as one:
        with pytest.raises(StorageError, match="group 5"):
            one.all_groups()
        with pytest.raises(StorageError, match="group 5"):
            one.log.read_channel(int.from_bytes(channel[0][2][8:16], "little"), 0, 1 << 30)
        # Others are untouched.
        assert one.log.read_groups(6, 0, 10 * KIB, None)[0]


def test_a_cut_file_is_an_error_and_not_a_signal(tmp_path: Path) -> None:
    filled(tmp_path / "whole")
    for position in (0, -2):
        for cut in (20_000, 40_000):
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")
            file = segment_files(tmp_path / "cut")[position]
            file.write_bytes(file.read_bytes()[:-cut])
            error = refusal(tmp_path / "cut")
            assert (error.name, "cut" in error.detail) == ("STORAGE_CORRUPT", True)
            shutil.rmtree(tmp_path / "cut")


def test_an_emptied_file_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    filled(tmp_path)
    segment_files(tmp_path)[-2].write_bytes(b"")
    assert refusal(tmp_path).name == "STORAGE_CORRUPT"


@pytest.mark.parametrize("position", [0, 1])
def test_a_missing_segment_breaks_the_chain(tmp_path: Path, position: int) -> None:
    filled(tmp_path)
    segment_files(tmp_path)[position].unlink()
    error = refusal(tmp_path)
    assert error.name == "STORAGE_CORRUPT"
    assert "missing" in error.detail


def test_a_missing_group_breaks_the_chain(tmp_path: Path) -> None:
    chain = filled(tmp_path)
    file = next(file for file in reversed(segment_files(tmp_path)) if file.stat().st_size > 20 * KIB)
    edit(file, group_key(chain.last - 1), None)
    assert refusal(tmp_path).name == "STORAGE_CORRUPT"


def test_a_group_under_another_number(tmp_path: Path) -> None:
    chain = filled(tmp_path)
    file = next(file for file in reversed(segment_files(tmp_path)) if file.stat().st_size > 20 * KIB)
    edit(file, group_key(chain.last + 1), chain.values[chain.last])
    error = refusal(tmp_path)
    assert "says that it is group" in error.detail


def test_a_damaged_seal(tmp_path: Path) -> None:
    filled(tmp_path)
    file = segment_files(tmp_path)[0]
    value = bytearray(row(file, SEAL_KEY))
    value[len(value) // 2] ^= 1
    edit(file, SEAL_KEY, bytes(value))
    error = refusal(tmp_path)
    assert error.name == "STORAGE_CORRUPT"
    assert str(file) in error.detail


def test_a_damaged_index_page(tmp_path: Path) -> None:
    chain = filled(tmp_path)
    file = segment_files(tmp_path)[0]
    environment = open_lmdb(file, MAP_BYTES)
    with environment.begin(write=True) as transaction:
        cursor = transaction.cursor()
        assert cursor.set_range(INDEX_KEY)
        key, value = cursor.key(), bytearray(cursor.value())
        value[100] ^= 1
        transaction.put(key, bytes(value))
    environment.close()
    with opened(tmp_path) as one:
        with pytest.raises(StorageError) as caught:
            one.log.read_channel(1, 0, KIB)
        assert caught.value.name == "STORAGE_CORRUPT"
        assert one.all_groups() == chain.bus()


def test_rows_of_a_newer_version(tmp_path: Path) -> None:
    filled(tmp_path)
    file = next(file for file in reversed(segment_files(tmp_path)) if file.stat().st_size > 20 * KIB)
    edit(file, b"zzz", b"new")
    assert "unknown row" in refusal(tmp_path).detail


def test_an_entry_of_a_newer_version(tmp_path: Path) -> None:
    chain = filled(tmp_path)
    with opened(tmp_path) as one:
        one.append(chain, [(1, [b"x"])], [Entry(99, b"future", 0)])
    error = refusal(tmp_path)
    assert error.name == "STORAGE_FORMAT"
    assert f"group {chain.last}" in error.detail


def test_a_start_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    """In the same process, while its error is still held: nothing stays open behind it."""
    chain = filled(tmp_path)
    file = segment_files(tmp_path)[1]
    content = file.read_bytes()
    errors = []
    for damaged in (content[:-1], b"", content.replace(b"\x00seal", b"\x00sxal")):
        file.write_bytes(damaged)
        errors.append(refusal(tmp_path))
        file.write_bytes(content)
        with opened(tmp_path) as one:
            assert one.all_groups() == chain.bus()
    assert [error.name for error in errors] == ["STORAGE_CORRUPT"] * 3


def test_damage_in_one_log_leaves_another_alone(tmp_path: Path) -> None:
    filled(tmp_path / "bad")
    chain = filled(tmp_path / "good")
    segment_files(tmp_path / "bad")[0].write_bytes(b"")
    with opened(tmp_path / "good") as one:
        refusal(tmp_path / "bad")
        assert Opened is type(one)
        assert one.all_groups() == chain.bus()


def test_a_large_unsealed_segment_is_sealed_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in it is then found in its file, and memory is free of it; a small one is gone on with."""
    chain = Chain()
    with opened(tmp_path, 1000 * KIB) as one:
        one.fill(chain, 60)
        assert one.log.wait_sealed(10)
        assert one.log.stats()["sealed"] == 0
    with opened(tmp_path, 1000 * KIB) as one:
        assert one.log.wait_sealed(10)
        assert one.log.stats()["sealed"] == 0
    monkeypatch.setattr(recovery, "RESUMED_BYTES_MAX", KIB)
    for _ in range(2):
        with opened(tmp_path, 1000 * KIB) as one:
            assert one.log.wait_sealed(10)
            assert one.log.stats()["sealed"] == 1
            assert one.recovery.group == chain.last
            assert one.tables == chain.tables()
            assert one.all_groups() == chain.bus()
    with opened(tmp_path, 1000 * KIB) as one:
        one.fill(chain, 1)
        assert one.all_groups() == chain.bus()


def test_without_a_segment_that_is_ready_a_large_one_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making another may need room that there is not; a start needs none."""
    monkeypatch.setattr(recovery, "RESUMED_BYTES_MAX", KIB)
    chain = Chain()
    with opened(tmp_path, 1000 * KIB) as one:
        one.fill(chain, 60)
    *_, ready = segment_files(tmp_path)
    ready.unlink()
    with opened(tmp_path, 1000 * KIB) as one:
        assert one.log.stats()["sealed"] == 0
        assert one.all_groups() == chain.bus()
