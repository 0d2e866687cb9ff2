"""Replies framed for who has asked, against frames that Python builds record by record."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker_native.lines import Line
from broker_native.publisher import CODES, Publisher
from broker_native.replies import reply_frame
from broker_native.tails import Tails
from tests.reference.frames import DELIVER, DELIVER_HEADER, Record, build_frame, build_record
from tests.reference.groups import Chunk, build_chunk

TIME_US = 1_767_225_600_123_456
PAYLOAD_BYTES_MAX = 100
HEADERS_BYTES_MAX = 20

payloads = st.binary(max_size=PAYLOAD_BYTES_MAX)
records = st.builds(
    Record,
    payloads,
    time_us=st.integers(0, 2**32 - 1),
    priority=st.none() | st.integers(0, 3),
    expiry_s=st.none() | st.integers(1, 2**32 - 1),
    key=st.none() | st.binary(min_size=1, max_size=255),
    headers=st.none() | st.binary(min_size=1, max_size=HEADERS_BYTES_MAX),
)


def publisher() -> Publisher:
    return Publisher(Tails(1, 4770), Line(), None, HEADERS_BYTES_MAX)


def framed(packed: bytes, count: int, number: int = 1, prefix: bytes = b"") -> bytes | int:
    return reply_frame(publisher(), prefix + packed, len(prefix), number, count, TIME_US, PAYLOAD_BYTES_MAX)


@given(
    replies=st.lists(records, min_size=1, max_size=20),
    number=st.sampled_from([1, 2, 2**32 - 1, 2**32, 2**64 - 21]),
    prefix=st.binary(max_size=40),
)
def test_same_as_twin(replies: list[Record], number: int, prefix: bytes) -> None:
    made = framed(b"".join(map(build_record, replies)), len(replies), number, prefix)
    expiries = [TIME_US // 1_000_000 + reply.expiry_s for reply in replies if reply.expiry_s]
    body = b"".join(build_record(replace(reply, time_us=0)) for reply in replies)
    chunk = Chunk(0, 0, number, len(replies), body, TIME_US, min(expiries, default=0))
    assert made == build_frame(DELIVER, DELIVER_HEADER.pack(0, 0, 0) + build_chunk(chunk))


@pytest.mark.parametrize(
    ("packed", "count", "code"),
    [
        (b"", 1, "INVALID_RECORD"),
        (build_record(Record(b"x")), 2, "INVALID_RECORD"),
        (build_record(Record(b"x")) * 2, 1, "INVALID_RECORD"),
        (build_record(Record(b"x"))[:-1], 1, "INVALID_RECORD"),
        (struct.pack("<IHHI", 11, 0, 0, 0), 1, "INVALID_RECORD"),
        (struct.pack("<IHHI", 12, 0, 1, 0), 1, "INVALID_RECORD"),
        (struct.pack("<IHHI", 12, 0x8000, 0, 0), 1, "INVALID_RECORD"),
        (build_record(Record(bytes(PAYLOAD_BYTES_MAX + 1))), 1, "PAYLOAD_TOO_LARGE"),
        (build_record(Record(b"", headers=bytes(HEADERS_BYTES_MAX + 1))), 1, "HEADERS_TOO_LARGE"),
    ],
)
def test_what_is_wrong_is_refused(packed: bytes, count: int, code: str) -> None:
    assert framed(packed, count) == CODES[code]


@pytest.mark.parametrize("at", [-1, 14, 2**31])
def test_records_begin_in_the_body(at: int) -> None:
    with pytest.raises(ValueError, match="the body has 13 bytes"):
        reply_frame(publisher(), build_record(Record(b"x")), at, 1, 1, TIME_US, PAYLOAD_BYTES_MAX)
