"""A segment's rows: keys, the seal, and lookups in index pages at their edges."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from broker.log.environment import SYNCS_PER_COMMIT, OpenFiles, create_file
from broker.log.sealer import seal_segment
from broker.log.segment import Link, Seal, Segment, group_key, group_number
from broker.model.errors import StorageError
from broker_native.crc32c import crc32c_of
from broker_native.index import check_group
from tests.reference.chains import Chain

if TYPE_CHECKING:
    from pathlib import Path

MAP_BYTES = 64 * 1024 * 1024
SEAL = Seal(
    first=2,
    predecessor=1,
    previous_chain=3,
    first_time_us=4,
    last=Link(5, 6, 7, 8, 9, 10),
    groups=4,
    id_next=11,
    channels_new=-12,
    producers_new=13,
    unclean_run=14,
    pages=15,
)


@pytest.mark.parametrize("number", [1, 255, 256, 2**32, 2**56 - 1])
def test_keys_sort_as_numbers_and_before_names(number: int) -> None:
    key = group_key(number)
    assert group_number(key) == number
    assert group_key(number - 1) < key < b"filter" < b"index" < b"seal" < b"table"
    assert group_number(b"index678") is None
    assert group_number(b"seal") is None


def test_seal_round_trip_and_damage(tmp_path: Path) -> None:
    packed = SEAL.pack()
    assert Seal.unpack(packed, tmp_path) == SEAL
    for bit in range(len(packed) * 8):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StorageError) as caught:
            Seal.unpack(damaged, tmp_path)
        assert caught.value.name == "STORAGE_CORRUPT"
    with pytest.raises(StorageError):
        Seal.unpack(packed[:-1], tmp_path)


def test_a_newer_seal_is_refused(tmp_path: Path) -> None:
    newer = struct.pack("<I", 3) + SEAL.pack()[8:]
    with pytest.raises(StorageError) as caught:
        Seal.unpack(struct.pack("<I", crc32c_of(newer)) + newer, tmp_path)
    assert caught.value.name == "STORAGE_FORMAT"


def filled(path: Path, chain: Chain, groups: list[list[int]]) -> Segment:
    """Create a segment whose groups have one chunk for each channel named."""
    create_file(path, MAP_BYTES)
    segment = Segment(1, path, MAP_BYTES, OpenFiles(4))
    for channels in groups:
        value = chain.build([(channel, [b"x", b"y"]) for channel in channels])
        segment.append(chain.number, value)
        segment.extend(segment.last, check_group(value), value)
        chain.commit(value)
    return segment


def test_every_lookup_is_the_same_before_and_after_sealing(tmp_path: Path) -> None:
    """Channels whose chunks end, begin and span index pages (818 entries each), and channels that are not there."""
    chain = Chain()
    groups = [[*range(10, 500)], [*range(300, 900)], [5000] * 1, *[[777]] * 900, [*range(10, 900)]]
    segment = filled(tmp_path / "file.seg", chain, groups)
    channels = [1, 9, 10, 299, 300, 301, 499, 500, 776, 777, 778, 899, 900, 5000, 9999]
    afters = [0, 1, 2, 3, 100, 801, 1000, 1799, 1800, 1805, 2**64 - 1]
    questions = [(channel, after, size) for channel in channels for after in afters for size in (0, 5000, 10**9)]
    before = [segment.find(*question) for question in questions]
    assert seal_segment(segment, lambda: None) == 1 + SYNCS_PER_COMMIT
    assert segment.sealed
    assert [segment.find(*question) for question in questions] == before
    for channel in channels:
        assert segment.cut(channel, segment.find(channel, 0, 10**9)) == chain.channel(channel)
    seal = segment.read_seal()
    assert seal is not None
    assert (seal.first, seal.last.number, seal.groups, seal.pages > 3) == (1, chain.last, len(groups), True)
    segment.file.close()


def test_groups_past_the_last_good_one_are_not_seen(tmp_path: Path) -> None:
    chain = Chain()
    segment = filled(tmp_path / "file.seg", chain, [[1], [1, 2]])
    segment.append(3, chain.build([(1, [b"void"])]))
    with segment.file.reading() as transaction:
        assert [number for number, _ in segment.groups_from(transaction, 0)] == [1, 2]
    seal_segment(segment, lambda: None)
    with segment.file.reading() as transaction:
        assert [number for number, _ in segment.groups_from(transaction, 2)] == [2]
        assert transaction.get(group_key(3)) is not None
    assert segment.cut(1, segment.find(1, 0, 10**9)) == chain.channel(1)
    segment.file.close()


def test_a_group_that_is_gone_is_corruption(tmp_path: Path) -> None:
    chain = Chain()
    segment = filled(tmp_path / "file.seg", chain, [[1], [1]])
    places = segment.find(1, 0, 10**9)
    with segment.file.writing() as environment, environment.begin(write=True) as transaction:
        assert transaction.delete(group_key(2))
    with pytest.raises(StorageError) as caught:
        segment.cut(1, places)
    assert caught.value.name == "STORAGE_CORRUPT"
    with pytest.raises(StorageError) as caught:
        seal_segment(segment, lambda: None)
    assert caught.value.name == "STORAGE_CORRUPT"
    assert not segment.sealed
    segment.file.close()


def test_appending_backwards_is_a_mistake(tmp_path: Path) -> None:
    chain = Chain()
    segment = filled(tmp_path / "file.seg", chain, [[1]])
    with pytest.raises(AssertionError):
        segment.append(1, chain.build())
    segment.file.close()


def test_what_a_segment_has_nothing_of_is_told_without_opening_it(tmp_path: Path) -> None:
    chain = Chain()
    filled(tmp_path / "0000000000000001.seg", chain, [[1, 2, 3]]).file.close()
    segment = Segment(1, tmp_path / "0000000000000001.seg", MAP_BYTES, OpenFiles(4))
    for value in chain.values.values():
        segment.extend(segment.last, check_group(value), value)
    seal_segment(segment, lambda: None)
    segment.file.close()
    assert segment.find(10**9, 0, 10**9) == []
    assert segment.file._tree is None
    (place,) = segment.find(1, 0, 10**9)
    assert segment.file._tree is not None
    assert len(segment.cut(1, [place])) == 1
    # LMDB may see none of a file's pages before all of them are proved.
    assert segment.file._environment is None
    assert segment.file.close_if_idle()
    assert segment.file._tree is None
    segment.file.close()
