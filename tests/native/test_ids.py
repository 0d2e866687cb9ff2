"""The table of ids against a list, at every size at which something in it changes, and what it takes of memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.ids import Ids
from tests.reference import ids as twin
from tests.reference.frames import GONE, Record, build_record
from tests.reference.groups import Chunk, build_chunk

IDS = [b"%d" % number for number in range(40)]
STEPS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(IDS), st.integers(1, 3), st.integers(0, 2)),
    st.tuples(st.just("take_back"), st.integers(0, 20)),
    st.tuples(st.just("expire"), st.integers(0, 4), st.integers(0, 30)),
)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), steps=st.lists(STEPS, max_size=150))
def test_same_as_twin(seed: int, steps: list[tuple[str, int, int, int]]) -> None:
    native, plain = Ids(seed), twin.Ids()
    sequence, time_s = 0, 100
    for step, *values in steps:
        if step == "add":
            id, more, later = values
            sequence += more
            time_s += later
            native.add(id, sequence, time_s)  # type: ignore[arg-type]
            plain.add(id, sequence, time_s)  # type: ignore[arg-type]
        elif step == "take_back":
            count = min(values[0], len(plain))
            native.take_back(count)
            plain.take_back(count)
        else:
            since_s, first = time_s - values[0], max(sequence - values[1], 0)
            native.expire(since_s, first)
            plain.expire(since_s, first)
        assert len(native) == len(plain)
        assert [native.find(id) for id in IDS] == [plain.find(id) for id in IDS]


@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1_023, 1_024, 1_025, 10_000])
def test_a_window_that_moves_on(size: int) -> None:
    """What is in the window is found, and nothing else, while it moves on over three times its size."""
    native = Ids(random.Random(size).getrandbits(64))
    for sequence in range(1, 4 * size + 1):
        native.add(b"id-%d" % sequence, sequence, sequence)
        native.expire(0, max(sequence - size + 1, 0))
        assert len(native) == min(sequence, size)
        assert native.find(b"id-%d" % sequence) == sequence
        oldest = max(sequence - size + 1, 1)
        assert native.find(b"id-%d" % oldest) == oldest
        assert native.find(b"id-%d" % (oldest - 1)) == 0
    assert all(native.find(b"id-%d" % sequence) == sequence for sequence in range(3 * size + 1, 4 * size + 1))


def test_a_million_ids_take_few_bytes_each() -> None:
    native, count = Ids(4770), 1_000_000
    for sequence in range(1, count + 1):
        native.add(b"order-%d" % sequence, sequence, 1)
    assert native.memory_bytes <= 64 * count
    full = native.memory_bytes
    for sequence in range(count + 1, count + 200_001):
        native.expire(0, sequence - count + 1)
        native.add(b"order-%d" % sequence, sequence, 1)
    assert native.memory_bytes <= full + 4_096, "a window that moves on takes no more"
    native.expire(2, 0)
    assert (len(native), native.find(b"order-7")) == (0, 0)
    assert native.memory_bytes < full // 2


def test_ids_of_a_chunk() -> None:
    records = [
        Record(b"a", id=b"one"),
        Record(b"b"),
        Record(gone=(1, 5)),
        Record(b"c", time_us=3_000_000, priority=1, expiry_s=9, key=b"k", headers=b"\x80", id=b"i" * 64),
        Record(b"", publisher=b"me", number=7, id=b"last"),
    ]
    packed = b"".join(map(build_record, records))
    chunk = build_chunk(Chunk(1, 2, 10, 9, packed, 5_000_000, 0))
    native = Ids(1)
    native.take(chunk, 0, 100)
    assert [native.find(id) for id in (b"one", b"i" * 64, b"last", b"")] == [10, 17, 18, 0]
    native.expire(6, 0)
    assert len(native) == 2, "that of the first second is gone"
    part = Ids(1)
    part.take(chunk, 11, 18)
    assert [part.find(id) for id in (b"one", b"i" * 64, b"last")] == [0, 17, 0]


@pytest.mark.parametrize(
    "packed",
    [
        b"\0" * 11,
        build_record(Record(b"x"), size=11),
        build_record(Record(b"x"), size=14),
        build_record(Record(b""), flags=GONE),
        build_record(Record(b""), flags=0x40),
        build_record(Record(b"\x05abcd"), flags=0x40),
        build_record(Record(b"\xff\xff"), flags=0x40 | 0x20),
        build_record(Record(b"\xff\xff"), flags=0x40 | 0x10),
        build_record(Record(b"\xff"), flags=0x40 | 0x01),
        build_record(Record(b"abc"), flags=0x40 | 0x08),
    ],
)
def test_a_damaged_record_is_told(packed: bytes) -> None:
    chunk = build_chunk(Chunk(1, 2, 10, 1, packed, 0, 0))
    with pytest.raises(ValueError, match="not well formed"):
        Ids(1).take(chunk, 0, 100)


def test_what_is_no_chunk_is_told() -> None:
    for data in (b"", b"\0" * 56, build_chunk(Chunk(1, 2, 10, 0, b"", 0, 0))[:-1]):
        with pytest.raises(ValueError, match="chunk: got"):
            Ids(1).take(data, 0, 100)


def test_more_than_there_is_cannot_be_taken_back() -> None:
    native = Ids(1)
    native.add(b"a", 1, 1)
    with pytest.raises(ValueError, match="there are 1"):
        native.take_back(2)


@pytest.mark.parametrize("window", [9, 32, 100])
def test_one_bucket_is_never_empty(window: int) -> None:
    """One id comes again and again, so that others find its bucket full, and leave it while it is."""
    native, plain = Ids(4770), twin.Ids()
    for sequence in range(1, 3_000):
        id = b"again" if sequence % 3 else b"id-%d" % sequence
        native.add(id, sequence, 1)
        plain.add(id, sequence, 1)
        if sequence % 97 == 0:
            native.take_back(5)
            plain.take_back(5)
        first = max(sequence - window, 0)
        native.expire(0, first)
        plain.expire(0, first)
        looked = [b"again", *(b"id-%d" % number for number in range(max(first - 9, 0), sequence + 2))]
        assert [native.find(id) for id in looked] == [plain.find(id) for id in looked]
