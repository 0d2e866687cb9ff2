"""What one reader has received of one channel: against a plain twin, and each fault that it must not miss."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.model.errors import error
from broker_native.driver import payload_of
from broker_native.histogram import Histogram
from broker_native.messages import Batch, FrameReader
from broker_native.readings import PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_MIN, PUBLISHERS_MAX, Reading, stamped
from tests.reference.driver import Ledger
from tests.reference.server import chunk

if TYPE_CHECKING:
    from collections.abc import Sequence

CHANNEL = 7
BYTES = 40
DUE_NS = 1000
NOW_NS = 2000
GONE = struct.pack("<IHHIB3xI", 20, 1 << 15, 0, 0, 2, 1)


def record(payload: bytes) -> bytes:
    return struct.pack("<IHHI", 12 + len(payload), 0, 0, 0) + payload


def batch_of(payloads: Sequence[bytes], first: int = 1, epoch: int = 5) -> Batch:
    """Return a batch as a client would have it."""
    data = chunk(99, epoch, first, [record(payload) for payload in payloads])
    [batch] = FrameReader(error, 1 << 20).chunks(data, "channel")
    return batch


def message(publisher: int, counter: int, channel: int = CHANNEL, size: int = BYTES) -> bytes:
    return payload_of(publisher, counter, DUE_NS, channel, size)


def reading_of(*batches: Sequence[bytes], after: int = 0) -> Reading:
    """Return a reading that was given batches, one behind the other."""
    reading = Reading(channel=CHANNEL, payload_bytes=BYTES, after=after)
    first = after + 1
    for payloads in batches:
        assert reading.take(batch_of(payloads, first), NOW_NS) == len(payloads)
        first += len(payloads)
    return reading


def counts(reading: Reading) -> tuple[int, ...]:
    return reading.received, reading.missing, reading.duplicated, reading.reordered, reading.corrupt


@pytest.mark.parametrize("size", [PAYLOAD_BYTES_MIN, BYTES, PAYLOAD_BYTES_MAX])
def test_a_window_is_what_a_driver_would_send(size: int) -> None:
    made = stamped(3, publisher=2, counter=9, time_ns=DUE_NS, channel=CHANNEL, payload_bytes=size)
    assert made == [message(2, counter, size=size) for counter in (9, 10, 11)]


@pytest.mark.parametrize("options", [{"publisher": PUBLISHERS_MAX}, {"payload_bytes": 23}, {"payload_bytes": 65537}])
def test_a_window_out_of_range_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="got"):
        stamped(1, **{"publisher": 0, "counter": 0, "time_ns": 0, "channel": 0, "payload_bytes": 24, **options})


@pytest.mark.parametrize("size", [PAYLOAD_BYTES_MIN - 1, PAYLOAD_BYTES_MAX + 1])
def test_a_reading_of_payloads_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="payload: got"):
        Reading(channel=CHANNEL, payload_bytes=size)


def test_all_is_well() -> None:
    reading = reading_of([message(1, 4), message(1, 5), message(2, 0)], [message(1, 6), message(2, 1)], after=3)
    assert counts(reading) == (5, 0, 0, 0, 0)
    assert (reading.taken, reading.publishers, reading.misplaced, reading.ahead) == (5, 2, 0, 0)
    assert (reading.after, reading.sequence, reading.epoch) == (3, 8, 5)


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ([0, 1, 3], (3, 1, 0, 0, 0)),
        ([0, 1, 1], (2, 0, 1, 0, 0)),
        ([0, 2, 1], (3, 0, 0, 1, 0)),
        ([0, 3, 1, 1], (3, 1, 1, 1, 0)),
        ([5, 4], (1, 0, 1, 0, 0)),
    ],
    ids=["gap", "again", "late", "all of them", "before the first"],
)
def test_faults_of_order_are_seen(counters: list[int], expected: tuple[int, ...]) -> None:
    assert counts(reading_of([message(1, counter) for counter in counters])) == expected


@pytest.mark.parametrize("at", range(BYTES))
def test_no_byte_may_change(at: int) -> None:
    wrong = bytearray(message(1, 1))
    wrong[at] ^= 1
    reading = reading_of([message(1, 0), bytes(wrong), message(1, 2)])
    assert reading.corrupt == 1
    # One that cannot be told apart is missing; one whose stamp is whole takes its place.
    assert reading.missing == (at < PAYLOAD_BYTES_MIN)
    assert reading.received == 3 - (at < PAYLOAD_BYTES_MIN)


@pytest.mark.parametrize(
    "wrong", [message(1, 1, channel=CHANNEL + 1), message(1, 1, size=BYTES + 1), b"", b"short"], ids=len
)
def test_what_belongs_elsewhere_is_seen(wrong: bytes) -> None:
    assert counts(reading_of([message(1, 0), wrong])) == (1, 0, 0, 0, 1)


def test_batches_must_follow_in_sequence() -> None:
    reading = Reading(channel=CHANNEL, payload_bytes=BYTES, after=3)
    reading.take(batch_of([message(1, 0)], 5), NOW_NS)
    assert reading.misplaced == 1
    reading.take(batch_of([message(1, 1)], 6, epoch=6), NOW_NS)
    assert reading.misplaced == 2


def test_what_is_gone_is_no_message_and_does_not_go_unseen() -> None:
    data = chunk(99, 5, 1, [record(message(1, 0)), GONE, record(message(1, 2))])
    [batch] = FrameReader(error, 1 << 20).chunks(data, "channel")
    reading = Reading(channel=CHANNEL, payload_bytes=BYTES)
    assert reading.take(batch, NOW_NS) == 2
    assert (reading.misplaced, reading.missing, reading.sequence) == (1, 1, 3)


def test_latency_counts_from_when_a_message_was_due() -> None:
    reading, latency = Reading(channel=CHANNEL, payload_bytes=BYTES), Histogram()
    reading.take(batch_of([message(1, 0), message(1, 1)]), NOW_NS, latency)
    assert (latency.count, latency.max) == (2, NOW_NS - DUE_NS)
    reading.take(batch_of([message(1, 2)], 3), NOW_NS, latency, DUE_NS + 1)
    assert latency.count == 2
    assert reading.ahead == 0
    reading.take(batch_of([message(1, 3)], 4), DUE_NS - 1, latency)
    assert (reading.ahead, latency.count, latency.min) == (1, 3, 0)


def test_very_many_publishers_are_told_apart() -> None:
    publishers = [*range(0, PUBLISHERS_MAX, 97), PUBLISHERS_MAX - 1]
    rounds = [[message(publisher, counter) for publisher in publishers] for counter in (0, 1)]
    reading = reading_of(*rounds)
    assert counts(reading) == (2 * len(publishers), 0, 0, 0, 0)
    assert reading.publishers == len(publishers)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=60), st.integers(1, 7))
def test_readings_count_as_their_twin_does(sent: list[tuple[int, int]], size: int) -> None:
    flows: dict[int, Ledger] = {}
    for publisher, counter in sent:
        flows.setdefault(publisher, Ledger(next=counter)).take(counter)
    messages = [message(publisher, counter) for publisher, counter in sent]
    reading = reading_of(*(messages[at : at + size] for at in range(0, len(messages), size)))
    duplicated = sum(flow.duplicated for flow in flows.values())
    assert counts(reading) == (
        len(sent) - duplicated,
        sum(len(flow.missing) for flow in flows.values()),
        duplicated,
        sum(flow.reordered for flow in flows.values()),
        0,
    )
