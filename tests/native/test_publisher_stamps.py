"""Records that say who has published them: the same as without that, but for the one field."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_native.lines import Line
from broker_native.publisher import CODES, Publisher
from broker_native.tails import Tails
from tests.reference.frames import Record, build_record, publish_body, records_of
from tests.reference.groups import parse_group

NOW_US = 1_000_000_000
RECORDS = st.lists(
    st.builds(
        Record,
        payload=st.binary(max_size=40),
        priority=st.none() | st.integers(0, 3),
        expiry_s=st.none() | st.integers(1, 1000),
        key=st.none() | st.binary(min_size=1, max_size=20),
        headers=st.none() | st.binary(min_size=1, max_size=20),
        id=st.none() | st.sampled_from([b"a", b"b", b"c"]),
    ),
    min_size=1,
    max_size=12,
)


def publish(records: list[Record], user: bytes | None, *, stamps: bool) -> list[tuple[list[Record], int]]:
    """Return the records of the chunks that come of it, and when the first of each expires."""
    tails = Tails(1, 4770)
    tails.now_us = NOW_US
    tails.set_ids(0, 60, 100)
    tails.set_stamps(0, stamps)
    tails.load(b"s.x", 3, 2, 1 << 20)
    publisher = Publisher(tails, Line(bytes(16)), None, 1 << 16)
    if user is not None:
        publisher.sign(user)
    publisher.bind(0, b"s.x")
    assert publisher.publish_frame(publish_body(0, 1, [build_record(each) for each in records])) == 0
    tails.close_turn()
    value, _ = tails.close_group(0, 0, 0, 0, NOW_US)
    return [(records_of(chunk), chunk.expiry_s) for chunk in parse_group(value).chunks]


@settings(deadline=None)
@given(RECORDS, st.binary(min_size=1, max_size=255))
def test_a_stamp_is_one_field_more(records: list[Record], user: bytes) -> None:
    plain = publish(records, None, stamps=True)
    assert publish(records, user, stamps=False) == plain
    stamped = publish(records, user, stamps=True)
    assert [each for part, _ in stamped for each in part] == [
        replace(each, publisher=user) for part, _ in plain for each in part
    ]
    assert min(expiry or 1 << 62 for _, expiry in stamped) == min(expiry or 1 << 62 for _, expiry in plain)


@settings(deadline=None)
@given(RECORDS, st.binary(min_size=1, max_size=255))
def test_records_for_later_get_the_same_stamp(records: list[Record], user: bytes) -> None:
    tails = Tails(1, 4770)
    tails.load(b"s.x", 3, 2, 1 << 20)
    publisher = Publisher(tails, Line(bytes(16)), None, 1 << 16)
    publisher.bind(0, b"s.x")
    body = publish_body(0, 1, [build_record(each) for each in records])
    assert (publisher.stamps, publisher.stamp_all(0, body, 16)) == (False, body)
    publisher.sign(user)
    assert (publisher.stamps, publisher.stamp_all(0, body, 16)) == (True, body)
    tails.set_stamps(0, True)
    expected = publish_body(0, 1, [build_record(replace(each, publisher=user)) for each in records])
    assert publisher.stamp_all(0, body, 16) == expected
    own = Publisher(tails, Line(), None, 1 << 16)
    own.is_own = True
    own.bind(0, b"s.x")
    assert own.publish_frame(expected) == 0, "the broker itself may store what was stamped before"


@pytest.mark.parametrize("own", [False, True])
def test_nobody_but_the_broker_writes_a_publisher(own: bool) -> None:
    tails = Tails(1, 4770)
    tails.load(b"s.x", 3, 2, 1 << 20)
    publisher = Publisher(tails, Line(), None, 1 << 16)
    publisher.is_own = own
    publisher.bind(0, b"s.x")
    good = build_record(Record(b"x", publisher=b"ada", priority=1))
    wrong = [
        build_record(Record(b"", publisher=b"")),
        build_record(Record(b""), flags=1),
        good[:12] + b"\xff" + good[13:],
        build_record(Record(b"", publisher=b"ada"), flags=5),
    ]
    invalid = CODES["INVALID_RECORD"]
    for record in wrong:
        assert publisher.publish_frame(publish_body(0, 1, [record])) == invalid
    assert publisher.publish_frame(publish_body(0, 1, [good])) == (0 if own else invalid)
