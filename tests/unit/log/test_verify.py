"""Verification names every planted fault with its place, goes on behind it, and finds nothing where nothing is."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from broker.log.care import judge
from broker.log.environment import open_lmdb
from broker.log.segment import group_key
from broker.model.errors import BrokerError
from tests.reference.chains import EPOCH, Chain
from tests.reference.groups import channel_entry, epoch_entry
from tests.unit.log.support import opened, segment_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from broker.log.verify import Fault, Report
    from tests.reference.groups import Entry

MIB = 1024 * 1024
CHANNELS = range(1, 8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A journal of two sealed segments, an active one and one that is ready; 61 groups, seven channels."""
    path = tmp_path / "data"
    with opened(path) as one:
        chain = Chain()
        born = [entry for channel in CHANNELS for entry in (channel_entry(channel, f"c.{channel}"), epoch(channel))]
        one.append(chain, entries=born)
        one.fill(chain, 60, payload_bytes=900)
        assert one.log.wait_sealed(10)
    assert len(segment_files(path)) == 4
    return path


def epoch(channel: int) -> Entry:
    return epoch_entry(channel, EPOCH, 1)


def look(path: Path) -> Report:
    return judge(path, lambda done, total: None)


def change_row(path: Path, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Change a row of a segment the way LMDB would, so that the file's structure stays right."""
    environment = open_lmdb(path, 64 * MIB, locks=False)
    with environment.begin(write=True) as transaction:
        found = transaction.get(key)
        assert found is not None
        value = change(found)
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, value)
    environment.close()


def flip_at(at: int) -> Callable[[bytes], bytes]:
    return lambda value: value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]


def test_what_is_good_has_no_fault(data: Path) -> None:
    told: list[tuple[int, int]] = []
    report = judge(data, lambda done, total: told.append((done, total)))
    assert report.faults == []
    assert (report.groups, report.chunks, report.last_group) == (61, 180, 61)
    assert report.records == 360
    assert told[-1] == (report.bytes, report.bytes)


def test_a_flipped_payload_is_named_by_channel_and_position(data: Path) -> None:
    first = segment_files(data)[0]
    # Group 3 holds channels 4, 7 and 2; the first chunk is channel 4's second one.
    change_row(first, group_key(3), flip_at(96 + 56 + 50))
    report = look(data)
    fault = report.faults[0]
    assert fault.file == "journal/0000000000000001.seg"
    assert fault.what == "chunk checksum is wrong"
    assert (fault.group, fault.channel, fault.epoch) == (3, "c.4", EPOCH)
    assert (fault.first, fault.last) == (3, 4)
    assert not fault.mendable
    assert gaps(report) >= {("c.4", 3, 4)}


def gaps(report: Report) -> set[tuple[str, int, int]]:
    return {(fault.channel, fault.first, fault.last) for fault in report.faults if "missing" in fault.what}


def test_a_missing_group_shows_in_the_chain_and_in_its_channels(data: Path) -> None:
    change_row(segment_files(data)[0], group_key(5), lambda value: None)
    report = look(data)
    assert any(fault.group == 6 and "follows group 5" in fault.what for fault in report.faults)
    channels = {f"c.{5 * step % 7 + 1}" for step in (1, 2, 5)}
    assert {channel for channel, _, _ in gaps(report)} == channels
    # It went on: all other groups were taken.
    assert report.groups == 60


def test_sequences_at_the_end_of_a_segment_are_known_from_its_delta(data: Path) -> None:
    first = segment_files(data)[0]
    with_groups = look(data).groups
    environment = open_lmdb(first, 64 * MIB, locks=False)
    with environment.begin() as transaction:
        last = max(int.from_bytes(key, "big") for key in transaction.cursor().iternext(values=False) if len(key) == 8)
    environment.close()
    change_row(first, group_key(last), lambda value: None)
    report = look(data)
    assert report.groups == with_groups - 1
    ends = [fault for fault in report.faults if "end of this segment" in fault.what]
    assert {fault.channel for fault in ends} == {f"c.{last * step % 7 + 1}" for step in (1, 2, 5)}


@pytest.mark.parametrize("name", ["filter", "line", "name", "rest", "seal", "table"])
def test_a_wrong_row_of_the_seal_can_be_mended(data: Path, name: str) -> None:
    key = name.encode()
    change_row(segment_files(data)[1], key, flip_at(20))
    (fault,) = look(data).faults
    assert fault.file == "journal/0000000000000002.seg"
    assert fault.what.startswith(f"{name}: ")
    assert fault.mendable


def test_an_index_page_that_says_something_else_is_found(data: Path) -> None:
    path = segment_files(data)[0]
    environment = open_lmdb(path, 64 * MIB, locks=False)
    with environment.begin() as transaction:
        (key,) = [key for key in transaction.cursor().iternext(values=False) if key.startswith(b"index")]
    environment.close()
    change_row(path, key, flip_at(60))
    (fault,) = look(data).faults
    assert fault.what == "index: is not what the groups come to"
    assert fault.mendable


def test_a_damaged_page_costs_what_is_below_it_and_no_more(data: Path) -> None:
    path = segment_files(data)[2]
    content = bytearray(path.read_bytes())
    leaves = [at for at in range(8192, len(content), 4096) if content[at + 10 : at + 12] == b"\2\0"]
    for at in leaves:
        content[at + 12] ^= 1
    path.write_bytes(content)
    report = look(data)
    assert any("header of page" in fault.what and fault.offset in leaves for fault in report.faults)
    assert {fault.file for fault in report.faults} == {f"journal/{path.name}"}


def test_a_page_with_a_hole_is_named_as_it_is_refused(data: Path) -> None:
    """A free space that seems to end sooner: all rows are still reached, but a reader takes the hole for a lost row."""
    path = segment_files(data)[1]
    whole = path.read_bytes()
    refused: list[int] = []
    for at in range(8192, len(whole), 4096):
        number, _, flags, lower, upper = struct.unpack_from("<QHHHH", whole, at)
        # A flip of this bit leaves the page's nodes where they are, and their offsets within it.
        if number != at // 4096 or flags != 2 or not upper & 512 or upper - 512 < lower:
            continue
        path.write_bytes(whole[: at + 15] + bytes([whole[at + 15] ^ 2]) + whole[at + 16 :])
        faults = look(data).faults
        try:
            with opened(data) as one:
                one.all_groups()
                for channel in CHANNELS:
                    one.all_of_channel(channel)
        except BrokerError:
            refused.append(at)
        path.write_bytes(whole)
        assert at not in refused or (f"journal/{path.name}", at) in {(fault.file, fault.offset) for fault in faults}
    assert refused


def test_a_cut_file_costs_its_groups(data: Path) -> None:
    path = segment_files(data)[0]
    with path.open("r+b") as file:
        file.truncate(3 * 4096)
    faults = look(data).faults
    assert faults[0].file == "journal/0000000000000001.seg"
    assert "is cut" in faults[0].what
    assert faults[0].cost == "no group of this file can be read"
    assert any("was never created" in fault.what for fault in faults)


def test_the_format_file_is_judged_too(data: Path) -> None:
    (data / "format").write_text("broker data 1\njournal 00\n")
    (fault,) = look(data).faults
    assert fault.file == "format"


def test_a_group_that_was_given_up_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "data"
    chain = Chain()
    with opened(path) as one:
        one.append(chain, [(1, [b"a"])], [channel_entry(1, "c.1"), epoch(1)])
        failed = chain.build([(1, [b"void"])])
        one.log._ready().segments[-1].append(chain.number, failed)
        one.log._ready()._failed = True
        one.log.abandon()
        one.append(chain, [(1, [b"b"])])
    report = look(path)
    assert report.faults == []
    assert report.groups == 2


def test_a_directory_in_use_or_of_others_is_refused(data: Path, tmp_path: Path) -> None:
    with opened(data), pytest.raises(BrokerError, match="STORAGE_IN_USE"):
        look(data)
    (tmp_path / "other").mkdir()
    with pytest.raises(BrokerError, match="STORAGE_FORMAT"):
        look(tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_faults_have_different_places(data: Path) -> None:
    """Two damages in two files: both are named."""
    change_row(segment_files(data)[0], group_key(3), flip_at(300))
    change_row(segment_files(data)[2], group_key(61), flip_at(300))
    faults: list[Fault] = look(data).faults
    assert {3, 61} <= {fault.group for fault in faults}
